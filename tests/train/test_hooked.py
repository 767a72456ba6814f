"""What an algorithm's hooks can ask for gives the same in every trainer, survives a resume, and nothing after an error.

`everything` is no algorithm that anyone would want: it uses each part of the contract once.
"""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from fedsim.algorithms.base import Algorithm, Kept
from fedsim.checkpoint import Checkpoint
from fedsim.config import LocalConfig, ServerConfig
from fedsim.models import convnet2, mlp
from fedsim.simulation import Simulation
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer

SIZES = [7, 23, 10, 1, 31, 16, 40, 3, 12]
LOCAL = LocalConfig(batch_size=5, num_epochs=2, learning_rate=0.05, momentum=0.9, weight_decay=1e-2)
MODELS = {"mlp": partial(mlp, hidden_sizes=(16,)), "batch_norm": partial(convnet2, hidden_size=16)}


def survey() -> Algorithm:
    def step(clients):
        loss, gradient = clients.loss_and_gradient(clients.start)
        share = clients.counts / clients.samples
        clients.vectors["gradient"] += share * gradient
        clients.vectors["initial_loss"] += share * loss

    def server_step(vector, mean, state, round):
        return state | {"gradient": round.sums["gradient"].to(vector.dtype)}

    return Algorithm(
        name="survey",
        step=step,
        works={"gradient": "parameters"},
        finish=lambda clients, update: {"gradient": clients.vectors["gradient"]},
        sums={"gradient": "parameters"},
        server_step=server_step,
    )


def everything() -> Algorithm:
    def begin(clients):
        clients.vectors["anchor"].copy_(clients.model * 0.5 + clients.vectors["control"])

    def step(clients):
        gradient = clients.gradient() - clients.vectors["control"] + 0.1 * clients.server["gradient"]
        first, second = clients.gradient("own", (0, 2)), clients.gradient("own", (1, 2))
        perturbed = clients.gradient(clients.model + 0.01 * gradient)
        clients.descend(gradient + 0.1 * perturbed, only=clients.taken < 0.6 * clients.steps)
        clients.descend(first + 0.5 * second, "own", learning_rate=0.02)
        clients.descend(clients.vectors["anchor"] - clients.start, "anchor", optimizer="other")

    def finish(clients, update):
        change = update[:, : clients.model.shape[1]] / (clients.steps * clients.learning_rate) - clients.server["mean"]
        clients.vectors["control"] -= 0.1 * change
        update += 0.01
        return {
            "change": change + clients.vectors["anchor"],
            "steps": clients.steps * clients.vectors["initial_loss"] * clients.vectors["own"].square().mean(1, True),
        }

    def server_step(vector, mean, state, round):
        assert len(round.sums["change"]) == round.num_parameters
        vector[: round.num_parameters] += mean[: round.num_parameters] * round.share * round.sums["steps"]
        vector[round.num_parameters :] += mean[round.num_parameters :]
        return state | {"mean": (0.1 * round.sums["change"]).to(vector.dtype)}

    return Algorithm(
        name="everything",
        begin=begin,
        step=step,
        finish=finish,
        keeps={"control": Kept(), "own": Kept(size="model", start="model"), "initial_loss": Kept(size=1)},
        works={"anchor": "parameters"},
        sums={"change": "parameters", "steps": 1},
        broadcast={"mean": "parameters", "gradient": "parameters"},
        weights=lambda clients, samples, server: np.sqrt(samples) + clients,
        prelude=survey(),
        server_init=lambda vector, setup: {
            name: torch.zeros_like(vector[: setup.num_parameters]) for name in ("mean", "gradient")
        },
        server_step=server_step,
    )


def personal_head() -> Algorithm:
    """The last layer stays with its client."""

    def personal(model):
        mask = torch.zeros(model.layout.size, dtype=torch.bool)
        for entry in model.layout.parameters[-2:]:
            mask[entry.start : entry.stop] = True
        return mask

    return Algorithm(name="personal_head", personal=personal, keeps={"personal": Kept(size="personal", start="model")})


