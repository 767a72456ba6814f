"""Mistakes in the options of a distributed run are one line."""

from functools import partial

import pytest
import torch

from fedsim import Simulation
from fedsim.algorithms import fedasync, scaffold
from fedsim.attacks import sign_flip
from fedsim.config import ServerConfig
from fedsim.devices import drawn
from fedsim.models import logistic
from fedsim.robust import median
from fedsim.train.choice import Choice
from fedsim.train.vectorized import VectorizedTrainer
from fedsim.transforms import clip
from fedsim.transport.secret import read_secret

MISTAKES = {
    "workers without processes": (["transport.num_workers=2"], "add transport=torch_distributed"),
    "neither workers nor role": (["transport=torch_distributed"], "needs transport.num_workers=N"),
    "no workers": (["transport=torch_distributed", "transport.num_workers=0"], "must be at least 1, got 0"),
    "unknown transport": (["transport=torch_distribute"], "did you mean torch_distributed?"),
    "unknown role": (["role=boss"], "role must be local, server, scheduler or worker, got 'boss'"),
    "no parent": (["role=worker"], "role=worker needs transport.address=HOST:PORT"),
    "no secret": (["role=worker", "transport.address=127.0.0.1:1"], "set FEDSIM_SECRET in the environment"),
    "no secret of a server": (["role=server"], "set FEDSIM_SECRET in the environment"),
    "no port": (["role=server", "transport.address=localhost"], "'localhost' is not an address; write HOST:PORT"),
    "every address": (["role=server", "transport.address=0.0.0.0:0"], "0.0.0.0:0 stands for all addresses"),
    "wrong tree": (["transport=torch_distributed", "transport.tree={east: 0}"], "transport.tree.east.workers"),
    "a tree for single updates": (
        ["transport=torch_distributed", "transport.tree={east: 2}", "algorithm=fedasync"],
        "transport.tree: fedasync takes single updates as they arrive",
    ),
    "groups in vain": (["server.num_groups=2"], "no effect with server.group_rounds=1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(fedsim, monkeypatch, name):
    arguments, message = MISTAKES[name]
    monkeypatch.delenv("FEDSIM_SECRET", raising=False)
    if "address" in message:
        monkeypatch.setenv("FEDSIM_SECRET", "0123456789abcdef")
    done = fedsim("+experiment=debug", "data.num_clients=6", *arguments)
    errors = [line for line in done.err.splitlines() if line.startswith("fedsim: error: ")]
    assert done.code == 1
    assert len(errors) == 1, done.err
    assert message in errors[0]


def test_a_parent_that_is_not_there_is_one_line(fedsim, monkeypatch):
    monkeypatch.setenv("FEDSIM_SECRET", "0123456789abcdef")
    done = fedsim("role=worker", "transport.address=127.0.0.1:1", "transport.join_seconds=0.1")
    assert done.code == 1
    assert "fedsim: error: 127.0.0.1:1 does not answer" in done.err


def test_a_secret_comes_from_a_file_or_the_environment_and_is_not_short(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDSIM_SECRET", raising=False)
    assert read_secret(None) is None
    monkeypatch.setenv("FEDSIM_SECRET", "fifteen letters")
    with pytest.raises(ValueError, match="FEDSIM_SECRET: the shared secret must have at least 16 characters"):
        read_secret(None)
    (tmp_path / "secret").write_text(" sixteen letters!\n")
    assert read_secret(str(tmp_path / "secret")) == b"sixteen letters!"


REFUSED = {
    "scaffold": ({"algorithm": scaffold()}, "scaffold does more: set group_rounds=1"),
    "median": ({"aggregator": median()}, "need each client's: set group_rounds=1"),
    "clip": ({"transforms": [clip(max_norm=1.0)]}, "need each client's: set group_rounds=1"),
    "attack": ({"attack": sign_flip(fraction=0.5)}, "need each client's: set group_rounds=1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_groups_cannot_do_is_refused(make_dataset, name):
    settings, message = REFUSED[name]
    grouped = ServerConfig(group_rounds=2)
    with pytest.raises(ValueError, match=message):
        Simulation(make_dataset([3] * 10), logistic, server=grouped, device="cpu", **settings)


UNTIMED = {
    "devices": ({"algorithm": fedasync(), "devices": drawn}, "transport=torch_distributed when .* set devices=none"),
    "a deadline": ({"algorithm": fedasync(), "server": ServerConfig(over_selection=2)}, "an asynchronous .* has none"),
    "rounds in no order": (
        {"server": ServerConfig(arrivals="a.csv")}, "rounds of fedavg do not have: leave it out, or set algorithm=",
    ),
    "no record": (
        {"algorithm": fedasync(), "server": ServerConfig(arrivals="a.csv")}, r"server.arrivals=a.csv: No such file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTIMED)
def test_what_real_arrivals_cannot_do_is_refused_before_anything_is_opened(make_dataset, name):
    def opened(simulation):
        raise AssertionError("a transport was opened")

    settings, message = UNTIMED[name]
    with pytest.raises(ValueError, match=message):
        Simulation(make_dataset([3] * 10), logistic, transport=opened, device="cpu", **settings)


def test_groups_in_one_process_run_from_the_command_line(fedsim):
    assert ServerConfig(group_rounds=2).num_groups == 1
    done = fedsim("+experiment=debug", "data.num_clients=6", "server.num_groups=2", "server.group_rounds=2")
    assert done.code == 0, done.err


def test_a_choice_of_trainer_that_was_made_before_is_taken_and_cannot_be_changed_elsewhere(make_dataset):
    def simulation(trainer, transport=None):
        torch.set_num_threads(1)
        settings = ServerConfig(num_rounds=2, clients_per_round=3, evaluate_every=0)
        return Simulation(
            make_dataset([3, 9, 5, 4]), logistic, server=settings, trainer=trainer, transport=transport, device="cpu"
        )

    choice = Choice(num_slots=2, num_threads=1, reason="as begun")
    chosen, given = simulation(choice), simulation(partial(VectorizedTrainer, num_slots=2))
    assert (type(chosen.trainer), chosen.trainer.num_slots) == (VectorizedTrainer, 2)
    assert list(chosen.rounds())[-1]["update_norm"] == list(given.rounds())[-1]["update_norm"]
    assert torch.equal(chosen.server.vector, given.server.vector)

    elsewhere = simulation(choice, lambda simulation: simulation.own)
    elsewhere.use(choice)
    with pytest.raises(ValueError, match="begun with another trainer than its workers have"):
        elsewhere.use(Choice(num_slots=0, num_threads=1, reason=""))
