"""Client state: what was written is read back, whatever the budget; a checkpoint's rows survive a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedsim.client_state as client_state_module
from fedsim.algorithms.base import Algorithm, Clients, Kept
from fedsim.checkpoint import Checkpoint
from fedsim.client_state import ClientVectors
from fedsim.config import CheckpointConfig, ClientStateConfig, ServerConfig
from fedsim.models import logistic
from fedsim.recording import record
from fedsim.simulation import Simulation
from fedsim.train.serial import SerialTrainer

ROW = 4 * 5  # bytes of the rows here: 5 float32


def make(directory: Path | None = None, *, rows_in_ram: int = 3, **settings) -> ClientVectors:
    settings = {"size": 5, "ram_bytes": rows_in_ram * ROW, "directory": directory, **settings}
    return ClientVectors(settings.pop("size"), **settings)


def row(value: float) -> torch.Tensor:
    return torch.full((5,), value)


def write(state: ClientVectors, clients: list[int], value: float) -> None:
    state.write(np.array(clients), torch.stack([row(value + c) for c in clients]))
    state.commit()


operations = st.lists(
    st.one_of(
        st.lists(st.integers(0, 7), unique=True, min_size=1, max_size=8),  # write these clients
        st.sampled_from(["commit", "rollback", "rollback of some", "save", "fail", "kill"]),
    ),
    max_size=25,
)


@settings(max_examples=120, deadline=None)
@given(operations, st.sampled_from([(0,), (1,), (3,), (8,), (2, 3), (1, 1)]))
def test_behaves_as_a_dictionary_for_any_tiers_and_any_kill(steps, capacities):
    """Against a dict: "save" is a checkpoint, "fail" one that is not confirmed, "kill" goes back to the last one."""
    with tempfile.TemporaryDirectory() as folder:

        def start() -> ClientVectors:
            state = make(Path(folder))
            pool = type(state.pools[0])
            # on a GPU two pools stand above each other; here both are on the CPU
            state.pools = [pool(c, 5, torch.float32, torch.device("cpu")) for c in capacities if c]
            return state

        state, index = start(), {}
        now: dict[int, float] = {}
        committed: dict[int, float] = {}
        saved: dict[int, float] = {}
        for number, step in enumerate(steps):
            if step in ("commit", "save", "fail"):
                state.commit()
                committed = dict(now)
            if step == "save":
                index, saved = state.snapshot(), dict(now)
                state.confirm()
            elif step == "fail":
                state.snapshot()
            elif step == "kill":
                state, now = start(), dict(saved)
                committed = dict(saved)
                state.restore(index)
            elif step == "rollback":
                state.rollback()
                now = dict(committed)
            elif step == "rollback of some":
                state.rollback(np.array([1, 2, 3]))
                now = {c: v for c, v in now.items() if c not in (1, 2, 3)}
                now |= {c: v for c, v in committed.items() if c in (1, 2, 3)}
            elif step != "commit":
                state.write(np.array(step), torch.stack([row(10 * number + c) for c in step]))
                now |= {c: 10 * number + c for c in step}
            assert state.read(np.arange(8))[:, 0].tolist() == [now.get(c, 0) for c in range(8)]
            assert state.written.tolist() == sorted(now)
            assert state.known(np.arange(8)).tolist() == [c in now for c in range(8)]
            assert [len(p.slots) for p in state.pools] <= [p.capacity for p in state.pools]
        file = state.file
        # every client's row in the checkpoint, in the state as it is, and uncommitted
        assert file is None or file.num_rows <= 3 * 8


def test_a_client_that_was_never_written_reads_as_the_initial_row():
    assert torch.equal(make().read(np.array([2, 5])), torch.zeros(2, 5))
    initial = torch.arange(5.0)
    state = make(initial=initial)
    rows = state.read(np.array([2, 2]))
    assert torch.equal(rows, torch.stack([initial, initial]))
    rows.zero_()  # what was read is the caller's
    assert torch.equal(state.read(np.array([2]))[0], initial)
    assert len(state) == 0


def test_written_rows_are_copies_and_come_back_in_the_order_asked_for():
    state = make(rows_in_ram=1)
    rows = torch.randn(3, 5)
    state.write(np.array([4, 0, 6]), rows)
    state.commit()
    expected = rows.clone()
    rows.zero_()
    assert torch.equal(state.read(np.array([6, 1, 4, 0])), torch.stack([expected[2], row(0), expected[0], expected[1]]))


def test_the_least_recently_used_row_moves_down():
    state = make(rows_in_ram=2)
    write(state, [0], 10)
    write(state, [1], 10)
    state.read(np.array([0]))
    write(state, [2], 10)
    assert list(state.pools[0].slots) == [0, 2]
    assert list(state.file.places) == [1]


def test_only_written_clients_take_space(tmp_path):
    state = make(tmp_path, rows_in_ram=100)
    for start in range(0, 300, 50):
        state.write(np.arange(start, start + 50) * 30_000, torch.zeros(50, 5))
        state.commit()
    state.snapshot()
    state.confirm()
    assert len(state) == 300
    assert state.file_bytes == (tmp_path / "state.rows").stat().st_size == 300 * ROW


def test_a_checkpoint_writes_only_what_changed(tmp_path):
    state = make(tmp_path, rows_in_ram=100)
    write(state, list(range(100)), 0)
    before = state.snapshot()["places"]
    state.confirm()
    write(state, [7], 500)
    after = state.snapshot()["places"]
    assert torch.nonzero(before != after).flatten().tolist() == [7]
    assert state.file_bytes == 101 * ROW
    state.confirm()
    write(state, [9], 500)  # takes the place that client 7's first row had
    state.snapshot()
    assert state.file_bytes == 101 * ROW


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_rows_of_any_type_pass_through_the_file_bit_for_bit(dtype):
    state = make(ram_bytes=0, dtype=dtype)
    rows = (torch.randn(3, 5) * 100).to(dtype)
    state.write(np.arange(3), rows)
    assert torch.equal(state.read(np.arange(3)), rows)


def test_rows_move_with_a_new_place_for_the_file(tmp_path):
    state = make(rows_in_ram=1)
    write(state, [0, 1, 2], 10)
    with pytest.raises(ValueError, match=r"client state 'state' has no directory, so no checkpoint can keep it"):
        state.snapshot()
    state.locate(tmp_path / "later")
    index = state.snapshot()
    again = make(tmp_path / "later")
    again.restore(index)
    assert again.read(np.arange(4))[:, 0].tolist() == [10, 11, 12, 0]


def test_a_checkpoint_keeps_the_index(tmp_path):
    state = make(tmp_path, name="control.variate")
    write(state, [3, 1], 10)
    clients = {"control.variate": state.snapshot(), "never_written": make(tmp_path, name="never_written").snapshot()}
    Checkpoint(round=1, vector=row(0), state={}, config={}, dataset="d", clients=clients).save(tmp_path)
    loaded = Checkpoint.load(tmp_path, "cpu").clients
    assert list(loaded) == ["control.variate"]
    again = make(tmp_path, name="control.variate")
    again.restore(loaded["control.variate"])
    assert again.read(np.arange(4))[:, 0].tolist() == [0, 11, 0, 13]


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_file_that_is_not_the_checkpoints_is_refused(tmp_path, damage):
    state = make(tmp_path)
    write(state, [0, 1], 0)
    index = state.snapshot()
    path = tmp_path / "state.rows"
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, ROW)
    with pytest.raises(ValueError, match=r"state\.rows is missing or too short for its checkpoint"):
        make(tmp_path).restore(index)


def test_a_full_disk_is_refused_before_it_is_full(tmp_path, monkeypatch):
    state = make(tmp_path, rows_in_ram=1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1 << 40, 1 << 40, 300 << 20))
    write(state, [0], 0)
    with pytest.raises(
        OSError, match=r"no room in .* for more than 0 rows .*314\.6 MB are left.*client_state\.ram_gib"
    ):
        write(state, [1], 0)
    large = make(tmp_path, size=6_603_710, ram_bytes=4 << 30)
    with pytest.raises(ValueError, match=r"3,400 clients with 26\.4 MB each need 89\.8 GB in .* 46\.1 MB may be used"):
        large.require_room(3400)
    large.require_room(1)


@pytest.mark.parametrize(
    ("clients", "rows", "message"),
    [
        ([0, 0], torch.zeros(2, 5), "a client is written twice"),
        ([0, 1], torch.zeros(2, 4), r"need rows of shape \(2, 5\), got \(2, 4\)"),
        ([3, -1], torch.zeros(2, 5), "a client is numbered -1; numbers begin at 0"),
    ],
)
def test_mistakes_are_named(clients, rows, message):
    with pytest.raises(ValueError, match=message):
        make().write(np.array(clients), rows)


def drifting() -> Algorithm:
    """Clients keep their last update and step along a share of it."""

    def step(clients: Clients) -> None:
        clients.descend(clients.gradient() - 0.3 * clients.vectors["last"])

    def finish(clients: Clients, updates: torch.Tensor) -> dict[str, torch.Tensor]:
        clients.vectors["last"].copy_(updates[:, : clients.model.shape[1]])
        return {}

    return Algorithm(name="drifting", keeps={"last": Kept()}, step=step, finish=finish)


def test_a_run_with_client_vectors_resumes_bit_for_bit_whatever_the_budget(make_dataset, tmp_path):
    def run(directory: str, rounds: int, ram_gib: float, **checkpoint) -> torch.Tensor:
        simulation = Simulation(
            make_dataset([9] * 8),
            logistic,
            algorithm=drifting(),
            server=ServerConfig(num_rounds=rounds, clients_per_round=3),
            client_state=ClientStateConfig(ram_gib=ram_gib),
            trainer=SerialTrainer,
            device="cpu",
        )
        record(simulation, tmp_path / directory, config={"a": 1}, checkpoint=CheckpointConfig(**checkpoint))
        return simulation.server.vector

    whole = run("whole", 9, 1.0, every=0)
    run("broken", 5, 0.0, every=2)
    (rows,) = (tmp_path / "broken" / "client_state").iterdir()
    with rows.open("ab") as file:
        file.write(b"rows that came after the checkpoint")
    resumed = run("broken", 9, 3 * 52 * 4 / 2**30, every=2, resume=str(tmp_path / "broken"))
    assert torch.equal(whole, resumed)
    summary = json.loads((tmp_path / "broken" / "summary.json").read_text())
    ((_, about),) = summary["client_state"].items()
    assert about["row_bytes"] == 52 * 4
    assert 3 <= about["clients"] <= 8


def test_a_run_that_the_disk_cannot_hold_is_refused_before_it_starts(make_dataset, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1 << 40, 1 << 40, (1 << 28) + 5 * 52 * 4))
    server = ServerConfig(num_rounds=9, clients_per_round=3)  # 8 (1 - (5/8)^9) = 7.9 clients of 8
    simulation = Simulation(
        make_dataset([9] * 8), logistic, algorithm=drifting(), server=server, trainer=SerialTrainer, device="cpu"
    )
    with pytest.raises(ValueError, match=r"8 clients with 0\.0 MB each need"):
        record(simulation, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_goes_on_where_the_disk_already_holds_its_rows(make_dataset, tmp_path, monkeypatch):
    def run(rounds: int, **checkpoint) -> None:
        server = ServerConfig(num_rounds=rounds, clients_per_round=3)
        simulation = Simulation(
            make_dataset([9] * 8), logistic, algorithm=drifting(), server=server, trainer=SerialTrainer, device="cpu"
        )
        record(simulation, tmp_path / "run", config={"a": 1}, checkpoint=CheckpointConfig(**checkpoint))

    run(8, every=4)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1 << 40, 1 << 40, (1 << 28) + 5 * 52 * 4))
    run(9, every=4, resume=str(tmp_path / "run"))  # 8 rows in all


WRITER = """
    import sys
    from pathlib import Path
    import numpy as np, torch
    from fedsim.checkpoint import Checkpoint
    from fedsim.client_state import ClientVectors

    folder = Path(sys.argv[1])
    state = ClientVectors(1000, ram_bytes=5 * 4000, directory=folder)
    for round in range(1, 100_000):
        clients = np.random.default_rng(round).choice(40, 8, replace=False)
        state.write(clients, torch.full((8, 1000), float(round)))
        state.commit()
        index = {"state": state.snapshot()}
        Checkpoint(round=round, vector=torch.zeros(1), state={}, config={}, dataset="d", clients=index).save(folder)
        state.confirm()
