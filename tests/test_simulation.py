"""The Python API: what a notebook does."""

import dataclasses
import json
import re
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import fedsim
from fedsim import algorithms
from fedsim.aggregate import OnlineAverage
from fedsim.algorithms import Algorithm
from fedsim.attacks import label_flip, sign_flip
from fedsim.data.federated import FederatedDataset, Split
from fedsim.models import logistic
from fedsim.robust import mean, median
from fedsim.train.plan import make_plan
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer
from fedsim.transforms import clip, gaussian
from fedsim.transforms.base import Transform


def test_simulate_returns_the_metrics_and_leaves_the_files_that_were_asked_for(make_dataset, tmp_path):
    settings = {"server": fedsim.ServerConfig(num_rounds=3, clients_per_round=2, evaluate_every=1), "device": "cpu"}
    plain = fedsim.simulate(make_dataset([9, 9, 9]), logistic, **settings)
    kept = fedsim.simulate(make_dataset([9, 9, 9]), logistic, run_dir=tmp_path / "run", **settings)
    assert plain["round"].tolist() == [1, 2, 3]
    assert plain["test_loss"].tolist() == kept["test_loss"].tolist()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 3


def test_a_round_can_be_a_line_of_the_users_own_loop(make_dataset):
    simulation = fedsim.Simulation(
        make_dataset([9, 9, 9]), logistic, server=fedsim.ServerConfig(num_rounds=2, clients_per_round=2), device="cpu"
    )
    seen = [(metrics["round"], simulation.evaluate()["test_accuracy"]) for metrics in simulation.rounds()]
    assert [round for round, _ in seen] == [1, 2]


@pytest.mark.parametrize(
    "settings",
    [
        {"trainer": SerialTrainer},
        {"trainer": partial(VectorizedTrainer, num_slots=2)},
        {"trainer": SerialTrainer, "algorithm": algorithms.scaffold()},
        {"trainer": SerialTrainer, "transforms": [clip(0.05)]},
        {"trainer": SerialTrainer, "transforms": [clip(0.05), gaussian(1.0)]},
        {"trainer": SerialTrainer, "server": {"num_groups": 2, "group_rounds": 2}},
        {},
    ],
    ids=["serial", "vectorized", "hooks", "transforms", "noise", "groups", "auto"],
)
def test_a_mean_in_float32_ends_where_a_mean_in_float64_does(make_dataset, monkeypatch, settings):
    totals, ends = [], []
    result = OnlineAverage.result
    monkeypatch.setattr(
        OnlineAverage, "result", lambda self, *more: totals.append(self.total.dtype) or result(self, *more)
    )
    for dtype in ("float64", "float32"):
        more = {
            **settings,
            "server": fedsim.ServerConfig(num_rounds=3, clients_per_round=4, **settings.get("server", {})),
        }
        totals.clear()
        simulation = fedsim.Simulation(
            make_dataset([9, 20, 3, 14, 6]), logistic, aggregator=mean(dtype=dtype), device="cpu", **more
        )
        assert len(list(simulation.rounds())) == 3
        assert set(totals) == {getattr(torch, dtype)}
        ends.append(simulation.server.vector.clone())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"aggregator\.dtype must be one of float64, float32, got float16"):
        mean(dtype="float16")


