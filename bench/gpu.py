"""fedsim on a GPU, in one call of a few minutes: eager steps, CUDA graphs, TF32 and bf16, memory, and a profile.

W1 and W2 of `bench/workloads.py`, and FS: ConvNet2, 40 of 200 clients of about 227 samples, batch 10, the setting of
FederatedScope's femnist_convnet2. `serial-eager` is what a loop over clients on one shared model takes; every other
way is compared with it. `peak_mib` is the most that PyTorch allocated on the device, `predicted_mib` what the memory
planner said before; `difference` is that of the final model from serial-eager's, as a share of the way that it has
moved.

    python bench/gpu.py                      # everything
    python bench/gpu.py --device cpu --workloads W2 --rounds 2 --slots 16 --profile none    # tries the program itself
"""

import argparse
import gc
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import header, print_report, release, wait, write_report
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from workloads import BATCH, WORKLOADS, Workload, initial_model, make

from fedsim.config import LocalConfig, ServerConfig
from fedsim.data.federated import FederatedDataset
from fedsim.memory import peak_memory_bytes
from fedsim.models import convnet2
from fedsim.simulation import Simulation
from fedsim.train.calibrate import Auto
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer

WORKLOADS["FS"] = Workload(clients=200, per_round=40, mean=227, classes=62, noise=1.0, rate=0.01, model=convnet2)
RUN = 100  # rounds that trainer=auto is told of


def ways(name: str, slots: list[int], device: torch.device) -> dict[str, Any]:
    """Trainers by name; the first is the loop that the others are compared with."""
    found: dict[str, Any] = {"serial-eager": partial(SerialTrainer, cuda_graphs=False)}
    cuda = device.type == "cuda"
    if cuda:
        found["serial-graphs"] = partial(SerialTrainer, cuda_graphs=True)
    counts = sorted({min(k, WORKLOADS[name].per_round) for k in slots})
    for k in counts:
        vectorized = partial(VectorizedTrainer, num_slots=k)
        found[f"vectorized-{k}-eager"] = partial(vectorized, cuda_graphs=False, factor=not cuda)
        if cuda:
            found[f"vectorized-{k}-graphs"] = partial(vectorized, cuda_graphs=True)
    for precision in ("tf32", "bf16") if cuda else ("bf16",):
        found[f"vectorized-{counts[-1]}-{precision}"] = partial(
            VectorizedTrainer, num_slots=counts[-1], precision=precision
        )
    return {**found, "auto": Auto(cache=False)}


def build(name: str, dataset: FederatedDataset, cohorts: np.ndarray, trainer: Any, device: torch.device) -> Simulation:
    return Simulation(
        dataset,
        initial_model(name, dataset),
        local=LocalConfig(learning_rate=WORKLOADS[name].rate, batch_size=BATCH),
        server=ServerConfig(num_rounds=RUN, clients_per_round=cohorts.shape[1]),
        sampler=lambda population, size: lambda seed, round: cohorts[round - 1],
        trainer=trainer,
        device=str(device),
    )


def measure(simulation: Simulation, rounds: int, device: torch.device) -> tuple[dict[str, Any], Tensor]:
    """Times of the rounds, memory, and the model afterwards."""
    predicted = simulation.footprint().peak
    if device.type == "cuda":
        wait(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(rounds):
        wait(device)
        begin = time.perf_counter()
        simulation.server.run_round()
        wait(device)
        seconds.append(time.perf_counter() - begin)
    choice = simulation.choice
    row = {
        "median_seconds": round(float(np.median(seconds[2:] or seconds[-1:])), 5),
        "first_seconds": round(seconds[0], 2),
        "peak_mib": round(peak_memory_bytes(device) / 2**20),
        "predicted_mib": round(predicted / 2**20),
        "chosen": None if choice is None else (f"vectorized-{choice.num_slots}" if choice.num_slots else "serial"),
    }
    return row, simulation.server.vector.clone()


def traced(simulation: Simulation, device: torch.device) -> list[dict[str, Any]]:
    """One more round under PyTorch's profiler: the kernels that take most of the device's time."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        begin = time.perf_counter()
        simulation.server.run_round()
        wait(device)
        seconds = time.perf_counter() - begin
    cuda = device.type == "cuda"
    rows = [
        (event.self_device_time_total if cuda else event.self_cpu_time_total, event.count, event.key)
        for event in found.key_averages()
        if not cuda or str(event.device_type).endswith("CUDA")
    ]
    rows.sort(reverse=True)
    busy = sum(time for time, _, _ in rows)
    print(f"\nprofile: a round of {seconds * 1e3:.1f} ms, of which the device is busy {busy / seconds / 1e4:.0f} %")
    return [
        {"name": key[:80], "calls": count, "ms": round(time / 1e3, 2), "share": round(time / busy, 3)}
        for time, count, key in rows[:12]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--slots", nargs="+", type=int, default=[10, 40, 100], help="at most the clients of a round")
    parser.add_argument("--rounds", type=int, default=8, help="rounds, the first two of which are not counted")
    parser.add_argument("--minutes", type=float, default=7.0, help="ways that would begin later are left out")
    parser.add_argument("--profile", default="FS", help="workload whose last graphed round is profiled, or none")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/gpu.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device here; --device cpu tries the program itself")
    began, rows, left_out, failed, kernels = time.monotonic(), [], [], [], []
    for name in options.workloads:
        dataset, cohorts = make(name, options.rounds + 1)
        start = torch.nn.utils.parameters_to_vector(initial_model(name, dataset).parameters()).detach().to(device)
        samples = int(np.median(dataset.train.sizes[cohorts].sum(1)))
        base: tuple[float, Tensor] | None = None
        for way, trainer in ways(name, options.slots, device).items():
            if time.monotonic() - began > 60 * options.minutes:
                left_out.append(f"{name} {way}")
                continue
            simulation = None
            try:
                simulation = build(name, dataset, cohorts, trainer, device)
                row, vector = measure(simulation, options.rounds, device)
                base = base or (row["median_seconds"], vector)
                moved = (base[1][: len(start)] - start).norm()
                row["samples_per_second"] = round(samples / row["median_seconds"])
                row["times_serial"] = round(base[0] / row["median_seconds"], 2)
                row["difference"] = float(f"{((vector - base[1]).norm() / moved).item():.1e}")
                rows.append({"workload": name, "way": way, **row})
                print(rows[-1], flush=True)
                if name == options.profile and way.endswith("graphs" if device.type == "cuda" else "eager"):
                    kernels = traced(simulation, device)
            except Exception as error:  # the other ways are still worth their time
                failed.append(f"{name} {way}: {(str(error) or type(error).__name__).splitlines()[0]}")
                print("failed:", failed[-1], flush=True)
            del simulation
            gc.collect()
            release(device)
    report = {
        **header("gpu", options, device),
        "results": rows,
        "profile": kernels,
        "left_out": left_out,
        "failed": failed,
    }
    print_report(report, rows)
    for kernel in kernels:
        print(kernel)
    if left_out:
        print("left out, for the time was over:", ", ".join(left_out))
    for line in failed:
        print("failed:", line)
    write_report(report, options.out)


if __name__ == "__main__":
    main()
