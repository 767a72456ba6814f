"""The figures of a report, against a sweep whose figures are known (conftest.py)."""

import json
import math

import pandas as pd
import pytest
import yaml

from fedsim.report import curves, default_target, differences, frame, grouping, groups, runs, text
from fedsim.report.__main__ import main
from fedsim.report.page import page


def test_only_what_differs_is_a_setting(sweep):
    recorded = runs([sweep])
    assert [run.name for run in recorded] == ["0", "1", "2", "3", "4", "5"]
    assert differences(recorded) == ["algorithm", "algorithm.proximal_weight", "seed"]
    assert recorded[3].config["algorithm"] == "fedprox"
    assert differences(recorded[:1]) == []


def test_a_part_that_is_left_out_is_no_setting(sweep):
    for job, attack in (("0", {}), ("1", {"_target_": "fedsim.attacks.sign_flip", "fraction": 0.2})):
        file = sweep / job / "config.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"attack": attack}, sort_keys=False))
    table = frame(runs([sweep / "0", sweep / "1"]))
    assert table["attack"].isna().tolist() == [True, False]


def test_jobs_are_in_the_order_of_their_numbers(sweep):
    (sweep / "5").rename(sweep / "10")
    assert [run.name for run in runs([sweep])] == ["0", "1", "2", "3", "4", "10"]


def test_a_row_a_run(sweep):
    table = frame(runs([sweep]), target=0.5)
    assert table["best_accuracy"].tolist() == [0.6, 0.5, 0.3, 0.8, 0.7, 0.9]
    assert table["best_round"].tolist() == [6, 4, 6, 6, 6, 6]
    assert table["final_accuracy"].tolist() == [0.6, 0.4, 0.3, 0.8, 0.7, 0.9]
    # The first evaluation at 50 % or more; never for the third run. A round takes 10 s, 7 s of the clock, 1500 bytes.
    rounds = [4, 4, math.nan, 2, 2, 4]
    for name, each in (("round", 1), ("seconds", 10), ("virtual_seconds", 7), ("bytes", 1500)):
        assert table[f"{name}_to_target"].tolist() == pytest.approx([each * r for r in rounds], nan_ok=True)
    assert table["peak_memory_bytes"].unique().tolist() == [6 * 2**20]
    assert table.loc["0", "client_accuracy_p50"] == 0.3
    assert table.loc["0", "client_accuracy_worst"] == 0.1
    assert table["finished"].all()


def test_the_default_target_is_what_half_of_the_runs_reach(sweep):
    recorded = runs([sweep])
    assert default_target(recorded) == 0.65  # median of 0.3 0.5 0.6 0.7 0.8 0.9
    assert frame(recorded)["round_to_target"].count() == 3


def test_groups_average_over_the_seeds(sweep):
    table = frame(runs([sweep]), target=0.5)
    grouped = groups(table, ["algorithm"])
    assert grouped.loc["fedavg", ("best_accuracy", "mean")] == pytest.approx((0.6 + 0.5 + 0.3) / 3)
    # deviations 0.4 / 3, 0.1 / 3, -0.5 / 3; sum of squares 0.42 / 9, over n - 1 = 2
    assert grouped.loc["fedavg", ("best_accuracy", "std")] == pytest.approx(math.sqrt(0.42 / 9 / 2))
    assert grouped.loc["fedavg", ("round_to_target", "mean")] == 4  # of the two that got there
    assert grouped.loc["fedavg", ("reached", "count")] == 2
    assert "(2 of 3)" in str(text.grouped(grouped, ["algorithm"], 0.5))
    assert grouped[("runs", "count")].tolist() == [3, 3]
    assert groups(table, [])[("runs", "count")].tolist() == [6]
    assert len(groups(table, ["algorithm", "algorithm.proximal_weight"])) == 2  # NaN is a value
    with pytest.raises(ValueError, match=r"cannot group by lr: the runs differ in algorithm, .*seed"):
        groups(table, ["lr"])


def test_curves_are_long(sweep):
    long = curves(runs([sweep]))
    assert len(long) == 36
    assert list(long.columns[:4]) == ["run", "algorithm", "algorithm.proximal_weight", "seed"]
    assert long[long["run"] == "3"]["test_accuracy"].dropna().tolist() == [0.5, 0.7, 0.8]


def test_a_run_that_was_killed_is_read_up_to_its_last_whole_row(sweep):
    (sweep / "0" / "summary.json").unlink()
    (sweep / "0" / "clients.csv").unlink()
    file = sweep / "0" / "metrics.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[:3]) + '\n{"round": 4, "trai')
    table = frame(runs([sweep / "0", sweep / "1"]), target=0.5)
    assert table["finished"].tolist() == [False, True]
    assert table["rounds"].tolist() == [3, 6]
    assert math.isnan(table.loc["0", "round_to_target"])


def test_runs_without_a_test_set_have_no_target(sweep):
    file = sweep / "0" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row.pop("test_accuracy", None)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recorded = runs([sweep / "0"])
    assert default_target(recorded) is None
    assert "best_accuracy" not in frame(recorded)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["."], "no run with a finished round in ."),
        (["sweep", "--group-by", "lr"], "cannot group by lr"),
        (["sweep", "--target", "80"], "--target must be in (0, 1], got 80.0"),
    ],
)
def test_a_mistake_is_one_line(sweep, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path if arguments != ["."] else tmp_path / "empty")
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"fedsim: error: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_file_is_named(sweep, capsys):
    (sweep / "2" / "summary.json").write_text("{")
    assert main([str(sweep)]) == 1
    assert f"cannot read the run {sweep / '2'}" in capsys.readouterr().err


