"""SCAFFOLD on FEMNIST's CNN with 3,400 clients, under a limit of memory that the system enforces.

Ten clients a round train 6,603,710 parameters on 20 noise images each; every client that has trained keeps a control
variate of the model's size, 26.4 MB, for which there is 1 GiB of RAM: the rest lies in the file, and checkpoints are
taken as a run takes them. The process may not allocate more than `--limit-gib` (RLIMIT_DATA; Linux): beyond that it
dies. In the end the mean of all clients' control variates, read back from where they lie, is compared with the
server's, which SCAFFOLD keeps equal to it by another way.

The file lies in a folder that is removed afterwards; `--rounds` decides how much is written.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import PeakMemory, header, print_report, write_report

from fedsim.algorithms import scaffold
from fedsim.config import ClientStateConfig, LocalConfig, ServerConfig
from fedsim.data.federated import FederatedDataset, Split
from fedsim.models import leaf_cnn
from fedsim.simulation import Simulation
from fedsim.train.serial import SerialTrainer

CPU = torch.device("cpu")
GIB = 2**30


def make(num_clients: int, samples: int) -> FederatedDataset:
    """Noise images of 62 classes."""
    generator, count = torch.Generator().manual_seed(0), num_clients * samples
    split = Split(
        inputs=torch.randn(count, 1, 28, 28, generator=generator),
        targets=torch.randint(0, 62, (count,), generator=generator),
        offsets=np.arange(num_clients + 1) * samples,
    )
    ids = [str(i) for i in range(num_clients)]
    return FederatedDataset(name="noise", train=split, client_ids=ids, num_classes=62)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    simulation = Simulation(
        make(options.clients, options.samples),
        leaf_cnn,
        algorithm=scaffold(),
        local=LocalConfig(batch_size=10, learning_rate=0.01),
        server=ServerConfig(num_rounds=options.rounds, clients_per_round=options.clients_per_round, evaluate_every=0),
        client_state=ClientStateConfig(ram_gib=options.ram_gib),
        trainer=SerialTrainer,
        device="cpu",
    )
    vectors = simulation.trainer.clients
    assert vectors is not None
    vectors.locate(folder)
    vectors.require_room(min(options.clients, options.rounds * options.clients_per_round))
    seconds, checkpoint_seconds = [], []
    with PeakMemory(CPU) as memory:
        for round in range(1, options.rounds + 1):
            begin = time.perf_counter()
            simulation.server.run_round()
            seconds.append(time.perf_counter() - begin)
            if round % options.checkpoint_every == 0:
                begin = time.perf_counter()
                simulation.save(folder, {})
                checkpoint_seconds.append(time.perf_counter() - begin)
        total = torch.zeros(vectors.size, dtype=torch.float64)
        for client in vectors.written:
            total += vectors.read(np.array([client]))[0]
    server = simulation.server.state["control"].double()
    error = torch.linalg.vector_norm(total / options.clients - server) / torch.linalg.vector_norm(server)
    assert error < 1e-5, f"the clients' control variates and the server's differ by {error:.1e}"
    return {
        "parameters": simulation.model.num_parameters,
        "limit_gib": options.limit_gib,
        "ram_gib": options.ram_gib,
        "peak_gib": rounded(memory.peak / GIB),
        "clients": options.clients,
        "clients_written": len(vectors),
        "mb_per_client": rounded(vectors.row_bytes / 1e6),
        "file_gib": rounded(vectors.file_bytes / GIB),
        "seconds_per_round": rounded(float(np.median(seconds))),
        "seconds_per_checkpoint": rounded(float(np.median(checkpoint_seconds))) if checkpoint_seconds else None,
        "control_error": float(f"{error:.1e}"),
    }


def rounded(value: float) -> float:
    return round(value, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=3400)
    parser.add_argument("--clients-per-round", type=int, default=10)
    parser.add_argument("--samples", type=int, default=20, help="of each client")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--checkpoint-every", type=int, default=10)
    parser.add_argument("--ram-gib", type=float, default=1.0)
    parser.add_argument("--limit-gib", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, help="where the file lies while this runs; default: temporary files")
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/scaffold_memory.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    limit = int(options.limit_gib * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    report = header("scaffold_memory", argparse.Namespace(**{**vars(options), "folder": None}), CPU)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = [measure(options, Path(folder))]
    report["results"] = rows
    print_report(report, rows)
    write_report(report, options.out)


if __name__ == "__main__":
    main()
