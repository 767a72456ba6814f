"""Steps as graphs do what the same steps do as they are: here with a stand-in for the graph, on a GPU with a real one.

The stand-in repeats the function that was captured, and gives back the same tensor every time: it finds a step that
reads something that does not stay in its place.
"""

from functools import partial

import pytest
import torch

import fedsim.train.serial as serial_module
import fedsim.train.vectorized as vectorized_module
from fedsim.algorithms import fedprox
from fedsim.config import LocalConfig, ScheduleConfig, ServerConfig
from fedsim.models import convnet2, leaf_cnn, logistic
from fedsim.simulation import Simulation
from fedsim.train.graphs import GraphedSlots, GraphedStep, StepGraphs, find_capture
from fedsim.train.precision import products
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer

SIZES = [7, 23, 10, 1, 31, 16, 40, 3, 12]
LOCALS = {
    "plain": LocalConfig(batch_size=8, learning_rate=0.05),
    "rich": LocalConfig(
        batch_size=5, num_epochs=2, learning_rate=0.05, momentum=0.9, weight_decay=1e-2, max_gradient_norm=0.5
    ),
    "schedule": LocalConfig(batch_size=6, learning_rate=0.1, schedule=ScheduleConfig(kind="step", every=2)),
}
MODELS = {
    "logistic": logistic,
    "cnn": partial(leaf_cnn, hidden_size=64),
    "batch_norm": partial(convnet2, hidden_size=32),
}


class Repeat:
    """Work that is repeated as it was captured."""

    captured = replayed = 0

    def warm_up(self, run):
        return run()

    def capture(self, run):
        self.captured += 1
        kept = []

        def replay():
            self.replayed += 1
            found = run()
            if not kept:
                kept.append(found)
            kept[0].copy_(found)
            return kept[0]

        return replay


def simulate(dataset, model, local, trainer, device="cpu", rounds=4, **settings):
    simulation = Simulation(
        dataset,
        model,
        local=local,
        server=ServerConfig(num_rounds=rounds, clients_per_round=7, evaluate_every=0),
        trainer=trainer,
        device=device,
        **settings,
    )
    losses = [simulation.server.run_round()["train_loss"] for _ in range(rounds)]
    return simulation.server.vector, losses, simulation


@pytest.mark.parametrize("local", LOCALS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("num_slots", [0, 1, 3, 6])
def test_graphs_change_nothing(make_dataset, monkeypatch, model, local, num_slots):
    dataset = make_dataset(SIZES, shape=(1, 8, 8))
    arguments = (dataset, MODELS[model], LOCALS[local])
    trainer = partial(VectorizedTrainer, num_slots=num_slots, factor=False) if num_slots else SerialTrainer
    expected, losses, _ = simulate(*arguments, trainer)
    repeat = Repeat()
    for module in (serial_module, vectorized_module):
        monkeypatch.setattr(module, "find_capture", lambda *_, **__: repeat)
    vector, found, _ = simulate(*arguments, trainer)
    assert repeat.captured < repeat.replayed
    assert found == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(vector, expected, rtol=1e-5, atol=1e-6)


def test_a_client_that_has_finished_is_not_moved_by_the_slots_beside_it(make_dataset, monkeypatch):
    """Three slots are computed as four: momentum and weight decay would move a client that still sits in one."""
    dataset = make_dataset([30, 29, 28, 5, 4], shape=(1, 8, 8))
    local = LOCALS["rich"]
    trainer = partial(VectorizedTrainer, num_slots=5)
    monkeypatch.setattr(vectorized_module, "find_capture", lambda *_, **__: Repeat())
    settings = {"server": ServerConfig(num_rounds=1, clients_per_round=5, evaluate_every=0), "local": local}
    graphed = Simulation(dataset, logistic, trainer=trainer, device="cpu", **settings)
    serial = Simulation(dataset, logistic, trainer=partial(SerialTrainer, cuda_graphs=False), device="cpu", **settings)
    graphed.server.run_round()
    serial.server.run_round()
    torch.testing.assert_close(graphed.server.vector, serial.server.vector, rtol=1e-5, atol=1e-6)


def test_slots_that_last_are_part_of_the_prediction(make_dataset, monkeypatch):
    """Slots of graphs stay from round to round: the second trial of as many would find them made."""
    dataset = make_dataset(SIZES, shape=(1, 8, 8))
    settings = {"server": ServerConfig(num_rounds=1, clients_per_round=7, evaluate_every=0), "local": LOCALS["rich"]}
    trainer = partial(VectorizedTrainer, num_slots=3, factor=False)
    plain = Simulation(dataset, logistic, trainer=trainer, device="cpu", **settings).footprint()
    monkeypatch.setattr(vectorized_module, "find_capture", lambda *_, **__: Repeat())
    graphed = Simulation(dataset, logistic, trainer=trainer, device="cpu", **settings).footprint()
    assert plain.slot >= 2 * (64 * 4 + 4) * 4, "a model and its momentum"
    # one slot more is one more of each, and its places for a minibatch of five
    assert plain.slot <= graphed.slot <= plain.slot + 5 * (64 * 4 + 8) + 8


def test_fewer_slots_after_a_lack_of_memory_are_made_anew(make_dataset, monkeypatch):
    """Those of before would take what the retry needs."""
    monkeypatch.setattr(vectorized_module, "find_capture", lambda *_, **__: Repeat())
    simulation = Simulation(
        make_dataset(SIZES, shape=(1, 8, 8)),
        logistic,
        local=LOCALS["plain"],
        server=ServerConfig(num_rounds=2, clients_per_round=4, evaluate_every=0),
        trainer=partial(VectorizedTrainer, num_slots=4),
        device="cpu",
    )
    real = VectorizedTrainer._run

    def run(self, plan, broadcast, average):
        if plan.num_slots > 2:
            real(self, plan, broadcast, average)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, plan, broadcast, average)

    monkeypatch.setattr(VectorizedTrainer, "_run", run)
    simulation.server.run_round()
    assert len(simulation.trainer.graphed.state.rows) == 2


