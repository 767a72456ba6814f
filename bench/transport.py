"""What it costs to run a round in other processes, and what it brings.

`overhead`: rounds of a star whose workers train nothing (one client, a zero update of P elements), so that only
messages, threads and the merging are left; milliseconds a round, and a worker; the bytes into the server in a round of
one client a worker, and of 16. `training`: rounds of FEMNIST's CNN (6.6M parameters, 10 clients a round, the serial
trainer, one thread a process) in one process, in N workers, and, as the ceiling of these, in N processes that train the
same parts of the cohort and exchange nothing. The ways take turns, round by round, because a shared machine is now
faster, now slower: a speed-up is the median of the ratios within single rounds, here with the lowest and the highest.
One process and the workers must end in the same bits. `peak_mib` is the resident peak of the largest process, and
`planned_mib` what the memory planner says of it before the first round, for a worker with one message more.
"""

import argparse
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import header, print_report, write_report

from fedsim import LocalConfig, ServerConfig, Simulation, __version__
from fedsim.aggregate import PartialAverage, weight_scale
from fedsim.data.femnist import femnist
from fedsim.models import leaf_cnn
from fedsim.train.serial import SerialTrainer
from fedsim.transport.base import Job, Transport
from fedsim.transport.divide import divide
from fedsim.transport.identity import Identity
from fedsim.transport.join import listen
from fedsim.transport.star import Star
from fedsim.transport.worker import Built, Worker

SECRET = b"0123456789abcdef"
COLUMNS = ("what", "workers", "ms_a_round", "ms_a_worker", "bytes_up", "bytes_up_16")
COLUMNS += ("s_a_round", "speed_up", "lowest", "highest", "of_ceiling", "peak_mib", "planned_mib")


class Idle:
    """A worker's transport that trains nothing."""

    def run_round(self, job: Job) -> PartialAverage:
        weight = float(job.sizes.sum())
        return PartialAverage(
            total=torch.zeros(len(job.broadcast), dtype=torch.float64), weight=weight, scale=job.scale
        )

    def close(self) -> None:
        """Nothing was started."""


def simulate(transport: Any = None) -> Simulation:
    """The run whose rounds are timed."""
    return Simulation(
        femnist(num_clients=300),
        leaf_cnn,
        local=LocalConfig(learning_rate=0.05, batch_size=10),
        server=ServerConfig(num_rounds=1000, clients_per_round=10, evaluate_every=0),
        trainer=SerialTrainer,
        transport=transport,
        device="cpu",
    )


def open_star(size: int, num_clients: int, num_workers: int) -> Star:
    """Without a trainer of its own."""
    identity = Identity(
        config={}, comparable={}, config_hash="", version=__version__, dataset="", layout="", size=size,
        num_clients=num_clients,
    )  # fmt: skip
    return Star(listen("127.0.0.1:0"), secret=SECRET, identity=identity, own=None, expected=lambda: num_workers)


def serve(address: str, i: int, pipe: Connection, trains: bool) -> None:
    """One worker, in a process of its own, which says what the planner thinks that it will take at its peak."""
    torch.set_num_threads(1)
    transport: Transport = Idle()
    if trains:
        simulation = simulate()
        transport = simulation.own
        pipe.send(simulation.footprint().peak + simulation.model.vector.nbytes)
    ready = {"config_hash": "", "dataset": "", "layout": ""}
    built = Built(transport=transport, device=torch.device("cpu"), ready=lambda: ready)
    Worker(
        [address],
        secret=SECRET,
        name=f"worker_{i}",
        version=__version__,
        claims=None,
        build=lambda identity, upstream: built,
    ).run()


@contextmanager
def served(star: Star, num_workers: int, *, trains: bool) -> Iterator[tuple[list[Any], Connection]]:
    """The star with its workers, which end with it; gives their processes, and a pipe with the planned peak of each."""
    context = multiprocessing.get_context("spawn")
    planned, pipe = context.Pipe(duplex=False)
    workers = [context.Process(target=serve, args=(star.address, i, pipe, trains)) for i in range(num_workers)]
    try:
        for worker in workers:
            worker.start()
        star.gather()
        yield workers, planned
    finally:
        star.close()
        for worker in workers:
            worker.join()


def mib(num_bytes: float) -> int:
    return round(num_bytes / 2**20)