def test_a_trainer_that_knows_no_dtype_of_the_mean_is_told(make_dataset):
    def plain(dataset, model, algorithm, local, *, seed):
        return SerialTrainer(dataset, model, algorithm, local, seed=seed)

    dataset = make_dataset([9] * 10)
    fedsim.Simulation(dataset, logistic, trainer=plain, device="cpu")
    with pytest.raises(
        ValueError, match=r"^this trainer takes no sum_dtype=, which aggregator\.dtype needs: set it to"
    ):
        fedsim.Simulation(dataset, logistic, trainer=plain, aggregator=mean(dtype="float32"), device="cpu")
    with pytest.raises(ValueError, match=r"^this trainer takes no uplink=, which transforms, attacks and"):
        fedsim.Simulation(dataset, logistic, trainer=plain, transforms=[clip(1.0)], device="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_a_run_refuses_targets_that_are_no_classes_in_any_split(make_dataset, dtype):
    dataset = make_dataset([9] * 10)
    for name in ("train", "test"):
        split = replace(dataset.train, targets=dataset.train.targets.to(dtype))
        with pytest.raises(ValueError, match=f"learns classes, numbered in int64, but the targets are {dtype}: turn"):
            fedsim.Simulation(replace(dataset, **{name: split}), logistic, device="cpu")


def test_a_server_step_that_returns_nothing_is_told_in_its_first_round(make_dataset):
    def forgets(vector, mean, state, round):
        vector += mean

    algorithm = dataclasses.replace(algorithms.fedavg(), name="mine", server_step=forgets)
    with pytest.raises(
        ValueError, match=r"algorithm=mine: server_step must return what the server keeps.*returned None"
    ):
        fedsim.simulate(make_dataset([9] * 10), logistic, algorithm=algorithm, trainer=SerialTrainer, device="cpu")


def test_updates_too_long_for_a_sum_without_order_are_said_once_in_each_run(make_dataset, caplog):
    dataset = make_dataset([30, 20, 10])
    for learning_rate, said in ((1e4, 1), (1e4, 1), (0.1, 0)):
        caplog.clear()
        simulation = fedsim.Simulation(
            dataset,
            logistic,
            local=fedsim.LocalConfig(learning_rate=learning_rate, num_steps=1),
            server=fedsim.ServerConfig(num_rounds=2, clients_per_round=3, evaluate_every=0),
            trainer=SerialTrainer,
            device="cpu",
        )
        assert len(list(simulation.rounds())) == 2
        assert sum("its last bits may depend on the order" in text for text in caplog.messages) == said


def test_a_dataset_without_clients_is_refused():
    split = Split(inputs=torch.zeros(4, 2), targets=torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="data=x has no clients yet; apply a partition first"):
        fedsim.Simulation(FederatedDataset(name="x", train=split, num_classes=2), logistic)


def test_a_gpu_that_is_not_there_is_refused(make_dataset, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device=cuda, but PyTorch sees no GPU here"):
        fedsim.Simulation(make_dataset([4]), logistic, device="cuda")


def test_a_hundred_thousand_clients_cost_no_more_a_round_than_a_thousand():
    """The work of a round is its cohort's: generous bounds on processor time catch anything that visits all clients."""
    begin = time.process_time()
    num_clients = 100_000
    offsets = np.arange(num_clients + 1) * 3
    inputs, targets = torch.randn(3 * num_clients, 5), torch.randint(0, 2, (3 * num_clients,))
    dataset = FederatedDataset(
        name="many",
        train=Split(inputs=inputs, targets=targets, offsets=offsets),
        client_ids=range(num_clients),
        num_classes=2,
    )
    simulation = fedsim.Simulation(
        dataset, logistic, server=fedsim.ServerConfig(num_rounds=3, clients_per_round=100), device="cpu"
    )
    metrics = [simulation.server.run_round() for _ in range(3)]
    assert time.process_time() - begin < 20
    assert all(m["clients"] == 100 for m in metrics)
    assert len(simulation.clients()) == num_clients


@pytest.mark.parametrize("name", ["scaffold", "ditto", "ifca"])
def test_a_round_that_fails_after_its_training_moves_nothing_that_clients_keep(make_dataset, name):
    """The mean is not finite: the run may go on as if the round had not been, with IFCA's first pass too."""
    settings = {"server": fedsim.ServerConfig(num_rounds=4, clients_per_round=3), "trainer": SerialTrainer}
    simulation, expected = (
        fedsim.Simulation(
            make_dataset([9, 5, 7, 8]), logistic, algorithm=getattr(algorithms, name)(), device="cpu", **settings
        )
        for _ in range(2)
    )
    server, kept = simulation.server, simulation.trainer.clients
    server.run_round()
    before, vector = kept.read(kept.written), server.vector.clone()
    with pytest.MonkeyPatch.context() as patch:
        real = server.transport.run_round

        def overflown(job):
            partial = real(job)
            return partial if job.prelude else dataclasses.replace(partial, total=partial.total * torch.inf)

        patch.setattr(server.transport, "run_round", overflown)
        with pytest.raises(ValueError, match="round 2: the mean update is not finite"):
            server.run_round()
    assert torch.equal(kept.read(kept.written), before)
    assert torch.equal(server.vector, vector)
    for _ in range(2):
        server.run_round()
    for _ in range(3):
        expected.server.run_round()
    assert torch.equal(server.vector, expected.server.vector)
    others = expected.trainer.clients
    assert torch.equal(kept.read(kept.written), others.read(others.written))


@pytest.mark.parametrize("name", ["fedavg", "ditto"])
def test_slots_keep_no_model_beside_the_servers_and_looking_at_clients_moves_nothing(make_dataset, name):
    simulation = fedsim.Simulation(
        make_dataset([9, 5, 7]),
        logistic,
        algorithm=getattr(algorithms, name)(),
        server=fedsim.ServerConfig(num_rounds=2, clients_per_round=3),
        trainer=partial(VectorizedTrainer, num_slots=2),
        device="cpu",
    )
    server, model = simulation.server, simulation.model
    assert model.vector.data_ptr() == server.vector.data_ptr()
    server.run_round()
    before = server.vector.clone()
    assert "client" in simulation.clients()  # with models of their own for ditto
    own = SerialTrainer(simulation.dataset, model, simulation.algorithm, simulation.local, seed=0)
    job = server.next_job()
    plan = make_plan(simulation.dataset.train, job.cohort, simulation.local, seed=0, round=2)
    own.train(plan, job.broadcast, job.scale)
    assert torch.equal(server.vector, before)
    assert not torch.equal(model.vector, before)
    assert simulation.evaluate() == simulation.evaluate()


class Counting(torch.nn.Linear):
    """Counts its calls in a buffer, those of evaluation too."""

    def __init__(self, shape, num_classes):
        super().__init__(*shape, num_classes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1.0)
        return super().forward(x)


@pytest.mark.parametrize("trainer", [SerialTrainer, partial(VectorizedTrainer, num_slots=2)])
def test_evaluating_a_model_that_moves_a_buffer_moves_nothing_of_the_servers(make_dataset, trainer):
    ends = []
    for every in (0, 1):
        server = fedsim.ServerConfig(num_rounds=2, clients_per_round=3, evaluate_every=every)
        made = fedsim.Simulation(make_dataset([9, 5, 7]), Counting, server=server, trainer=trainer, device="cpu")
        list(made.rounds())
        ends.append(made.server.vector)
    assert torch.equal(*ends)


@pytest.mark.parametrize("attack", [label_flip(0.5), sign_flip(0.5)])
def test_an_attack_on_clients_that_send_nothing(make_dataset, attack):
    server = fedsim.ServerConfig(num_rounds=2, clients_per_round=3)
    settings = {"algorithm": algorithms.local_only(), "server": server, "attack": attack, "trainer": SerialTrainer}
    found = list(fedsim.Simulation(make_dataset([9, 5, 7]), logistic, device="cpu", **settings).rounds())
    assert [m["clients"] for m in found] == [3, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"algorithm": algorithms.fedprox},
            "algorithm must be Algorithm, for example algorithm=fedprox(0.1); got fedprox",
        ),
        ({"algorithm": "fedprox"}, "got 'fedprox'"),
        ({"local": {"learning_rate": 0.1}}, "local must be LocalConfig"),
        ({"aggregator": median}, "aggregator must be Aggregator, for example aggregator=median(); got median"),
        ({"transforms": clip(1.0)}, "transforms must be Sequence, for example transforms=[clip(1.0)]; got Transform"),
        ({"transforms": [clip]}, "transforms must be Transform, for example transforms=[clip(1.0)]; got clip"),
        (
            {"algorithm": Algorithm(name="mine", keeps={"h": "parameters"})},
            "keeps['h'] must be Kept, for example keeps['h']=Kept(size='parameters'); got 'parameters'",
        ),
    ],
)
def test_parts_of_another_kind_are_refused(make_dataset, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fedsim.Simulation(make_dataset([4]), logistic, device="cpu", **settings)


class Pair(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.nn.Linear(12, 3), "Linear has 3 outputs and clouds 4 classes: give the model one output for each class"),
        (Pair(12, 4), "Pair must return a tensor of outputs, (B, classes); it returned tuple"),
    ],
)
@pytest.mark.parametrize("trainer", [SerialTrainer, partial(VectorizedTrainer, num_slots=2)])
def test_a_model_whose_outputs_do_not_fit_is_refused(make_dataset, trainer, model, message):
    server = fedsim.ServerConfig(clients_per_round=2)
    with pytest.raises(ValueError, match=re.escape(message)):
        fedsim.Simulation(make_dataset([4, 5]), model, server=server, trainer=trainer, device="cpu")


