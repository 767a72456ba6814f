"""What benchmarks share: the machine, the versions and the commit; a table and a JSON file; peak memory.

Run as a program it prints what it would say about this machine.
"""

import argparse
import gc
import json
import platform
import subprocess
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch

from fedsim.files import write_text
from fedsim.memory import give_back_memory
from fedsim.tracking.summary import versions

BENCH = Path(__file__).resolve().parent
_INTERVAL = 0.005  # seconds between two looks at the resident memory


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware, without the machine's name: processor, cores, memory in GiB, and the GPU if `device` is one."""
    found: dict[str, Any] = {
        "cpu": _processor(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        # Processes that want a core, over the last minute: above the number of cores, times are of little use.
        "load_before": round(psutil.getloadavg()[0], 1),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit that is measured, with "+" behind it if fedsim/ or bench/ has changes; None outside git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=BENCH, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # The results themselves are no change of the program.
        changed = git("status", "--porcelain", "--", "../fedsim", ".", ":(exclude)results")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def header(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The first half of a report; the benchmark adds its results.

    Args:
        name: of the benchmark: bench/NAME.py.
        options: parsed command line; `out` is left out, for it is a path of this machine.
        device: that is measured.
    """
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    words = [f"python bench/{name}.py"]
    for key, value in settings.items():
        if value is not None:
            words += [f"--{key.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return {
        "benchmark": name,
        "command": " ".join(words),
        "settings": settings,
        "device": str(device),
        "machine": machine(device),
        "versions": versions(device),
        "commit": commit(),
    }


def print_report(report: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The machine, the versions and the command in three lines, then the rows as a table; None shows as "-"."""
    for part in ("machine", "versions"):
        print(", ".join(f"{key} {value}" for key, value in report[part].items()))
    print(f"commit {report['commit'] or 'unknown'}: {report['command']}\n")
    cells = [{key: "-" if value is None else value for key, value in row.items()} for row in rows]
    print(pd.DataFrame(cells).to_string(index=False))


def write_report(report: dict[str, Any], out: Path | None) -> Path:
    """Write the report; None is bench/results/NAME.json."""
    path = out or BENCH / "results" / f"{report['benchmark']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(report, indent=2) + "\n")
    return path


class PeakMemory:
    """The peak inside a `with` block. `start` and `peak` are bytes: what PyTorch has allocated on a GPU, which it
    counts itself, or this process's resident memory on a CPU, looked at every 5 ms by a thread.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.process = device, psutil.Process()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = self.peak = torch.cuda.memory_allocated(self.device)
        else:
            self.start = self.peak = self.process.memory_info().rss
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self.stop.set()
            self.thread.join()

    def _watch(self) -> None:
        while not self.stop.wait(_INTERVAL):
            self.peak = max(self.peak, self.process.memory_info().rss)


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken: the GPU's free memory, or what the machine and the control group leave."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free


def die_first() -> None:
    """Where memory runs out all the same, Linux shall kill this process and no other."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")


def release(device: torch.device) -> None:
    """Give freed memory back to the system before `PeakMemory`: what is taken again would not be counted."""
    gc.collect()
    if device.type == "cuda":
        wait(device)
        torch.cuda.empty_cache()
    give_back_memory()


def wait(device: torch.device) -> None:
    """Until the GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps({"machine": machine(here), "versions": versions(here), "commit": commit()}, indent=2))
