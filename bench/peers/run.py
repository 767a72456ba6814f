"""The workloads of bench/workloads.py through other simulators and through fedsim, in one table.

    python bench/peers/run.py --peer pfl=VENV/bin/python fedjax=VENV/bin/python blazefl:thread=VENV/bin/python

Each peer runs in the interpreter that is given for it, which needs the peer and NumPy but not fedsim; `python -m venv
VENV && VENV/bin/pip install PACKAGE` makes one (packages: pfl[pytorch], fedjax, blazefl, fedlab, flwr[simulation]; any
with PyTorch for naive). Samples, initial weights and cohorts are the same for all; each is the peer's own best
documented way, which its driver bench/peers/NAME.py states. naive and fedsim run in this interpreter.

One process tree after another, on as many cores as --threads, and all of them --turns times, since the machine may
become slower or faster meanwhile. Seconds are medians over the rounds of all turns without the first of each;
`start_mib` is resident memory when imports, samples and model are there, `peak_mib` its peak until the last round is
over, both summed over the process tree (pages that processes share count in each), looked at every 10 ms from outside.
`elsewhere` is how many cores other programs, or other guests of the host, took meanwhile: 0 on a quiet machine. They
only ever slow a round down, so `best_samples_per_second`, of the fastest round, is what the ratios compare.

--check trains without shuffling instead and says how far each ends from naive: the distance of the two models in units
of the way that naive has gone. FedJAX is compared with a naive loop that fills up last minibatches as it does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

BENCH = Path(__file__).resolve().parents[1]
sys.path[0] = str(BENCH)  # not bench/peers, whose files are named like the libraries that they import
from report import header, print_report, write_report  # noqa: E402
from workloads import WORKLOADS, dump  # noqa: E402

from fedsim.train.trial import seconds_elsewhere  # noqa: E402

PEERS = ("naive", "pfl", "fedjax", "blazefl", "fedlab", "flower")
OURS = {
    "W1": ["serial", "vectorized-1", "vectorized-10", "auto"],
    "W2": ["serial", "vectorized-32", "vectorized-100", "auto"],
}
TOLERANCE = 1e-3  # of --check
_INTERVAL = 0.01  # seconds between two looks at the memory
_LOOKS = 100  # between two looks for new processes


class Failed(Exception):
    """A driver ended early; the message is the last line that it wrote."""


class Watch:
    """Resident bytes of a process and its descendants, and the cores that all others took."""

    def __init__(self, pid: int) -> None:
        self.root, self.stop = psutil.Process(pid), threading.Event()
        self.start = self.peak = 0
        self.elsewhere = 0.0
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def begin(self) -> None:
        self._find()
        self.start = self.peak = self._now()
        self.begun, self.others = time.perf_counter(), seconds_elsewhere([psutil.Process(), *self.tree])
        self.thread.start()

    def end(self) -> None:
        self._look()
        self.stop.set()
        self._find()
        others = seconds_elsewhere([psutil.Process(), *self.tree])
        self.elsewhere = (others - self.others) / (time.perf_counter() - self.begun)

    def _find(self) -> None:
        self.tree = [self.root, *self.root.children(recursive=True)]

    def _now(self) -> int:
        total = 0
        for process in self.tree:
            try:
                total += process.memory_info().rss
            except psutil.Error:  # it has ended
                continue
        return total

    def _look(self) -> None:
        self.peak = max(self.peak, self._now())

    def _watch(self) -> None:
        looks = 0
        while not self.stop.wait(_INTERVAL):
            looks += 1
            if looks % _LOOKS == 0:
                self._find()
            self._look()


def drive(python: str, module: str, arguments: list[str], *, threads: int, limit: float) -> dict[str, Any]:
    """Run a driver to its end: what it reports, with start_mib and peak_mib.

    Raises:
        Failed: it ended early or took longer than `limit` seconds.
    """
    path = os.pathsep.join([str(BENCH), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path} | dict.fromkeys(
        ["OMP_NUM_THREADS", "MKL_NUM_THREADS"], str(threads)
    )
    command = [python, "-m", f"peers.{module}", *arguments, "--threads", str(threads)]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
        try:
            process = subprocess.Popen(command, cwd=BENCH, env=environment, **pipes)
        except OSError as error:
            raise Failed(f"the interpreter does not start: {error.strerror}") from error
        assert process.stdin is not None
        assert process.stdout is not None
        watch, told = Watch(process.pid), {}
        alarm = threading.Timer(limit, process.kill)
        alarm.start()
        for line in process.stdout:
            if not line.startswith("@bench "):
                continue
            told |= json.loads(line.removeprefix("@bench "))
            if (event := told.pop("event", None)) is not None:
                {"ready": watch.begin, "done": watch.end}[event]()
                with suppress(BrokenPipeError):  # it has ended: told below
                    process.stdin.write("\n")
                    process.stdin.flush()
        code = process.wait()
        alarm.cancel()
        watch.stop.set()
        if code != 0 or "seconds" not in told:
            log.seek(0)
            raise Failed(f"exit code {code}: {(log.read().strip().splitlines() or ['no word'])[-1]}")
    found = {"start_mib": round(watch.start / 2**20), "peak_mib": round(watch.peak / 2**20)}
    return {**found, "elsewhere": round(max(0.0, watch.elsewhere), 2), **told}


def systems(options: argparse.Namespace, name: str) -> list[tuple[str, str, str]]:
    """(system, way, interpreter) in the order of the table."""
    found = [("naive", "", sys.executable)]
    for given in options.peer:
        label, _, python = given.partition("=")
        peer, _, way = label.partition(":")
        if peer not in PEERS or not python:
            raise SystemExit(f"--peer {given}: give NAME=PYTHON or NAME:WAY=PYTHON, where NAME is one of {PEERS}")
        found.append((peer, way, python))
    ways = options.ways or OURS[name]
    if options.check:
        return [*found, *(("fedsim", way, sys.executable) for way in ways if way != "auto")]
    return [*found, *(("fedsim", way, sys.executable) for way in ("limit", *ways))]


def time_all(name: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each system, with ratios to naive and to the limit."""
    dump(name, options.rounds, folder)
    rest = np.load(folder / "rest.npz")
    samples = np.diff(rest["offsets"])[rest["cohorts"]].sum(1)  # of each round
    told: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    failed: dict[tuple[str, str, str], str] = {}
    for _ in range(options.turns):
        for one in systems(options, name):
            system, way, python = one
            arguments = [str(folder), "--way", way]
            try:
                found = drive(python, _module(system), arguments, threads=options.threads, limit=options.limit)
            except Failed as error:
                failed[one] = str(error)
            else:
                told.setdefault(one, []).append(found)
                print(system, way, found, file=sys.stderr, flush=True)
    rows = [_row(name, one, told.get(one, []), failed.get(one), samples) for one in systems(options, name)]
    speed = {(row["system"], row["way"]): row.get("best_samples_per_second") for row in reversed(rows)}
    for row in rows:
        if "median_seconds" in row:
            row["times_naive"] = _ratio(row["best_samples_per_second"], speed["naive", ""])
            row["share_of_limit"] = _ratio(row["best_samples_per_second"], speed["fedsim", "limit"])
    return rows