def test_targets_that_are_no_classes_are_refused(make_dataset):
    dataset = make_dataset([4, 5])
    dataset = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, targets=torch.randn(9)))
    server = fedsim.ServerConfig(clients_per_round=2)
    with pytest.raises(
        ValueError, match=r"clouds: the objective cross_entropy learns classes, numbered in int64, but the targets are"
    ):
        fedsim.Simulation(dataset, logistic, server=server, trainer=SerialTrainer, device="cpu")


@pytest.mark.parametrize("cohort", [[0, 0], [0, 3], [-1], [0.5], [[0, 1]], [True, False, True]])
def test_a_sampler_must_give_different_clients(make_dataset, cohort):
    server = fedsim.ServerConfig(num_rounds=1, clients_per_round=2)
    made = fedsim.Simulation(
        make_dataset([4, 5, 6]),
        logistic,
        server=server,
        sampler=lambda population, count: lambda seed, round: cohort,
        trainer=SerialTrainer,
        device="cpu",
    )
    with pytest.raises(ValueError, match="a sampler must give"):
        made.server.run_round()


def test_a_transform_must_give_what_it_takes(make_dataset):
    cut = Transform(name="cut", apply=lambda rows, sending: rows[:, :3])
    server = fedsim.ServerConfig(num_rounds=1, clients_per_round=2)
    made = fedsim.Simulation(
        make_dataset([4, 5]), logistic, server=server, transforms=[cut], trainer=SerialTrainer, device="cpu"
    )
    with pytest.raises(ValueError, match=r"transforms.cut must give as many numbers as it takes, \(1, 52\)"):
        made.server.run_round()


@pytest.mark.gpu
def test_a_gpu_run_equals_the_cpu_run(make_dataset):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    settings = {"server": fedsim.ServerConfig(num_rounds=3, clients_per_round=2)}
    vectors = []
    for device in ("cpu", "cuda"):
        simulation = fedsim.Simulation(make_dataset([9, 9, 9]), logistic, device=device, **settings)
        for _ in simulation.rounds():
            pass
        vectors.append(simulation.server.vector.cpu())
    torch.testing.assert_close(*vectors, atol=1e-5, rtol=1e-5)
