"""An interrupt (Ctrl-C) at any moment: what is saved then is of one round, and a resume ends as the unbroken run."""

import re
from dataclasses import replace

import pytest
import torch

from fedsim.algorithms import Algorithm, fedavg, fedbuff, scaffold
from fedsim.checkpoint import Checkpoint
from fedsim.config import CheckpointConfig, LocalConfig, ServerConfig, TrackingConfig
from fedsim.devices import drawn
from fedsim.files import in_use
from fedsim.models import logistic
from fedsim.recording import record, record_into
from fedsim.robust import mean, median
from fedsim.simulation import Simulation
from fedsim.tracking.sinks import Sinks
from fedsim.train.choice import Choice
from fedsim.train.serial import SerialTrainer
from fedsim.transforms import clip

ROUNDS = 6


def simulation(dataset, algorithm: Algorithm, **parts) -> Simulation:
    return Simulation(
        dataset,
        logistic,
        algorithm=algorithm,
        devices=drawn if algorithm.asynchronous else None,
        server=ServerConfig(num_rounds=ROUNDS, clients_per_round=3, evaluate_every=2),
        trainer=SerialTrainer,
        device="cpu",
        **{"local": LocalConfig(learning_rate=0.1), **parts},
    )


def run(made: Simulation, directory, **checkpoint) -> torch.Tensor:
    quiet = TrackingConfig(progress=False)
    record(made, directory, config={"a": 1}, tracking=quiet, checkpoint=CheckpointConfig(**checkpoint))
    return made.server.vector


def break_off(made: Simulation, where: str, round: int) -> None:
    """Interrupt the run in `round`: after its training, when the model has moved, or when the round has ended."""
    server = made.server

    def after(function, due):
        def call(*arguments, **options):
            result = function(*arguments, **options)
            if due():
                raise KeyboardInterrupt
            return result

        return call

    if where == "training":
        server.transport.run_round = after(server.transport.run_round, lambda: server.round == round - 1)
    elif where == "server_step":
        step = after(server.algorithm.server_step, lambda: server.round == round - 1)
        server.algorithm = replace(server.algorithm, server_step=step)
    else:
        made._look = after(made._look, lambda: server.round == round)


@pytest.mark.parametrize(("where", "round"), [("training", 5), ("server_step", 5), ("evaluation", 4)])
@pytest.mark.parametrize("algorithm", [scaffold(), fedbuff(3)], ids=lambda a: a.name)
def test_an_interrupted_run_is_saved_whole_or_not_at_all(make_dataset, tmp_path, algorithm, where, round):
    dataset = make_dataset([9] * 6)
    expected = run(simulation(dataset, algorithm), tmp_path / "unbroken", every=0)
    made = simulation(dataset, algorithm)
    break_off(made, where, round)
    with pytest.raises(KeyboardInterrupt):
        run(made, tmp_path / "broken", every=3)
    # what SCAFFOLD's clients have learnt in round 5 lasts with the model's step, or not at all
    assert Checkpoint.load(tmp_path / "broken", "cpu").round == (4 if where == "training" else 3)
    resumed = run(simulation(dataset, algorithm), tmp_path / "broken", every=3, resume=str(tmp_path / "broken"))
    assert torch.equal(resumed, expected)
    if where == "server_step":
        for use in (lambda: next(made.rounds()), lambda: made.run_state.checkpoint({})):
            with pytest.raises(ValueError, match="round 5 was broken off while it moved the model: continue from"):
                use()


def test_an_interrupt_between_checkpoints_saves_the_last_round(make_dataset, tmp_path):
    dataset = make_dataset([9] * 6)
    expected = run(simulation(dataset, scaffold()), tmp_path / "unbroken", every=0)
    made = simulation(dataset, scaffold())
    sampler = made.server.sampler

    def interrupted(seed: int, round: int):
        if round == 5:
            raise KeyboardInterrupt
        return sampler(seed, round)

    made.server.sampler = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(made, tmp_path / "broken", every=3)
    assert Checkpoint.load(tmp_path / "broken", "cpu").round == 4
    resumed = run(simulation(dataset, scaffold()), tmp_path / "broken", every=3, resume=str(tmp_path / "broken"))
    assert torch.equal(resumed, expected)


@pytest.mark.parametrize("every", [2, 0])
def test_a_resume_takes_the_trainer_that_was_begun_with_and_what_its_clients_keep(make_dataset, tmp_path, every):
    dataset = make_dataset([9] * 6)

    def made(num_slots: int, rounds: int = ROUNDS) -> Simulation:
        return Simulation(
            dataset,
            logistic,
            algorithm=scaffold(),
            server=ServerConfig(num_rounds=rounds, clients_per_round=3),
            trainer=Choice(num_slots=num_slots, num_threads=1, reason="given"),
            device="cpu",
        )

    expected = run(made(2), tmp_path / "unbroken", every=0)
    run(made(2, rounds=4), tmp_path / "broken", every=2)
    resumed = made(0)
    assert torch.equal(run(resumed, tmp_path / "broken", every=every, resume=str(tmp_path / "broken")), expected)
    assert resumed.trainer.num_slots == 2


