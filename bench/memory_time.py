"""Time and peak memory of a round for 10, 100 and 1000 clients, in three ways of keeping models and updates.

- naive: a deep copy of the model for each client, trained with torch.optim.SGD; all copies and all updates live
  until the average has been taken. Memory: 2 models a client. (Gradients are freed after each client, which many
  simulators do not do: with them it would be 3.)
- kept: one shared model, fedsim's local step; the updates, flat vectors, are kept and averaged at the end.
  Memory: 1 model a client.
- online: fedsim's serial trainer, one shared model and a running average. Memory: independent of the clients.

Only memory layout and aggregation differ: the clients, their minibatches (`make_plan`), the gather from resident data
(no DataLoader anywhere) and the learning rate are the same, and the three must end in the same global model. Every
mode and cohort size has a process of its own, so that the peak is that mode's alone.
"""

import argparse
import copy
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import PeakMemory, die_first, free_memory, header, print_report, release, wait, write_report
from torch import Tensor, nn

from fedsim import models
from fedsim.aggregate import weight_scale
from fedsim.algorithms import fedavg
from fedsim.config import LocalConfig
from fedsim.data.federated import FederatedDataset, Normalise, Split
from fedsim.data.resident import ResidentSplit
from fedsim.initial_model import choose_device
from fedsim.memory import peak_memory_bytes
from fedsim.rng import stream, torch_stream
from fedsim.train.plan import Plan, make_plan
from fedsim.train.serial import SerialTrainer
from fedsim.train.step import SerialStep
from fedsim.transport.base import Job
from fedsim.transport.inprocess import InProcess
from fedsim.vector import FlatModel

MODES = ("naive", "kept", "online")
TOLERANCE = 1e-5  # of the final global models' parameters, between modes
_SHAPE, _CLASSES = (1, 28, 28), 62  # FEMNIST's
_GIB, _MIB = 2**30, 2**20
_SPARE = _GIB // 2  # left free beside the predicted need: activations, libraries, and the rest of the machine

Round = Callable[[int], None]
"""One round of training, by its number from 1; moves the global model."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        device = choose_device(options.device)
    except ValueError as error:
        sys.exit(f"error: {error}")
    torch.set_num_threads(options.threads)  # here for the report only: each process sets its own
    report = header("memory_time", options, device)
    results = []
    for cohort in options.cohorts:
        vectors = {}
        for mode in MODES:
            print(f"{cohort} clients, {mode} ...", file=sys.stderr, flush=True)
            result, vectors[mode] = in_own_process(mode, cohort, options)
            results.append(result)
        compare(results[-len(MODES) :], vectors)
    report |= {"notes": notes(device), "results": results}
    print_report(report, [table_row(result) for result in results])
    print("\n" + "\n".join(report["notes"]))
    print(f"written: {write_report(report, options.out).name}")
    wrong = [r for r in results if r["status"] == "error" or (r["difference"] or 0) > TOLERANCE]
    for r in wrong:
        reason = r["detail"] or f"its final model differs from another mode's by {r['difference']:.3g} > {TOLERANCE}"
        print(f"error: {r['clients']} clients, {r['mode']}: {reason}", file=sys.stderr)
    return 1 if wrong else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="mlp", choices=("logistic", "mlp", "fedavg_cnn", "leaf_cnn", "resnet18"))
    parser.add_argument("--cohorts", type=positive, nargs="+", default=[10, 100, 1000], help="clients in a round")
    parser.add_argument("--rounds", type=positive, default=5, help="at least 2: the first is not timed")
    parser.add_argument("--samples-per-client", type=positive, default=16, help="on average; clients differ")
    parser.add_argument("--batch-size", type=positive, default=8)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    # One: with more, a step of so small a model waits for threads more than it computes, above all on a busy machine.
    parser.add_argument("--threads", type=positive, default=1, help="of PyTorch, on the CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: bench/results/memory_time.json")
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error("--rounds must be at least 2, for the first round is not timed")
    return options


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


# --- One process -----------------------------------------------------------------------------------------------------


def in_own_process(mode: str, cohort: int, options: argparse.Namespace) -> tuple[dict[str, Any], np.ndarray | None]:
    """`measure` in a fresh process, so that its peak is its own."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["torch", "fedsim.simulation"])  # import once; that server never trains
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure, mode, cohort, options).result()
        except BrokenProcessPool:
            return outcome(mode, cohort, "error", "the process was killed, probably for its memory"), None