def peak_mib(process: Any) -> int:
    """The most that a process has had resident so far."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return mib(int(status.split("VmHWM:")[1].split()[0]) * 1024)


def job_of(simulation: Simulation, round: int, cohort: np.ndarray) -> Job:
    sizes = simulation.dataset.train.sizes[cohort]
    scale = weight_scale(float(sizes.sum()))
    return Job(round=round, cohort=cohort, sizes=sizes, broadcast=simulation.server.vector, scale=scale)


def stand_alone(pipe: Connection) -> None:
    """A process without a server: does rounds of the run (asked with None) or trains clients, and says how long.

    First it says what the planner thinks that it will take at its peak.
    """
    torch.set_num_threads(1)
    simulation = simulate()
    rounds = simulation.rounds()
    pipe.send(simulation.footprint().peak)
    while (asked := pipe.recv()) != "end":
        begin = time.perf_counter()
        if asked == "vector":
            pipe.send(simulation.server.vector.numpy().tobytes())
        elif asked is None:
            pipe.send(next(rounds)["seconds"])
        else:
            simulation.own.run_round(job_of(simulation, *asked))
            pipe.send(time.perf_counter() - begin)


def overhead(num_workers: int, size: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a round of `num_workers` workers with nothing to do."""
    star = open_star(size, 64, num_workers)
    with served(star, num_workers, trains=False):
        vector, seconds = torch.zeros(size), []

        def train(number: int, clients: int) -> float:
            """One round; returns the bytes that came up."""
            cohort, sizes = np.arange(clients), np.ones(clients, np.int64)
            done = star.run_round(Job(round=number, cohort=cohort, sizes=sizes, broadcast=vector, scale=64.0))
            return sum(value for name, value in done.metrics.items() if name.startswith("bytes_up/"))

        for number in range(1, rounds + 1):
            begin = time.perf_counter()
            train(number, num_workers)
            seconds.append(time.perf_counter() - begin)
        up, up_16 = train(rounds + 1, num_workers), train(rounds + 2, 16 * num_workers)
    milliseconds = 1000 * float(np.median(seconds[2:]))
    return {
        "what": f"overhead, P = {size:,}",
        "workers": num_workers,
        "ms_a_round": round(milliseconds, 3),
        "ms_a_worker": round(milliseconds / num_workers, 3),
        "bytes_up": int(up),
        "bytes_up_16": int(up_16),
    }


def training(num_workers: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds of a round in one process, in processes that exchange nothing, and in workers."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(num_workers):
        ours, theirs = context.Pipe()
        pipes.append(ours)
        processes.append(context.Process(target=stand_alone, args=(theirs,), daemon=True))
        processes[-1].start()
    simulation = simulate(lambda run: open_star(len(run.server.vector), run.dataset.num_clients, num_workers))
    star, steps = simulation.transport, simulation.rounds()
    assert isinstance(star, Star)

    def ask(asked: list[Any]) -> float:
        for pipe, what in zip(pipes, asked, strict=False):
            pipe.send(what)
        return max(pipe.recv() for pipe, _ in zip(pipes, asked, strict=False))

    def apart(round: int, cohort: np.ndarray) -> float:
        parts = divide(simulation.dataset.train.sizes[cohort], [1.0] * num_workers)
        return ask([(round, cohort[part]) for part in parts])

    with served(star, num_workers, trains=True) as (workers, from_workers):
        apart_planned = [pipe.recv() for pipe in pipes]
        planned = apart_planned[:1], apart_planned[1:], [from_workers.recv() for _ in workers]
        few = np.arange(2 * num_workers)
        apart(1, few)  # the first steps of a process are slower
        star.run_round(job_of(simulation, 1, few))
        seconds = np.zeros((rounds, 3))
        for i in range(rounds):
            cohort = simulation.server.next_job().cohort
            ways = (lambda: ask([None]), lambda r=i + 1, c=cohort: apart(r, c), lambda: next(steps)["seconds"])
            for way in (0, 1, 2) if i % 2 == 0 else (2, 1, 0):
                seconds[i, way] = ways[way]()
        pipes[0].send("vector")
        assert pipes[0].recv() == simulation.server.vector.numpy().tobytes(), "the workers end in other bits"
        peaks = [max(map(peak_mib, found)) for found in (processes[:1], processes[1:], workers)]
        for pipe in pipes:
            pipe.send("end")
    for process in processes:
        process.join()
    ratios = seconds[:, :1] / seconds
    speed_up = np.median(ratios, axis=0)
    rows = []
    for way, (what, count) in enumerate((("one process", 0), ("no messages", num_workers), ("workers", num_workers))):
        rows.append({
            "what": f"FEMNIST's CNN, {what}",
            "workers": count,
            "s_a_round": round(float(np.median(seconds[:, way])), 3),
            "speed_up": round(float(speed_up[way]), 2),
            "lowest": round(float(ratios[:, way].min()), 2),
            "highest": round(float(ratios[:, way].max()), 2),
            "peak_mib": peaks[way],
            "planned_mib": mib(max(planned[way])),
        })  # fmt: skip
    rows[-1]["of_ceiling"] = round(float(np.median(seconds[:, 1] / seconds[:, 2])), 2)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--training", nargs="*", type=int, default=[2], help="numbers of workers that train")
    parser.add_argument("--rounds", type=int, default=4, help="of training")
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/transport.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [overhead(n, size, 60 if size < 1e6 else 12) for size in (1_000, 6_603_710) for n in options.workers]
    rows += [row for n in options.training for row in training(n, options.rounds)]
    report = {**header("transport", options, torch.device("cpu")), "results": rows}
    print_report(report, [{key: row.get(key) for key in COLUMNS} for row in rows])
    write_report(report, options.out)


if __name__ == "__main__":
    main()