def test_graphs_are_refused_where_they_do_not_work(make_dataset):
    dataset = make_dataset(SIZES)
    with pytest.raises(ValueError, match=r"cuda_graphs=true does not work here, since the run is on the cpu"):
        simulate(dataset, logistic, LOCALS["plain"], partial(SerialTrainer, cuda_graphs=True))
    cuda = torch.device("cuda")
    with pytest.raises(ValueError, match="more than plain SGD"):
        find_capture(True, cuda, plain=False, stochastic=False)
    with pytest.raises(ValueError, match="draws random numbers"):
        find_capture(True, cuda, plain=True, stochastic=True)
    assert find_capture(None, cuda, plain=False, stochastic=False) is None
    assert find_capture(False, cuda, plain=True, stochastic=False) is None


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (
            RuntimeError("operation not permitted\nwhen stream is capturing"),
            ValueError,
            r"captured .*\(operation not perm",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError, "out of memory"),
    ],
)
def test_a_step_that_cannot_be_captured_names_the_setting(raised, expected, message):
    """Out of memory stays what it is: the round is tried again with fewer slots."""

    class Broken(Repeat):
        def capture(self, run):
            raise raised

    graphs = StepGraphs(Broken())
    assert graphs("form", lambda: torch.ones(1)).item() == 1.0
    with pytest.raises(expected, match=message):
        graphs("form", lambda: torch.ones(1))


@pytest.mark.parametrize("algorithm", [None, fedprox(proximal_weight=0.1)])
@pytest.mark.parametrize("num_slots", [0, 4])
@pytest.mark.parametrize("model", MODELS)
def test_bf16_is_near_float32_and_not_the_same(make_dataset, model, num_slots, algorithm):
    dataset = make_dataset(SIZES, shape=(1, 8, 8))
    kind = partial(VectorizedTrainer, num_slots=num_slots) if num_slots else SerialTrainer
    found = [
        simulate(dataset, MODELS[model], LOCALS["plain"], partial(kind, precision=precision), algorithm=algorithm)
        for precision in ("float32", "bf16")
    ]
    (exact, losses, _), (rough, rough_losses, _) = found
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() < 0.03 * exact.norm()
    assert rough_losses == pytest.approx(losses, rel=0.05)


def test_a_precision_that_does_not_exist_or_not_here_is_refused(make_dataset):
    dataset = make_dataset(SIZES)
    for precision, message in (("tf32", "tf32 is of NVIDIA GPUs"), ("half", "choose one of float32, tf32, bf16")):
        for kind in (SerialTrainer, VectorizedTrainer):
            with pytest.raises(ValueError, match=message):
                simulate(dataset, logistic, LOCALS["plain"], partial(kind, precision=precision))


@pytest.mark.gpu
@pytest.mark.parametrize("local", LOCALS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("num_slots", [0, 1, 3, 6])
def test_cuda_graphs_change_nothing(make_dataset, model, local, num_slots):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    dataset = make_dataset(SIZES, shape=(1, 8, 8))
    kind = partial(VectorizedTrainer, num_slots=num_slots) if num_slots else SerialTrainer
    vectors = {}
    for graphs in (False, True):
        trainer = partial(kind, cuda_graphs=graphs)
        vectors[graphs], _, simulation = simulate(dataset, MODELS[model], LOCALS[local], trainer, "cuda")
    used = simulation.trainer.graphed if num_slots else simulation.trainer.plain
    assert isinstance(used, (GraphedSlots, GraphedStep))
    assert used.graphs.graphs
    torch.testing.assert_close(vectors[True], vectors[False], rtol=1e-4, atol=1e-5)
    on_cpu, _, _ = simulate(dataset, MODELS[model], LOCALS[local], SerialTrainer, "cpu")
    torch.testing.assert_close(vectors[True].cpu(), on_cpu, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("num_slots", [0, 6])
def test_low_precision_under_graphs_is_near_float32(make_dataset, num_slots, precision):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    dataset = make_dataset(SIZES, shape=(1, 8, 8))
    kind = partial(VectorizedTrainer, num_slots=num_slots) if num_slots else SerialTrainer
    exact, rough = (
        simulate(dataset, MODELS["cnn"], LOCALS["plain"], partial(kind, precision=p), "cuda")[0]
        for p in ("float32", precision)
    )
    assert (rough - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize(("precision", "expected"), [("tf32", "tf32"), ("float32", "ieee"), ("bf16", "ieee")])
def test_the_way_of_products_is_put_back(precision, expected):
    """PyTorch keeps these settings without a GPU, too."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [place.fp32_precision for place in places]
    with products(precision, torch.device("cuda")):
        assert [place.fp32_precision for place in places] == [expected] * 3
    assert [place.fp32_precision for place in places] == before