"""


def test_kill_9_leaves_the_rows_of_the_last_checkpoint(tmp_path):
    """A process writes the round's number into the rows of the round's clients, and is killed at no chosen moment."""
    path = os.pathsep.join(filter(None, [str(Path(client_state_module.__file__).parents[1]), os.getenv("PYTHONPATH")]))
    victim = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)], env={**os.environ, "PYTHONPATH": path}
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    victim.send_signal(signal.SIGKILL)
    victim.wait(30)
    checkpoint = Checkpoint.load(tmp_path, "cpu")
    assert checkpoint.round > 1
    expected = np.zeros(40)
    for round in range(1, checkpoint.round + 1):
        expected[np.random.default_rng(round).choice(40, 8, replace=False)] = round
    state = ClientVectors(1000, directory=tmp_path)
    state.restore(checkpoint.clients["state"])
    rows = state.read(np.arange(40))
    assert torch.equal(rows, torch.from_numpy(expected).float()[:, None].expand(40, 1000))


@pytest.mark.gpu
def test_rows_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    state = make(rows_in_ram=2, device="cuda", device_bytes=2 * ROW, initial=row(-1))
    for value, clients in enumerate([[0, 1, 2], [3, 4], [5], [0], [6, 1]]):
        write(state, clients, 100 * value)
    assert state.read(np.arange(8)).device.type == "cuda"
    assert state.read(np.arange(8))[:, 0].tolist() == [300, 401, 2, 103, 104, 205, 406, -1]
    assert [len(pool.slots) for pool in state.pools] == [2, 2]
    assert len(state.file.places) == 3