def _row(
    name: str, one: tuple[str, str, str], turns: list[dict[str, Any]], failed: str | None, samples: np.ndarray
) -> dict[str, Any]:
    """What a system told in its turns, as one row: all rounds but the first of each, and the largest memory."""
    row: dict[str, Any] = {"workload": name, "system": one[0], "way": one[1]}
    if failed is not None:
        return row | {"note": f"failed: {failed}"}
    seconds = np.array([turn.pop("seconds") for turn in turns])
    row["median_seconds"] = round(float(np.median(seconds[:, 1:])), 4)
    row["first_seconds"] = round(float(seconds[0, 0]), 2)
    row["samples_per_second"] = round(len(turns) * samples[1:].sum() / seconds[:, 1:].sum())
    row["best_samples_per_second"] = round(float((samples / seconds)[:, 1:].max()))
    row["above_start_mib"] = max(turn["peak_mib"] - turn["start_mib"] for turn in turns)
    return row | turns[0] | {key: max(turn[key] for turn in turns) for key in ("peak_mib", "elsewhere")}


def check_all(name: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each system: how far from naive it ends without shuffling."""
    dump(name, options.rounds, folder)
    rest = np.load(folder / "rest.npz")
    initial = np.concatenate([rest[f"p{i}"].ravel() for i in range(sum(k.startswith("p") for k in rest.files))])

    def final(python: str, system: str, way: str) -> tuple[np.ndarray, dict[str, Any]]:
        arguments = [str(folder), "--way", way, "--in-order"]
        told = drive(python, _module(system), arguments, threads=options.threads, limit=options.limit)
        result = np.load(folder / "result.npz")
        return np.concatenate([result[key].ravel() for key in result.files]).astype(np.float64), told

    expected = {way: final(sys.executable, "naive", way)[0] for way in ("", "filled")}
    rows = []
    for system, way, python in systems(options, name):
        row: dict[str, Any] = {"workload": name, "system": system, "way": way}
        try:
            got, told = final(python, system, way)
        except Failed as error:
            rows.append(row | {"agrees": False, "note": f"failed: {error}"})
            continue
        distances = {k: np.linalg.norm(got - v) / np.linalg.norm(v - initial) for k, v in expected.items()}
        distance = distances["filled" if system == "fedjax" else ""]
        row |= {"deviation": float(f"{distance:.1e}"), "tolerance": TOLERANCE, "agrees": bool(distance <= TOLERANCE)}
        rows.append(row | {"version": told["version"], "note": told.get("note")})
        print(row, file=sys.stderr, flush=True)
    return rows


def _module(system: str) -> str:
    return "ours" if system == "fedsim" else system


def _ratio(mine: float, other: float | None) -> float | None:
    return None if other is None else round(mine / other, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", nargs="*", default=[], metavar="NAME[:WAY]=PYTHON", help=f"NAME: {', '.join(PEERS)}")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--ways", nargs="+", help="of fedsim; default depends on the workload")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, the first of which is not counted")
    parser.add_argument(
        "--turns", type=int, default=1, help="times that all run, one after another, so many rounds each"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="cores for each")
    parser.add_argument("--limit", type=float, default=600, help="seconds that one may take")
    parser.add_argument("--check", action="store_true", help="compare the trained models instead of the times")
    parser.add_argument("--add", action="store_true", help="keep the rows of other workloads that the file has")
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/peers.json or peers_check.json")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # also for systems that take as many cores as they see
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    rows = []
    for name in options.workloads:
        with tempfile.TemporaryDirectory() as folder:
            rows += (check_all if options.check else time_all)(name, Path(folder), options)
    options.peer = [given.partition("=")[0] for given in options.peer]  # the interpreters are paths of this machine
    report = header("peers_check" if options.check else "peers", options, torch.device("cpu"))
    report["command"] = report["command"].replace(f"bench/{report['benchmark']}.py", "bench/peers/run.py")
    print_report(report, rows)
    out = options.out or BENCH / "results" / f"{report['benchmark']}.json"
    if options.add and out.exists():
        before = json.loads(out.read_text())
        if before["commit"] != report["commit"]:
            raise SystemExit(f"--add: {out} was measured at commit {before['commit']}, not {report['commit']}")
        rows = [row for row in before["results"] if row["workload"] not in options.workloads] + rows
    write_report({**report, "results": rows}, out)
    if any(row.get("agrees") is False for row in rows):
        raise SystemExit("not all systems end in naive's model")


if __name__ == "__main__":
    main()
