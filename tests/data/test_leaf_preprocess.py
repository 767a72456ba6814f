"""LEAF's preprocessing on generated all_data folders: the counts that LEAF's README files promise, and its traps."""

import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data import leaf_write
from fedsim.data.leaf import read_leaf
from fedsim.data.leaf_preprocess import leaf_preprocess, main
from fedsim.data.leaf_sample import (
    Selection,
    remove_small,
    sample_iid,
    sample_niid,
    split_samples,
    split_users,
)

SIZES = {"ann": 20, "bob": 7, "cy": 1, "dora": 41, "eve": 2, "fay": 29, "gus": 10}
TOTAL = sum(SIZES.values())


def record(user: str, size: int) -> dict[str, list[Any]]:
    """Samples that say whose they are: x is [number of the user, number of the sample]."""
    return {"x": [[list(SIZES).index(user), i] for i in range(size)], "y": [i % 3 for i in range(size)]}


def write(file: Path, data: dict[str, Any], hierarchies: bool = True) -> None:
    content: dict[str, Any] = {"users": list(data), "num_samples": [len(d["y"]) for d in data.values()]}
    if hierarchies:
        content["hierarchies"] = [f"group_{user}" for user in data]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content | {"user_data": data}))


@pytest.fixture
def all_data(tmp_path: Path) -> Path:
    """Seven users in two files."""
    users = list(SIZES)
    for number, part in enumerate((users[:4], users[4:])):
        write(tmp_path / "all_data" / f"all_data_{number}.json", {u: record(u, SIZES[u]) for u in part})
    return tmp_path / "all_data"


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """A split, by plain json: user -> record with its group; the lists are held against the records."""
    users = {}
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text())
        assert content["users"] == list(content["user_data"])
        assert content["num_samples"] == [len(d["y"]) for d in content["user_data"].values()]
        groups = content.get("hierarchies", [None] * len(content["users"]))
        for (user, data), group in zip(content["user_data"].items(), groups, strict=True):
            assert user not in users
            users[user] = {**data, "group": group}
    return users


def samples(users: dict[str, dict[str, Any]]) -> list[tuple[int, int]]:
    found = [tuple(x) for data in users.values() for x in data["x"]]
    assert [i % 3 for _, i in found] == [y for data in users.values() for y in data["y"]], "x and y came apart"
    return found


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.29, 1.0])
def test_niid_takes_whole_users_up_to_the_quota_and_truncates_the_last(all_data, tmp_path, fraction):
    report = leaf_preprocess(all_data, tmp_path / "out", sampling="niid", sample_fraction=fraction, sampling_seed=3)
    users = load(tmp_path / "out" / "all_data")
    quota = int(Fraction(str(fraction)) * TOTAL)
    assert report.samples == {"all_data": quota}
    assert len(samples(users)) == len(set(samples(users))) == quota
    truncated = [u for u, data in users.items() if len(data["y"]) < SIZES[u]]
    assert truncated in ([], [list(users)[-1]])
    for user, data in users.items():
        assert {owner for owner, _ in data["x"]} == {list(SIZES).index(user)}
        assert data["group"] == f"group_{user}"


def test_niid_draws_users_and_the_part_of_the_last_by_its_seed(all_data, tmp_path):
    found = []
    for run, seed in enumerate((0, 0, 1, 2, 3)):
        leaf_preprocess(all_data, tmp_path / str(run), sampling="niid", sample_fraction=0.5, sampling_seed=seed)
        found.append(load(tmp_path / str(run) / "all_data"))
    assert found[0] == found[1]
    assert len({tuple(users) for users in found}) > 2
    # a truncated user keeps a random part of all its samples, LEAF's the first ones
    parts = [[i for _, i in list(users.values())[-1]["x"]] for users in found]
    assert any(part != list(range(len(part))) for part in parts)
    assert all(part == sorted(part) for part in parts)