@pytest.fixture
def double(make_dataset):
    dataset = make_dataset(SIZES, shape=(1, 8, 8))

    def convert(split):
        return dataclasses.replace(split, inputs=split.inputs.double())

    return dataclasses.replace(dataset, train=convert(dataset.train), test=convert(dataset.test))


def build(dataset, factory, algorithm, trainer, local=LOCAL, **server):
    return Simulation(
        dataset,
        lambda shape, classes: factory(shape, classes).to(dataset.train.inputs.dtype),
        local=local,
        algorithm=algorithm,
        server=ServerConfig(num_rounds=4, clients_per_round=6, evaluate_every=0, **server),
        trainer=trainer,
        seed=1,
        device="cpu",
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("algorithm", [everything, personal_head])
def test_every_hook_gives_the_same_for_any_number_of_slots(double, name, algorithm):
    serial = build(double, MODELS[name], algorithm(), SerialTrainer)
    losses = [serial.server.run_round()["train_loss"] for _ in range(3)]
    kept = serial.trainer.clients
    for num_slots in (1, 4):
        other = build(double, MODELS[name], algorithm(), partial(VectorizedTrainer, num_slots=num_slots))
        assert [other.server.run_round()["train_loss"] for _ in range(3)] == pytest.approx(losses, rel=1e-9)
        torch.testing.assert_close(other.server.vector, serial.server.vector, atol=1e-9, rtol=1e-8)
        for key, tensor in serial.server.state.items():
            torch.testing.assert_close(other.server.state[key], tensor, atol=1e-9, rtol=1e-8)
        found = other.trainer.clients
        assert found.written.tolist() == kept.written.tolist()
        torch.testing.assert_close(found.read(found.written), kept.read(kept.written), atol=1e-9, rtol=1e-8)


def test_the_serial_result_does_not_depend_on_the_order_of_clients(double, monkeypatch):
    """Longest first is a plan for slots; serially any order must give the same bits."""
    import fedsim.transport.inprocess as inprocess

    real = inprocess.make_plan
    one = build(double, MODELS["mlp"], everything(), SerialTrainer)
    for _ in range(3):
        one.server.run_round()

    def backwards(*args, **kwargs):
        plan = real(*args, **kwargs)
        clients = {n: getattr(plan, n)[::-1].copy() for n in ("clients", "weights", "slot", "start", "steps")}
        return dataclasses.replace(plan, **clients)

    monkeypatch.setattr(inprocess, "make_plan", backwards)
    two = build(double, MODELS["mlp"], everything(), SerialTrainer)
    for _ in range(3):
        two.server.run_round()
    assert torch.equal(one.server.vector, two.server.vector)


@pytest.mark.parametrize("trainer", [SerialTrainer, partial(VectorizedTrainer, num_slots=4)])
def test_a_resumed_run_is_bitwise_the_unbroken_one(double, tmp_path, trainer):
    whole, first, second = (build(double, MODELS["mlp"], everything(), trainer) for _ in range(3))
    for _ in range(4):
        whole.server.run_round()
    for _ in range(2):
        first.server.run_round()
    for simulation in (first, second):
        simulation.trainer.clients.locate(tmp_path)
    first.save(tmp_path, {})
    second.restore(Checkpoint.load(tmp_path, "cpu"), {})
    for _ in range(2):
        second.server.run_round()
    assert torch.equal(whole.server.vector, second.server.vector)
    assert all(torch.equal(whole.server.state[k], second.server.state[k]) for k in whole.server.state)
    kept, again = whole.trainer.clients, second.trainer.clients
    assert kept.written.tolist() == again.written.tolist()
    assert torch.equal(kept.read(kept.written), again.read(kept.written))


def test_personal_elements_stay_with_the_client_and_move_no_average(double):
    simulation = build(double, MODELS["mlp"], personal_head(), SerialTrainer)
    before, mask = simulation.server.vector.clone(), simulation.trainer.memory.personal
    simulation.server.run_round()
    assert torch.equal(simulation.server.vector[mask], before[mask])
    assert not torch.equal(simulation.server.vector[~mask], before[~mask])
    kept = simulation.trainer.clients
    rows = kept.read(kept.written)
    assert rows.shape == (6, int(mask.sum()))
    assert (rows - before[mask]).abs().amax(1).min() > 0
    assert (rows[0] - rows[1]).abs().max() > 0


@pytest.mark.parametrize("trainer", [SerialTrainer, partial(VectorizedTrainer, num_slots=2)])
def test_after_an_error_nothing_has_moved(double, trainer):
    simulation = build(double, MODELS["mlp"], everything(), trainer)
    simulation.server.run_round()
    vector, kept = simulation.server.vector.clone(), simulation.trainer.clients
    everyone = np.arange(len(SIZES))
    rows, written = kept.read(everyone), kept.written.tolist()
    state = {k: v.clone() for k, v in simulation.server.state.items()}
    cohort = simulation.server.sampler(1, 2)
    double.train.inputs[double.train.rows(int(cohort[-1]))] = float("nan")
    with pytest.raises(ValueError, match=rf"round 2: the loss of client {cohort[-1]} .* is not finite"):
        simulation.server.run_round()
    assert simulation.server.round == 1
    assert torch.equal(simulation.server.vector, vector)
    assert all(torch.equal(simulation.server.state[k], v) for k, v in state.items() if k != "gradient")
    assert kept.written.tolist() == written
    assert torch.equal(kept.read(everyone), rows)


def test_a_part_of_a_minibatch_without_samples_is_its_first_one(double):
    """A client of 1 sample and m = 2: both parts are that sample. With 5: samples 0, 2, 4 and 1, 3."""
    seen = {}

    def step(clients):
        for part in ((0, 2), (1, 2), None):
            gradient = clients.gradient(part=part)
            seen.update({(int(c), part): g for c, g in zip(clients.clients, gradient, strict=True)})

    local = LocalConfig(batch_size=None, learning_rate=0.0)
    for trainer in (SerialTrainer, partial(VectorizedTrainer, num_slots=9)):
        simulation = build(double, MODELS["mlp"], Algorithm(name="parts", step=step), trainer, local=local)
        simulation.server.transport.run_round(
            dataclasses.replace(_job(simulation), cohort=np.arange(len(SIZES)), scale=256.0)
        )
        for client, size in enumerate(SIZES):
            first, second, whole = (seen[client, part] for part in ((0, 2), (1, 2), None))
            if size == 1:
                torch.testing.assert_close(second, first)
            n = -(-size // 2)
            combined = first if size == 1 else (n * first + (size - n) * second) / size
            torch.testing.assert_close(combined, whole, atol=1e-12, rtol=1e-9)


def _job(simulation):
    from fedsim.transport.base import Job

    return Job(
        round=1,
        cohort=np.arange(2),
        sizes=simulation.dataset.train.sizes[:2],
        broadcast=simulation.server.vector,
        scale=256.0,
    )


def test_the_schedules_reach_client_and_server(double):
    """A server factor of 1/2 halves the first round's move of the parameters, and a local one the learning rate."""
    from fedsim.config import ScheduleConfig

    half = ScheduleConfig(warmup_rounds=1)
    local = LocalConfig(batch_size=None, learning_rate=0.1)
    moved = {}
    for name, server, client in (
        ("plain", {}, {}),
        ("server", {"schedule": half}, {}),
        ("local", {}, {"schedule": half}),
    ):
        simulation = build(
            double, MODELS["mlp"], None, SerialTrainer, local=dataclasses.replace(local, **client), **server
        )
        start = simulation.server.vector.clone()
        simulation.server.run_round()
        moved[name] = simulation.server.vector - start
    torch.testing.assert_close(moved["server"], moved["plain"] / 2)
    torch.testing.assert_close(moved["local"], moved["plain"] / 2)