def measure(mode: str, cohort: int, options: argparse.Namespace) -> tuple[dict[str, Any], np.ndarray | None]:
    """Run one mode; its result, and the final global model (P,) float32, or None where it does not fit."""
    die_first()
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    torch.manual_seed(torch_stream(options.seed, "initialise").initial_seed())
    module = getattr(models, options.model)(_SHAPE, _CLASSES)
    size = sum(p.numel() for p in module.parameters())
    data_bytes = cohort * options.samples_per_client * (np.prod(_SHAPE) + 8)
    need, free = int(data_bytes) + 4 * size * models_needed(mode, cohort) + _SPARE, free_memory(device)
    if need > free:
        text = f"needs {need / _GIB:.3g} GiB, {free / _GIB:.3g} GiB free"
        return outcome(mode, cohort, "does not fit", text, num_parameters=size), None

    dataset = random_dataset(cohort, options.samples_per_client, options.seed, device)
    local = LocalConfig(batch_size=options.batch_size, learning_rate=0.05)
    warm_up(mode, module, local, options, device)
    initial = nn.utils.parameters_to_vector(module.parameters()).detach()
    release(device)
    with PeakMemory(device) as memory:
        run_round, vector = globals()[mode](module, dataset, local, options.seed, device)
        seconds, cpu_seconds = [], []
        for round in range(1, options.rounds + 1):
            begin, cpu_begin = time.perf_counter(), time.process_time()
            run_round(round)
            wait(device)
            seconds.append(time.perf_counter() - begin)
            cpu_seconds.append(time.process_time() - cpu_begin)
    final = vector().detach().cpu()
    return outcome(
        mode,
        cohort,
        "ok",
        num_parameters=size,
        seconds=seconds,
        seconds_per_round=statistics.median(seconds[1:]),
        cpu_seconds_per_round=statistics.median(cpu_seconds[1:]),
        peak_bytes=memory.peak - memory.start,
        # A GPU has no second way of measuring.
        max_rss_bytes=None if device.type == "cuda" else peak_memory_bytes(device) - memory.start,
        start_bytes=memory.start,
        models_at_peak=(memory.peak - memory.start) / (4 * size),
        moved=float((final - initial).abs().max()),
    ), final.numpy()


def outcome(mode: str, cohort: int, status: str, detail: str | None = None, **figures: Any) -> dict[str, Any]:
    """One entry of the results; every entry has every key, with None where there is no figure."""
    keys = "num_parameters seconds seconds_per_round cpu_seconds_per_round"
    keys += " start_bytes peak_bytes max_rss_bytes models_at_peak moved difference"
    empty = dict.fromkeys(keys.split())
    return {"clients": cohort, "mode": mode, "status": status, "detail": detail, **empty, **figures}


def models_needed(mode: str, cohort: int) -> int:
    """How many float32 models a mode holds at its peak, at most."""
    # Besides what grows: the global model, the local one, its gradient, and the (online: float64) mean twice.
    return {"naive": 2 * cohort + 4, "kept": cohort + 5, "online": 8}[mode]


def random_dataset(num_clients: int, mean_samples: int, seed: int, device: torch.device) -> FederatedDataset:
    """Noise images, already on the device; each client has half to one and a half times `mean_samples`, or 1."""
    rng = stream(seed, "bench.memory_time")
    half = mean_samples // 2
    sizes = rng.integers(mean_samples - half, mean_samples + half, num_clients, endpoint=True)
    total = int(sizes.sum())
    images = rng.integers(0, 256, (total, *_SHAPE), dtype=np.uint8)
    targets = rng.integers(0, _CLASSES, total)
    return FederatedDataset(
        name="noise",
        train=Split(
            inputs=torch.from_numpy(images).to(device),
            targets=torch.from_numpy(targets).to(device),
            offsets=np.concatenate([[0], np.cumsum(sizes)]),
        ),
        client_ids=[f"client_{i}" for i in range(num_clients)],
        num_classes=_CLASSES,
        preprocess=Normalise(mean=(0.5,), std=(0.29,)),
    )


def warm_up(
    mode: str, module: nn.Module, local: LocalConfig, options: argparse.Namespace, device: torch.device
) -> None:
    """A round of two clients, so that what libraries load and allocate once is not counted as a mode's memory."""
    dataset = random_dataset(2, options.samples_per_client, options.seed, device)
    run_round, _ = globals()[mode](module, dataset, local, options.seed, device)
    run_round(1)


# --- The three modes: (module, dataset, local, seed, device) -> (a round, the global vector) -------------------------


def naive(
    module: nn.Module, dataset: FederatedDataset, local: LocalConfig, seed: int, device: torch.device
) -> tuple[Round, Callable[[], Tensor]]:
    server = copy.deepcopy(module).to(device)
    data = ResidentSplit(dataset, dataset.train, device)

    def run_round(round: int) -> None:
        plan = plan_of(dataset, local, seed, round)
        clients, updates, losses = [], [], []
        for minibatches in clients_of(plan, data):
            model = copy.deepcopy(server).train()
            optimizer = torch.optim.SGD(model.parameters(), lr=local.learning_rate)
            for inputs, targets in minibatches:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs), targets)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            optimizer.zero_grad()
            with torch.no_grad():
                updates.append([p - g for p, g in zip(model.parameters(), server.parameters(), strict=True)])
            clients.append(model)
        weights = (plan.weights / plan.weights.sum()).tolist()
        with torch.no_grad():
            for i, parameter in enumerate(server.parameters()):
                mean = torch.zeros_like(parameter)
                for update, weight in zip(updates, weights, strict=True):
                    mean.add_(update[i], alpha=weight)
                parameter.add_(mean)
        check(losses)

    return run_round, lambda: nn.utils.parameters_to_vector(server.parameters())