@pytest.mark.parametrize(("fraction", "user_fraction", "num_users"), [(0.1, 0.01, 1), (0.5, 0.5, 4), (1.0, 1.0, 7)])
def test_iid_pools_and_deals_evenly_to_new_users(all_data, tmp_path, fraction, user_fraction, num_users):
    leaf_preprocess(all_data, tmp_path / "out", sampling="iid", sample_fraction=fraction, user_fraction=user_fraction)
    users = load(tmp_path / "out" / "all_data")
    assert list(users) == [str(i) for i in range(num_users)]  # round(3.5) is 4
    assert len(set(samples(users))) == len(samples(users)) == int(fraction * TOTAL)
    sizes = [len(data["y"]) for data in users.values()]
    assert max(sizes) - min(sizes) <= 1
    assert all(data["group"] is None for data in users.values())  # LEAF: hierarchies are not present in iid data
    assert not list((tmp_path / "out").glob("**/samples"))


def test_iid_samples_are_equally_likely():
    everyone = Selection(names=["a", "b"], groups=(), samples=[np.arange(30), np.arange(30, 40)])
    drawn = [sample_iid(everyone, Fraction(1, 4), Fraction(1, 2), seed) for seed in range(2000)]
    counts = np.bincount(np.concatenate([s for d in drawn for s in d.samples]), minlength=40)
    # each sample is drawn with probability 1/4: 500 of 2000, within five deviations
    assert np.abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_a_quota_that_ends_with_a_user_needs_no_further_one():
    everyone = Selection(names=list("abcd"), groups=(), samples=[np.arange(5 * u, 5 * u + 5) for u in range(4)])
    assert sample_niid(everyone, Fraction(1, 2), 0, in_time=False).sizes.tolist() == [5, 5]


def test_the_defaults_are_leafs(all_data, tmp_path):
    # a tenth of the samples; one user in a hundred; nine tenths for training
    assert leaf_preprocess(all_data, tmp_path / "niid", sampling="niid").samples == {"all_data": TOTAL // 10}
    many = {f"u{u:03d}": {"x": [[u, i] for i in range(4)], "y": [0, 1, 2, 0]} for u in range(300)}
    write(tmp_path / "many" / "all_data" / "a.json", many)
    assert leaf_preprocess(tmp_path / "many", tmp_path / "iid", sampling="iid").users == {"all_data": 3}
    report = leaf_preprocess(tmp_path / "many", tmp_path / "users", split="user")
    assert report.users == {"train": 270, "test": 30}


def test_each_user_is_split_by_a_draw_of_its_own():
    everyone = Selection(names=["a", "b"], groups=(), samples=[np.arange(20), np.arange(20, 40)])
    train, _ = split_samples(everyone, Fraction(1, 2), 0, None)
    assert train.samples[0].tolist() != (train.samples[1] - 20).tolist()
    assert all(own.tolist() == sorted(own) for own in train.samples), "samples keep their order"


def test_k_keeps_users_with_at_least_so_many_samples(all_data, tmp_path):
    leaf_preprocess(all_data, tmp_path / "out", min_samples=10)
    users = load(tmp_path / "out" / "all_data")
    assert list(users) == ["ann", "dora", "fay", "gus"]  # gus has exactly 10: LEAF's program would drop him
    assert {u: len(d["y"]) for u, d in users.items()} == {u: SIZES[u] for u in users}


@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.29, 0.01])
def test_t_sample_splits_every_users_samples(all_data, tmp_path, fraction):
    report = leaf_preprocess(all_data, tmp_path / "out", split="sample", train_fraction=fraction)
    train, test = load(tmp_path / "out" / "train"), load(tmp_path / "out" / "test")
    assert list(train) == list(test) == [user for user, size in SIZES.items() if size > 1]
    assert report.num_left_out == 1  # cy has one sample
    for user in train:
        assert len(train[user]["y"]) == max(1, int(Fraction(str(fraction)) * SIZES[user]))
        assert train[user]["group"] == test[user]["group"] == f"group_{user}"
        both = [i for _, i in train[user]["x"] + test[user]["x"]]
        assert sorted(both) == list(range(SIZES[user]))
    assert set(samples(train)).isdisjoint(samples(test))
    other = tmp_path / "other"
    leaf_preprocess(all_data, other, split="sample", train_fraction=fraction, split_seed=1)
    assert load(other / "train") != train


