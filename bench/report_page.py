"""The report over hundreds of runs: seconds to write it, its size, and seconds until a browser has drawn it.

The runs are generated, in the files that a run leaves: four algorithms, five learning rates and ten seeds, each with a
row for every round and an accuracy in every fifth, 100 clients, and a partition for each seed. They are grouped by
algorithm and rate, and then each is a group of its own. Chromium opens the page headless, at the width of a desk and of
a phone; a person waits until the first frame after all has been drawn. Then the metric is changed once in the page,
which draws everything again.
"""

import argparse
import contextlib
import io
import math
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
from report import header, print_report, write_report

from fedsim.cli import conf_dir
from fedsim.data.outline import outline
from fedsim.data.partition import Dirichlet
from fedsim.data.synthetic import synthetic_fedprox
from fedsim.report.__main__ import main as fedsim_report
from fedsim.tracking.run_directory import RunDirectory
from fedsim.tracking.summary import summarise

ALGORITHMS = ("fedavg", "fedprox", "scaffold", "fedadam")
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# The first frame after the page's own script; then a change of the metric, and the frame that shows it.
PROBE = """<script>
const frame = (then) => requestAnimationFrame(() => setTimeout(then));
frame(() => {
  const drawn = performance.now();
  at("metric").selectedIndex = 1;
  at("controls").dispatchEvent(new Event("change"));
  frame(() => console.log(`drawn after ${drawn / 1000} s, again in ${(performance.now() - drawn) / 1000} s.`));
});
</script></body>"""


def generate(folder: Path, num_runs: int, num_rounds: int) -> None:
    """Run directories 0, 1 ... below `folder`."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config: dict[str, Any] = OmegaConf.to_container(hydra.compose("config", ["+experiment=debug"]), resolve=True)
    pooled = synthetic_fedprox(num_clients=100)
    partitions = [outline(Dirichlet(num_clients=100, alpha=0.5)(pooled, seed)) for seed in range(10)]
    for number in range(num_runs):
        algorithm, rest = number % len(ALGORITHMS), number // len(ALGORITHMS)
        rate, seed = rest % len(RATES), rest // len(RATES)
        rng = np.random.default_rng(number)
        config["algorithm"] = {"_target_": f"fedsim.algorithms.{ALGORITHMS[algorithm]}"}
        config["local"]["learning_rate"], config["seed"] = RATES[rate], seed
        files = RunDirectory(folder / str(number))
        files.write_config(config)
        files.write_partition(partitions[seed % len(partitions)])
        for round in range(1, num_rounds + 1):
            accuracy = (0.6 + 0.05 * algorithm + 0.02 * rate) * (1 - math.exp(-round / 60)) + 0.01 * rng.normal()
            row = {"round": round, "train_loss": 2.3 - 2 * accuracy, "update_norm": 1 / round, "clients": 10,
                   "samples": 1000, "bytes_up": 2_000_000, "seconds": 1 + 0.1 * rng.random(),
                   "peak_memory_bytes": 700_000_000 + round}  # fmt: skip
            if round % 5 == 0:
                row |= {"test_loss": 2.3 - 1.8 * accuracy, "test_accuracy": accuracy, "evaluate_seconds": 0.1}
            files.log(row)
        clients = np.clip(rng.normal(files.rows[-1]["test_accuracy"], 0.1, 100), 0, 1)
        files.write_clients(pd.DataFrame({"client": range(100), "split": "test", "samples": 10, "accuracy": clients}))
        files.write_summary({"name": "generated", **summarise(files.rows), "num_clients": 100, "trainer": "Generated"})


def drawn(browser: str, page: Path, width: int, folder: Path) -> tuple[float, float]:
    """Seconds from the start of loading until the page is drawn, and from a change until it is drawn again."""
    probed = folder / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    command = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--enable-logging=stderr", "--remote-debugging-port=0", f"--user-data-dir={folder / f'profile{time.time()}'}",
        f"--window-size={width},900", probed.as_uri(),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    stop = threading.Timer(120, process.kill)
    stop.start()
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"drawn after ([\d.]+) s, again in ([\d.]+) s", line):
                return float(found[1]), float(found[2])
        raise SystemExit("the browser has ended without drawing the page")
    finally:
        stop.cancel()
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[6, 200])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3, help="the median of so many openings")
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/report_page.json")
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit("no Chromium here, which opens the page: apt-get install chromium")
    report, rows = header("report_page", options, torch.device("cpu")), []
    for num_runs in options.runs:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            generate(folder / "runs", num_runs, options.rounds)
            most = len(ALGORITHMS) * len(RATES)  # of groups without the seed
            for groups in dict.fromkeys((min(num_runs, most), num_runs)):
                by = ["--group-by", "algorithm,local.learning_rate,seed"] if groups > most else []
                begin = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()):
                    fedsim_report([str(folder / "runs"), "--out", str(folder / "report.html"), *by])
                seconds = round(time.perf_counter() - begin, 2)
                row: dict[str, Any] = {"runs": num_runs, "groups": groups, "write_seconds": seconds}
                row["megabytes"] = round((folder / "report.html").stat().st_size / 1e6, 2)
                for name, width in (("desk", 1280), ("phone", 500)):
                    seen = [drawn(browser, folder / "report.html", width, folder) for _ in range(options.repeats)]
                    first, again = np.median(seen, axis=0).tolist()
                    row[f"{name}_drawn_seconds"], row[f"{name}_redrawn_seconds"] = round(first, 2), round(again, 2)
                rows.append(row)
    report["results"] = rows
    print_report(report, rows)
    write_report(report, options.out)


if __name__ == "__main__":
    main()