def test_the_command_writes_the_page_and_the_table(sweep, tmp_path, capsys):
    page, csv = tmp_path / "out.html", tmp_path / "runs.csv"
    assert main([str(sweep), "--out", str(page), "--csv", str(csv), "--group-by", "algorithm"]) == 0
    printed = capsys.readouterr().out
    assert "6 runs in 2 groups" in printed
    assert "fedprox" in printed
    assert page.exists()
    assert pd.read_csv(csv)["best_accuracy"].tolist() == [0.6, 0.5, 0.3, 0.8, 0.7, 0.9]


def test_jobs_are_a_line_each_and_of_many_the_best(sweep, monkeypatch):
    jobs = sorted(sweep.iterdir())
    heads, *lines = str(text.jobs(jobs)).splitlines()
    figures = ["best", "final", "train", "loss", "rounds", "a", "round"]
    assert heads.split() == ["job", "algorithm", "proximal_weight", "seed", *figures]
    assert lines[3].split() == ["3", "fedprox", "0.01", "0", "80.0%", "80.0%", "0.500", "6", "10", "s"]
    assert lines[0].split()[:3] == ["0", "fedavg", "-"]
    assert [line.split()[:2] for line in lines if line[0] == "*"] == [["*", "5"]]  # 90 %, the most
    monkeypatch.setattr(text, "_MOST_ROWS", 2)
    title, _, *best = str(text.jobs(jobs)).splitlines()
    assert title == "the best 2 of 6 runs"
    assert [line.split("  ")[0] for line in best] == ["* 5", ""]
    assert best[1].split()[0] == "3"


def test_groups_are_a_line_each_and_of_many_the_best(sweep, monkeypatch):
    by = ["algorithm", "seed"]
    table = groups(frame(runs([sweep]), target=0.5), by)
    lines = str(text.grouped(table, by, 0.5)).splitlines()
    assert lines[0].split("  ")[1:3] == ["algorithm", "seed"]
    assert "rounds to 50.0%" in lines[0]
    assert [line[:2] for line in lines[1:]] == ["  "] * 5 + ["* "]
    monkeypatch.setattr(text, "_MOST_ROWS", 3)
    title, _, *best = str(text.grouped(table, by, 0.5)).splitlines()
    assert title == "the best 3 of 6 groups"
    assert [line[2:].split()[:2] for line in best] == [["fedprox", "2"], ["fedprox", "0"], ["fedprox", "1"]]
    means = str(text.grouped(groups(frame(runs([sweep])), ["algorithm"]), ["algorithm"], None))
    assert "46.7% \u00b1 15.0%" in means  # of 60, 50 and 30 %
    assert str(text.grouped(groups(frame(runs([sweep])), []), [], None)).splitlines()[1].split()[0] == "6"


def test_equal_runs_have_no_best(sweep):
    assert "*" not in str(text.jobs([sweep / "0"]))


def test_runs_without_an_accuracy_are_told_by_their_test_loss(sweep, monkeypatch):
    """A regression: job i has a test loss of 3 + i at round 2, 1 + i at round 4, and 2 + i at round 6."""
    for job in sweep.iterdir():
        rows = [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            if row.pop("test_accuracy", None) is not None:
                row["test_loss"] = {2: 3.0, 4: 1.0, 6: 2.0}[row["round"]] + int(job.name)
        (job / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        clients = pd.read_csv(job / "clients.csv").rename(columns={"accuracy": "loss"})
        clients.to_csv(job / "clients.csv", index=False)
    table = frame(runs([sweep]))
    assert table["best_test_loss"].tolist() == [1, 2, 3, 4, 5, 6]
    assert table["final_test_loss"].tolist() == [2, 3, 4, 5, 6, 7]
    assert table["best_round"].tolist() == [4] * 6
    assert not [name for name in table if "accuracy" in name or "target" in name]
    lines = str(text.jobs(sorted(sweep.iterdir()))).splitlines()
    assert [line.split()[:2] for line in lines if line[0] == "*"] == [["*", "0"]]  # the lowest
    assert "best test loss" in lines[0]
    monkeypatch.setattr(text, "_MOST_ROWS", 1)
    assert str(text.grouped(groups(table, ["algorithm"]), ["algorithm"], None)).splitlines()[-1].split()[1] == "fedavg"
    assert "best test loss" in page(runs([sweep]), sweep)


def test_groups_are_what_was_chosen(sweep):
    recorded = runs([sweep])
    assert grouping(recorded) == ["algorithm"]  # the weight comes with fedprox
    for run in recorded[3:5]:
        run.config["algorithm.proximal_weight"] = 0.5
    assert grouping(recorded) == ["algorithm", "algorithm.proximal_weight"]


def test_keys_are_short_where_that_is_clear():
    assert text.short(["partition.alpha", "algorithm", "seed"]) == ["alpha", "algorithm", "seed"]
    assert text.short(["data.num_clients", "partition.num_clients", "seed"])[:2] == [
        "data.num_clients",
        "partition.num_clients",
    ]