def kept(
    module: nn.Module, dataset: FederatedDataset, local: LocalConfig, seed: int, device: torch.device
) -> tuple[Round, Callable[[], Tensor]]:
    model = FlatModel(copy.deepcopy(module), device)
    server = model.vector.clone()
    data = ResidentSplit(dataset, dataset.train, device)
    step = SerialStep(model, local)

    def run_round(round: int) -> None:
        plan = plan_of(dataset, local, seed, round)
        model.module.train()
        updates, losses = [], []
        for minibatches in clients_of(plan, data):
            model.load(server)
            step.begin()
            losses.extend([step(inputs, targets) for inputs, targets in minibatches])
            updates.append(model.vector - server)
        mean = torch.zeros_like(server)
        for update, weight in zip(updates, (plan.weights / plan.weights.sum()).tolist(), strict=True):
            mean.add_(update, alpha=weight)
        server.add_(mean)
        check(losses)

    return run_round, lambda: server


def online(
    module: nn.Module, dataset: FederatedDataset, local: LocalConfig, seed: int, device: torch.device
) -> tuple[Round, Callable[[], Tensor]]:
    algorithm = fedavg()
    model = FlatModel(copy.deepcopy(module), device)
    server = model.vector.clone()
    trainer = SerialTrainer(dataset, model, algorithm, local, seed=seed)
    transport = InProcess(trainer, dataset.train, local, seed=seed)
    cohort, sizes = np.arange(dataset.num_clients), dataset.train.sizes
    scale = weight_scale(float(sizes.sum()))

    def run_round(round: int) -> None:
        partial = transport.run_round(Job(round=round, cohort=cohort, sizes=sizes, broadcast=server, scale=scale))
        server.add_(partial.take_mean().to(server.dtype))

    return run_round, lambda: server


def plan_of(dataset: FederatedDataset, local: LocalConfig, seed: int, round: int) -> Plan:
    return make_plan(dataset.train, np.arange(dataset.num_clients), local, seed=seed, round=round)


def clients_of(plan: Plan, data: ResidentSplit) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Each client's minibatches, its samples gathered in one call, as the serial trainer does it."""
    rows, counts = data.rows(plan.rows[:, 0]), plan.counts[:, 0].tolist()
    batch = rows.shape[1]

    def minibatches(first: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = data.gather(rows[first:stop].reshape(-1))
        for i, count in enumerate(counts[first:stop]):
            minibatch = slice(i * batch, i * batch + count)
            yield inputs[minibatch], targets[minibatch]

    for first, steps in zip(plan.start.tolist(), plan.steps.tolist(), strict=True):
        yield minibatches(first, first + steps)


def check(losses: list[Tensor]) -> None:
    """Wait for the round and look at its losses once, as the serial trainer does."""
    assert torch.stack(losses).sum().isfinite().item()


# --- Report ----------------------------------------------------------------------------------------------------------


def compare(results: list[dict[str, Any]], vectors: dict[str, np.ndarray | None]) -> None:
    """Fill in `difference`: the largest one between a mode's final parameters and those of any other mode."""
    for result in results:
        mine = vectors[result["mode"]]
        others = [v for mode, v in vectors.items() if v is not None and mode != result["mode"]]
        if mine is not None and others:
            result["difference"] = max(float(np.abs(mine - other).max()) for other in others)


def notes(device: torch.device) -> list[str]:
    lines = [
        "s/round: median without the first round (fastest to slowest in brackets); CPU s/round: processor time of the "
        "process, its median, which other programs on the machine disturb less.",
        f"difference: largest one between final parameters of two modes; above {TOLERANCE} is an error.",
    ]
    if device.type == "cuda":
        return [*lines, "peak: device memory that PyTorch allocated, above that at the start of training."]
    return [
        *lines,
        "peak: resident memory of the process, sampled every 5 ms, above that at the start of "
        "training (data and libraries loaded, no model yet but the initial one); models: the same in float32 models.",
        "ru_maxrss: the operating system's own peak, above the same start; it covers the process's whole life, "
        "the warm-up before the start included.",
    ]


def table_row(result: dict[str, Any]) -> dict[str, Any]:
    row = {"clients": result["clients"], "mode": result["mode"]}
    if result["status"] != "ok":
        return row | {"s/round": f"{result['status']} ({result['detail']})"}
    timed = result["seconds"][1:]
    row["s/round"] = f"{result['seconds_per_round']:.3f} ({min(timed):.3f}-{max(timed):.3f})"
    row["CPU s/round"] = f"{result['cpu_seconds_per_round']:.3f}"
    row["ms/client"] = f"{result['seconds_per_round'] / result['clients'] * 1e3:.2f}"
    row["peak MiB"] = f"{result['peak_bytes'] / _MIB:.1f}"
    if result["max_rss_bytes"] is not None:
        row["ru_maxrss MiB"] = f"{result['max_rss_bytes'] / _MIB:.1f}"
    row["models"] = f"{result['models_at_peak']:.1f}"
    row["difference"] = None if result["difference"] is None else f"{result['difference']:.1e}"
    return row


if __name__ == "__main__":
    sys.exit(main())
