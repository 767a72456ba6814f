"""Accuracy under attack: every attack against every aggregator, on MNIST digits.

25 clients in Dirichlet(1) proportions, all of them in every round, 5 of them (20%) attackers; an MLP of one hidden
layer, batches of 20, one epoch. Each cell is the accuracy of the global model on the whole test set after the last
round, in per cent: the mean over seeds, with the smallest and the largest in brackets where there are several. The
column `backdoor success` is the share of test images of other classes that the patch sends to the attackers' class.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from report import header, print_report, write_report

from fedsim.attacks import Attack, backdoor, gaussian_attack, label_flip, little_is_enough, sign_flip, triggered
from fedsim.config import LocalConfig, ServerConfig
from fedsim.data.federated import FederatedDataset
from fedsim.data.partition import Dirichlet
from fedsim.data.vision import mnist
from fedsim.evaluate import Evaluator
from fedsim.models import mlp
from fedsim.robust import (
    Aggregator,
    bulyan,
    geometric_median,
    krum,
    mean,
    median,
    multi_krum,
    norm_bounding,
    trimmed_mean,
)
from fedsim.simulation import Simulation
from fedsim.train.vectorized import VectorizedTrainer

NUM_CLIENTS, NUM_ATTACKERS = 25, 5
AGGREGATORS: dict[str, Aggregator] = {
    "mean (no defence)": mean(),
    "norm_bounding": norm_bounding(),
    "median": median(),
    "trimmed_mean 0.2": trimmed_mean(NUM_ATTACKERS / NUM_CLIENTS),
    "geometric_median": geometric_median(),
    "krum": krum(NUM_ATTACKERS),
    "multi_krum": multi_krum(NUM_ATTACKERS),
    "bulyan": bulyan(NUM_ATTACKERS),
}
ATTACKS: dict[str, Callable[[], Attack] | None] = {
    "none": None,
    "label_flip": label_flip,
    "sign_flip x4": partial(sign_flip, scale=4.0),
    "gaussian 0.1": partial(gaussian_attack, deviation=0.1),
    "little z=1": partial(little_is_enough, z=1.0),
    "backdoor x5": partial(backdoor, scale=NUM_CLIENTS / NUM_ATTACKERS),
}


def measure(
    dataset: FederatedDataset, aggregator: Aggregator, attack: Attack | None, rounds: int, seed: int
) -> tuple[float, float | None]:
    """Accuracy after the last round, and the success of the backdoor; NaN where the run diverges."""
    simulation = Simulation(
        Dirichlet(num_clients=NUM_CLIENTS, alpha=1.0)(dataset, seed),
        partial(mlp, hidden_sizes=(64,)),
        local=LocalConfig(batch_size=20, learning_rate=0.05),
        server=ServerConfig(num_rounds=rounds, clients_per_round=NUM_CLIENTS),
        aggregator=aggregator,
        attack=attack,
        trainer=partial(VectorizedTrainer, num_slots=NUM_CLIENTS),  # `auto` might choose another one each time
        seed=seed,
        device="cpu",
    )
    try:
        for _ in range(rounds):
            simulation.server.run_round()
    except ValueError as error:
        if "not finite" not in str(error):
            raise
        return float("nan"), None
    success = None
    if attack is not None and attack.name == "backdoor":
        assert dataset.test is not None
        found = Evaluator(dataset, triggered(dataset.test), simulation.model).per_sample(simulation.server.vector)
        success = float(found["accuracy"].mean())
    return simulation.evaluate()["test_accuracy"], success


def cell(values: list[float]) -> str:
    """Mean, and the ends where there are several."""
    ends = f" ({100 * min(values):.0f}-{100 * max(values):.0f})" if len(values) > 1 else ""
    return f"{100 * sum(values) / len(values):.1f}{ends}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with MNIST/raw")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/robust.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = mnist(root=options.root)
    options.root = "FOLDER"  # a path of this machine
    report = header("robust", options, torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    for name, aggregator in AGGREGATORS.items():
        row: dict[str, Any] = {"aggregator": name}
        for attack, make in ATTACKS.items():
            found = [measure(dataset, aggregator, make() if make else None, options.rounds, s) for s in options.seeds]
            row[attack] = cell([accuracy for accuracy, _ in found])
            if successes := [success for _, success in found if success is not None]:
                row["backdoor success"] = cell(successes)
        rows.append(row)
        print(row, flush=True)
    report["results"] = rows
    print_report(report, rows)
    write_report(report, options.out)


if __name__ == "__main__":
    main()