@pytest.mark.parametrize("fraction", [0.9, 0.5])
def test_t_user_splits_the_users(all_data, tmp_path, fraction):
    leaf_preprocess(all_data, tmp_path / "out", split="user", train_fraction=fraction)
    train, test = load(tmp_path / "out" / "train"), load(tmp_path / "out" / "test")
    assert len(train) == int(fraction * len(SIZES))
    assert {*train, *test} == set(SIZES)
    assert set(train).isdisjoint(test)
    for user, data in {**train, **test}.items():
        assert [i for _, i in data["x"]] == list(range(SIZES[user]))
        assert data["group"] == f"group_{user}"
    drawn = set()
    for seed in range(5):
        leaf_preprocess(all_data, tmp_path / str(seed), split="user", train_fraction=fraction, split_seed=seed)
        drawn.add(tuple(load(tmp_path / str(seed) / "train")))
    assert len(drawn) > 1


def test_a_sample_that_stands_twice_is_in_one_split_only(tmp_path):
    """LEAF's issue 49: the first image of every FEMNIST writer stands twice."""
    data = record("dora", 30)
    doubled = {"x": [data["x"][0], *data["x"]], "y": [data["y"][0], *data["y"]]}
    for seed in range(10):
        folder = tmp_path / str(seed)
        write(folder / "all_data" / "a.json", {"dora": doubled})
        report = leaf_preprocess(folder, folder, split="sample", train_fraction=0.5, split_seed=seed)
        train, test = load(folder / "train"), load(folder / "test")
        assert set(samples(train)).isdisjoint(samples(test))
        assert (report.num_repeated, report.samples) == (1, {"train": 15, "test": 15})
    # an image that has another label the second time is another sample
    write(tmp_path / "labels" / "a.json", {"dora": {"x": [[1], [1]], "y": [0, 1]}})
    assert leaf_preprocess(tmp_path / "labels", tmp_path / "out").num_repeated == 0


def test_the_steps_follow_each_other(all_data, tmp_path):
    """Sample, remove, split: -k counts what sampling has left, and the split what -k has left."""
    leaf_preprocess(
        all_data, tmp_path / "out", sampling="niid", sample_fraction=0.6, min_samples=8, split="sample", sampling_seed=5
    )
    sampled = load_steps(all_data, tmp_path, sampling="niid", sample_fraction=0.6, sampling_seed=5)
    kept = load_steps(sampled, tmp_path, min_samples=8)
    leaf_preprocess(kept, tmp_path / "by steps", split="sample")
    for split in ("train", "test"):
        assert load(tmp_path / "out" / split) == load(tmp_path / "by steps" / split)


def load_steps(source: Path, tmp_path: Path, **step: Any) -> Path:
    folder = tmp_path / f"step {next(iter(step))}"
    leaf_preprocess(source, folder, **step)
    return folder


def test_windows_are_split_in_time(tmp_path):
    """LEAF's Shakespeare: testing starts 79 samples behind training, and short roles vanish."""
    text = "".join(chr(97 + i % 26) for i in range(1000))
    data = {
        "long": {"x": [text[i : i + 80] for i in range(920)], "y": list(text[80:])},
        "short": {"x": [text[i : i + 80] for i in range(395)], "y": list(text[80:475])},
        "just": {"x": [text[i : i + 80] for i in range(396)], "y": list(text[80:476])},
    }
    write(tmp_path / "all_data" / "a.json", data, hierarchies=False)
    report = leaf_preprocess(tmp_path, tmp_path, split="sample", train_fraction=0.8, window=80)
    train, test = load(tmp_path / "train"), load(tmp_path / "test")
    assert list(train) == list(test) == ["long", "just"]
    assert (report.num_left_out, report.num_repeated) == (1, 0)
    # 736 = 0.8 x 920; the first window of testing starts 79 further, where the last target of training stands
    assert (train["long"]["x"], train["long"]["y"]) == (data["long"]["x"][:736], data["long"]["y"][:736])
    assert (test["long"]["x"], test["long"]["y"]) == (data["long"]["x"][815:], data["long"]["y"][815:])
    assert len(test["just"]["y"]) == 1  # 396 - 316 - 79
    with pytest.raises(ValueError, match="-s iid scatters the windows of a text"):
        leaf_preprocess(tmp_path / "all_data", tmp_path / "b", sampling="iid", window=80)
    leaf_preprocess(tmp_path / "all_data", tmp_path / "c", sampling="niid", sample_fraction=0.4, window=80)
    last = list(load(tmp_path / "c" / "all_data").items())[-1]
    assert last[1]["x"] == data[last[0]]["x"][: len(last[1]["x"])]  # consecutive, so that it can be split in time