def test_a_run_that_goes_on_has_not_ended(make_dataset, tmp_path):
    """Else a sweep or a report would take it for finished when it is killed."""
    dataset, outcome = make_dataset([9] * 6), {"summary.json", "clients.csv", "model.safetensors"}
    run(simulation(dataset, scaffold()), tmp_path, every=3)
    run(simulation(dataset, scaffold()), tmp_path, every=3, resume=str(tmp_path))  # there is nothing to do
    assert outcome <= {path.name for path in tmp_path.iterdir()}
    longer = simulation(dataset, scaffold())
    longer.config = replace(longer.config, num_rounds=ROUNDS + 3)
    break_off(longer, "server_step", round=ROUNDS + 2)
    with pytest.raises(KeyboardInterrupt):
        run(longer, tmp_path, every=0, resume=str(tmp_path))
    assert not outcome & {path.name for path in tmp_path.iterdir()}


def test_a_resume_that_cannot_track_leaves_the_outcome(make_dataset, tmp_path, monkeypatch):
    run(simulation(make_dataset([9] * 6), scaffold()), tmp_path, every=3)
    longer = simulation(make_dataset([9] * 6), scaffold())
    longer.config = replace(longer.config, num_rounds=ROUNDS + 3)

    def refuse(self, run):
        raise ValueError("this tracker is not installed")

    monkeypatch.setattr(Sinks, "open", refuse)
    with pytest.raises(ValueError, match="not installed"):
        run(longer, tmp_path, every=0, resume=str(tmp_path))
    assert {"summary.json", "clients.csv", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}


def test_a_run_that_begins_anew_leaves_nothing_of_the_one_before(make_dataset, tmp_path):
    """Else a resume would join the checkpoint of one run to the rows of another."""
    dataset, directory = make_dataset([9] * 6), tmp_path / "run"
    run(simulation(dataset, scaffold()), directory, every=3)
    with pytest.raises(ValueError, match="already holds a run"):
        run(simulation(dataset, scaffold()), directory, every=3)
    made = simulation(dataset, scaffold())
    break_off(made, "server_step", round=2)
    with pytest.raises(KeyboardInterrupt):  # as Slurm begins a job anew
        record_into(made, directory, config={"a": 1}, checkpoint=CheckpointConfig(every=3))
    left = {path.name for path in directory.iterdir()}
    assert left == {".lock", "config.yaml", "metrics.jsonl", "metrics.csv", "partition.json", "client_state"}


def test_two_runs_do_not_share_a_directory(make_dataset, tmp_path):
    with in_use(tmp_path), pytest.raises(ValueError, match="in use by another run"):
        run(simulation(make_dataset([9] * 6), scaffold()), tmp_path, every=3)


def test_a_run_is_resumed_where_it_lies(make_dataset, tmp_path):
    run(simulation(make_dataset([9] * 6), scaffold()), tmp_path / "one", every=3)
    for resume in ("one", "nowhere"):
        made = simulation(make_dataset([9] * 6), scaffold())
        with pytest.raises(ValueError, match="a run goes on where it lies"):
            run(made, tmp_path / "two", every=3, resume=str(tmp_path / resume))


def test_without_a_configuration_a_run_is_known_by_what_it_is_made_with(make_dataset, tmp_path):
    dataset = make_dataset([9] * 6)
    record(simulation(dataset, scaffold()), tmp_path, tracking=TrackingConfig(progress=False))
    assert "algorithm:\n  name: scaffold\n" in (tmp_path / "config.yaml").read_text()
    again = CheckpointConfig(resume=str(tmp_path))
    faster = simulation(dataset, scaffold(), local=LocalConfig(learning_rate=0.5))
    for other, differs in (
        (simulation(dataset, fedavg()), "algorithm.name (scaffold there, fedavg here)"),
        (faster, "local.learning_rate (0.1 there, 0.5 here)"),
        (simulation(dataset, scaffold(), aggregator=median()), "aggregator.name (mean there, median here)"),
        (
            simulation(dataset, scaffold(), aggregator=mean(equal_weights=True)),
            "aggregator.equal_weights (False there, True here)",
        ),
        (
            simulation(dataset, scaffold(), aggregator=mean(dtype="float32")),
            "aggregator.dtype (float64 there, float32 here)",
        ),
        (simulation(dataset, scaffold(), transforms=[clip(1.0)]), "transforms ([] there, ['clip'] here)"),
    ):
        with pytest.raises(ValueError, match=re.escape(differs)):
            record(other, tmp_path, checkpoint=again)


def test_a_loop_of_ones_own_saves_and_goes_on(make_dataset, tmp_path):
    """With what clients keep, and with what the stop rule has seen."""
    dataset = make_dataset([9] * 6)
    unbroken, broken, resumed = (simulation(dataset, scaffold()) for _ in range(3))
    for made in (unbroken, broken, resumed):
        made.config = replace(made.config, patience=1, evaluate_every=1, num_rounds=30)
    ends = [row["round"] for row in unbroken.rounds()]
    for row in broken.rounds():
        if row["round"] == ends[-1] - 1:
            break
    broken.save(tmp_path / "saved")
    resumed.restore(Checkpoint.load(tmp_path / "saved", "cpu"))
    assert [row["round"] for row in resumed.rounds()] == ends[-1:]
    assert torch.equal(resumed.server.vector, unbroken.server.vector)
