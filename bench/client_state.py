"""Memory and disk of the vectors that clients keep: SCAFFOLD's traffic without its training.

Each round reads, changes and writes one row for each client of a cohort, one client after another as the serial
trainer does, and commits; checkpoints are taken as a run takes them. By default a row is a control variate of FEMNIST's
CNN (6.6M parameters, 26 MB), 10 of 3,400 clients take part in a round, and the rows may take 1 GiB of RAM. All rows
would be 90 GB. In the end every row is read back and checked.

The file lies in a folder that is removed afterwards; `--rounds` decides how much is written.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import PeakMemory, header, print_report, release, write_report

from fedsim.checkpoint import Checkpoint
from fedsim.client_state import ClientVectors
from fedsim.sampling import Population, uniform

CPU = torch.device("cpu")


def measure(options: argparse.Namespace, ram_gib: float, folder: Path) -> dict[str, Any]:
    vectors = ClientVectors(options.size, ram_bytes=int(ram_gib * 2**30), directory=folder)
    population = Population(sizes=np.ones(options.clients, dtype=np.int64))
    sample, model = uniform(population, options.clients_per_round), torch.zeros(options.size)
    last: dict[int, int] = {}
    seconds, checkpoint_seconds = [], []
    release(CPU)
    with PeakMemory(CPU) as memory:
        for round in range(1, options.rounds + 1):
            begin = time.perf_counter()
            for client in sample(0, round):
                row = vectors.read(np.array([client]))
                row += round - last.get(int(client), 0)
                vectors.write(np.array([client]), row)
                last[int(client)] = round
            vectors.commit()
            seconds.append(time.perf_counter() - begin)
            if round % options.checkpoint_every == 0:
                begin = time.perf_counter()
                clients = {"vectors": vectors.snapshot()}
                Checkpoint(round=round, vector=model, state={}, config={}, dataset="", clients=clients).save(folder)
                vectors.confirm()
                checkpoint_seconds.append(time.perf_counter() - begin)
        for client, round in last.items():
            row = vectors.read(np.array([client]))[0]
            assert bool((row == round).all()), f"client {client} lost its row"
    return {
        "ram_gib": ram_gib,
        "rounds": options.rounds,
        "clients_written": len(vectors),
        "rows_gib": round_gib(len(vectors) * vectors.row_bytes),
        "file_gib": round_gib(vectors.file_bytes),
        "peak_gib_above_start": round_gib(memory.peak - memory.start),
        "peak_gib": round_gib(memory.peak),
        "seconds_per_round": round_to(np.median(seconds)),
        "seconds_per_checkpoint": round_to(np.median(checkpoint_seconds)),
    }


def round_gib(count: int) -> float:
    return round(count / 2**30, 2)


def round_to(seconds: np.floating) -> float:
    return round(float(seconds), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=6_603_710, help="elements of a row, float32")
    parser.add_argument("--clients", type=int, default=3400)
    parser.add_argument("--clients-per-round", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--checkpoint-every", type=int, default=10)
    parser.add_argument("--ram-gib", type=float, nargs="+", default=[1.0])
    parser.add_argument("--folder", type=Path, help="where the file lies while this runs; default: temporary files")
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/client_state.json")
    options = parser.parse_args()
    rows = []
    for ram_gib in options.ram_gib:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rows.append(measure(options, ram_gib, Path(folder)))
    options.folder = None  # a path of this machine
    report = {**header("client_state", options, CPU), "results": rows}
    print_report(report, rows)
    write_report(report, options.out)


if __name__ == "__main__":
    main()
