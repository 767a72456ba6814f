"""`python -m fedsim.data_report +experiment=...`: look at a run's data and partition before the run.

It takes the arguments of `python -m fedsim`, composes the same configuration, and trains nothing. The files of
`fedsim.data.report` go to the run directory; partition.npz is the manifest, which
`partition=from_file partition.path=.../partition.npz` replays.
"""

import importlib
import logging
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fedsim.choices import keep_own_options
from fedsim.cli import run_job
from fedsim.compose import validated
from fedsim.tracking.terminal import Facts, drawn

log = logging.getLogger("fedsim")


def main() -> None:
    """Report on what the arguments describe."""
    run_job(_job)


def _job(cfg: DictConfig) -> None:
    keep_own_options(cfg, log.warning)
    config = validated(cfg)
    directory = Path(HydraConfig.get().runtime.output_dir)

    from hydra.utils import instantiate

    report_module = importlib.import_module("fedsim.data.report")
    dataset = instantiate(config.data)
    recipe = instantiate(config.partition)
    partition = None
    if hasattr(recipe, "partition"):
        partition = recipe.partition(dataset, config.seed)
        owned = partition.apply(dataset)
    else:
        log.warning("the partition is a function of its own, which has no manifest: partition.npz is not written")
        owned = recipe(dataset, config.seed)
    chosen = HydraConfig.get().runtime.choices.get("partition")
    title = f"{dataset.name}, partition={chosen}, {owned.num_clients:,} clients"
    summary = report_module.report(owned, directory, partition=partition, title=title)
    facts = report_module.facts(summary) | {"files": str(directory)}
    print(drawn(Facts(title, facts, whole=("hash of the data", "hash of the partition", "files")), sys.stdout))


if __name__ == "__main__":
    main()