def test_many_samples_go_to_several_files(all_data, tmp_path, monkeypatch):
    monkeypatch.setattr(leaf_write, "SAMPLES_PER_FILE", 25)
    leaf_preprocess(all_data, tmp_path / "out")
    sizes = [sum(json.loads(f.read_text())["num_samples"]) for f in sorted((tmp_path / "out/all_data").glob("*"))]
    assert sum(sizes) == TOTAL
    assert len(sizes) > 3
    assert [s for s in sizes if s > 25] == [41, 29]  # dora and fay, each alone
    assert Counter(samples(load(tmp_path / "out" / "all_data"))) == Counter(samples(load(all_data)))


def test_the_result_is_read_by_fedsim(all_data, tmp_path):
    leaf_preprocess(all_data, tmp_path / "out", split="sample")
    dataset = read_leaf(tmp_path / "out", name="numbers", num_classes=3, input_shape=(2,))
    assert list(dataset.client_ids) == [user for user, size in SIZES.items() if size > 1]
    assert list(dataset.groups) == [f"group_{user}" for user in dataset.client_ids]
    assert dataset.train.num_samples == sum(max(1, int(Fraction("0.9") * s)) for s in SIZES.values() if s > 1)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=9),
    percent=st.integers(1, 100),
    train=st.integers(1, 99),
    seed=st.integers(0, 5),
)
def test_nothing_is_twice_and_counts_are_those_promised(sizes, percent, train, seed):
    bounds = np.append(0, np.cumsum(sizes))
    own = [np.arange(a, b) for a, b in pairwise(bounds)]
    everyone = Selection(
        names=[f"u{i}" for i in range(len(sizes))], groups=[f"g{i}" for i in range(len(sizes))], samples=own
    )
    quota = sum(sizes) * percent // 100
    fraction = Fraction(percent, 100)
    if quota < 1:
        with pytest.raises(ValueError, match="is none: raise it"):
            sample_niid(everyone, fraction, seed, in_time=False)
        return
    chosen = sample_niid(everyone, fraction, seed, in_time=seed % 2 == 0)
    assert chosen.sizes.sum() == quota
    assert len(np.unique(np.concatenate(chosen.samples))) == quota
    dealt = sample_iid(everyone, fraction, Fraction(1, 100), seed)
    assert dealt.sizes.tolist() == [quota]
    assert all(len(s) >= 3 for s in remove_small(chosen, 3).samples)
    if any(len(s) > 1 for s in chosen.samples):
        one, other = split_samples(chosen, Fraction(train, 100), seed, None)
        for name, group, a, b in zip(one.names, one.groups, one.samples, other.samples, strict=True):
            before = chosen.samples[list(chosen.names).index(name)]
            assert group == "g" + name[1:]
            assert np.array_equal(np.sort(np.concatenate([a, b])), before)
            assert len(a) == max(1, len(before) * train // 100)
    if 0 < len(chosen.names) * train // 100 < len(chosen.names):
        one, other = split_users(chosen, Fraction(train, 100), seed)
        assert len(one.names) == len(chosen.names) * train // 100
        assert sorted([*one.names, *other.names]) == sorted(chosen.names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-s", "both"], "-s must be iid or niid, got both"),
        (["-t", "time"], "-t must be user or sample, got time"),
        (["-s", "niid", "--sf", "1.5"], "--sf must be a fraction up to 1, such as 0.1, got 1.5"),
        (["-s", "niid", "--sf", "ten"], "--sf must be a fraction up to 1, such as 0.1, got ten"),
        (["-s", "iid", "--iu", "0"], "--iu must be a fraction up to 1"),
        (["-t", "sample", "--tf", "1"], "--tf must be a fraction below 1"),
        (["-s", "niid", "--sf", "0.001"], "--sf=0.001 of 110 samples is none: raise it"),
        (["-s", "iid", "--iu", "1", "--sf", "0.05"], "5 samples are too few for 7 users: raise --sf or lower --iu"),
        (["-k", "0"], "-k must be at least 1, got 0"),
        (["-k", "1000"], "no user is left: lower -k or raise --sf"),
        (["-t", "user", "--tf", "0.1"], "-t user leaves 0 of 7 users for training"),
        (["-t", "sample", "--window", "80"], "no user has enough samples to train and test on"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(all_data, tmp_path, capsys, arguments, message):
    assert main([str(all_data), str(tmp_path / "out"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("leaf_preprocess: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else True


def test_missing_and_existing_folders_are_refused(all_data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .json file in .*nowhere, its all_data/ or its data/all_data/"):
        leaf_preprocess(tmp_path / "nowhere", tmp_path / "out")
    leaf_preprocess(all_data, tmp_path / "out", split="sample")
    before = load(tmp_path / "out" / "train")
    with pytest.raises(ValueError, match=r"out/test exists: delete it, or choose another folder"):
        leaf_preprocess(all_data, tmp_path / "out", split="sample", split_seed=1)
    assert load(tmp_path / "out" / "train") == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["test", "train"]
    write(all_data / "more.json", {"ann": record("ann", 3)})
    with pytest.raises(ValueError, match=r"user 'ann' stands in .*all_data_0.json and in .*more.json"):
        leaf_preprocess(all_data, tmp_path / "new", split="sample")


def test_the_command(all_data, tmp_path):
    command = [sys.executable, "-m", "fedsim.data.leaf_preprocess", str(all_data), str(tmp_path / "out")]
    flags = ["-s", "niid", "--sf", "0.5", "-k", "2", "-t", "sample", "--tf", "0.8", "--iu", "0.5"]
    flags += ["--smplseed", "1", "--spltseed", "2"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    train, test = load(tmp_path / "out" / "train"), load(tmp_path / "out" / "test")
    assert done.stdout.splitlines()[:2] == [
        f"train: {len(train)} users with {len(samples(train))} samples",
        f"test: {len(test)} users with {len(samples(test))} samples",
    ]
    assert done.stderr == "--iu is ignored: it belongs to -s iid\n"
    report = leaf_preprocess(
        all_data,
        tmp_path / "python",
        sampling="niid",
        sample_fraction=0.5,
        min_samples=2,
        split="sample",
        train_fraction=0.8,
        sampling_seed=1,
        split_seed=2,
    )
    assert report.samples["train"] == len(samples(train))
    assert load(tmp_path / "python" / "train") == train


@pytest.mark.parametrize("flags", [{"sampling": "niid", "sample_fraction": 0.9}, {"sampling": "iid"}])
def test_memory_holds_one_user_not_the_files(tmp_path, flags):
    """40 users of 100 kB each in one file: the peak stays below five of them, not 40."""
    user_bytes = 100_000
    data = {f"u{u}": {"x": [f"{u} {i} ".ljust(1000, ".") for i in range(100)], "y": [0] * 100} for u in range(40)}
    write(tmp_path / "all_data" / "a.json", data)
    del data
    leaf_preprocess(tmp_path, tmp_path / "warm", split="sample", **flags)  # imports and caches of the library
    tracemalloc.start()
    leaf_preprocess(tmp_path, tmp_path / "out", split="sample", **flags)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    window = 1 << 20  # the reader's window, twice while it grows
    assert peak < 2 * window + 5 * user_bytes
    assert (tmp_path / "all_data" / "a.json").stat().st_size > 40 * user_bytes
