"""Real processes killed, stopped, delayed and added by a seed through 20 rounds: the same bits as in peace."""

import json
import os
import random
import signal
import textwrap
import time
from pathlib import Path

import psutil
import pytest

SEED = 5
FIRST = [f"worker_{i}" for i in range(4)]
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "wake": signal.SIGCONT}
# clients keep a vector, which must be taken once, from whoever was first
RUN = [
    "+experiment=debug", "data.num_clients=8", "server.clients_per_round=8", "server.num_rounds=20",
    "server.evaluate_every=0", "evaluate.clients=false", "checkpoint.every=0", "trainer=serial", "algorithm=scaffold",
    "local.batch_size=null", "local.num_epochs=3",
]  # fmt: skip
TIMEOUT = 4  # seconds of silence after which a worker counts as gone: no round waits longer for anybody
SLACK = 60  # seconds more, for a busy machine
EQUAL = ("round", "clients", "samples", "train_loss", "update_norm")

# what happens in a round must find it at work, on any machine: a step of logistic regression that takes 0.1 s
DAWDLING = """
    import time
    from fedsim.models import logistic

    def dawdling(input_shape, num_classes):
        model = logistic(input_shape, num_classes)
        model.register_forward_pre_hook(lambda model, inputs: time.sleep(0.1 if model.training else 0.0))
        return model
"""


def schedule(seed: int) -> list[tuple[int, str, str]]:
    """(round, deed, worker), to be done as soon as metrics.jsonl shows the round, while the next one is trained.

    Of seven workers, three of which come late, two are killed, one is stopped for ever, and three are stopped until
    some rounds have passed.
    """
    rng = random.Random(seed)
    deeds = rng.sample(["kill", "kill", "stop", "delay", "delay", "delay"], 6)
    for _ in range(3):
        deeds.insert(rng.randint(1, 4), "add")  # before the fifth deed, which needs a fifth worker
    well, num_late, events = list(FIRST), 0, []
    for round, deed in zip(sorted(rng.choices(range(1, 14), k=len(deeds))), deeds, strict=True):
        if deed == "add":
            well.append(f"late_{num_late}")
            events.append((round, "add", f"late_{num_late}"))
            num_late += 1
            continue
        name = well.pop(rng.randrange(len(well)))
        events.append((round, "kill" if deed == "kill" else "stop", name))
        if deed == "delay":
            events.append((round + rng.randint(1, 6), "wake", name))
    return sorted(events, key=lambda event: event[0])


def rows(directory: Path) -> list[dict[str, float]]:
    """The whole lines of metrics.jsonl so far."""
    file = directory / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@pytest.mark.slow
def test_twenty_rounds_of_killed_stopped_delayed_and_added_workers_change_nothing(
    fedsim, tmp_path, monkeypatch, start, finish, secret, free_address, is_open
):
    in_peace = fedsim(*RUN, directory=tmp_path / "in_peace")
    assert in_peace.code == 0, in_peace.err

    (tmp_path / "dawdling.py").write_text(textwrap.dedent(DAWDLING))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    directory, address = tmp_path / "run", f"transport.address={free_address}"
    server = start(
        tmp_path, *RUN, "model._target_=dawdling.dawdling", "role=server", address, "transport.num_workers=4",
        f"transport.timeout={TIMEOUT}", "transport.join_seconds=180", f"hydra.run.dir={directory}",
    )  # fmt: skip

    def worker(name: str, join_seconds: int):
        where = [f"transport.node={name}", f"hydra.run.dir={tmp_path}/{name}"]
        return start(tmp_path, "role=worker", address, f"transport.join_seconds={join_seconds}", *where)

    workers = {name: worker(name, 180) for name in FIRST}
    print(f"schedule({SEED}):", *schedule(SEED), sep="\n  ")  # shown if the test fails
    ports, begin = set[int](), time.monotonic()
    for round, deed, name in schedule(SEED):
        while (at := len(rows(directory))) < round:
            assert server.poll() is None, finish(server)
            assert time.monotonic() - begin < 400, f"round {round} does not come"
            time.sleep(0.01)
        print(f"{time.monotonic() - begin:.1f} s, after round {at}: {deed} {name}")
        if deed == "add":
            workers[name] = worker(name, 40)
        else:
            workers[name].send_signal(SIGNALS[deed])
        connections = psutil.Process(server.pid).net_connections("tcp")
        ports |= {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
    out = finish(server)

    assert (directory / "model.safetensors").read_bytes() == (tmp_path / "in_peace/model.safetensors").read_bytes()
    ours, theirs = rows(directory), rows(tmp_path / "in_peace")
    assert [[row[name] for name in EQUAL] for row in ours] == [[row[name] for name in EQUAL] for row in theirs]
    assert [row["clients"] for row in ours] == [8] * 20
    assert max(row["seconds"] for row in ours) < TIMEOUT + SLACK
    fates = {name: deed for _, deed, name in schedule(SEED)}  # the last deed on each
    for name, process in workers.items():
        if fates.get(name) == "stop":
            process.kill()
        elif fates.get(name) == "kill":
            finish(process, -signal.SIGKILL)
            assert name not in FIRST or f"lost {name}" in out
        else:  # told by the server, unless the machine was too busy to let it join once more
            said, _ = process.communicate(timeout=TIMEOUT + 2 * SLACK)
            assert process.returncode == 0 or "does not answer" in said, said
    assert ports
    assert not any(is_open(f"127.0.0.1:{port}") for port in ports)
