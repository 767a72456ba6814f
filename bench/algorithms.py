"""Six algorithms beside each other where clients differ: accuracy at fixed rounds, each with rates chosen for it.

100 clients, 10 of them a round, two epochs in batches of 10, an MLP of one hidden layer of 64; MNIST digits dealt as
two shards of one or two classes a client, or in Dirichlet(0.1) proportions, which makes sizes uneven as well. Every
algorithm tries the same local learning rates, times the few values of its own setting in GRID, on `--choose-seed`
alone and for `--choose-rounds`: partition, initial model, cohorts and minibatches all follow from the seed. What had
the best mean accuracy over the second half of these rounds is then trained on `--seeds`, which had no part in the
choice, and only these are reported: the mean over the seeds, with the lowest and the highest in brackets, in per cent
of the whole test set. The report has every run that was tried.
"""

import argparse
import multiprocessing
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from report import header, print_report, write_report

from fedsim.algorithms import Algorithm, fedavg, feddyn, fednova, fedprox, fedyogi, scaffold
from fedsim.config import LocalConfig, ServerConfig
from fedsim.data.federated import FederatedDataset
from fedsim.data.femnist import femnist
from fedsim.data.partition import Dirichlet, Shards
from fedsim.data.vision import mnist
from fedsim.models import mlp
from fedsim.simulation import Simulation
from fedsim.train.vectorized import VectorizedTrainer

NUM_CLIENTS, PER_ROUND, NUM_EPOCHS = 100, 10, 2
RATES = [0.05, 0.1, 0.2]  # of the clients
PARTITIONS: dict[str, Callable[[FederatedDataset, int], FederatedDataset]] = {
    "shards": Shards(num_clients=NUM_CLIENTS, shards_per_client=2),
    "dirichlet 0.1": Dirichlet(num_clients=NUM_CLIENTS, alpha=0.1),
}
# The algorithm, the setting of its own that is tried, and its values.
GRID: dict[str, tuple[Callable[..., Algorithm], str, list[float]]] = {
    "fedavg": (fedavg, "", []),
    "fedprox": (fedprox, "proximal_weight", [0.1, 1.0]),
    "scaffold": (scaffold, "", []),
    "feddyn": (feddyn, "regularisation", [0.1, 0.3]),
    "fednova": (fednova, "", []),
    "fedyogi": (fedyogi, "learning_rate", [0.01, 0.03]),
}
Settings = dict[str, float]


def tries(name: str) -> list[Settings]:
    """The settings of the grid: the clients' rate as `local_rate`, and the algorithm's own."""
    _, option, values = GRID[name]
    if not option:
        return [{"local_rate": rate} for rate in RATES]
    return [{"local_rate": rate, option: value} for rate, value in product(RATES, values)]


def measure(
    clients: FederatedDataset, name: str, settings: Settings, rounds: int, at: list[int], seed: int
) -> dict[int, float] | None:
    """Test accuracy of the rounds `at` and of the second half of the run, by round; None: it diverged."""
    own = {option: value for option, value in settings.items() if option != "local_rate"}
    simulation = Simulation(
        clients,
        partial(mlp, hidden_sizes=(64,)),
        algorithm=GRID[name][0](**own),
        local=LocalConfig(num_epochs=NUM_EPOCHS, batch_size=10, learning_rate=settings["local_rate"]),
        server=ServerConfig(num_rounds=rounds, clients_per_round=PER_ROUND),
        trainer=partial(VectorizedTrainer, num_slots=PER_ROUND),
        seed=seed,
        device="cpu",
    )
    found = {}
    for round in range(1, rounds + 1):
        try:
            simulation.server.run_round()
        except ValueError as error:
            if "not finite" not in str(error):
                raise
            return None
        if round in at or 2 * round > rounds:
            found[round] = simulation.evaluate()["test_accuracy"]
    return found


def second_half(found: dict[int, float] | None, rounds: int) -> float:
    """Mean accuracy over the rounds after the first half; 0 for a run that diverged."""
    late = [accuracy for round, accuracy in (found or {}).items() if 2 * round > rounds]
    return sum(late) / len(late) if late else 0.0


def percent(values: list[float]) -> str:
    """Mean (lowest-highest)."""
    return f"{100 * sum(values) / len(values):.1f} ({100 * min(values):.1f}-{100 * max(values):.1f})"


def compare(
    job: tuple[str, str, FederatedDataset, argparse.Namespace],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What was tried for an algorithm on a partition, and the row of the report: one process's work."""
    torch.set_num_threads(1)
    deal, name, dataset, options = job
    about = {"partition": deal, "algorithm": name}
    clients = PARTITIONS[deal](dataset, options.choose_seed)
    scores = []
    for settings in tries(name):
        found = measure(clients, name, settings, options.choose_rounds, [], options.choose_seed)
        scores.append(second_half(found, options.choose_rounds))
    tried = [about | settings | {"accuracy": round(s, 4)} for settings, s in zip(tries(name), scores, strict=True)]
    chosen = tries(name)[scores.index(max(scores))]
    runs = [
        measure(PARTITIONS[deal](dataset, seed), name, chosen, options.rounds, options.at, seed)
        for seed in options.seeds
    ]
    return tried, about | chosen | row_of(runs, options)


def row_of(runs: list[dict[int, float] | None], options: argparse.Namespace) -> dict[str, Any]:
    """What is reported of the runs of one algorithm, those that diverged counted and left out."""
    good = [run for run in runs if run is not None]
    row: dict[str, Any] = {"diverged": len(runs) - len(good)}
    if good:
        row |= {f"round {round}": percent([run[round] for run in good]) for round in options.at}
        row["second half"] = percent([second_half(run, options.rounds) for run in good])
    return row


def read(options: argparse.Namespace) -> FederatedDataset:
    """MNIST, or, where it was asked for, characters drawn from fonts.

    Raises:
        SystemExit: neither was named.
    """
    if options.generated:
        return femnist(source="glyphs", num_clients=40)
    if options.root is None:
        raise SystemExit("give --root FOLDER with MNIST/raw in it, or --generated for characters drawn from fonts")
    return mnist(root=options.root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder with MNIST/raw")
    parser.add_argument("--generated", action="store_true", default=None, help="fonts in the place of digits")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--at", type=int, nargs="+", default=[10, 20, 30], help="rounds whose accuracy is reported")
    parser.add_argument("--choose-seed", type=int, default=0)
    parser.add_argument("--choose-rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--algorithms", nargs="+", choices=GRID, default=list(GRID))
    parser.add_argument("--processes", type=int, default=2, help="that share the work; they change no figure")
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/algorithms.json")
    options = parser.parse_args()
    if max(options.at) > options.rounds:
        raise SystemExit(f"--at {max(options.at)} is after the last of --rounds {options.rounds}")
    dataset = read(options)
    options.root = None if options.root is None else "FOLDER"  # a path of this machine
    report = header("algorithms", options, torch.device("cpu"))
    jobs = [(deal, name, dataset, options) for deal in PARTITIONS for name in options.algorithms]
    rows: list[dict[str, Any]] = []
    grid: list[dict[str, Any]] = []
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for tried, row in pool.imap(compare, jobs, chunksize=1):
            grid += tried
            rows.append(row)
            print(row, flush=True)
    report |= {"grid": grid, "results": rows}
    columns = [*rows[0], *(name for row in rows for name in row if name not in rows[0])]
    print_report(report, [{name: row.get(name) for name in dict.fromkeys(columns)} for row in rows])
    write_report(report, options.out)


if __name__ == "__main__":
    main()
