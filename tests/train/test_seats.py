"""The host and the device meet a fixed number of times in a round, however many clients come and go."""

import warnings
from functools import partial

import pytest
import torch
from torch.overrides import TorchFunctionMode

from fedsim.algorithms import fednova, fedprox
from fedsim.config import LocalConfig, ServerConfig
from fedsim.models import logistic, mlp
from fedsim.simulation import Simulation
from fedsim.train.seats import Seated
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer

# Each waits for the device, or sends it something that lies on the host.
MEETINGS = {"tensor", "as_tensor", "from_numpy", "new_tensor", "item", "tolist", "cpu", "numpy", "to", "__bool__"}
CASES = {
    "plain": (logistic, {}, partial(VectorizedTrainer, num_slots=3)),
    "factored": (partial(mlp, hidden_sizes=(600, 400)), {}, partial(VectorizedTrainer, num_slots=3)),
    "hooked": (logistic, {"algorithm": fedprox(0.1)}, partial(VectorizedTrainer, num_slots=3)),
    "sums": (logistic, {"algorithm": fednova()}, partial(VectorizedTrainer, num_slots=3)),
    "serial": (logistic, {}, partial(SerialTrainer, cuda_graphs=False)),
}


class Meetings(TorchFunctionMode):
    """Counts calls that meet the device or, on a CPU, would meet one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        # a change of type stays where it is, and what a library measures of a shape is no number of the device's
        if name in MEETINGS and not (name == "to" and all(isinstance(a, torch.dtype) for a in args[1:])):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def build(make_dataset, case, num_clients, device):
    model, settings, trainer = CASES[case]
    dataset = make_dataset([20 + i for i in range(num_clients)], shape=(300,))
    return Simulation(
        dataset,
        model,
        local=LocalConfig(batch_size=5, learning_rate=0.01, momentum=0.5),
        server=ServerConfig(num_rounds=3, clients_per_round=num_clients),
        trainer=trainer,
        device=device,
        **settings,
    )


@pytest.mark.parametrize("case", CASES)
def test_the_number_of_meetings_does_not_depend_on_the_clients(make_dataset, case):
    found = []
    for num_clients in (6, 12):
        simulation = build(make_dataset, case, num_clients, "cpu")
        simulation.server.run_round()  # traces the step, and looks at the data
        with Meetings() as meetings:
            simulation.server.run_round()
        found.append(sorted(meetings.seen))
    assert found[0] == found[1]
    assert found[0], "a round ends with numbers for the host"


class NumbersToPlaces(TorchFunctionMode):
    """Counts numbers that are written to places which a tensor names: a GPU waits until it has the number."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") == "__setitem__" and not isinstance(args[2], torch.Tensor):
            where = args[1] if isinstance(args[1], tuple) else (args[1],)
            self.seen += any(isinstance(place, torch.Tensor) for place in where)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES)
def test_no_number_goes_to_a_place_that_a_tensor_names(make_dataset, case, monkeypatch):
    places, real = [], Seated.place.fget
    monkeypatch.setattr(Seated, "place", property(lambda self: places.append(real(self)) or places[-1]))
    model, settings, trainer = CASES[case]
    simulation = Simulation(
        make_dataset([6, 40, 9, 31, 7, 22, 5, 18, 12, 38, 6, 6], shape=(300,)),
        model,
        local=LocalConfig(batch_size=5, learning_rate=0.01, momentum=0.5),
        server=ServerConfig(num_rounds=1, clients_per_round=12),
        trainer=trainer,
        device="cpu",
        **settings,
    )
    with NumbersToPlaces() as numbers:
        simulation.server.run_round()
    assert numbers.seen == 0
    if case != "serial":
        assert any(isinstance(place, torch.Tensor) for place in places), "some clients come to slots apart"


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_cuda_is_waited_for_a_fixed_number_of_times(make_dataset, case):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    waits = []
    for num_clients in (6, 12):
        simulation = build(make_dataset, case, num_clients, "cuda")
        for _ in range(2):
            simulation.server.run_round()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                simulation.server.run_round()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchroniz" in str(w.message) for w in caught))
    assert waits[0] == waits[1]
