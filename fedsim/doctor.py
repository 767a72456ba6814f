"""`python -m fedsim.doctor`: versions, devices, memory, and what is missing, for a person or for a bug report."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

REQUIRED = (
    "torch", "torchvision", "numpy", "hydra-core", "omegaconf", "pandas", "tqdm", "rich", "matplotlib", "safetensors",
    "psutil",
)  # fmt: skip
# Extra -> its packages, as in pyproject.toml, and what they are for.
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "tracking": (("tensorboard", "wandb", "mlflow"), "tracking=[tensorboard,wandb,mlflow]"),
    "sweep": (("hydra-joblib-launcher", "hydra-optuna-sweeper", "optuna"), "+sweep=parallel, +sweep=optuna"),
    "slurm": (("hydra-submitit-launcher", "submitit"), "+sweep=slurm"),
    "hub": (("datasets",), "data from the Hugging Face hub"),
    "tabular": (("scikit-learn",), "data=adult, covtype, rcv1, libsvm, svhn"),
    "parquet": (("pyarrow",), "tables of python -m fedsim.data_report as Parquet"),
    "privacy": (("dp-accounting",), "epsilon of transforms=[clip,gaussian]"),
    "notebooks": (("jupyterlab", "nbclient", "ipykernel"), "notebooks/"),
    "docs": (("mkdocs-material", "mkdocstrings"), "the pages as a site: mkdocs serve"),
}


def main() -> int:
    """Print the report; returns 1 where something is missing that a run needs."""
    missing = [name for name in REQUIRED if _version(name) is None]
    lines = [
        f"fedsim {_fedsim_version()} in {Path(__file__).resolve().parent}",
        f"Python {platform.python_version()} ({sys.executable}) on {platform.system()} {platform.machine()}",
        "",
        "needed",
        *(f"  {name:<24}{_version(name) or 'MISSING'}" for name in REQUIRED),
        "",
        "extras",
        *_extras(),
        "",
        "device",
        *([] if "torch" in missing else _devices()),
        "",
        "memory and disk",
        *([] if "psutil" in missing else _memory()),
        "",
    ]
    if missing:
        lines.append(f"a run cannot start: pip install {' '.join(missing)}")
    else:
        lines.append("a run can start: python -m fedsim +experiment=debug")
    print("\n".join(lines))
    return 1 if missing else 0


def _fedsim_version() -> str:
    from fedsim import __version__

    return __version__


def _version(name: str) -> str | None:
    """Of an installed distribution; None: it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extras() -> list[str]:
    lines = []
    for extra, (packages, purpose) in EXTRAS.items():
        found = {name: _version(name) for name in packages}
        absent = [name for name, version in found.items() if version is None]
        if absent:
            state = f"missing {', '.join(absent)}: pip install '.[{extra}]' in fedsim's folder"
        else:
            state = ", ".join(f"{name} {version}" for name, version in found.items())
        lines.append(f"  {extra:<12}{state}  ({purpose})")
    return lines


def _devices() -> list[str]:
    import torch

    cores, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    allowed = "" if usable in (None, cores) else f", {usable} of them for this process"
    number = torch.get_num_threads()
    threads = f"{number} thread{'s' * (number != 1)} (OMP_NUM_THREADS changes it)"
    lines = [f"  CPU         {cores} core{'s' * (cores != 1)}{allowed}; PyTorch uses {threads}"]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        lines.append(f"  cuda:{index}      {name}, {_gib(free)} of {_gib(total)} free")
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        lines.append(f"  GPU         none that PyTorch sees ({built}); device=auto means the CPU")
    return lines


def _memory() -> list[str]:
    import psutil

    memory, lines = psutil.virtual_memory(), []
    lines.append(f"  memory      {_gib(memory.available)} of {_gib(memory.total)} free")
    for name, folder in (("data cache", _cache()), ("this folder", Path.cwd())):
        there = next(p for p in (folder, *folder.parents) if p.exists())
        state = "" if os.access(there, os.W_OK) else ", NOT WRITABLE"
        lines.append(f"  {name:<12}{folder}: {_gib(shutil.disk_usage(there).free)} free{state}")
    return lines


def _cache() -> Path:
    from fedsim.data.cache import cache_root

    return cache_root()


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


if __name__ == "__main__":
    sys.exit(main())
