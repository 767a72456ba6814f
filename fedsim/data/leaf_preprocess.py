"""LEAF's preprocessing: an all_data folder becomes train/ and test/, whatever its size.

    python -m fedsim.data.leaf_preprocess ALL_DATA OUT -s niid --sf 0.1 -k 64 -t sample --tf 0.9

The flags are those of LEAF's preprocess.sh, with the meaning that its README files give them (`leaf_sample`). Two
passes over the files: one counts the samples, one copies those that were chosen. Memory holds one user's samples and
a few integers for each sample; iid sampling needs disk space for a copy of the chosen samples.

A sample that stands twice in a user (LEAF's FEMNIST has each writer's first image twice) is taken once, so that it
cannot be in both splits. Windows of a text (--window) may repeat, and are split in time instead.
"""

import argparse
import json
import logging
import marshal
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.deal.base import offsets_of
from fedsim.data.leaf_json import read_split, read_user
from fedsim.data.leaf_sample import (
    Selection,
    all_samples,
    fraction_of,
    remove_small,
    sample_iid,
    sample_niid,
    split_samples,
    split_users,
)
from fedsim.data.leaf_write import Entry, output_folder, write_split

_LOG = logging.getLogger(__name__)
_MARSHAL = 2  # later formats write whether an object is shared, which equal samples need not agree on


@dataclass(frozen=True, kw_only=True)
class Report:
    """What preprocessing did.

    Attributes:
        users, samples: of each split that was written, by its name.
        num_repeated: samples that stood twice in a user and were taken once.
        num_left_out: users who had too few samples for the split.
    """

    users: dict[str, int]
    samples: dict[str, int]
    num_repeated: int
    num_left_out: int


def leaf_preprocess(
    source: str | Path,
    folder: str | Path,
    *,
    sampling: str | None = None,
    user_fraction: float = 0.01,
    sample_fraction: float = 0.1,
    min_samples: int | None = None,
    split: str | None = None,
    train_fraction: float = 0.9,
    sampling_seed: int = 0,
    split_seed: int = 0,
    window: int | None = None,
) -> Report:
    """Sample, remove small users, and split, in this order; each step only if it is asked for.

    Args:
        source: folder of LEAF's JSON files, which are taken as one set; or one with all_data/ or data/all_data/.
        folder: where train/ and test/ go, or all_data/ without a split; it must not hold them.
        sampling: "niid" takes whole users at random until the quota of samples, and truncates the last; "iid" draws
            samples from all users and deals them evenly to new ones; None takes everything.
        user_fraction: with "iid": new users, as a fraction of the users.
        sample_fraction: the quota, as a fraction of the samples.
        min_samples: users with fewer are removed; None removes nobody.
        split: "user" puts users, "sample" each user's samples into train or test; None writes one set.
        train_fraction: of the users or samples.
        sampling_seed, split_seed: of the two draws.
        window: samples are windows of a text, of so many characters, each one place behind the one before (LEAF's
            Shakespeare: 80): each user's are split in time, and those that overlap both sides are left out.

    Raises:
        FileNotFoundError: no JSON files.
        ValueError: a setting is out of range or contradicts another, a file is damaged, or nothing is left.
    """
    for name, value, choices in (("-s", sampling, ("iid", "niid")), ("-t", split, ("user", "sample"))):
        if value is not None and value not in choices:
            raise ValueError(f"{name} must be {' or '.join(choices)}, got {value}")
    if window is not None and window < 1:
        raise ValueError(f"--window must be at least 1, got {window}")
    if window is not None and sampling == "iid":
        raise ValueError("-s iid scatters the windows of a text, which then have no time to split in: use -s niid")
    quota = fraction_of("--sf", sample_fraction, whole=True)
    users = fraction_of("--iu", user_fraction, whole=True)
    train = fraction_of("--tf", train_fraction, whole=False)

    survey = _Survey.of(_all_data(Path(source).expanduser()), distinct=window is None)
    chosen = survey.selection
    if sampling == "niid":
        chosen = sample_niid(chosen, quota, sampling_seed, in_time=window is not None)
    elif sampling == "iid":
        chosen = sample_iid(chosen, quota, users, sampling_seed)
    if min_samples is not None:
        chosen = remove_small(chosen, min_samples)
    if not chosen.names:
        raise ValueError("no user is left: lower -k or raise --sf")
    if split is None:
        parts = {"all_data": chosen}
    elif split == "user":
        parts = dict(zip(("train", "test"), split_users(chosen, train, split_seed), strict=True))
    else:
        parts = dict(zip(("train", "test"), split_samples(chosen, train, split_seed, window), strict=True))

    with output_folder(Path(folder).expanduser()) as temporary, ExitStack() as stack:
        samples: _Users | _Spill = _Users(survey)
        if sampling == "iid":
            samples = _Spill(samples, chosen, temporary, stack)
        for name, part in parts.items():
            write_split(temporary / name, _entries(part, samples), "all_data")
        if isinstance(samples, _Spill):
            samples.remove()
    left_out = 0 if split == "user" else len(chosen.names) - len(next(iter(parts.values())).names)
    return Report(
        users={name: len(part.names) for name, part in parts.items()},
        samples={name: int(part.sizes.sum()) for name, part in parts.items()},
        num_repeated=survey.num_repeated,
        num_left_out=left_out,
    )


def _entries(part: Selection, samples: "_Users | _Spill") -> list[Entry]:
    return [
        Entry(
            name=name,
            size=len(own),
            group=part.groups[user] if part.groups else None,
            load=lambda own=own: samples.read(own),
        )
        for user, (name, own) in enumerate(zip(part.names, part.samples, strict=True))
    ]


def _all_data(source: Path) -> list[Path]:
    for folder in (source, source / "all_data", source / "data" / "all_data"):
        if files := sorted(folder.glob("*.json")):
            return files
    raise FileNotFoundError(
        f"no .json file in {source}, its all_data/ or its data/all_data/: make LEAF's all_data first"
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Survey:
    """Where each user's record stands, and which of its samples count.

    Attributes:
        selection: all users with the numbers of their samples, without repeated ones.
        places: (name, file, first byte, end) of each user.
        starts: (U + 1,) number of each user's first sample, repeated ones counted.
        num_repeated: samples that do not count, since the user has the same one before.
    """

    selection: Selection
    places: list[tuple[str, Path, int, int]]
    starts: np.ndarray
    num_repeated: int

    @staticmethod
    def of(files: list[Path], *, distinct: bool) -> "_Survey":
        groups: dict[str, str] = {}
        places, kept, sizes = [], [], []
        for user in read_split(files, groups):
            places.append((user.name, user.file, user.start, user.stop))
            own = np.arange(len(user.y))
            if distinct:
                first: dict[bytes, int] = {}
                for i, sample in enumerate(zip(user.x, user.y, strict=True)):
                    first.setdefault(marshal.dumps(sample, _MARSHAL), i)
                own = np.fromiter(first.values(), dtype=np.int64, count=len(first))
            kept.append(own)
            sizes.append(len(user.y))
        names = [name for name, *_ in places]
        whole = [groups[name] for name in names] if all(name in groups for name in names) else []
        selection = all_samples(names, whole, kept, np.array(sizes, dtype=np.int64))
        num_repeated = sum(sizes) - int(selection.sizes.sum())
        return _Survey(selection=selection, places=places, starts=offsets_of(sizes), num_repeated=num_repeated)


class _Users:
    """Reads samples of one user of the survey."""

    def __init__(self, survey: _Survey) -> None:
        self.places, self.starts = survey.places, survey.starts

    def read(self, samples: np.ndarray) -> dict[str, list[Any]]:
        """x and y of samples, all of one user."""
        if not len(samples):
            return {"x": [], "y": []}
        user = int(np.searchsorted(self.starts, samples[0], side="right")) - 1
        record = read_user(*self.places[user])
        own = (samples - self.starts[user]).tolist()
        return {"x": [record.x[i] for i in own], "y": [record.y[i] for i in own]}


class _Spill:
    """The samples of a selection in one file, so that those of many users can be read together."""

    def __init__(self, users: _Users, chosen: Selection, folder: Path, stack: ExitStack) -> None:
        self.path = folder / "samples"
        self.numbers = np.sort(np.concatenate(chosen.samples))
        self.bounds = np.zeros(len(self.numbers) + 1, dtype=np.int64)
        owners = np.searchsorted(users.starts, self.numbers, side="right")
        changes = np.flatnonzero(np.diff(owners)) + 1
        at = 0
        with self.path.open("wb") as file:
            for own in np.split(self.numbers, changes):
                record = users.read(own)
                for sample in zip(record["x"], record["y"], strict=True):
                    file.write(json.dumps(sample).encode())
                    at += 1
                    self.bounds[at] = file.tell()
        self._file = stack.enter_context(self.path.open("rb"))

    def read(self, samples: np.ndarray) -> dict[str, list[Any]]:
        """x and y of samples, of any users."""
        x, y = [], []
        for place in np.searchsorted(self.numbers, samples).tolist():
            start, stop = self.bounds[place : place + 2].tolist()
            self._file.seek(start)
            one = json.loads(self._file.read(stop - start))
            x.append(one[0])
            y.append(one[1])
        return {"x": x, "y": y}

    def remove(self) -> None:
        self._file.close()
        self.path.unlink()


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fedsim.data.leaf_preprocess",
        description="LEAF's preprocessing of an all_data folder: sample (-s), remove small users (-k), split (-t).",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="ALL_DATA", help="folder of LEAF's JSON files")
    parser.add_argument("folder", metavar="OUT", help="where train/ and test/ go; without -t, all_data/")
    parser.add_argument("-s", dest="sampling", metavar="iid|niid", help="sample; default: take everything")
    parser.add_argument("--iu", dest="user_fraction", help="with -s iid: users, as a fraction (0.01)")
    parser.add_argument("--sf", dest="sample_fraction", help="with -s: samples, as a fraction (0.1)")
    parser.add_argument("-k", dest="min_samples", type=int, help="remove users with fewer samples")
    parser.add_argument("-t", dest="split", metavar="user|sample", help="split users, or each user's samples")
    parser.add_argument("--tf", dest="train_fraction", help="with -t: fraction for training (0.9)")
    parser.add_argument("--smplseed", dest="sampling_seed", type=int, help="seed of -s (0)")
    parser.add_argument("--spltseed", dest="split_seed", type=int, help="seed of -t (0)")
    parser.add_argument("--window", type=int, help="samples are windows of a text: split in time (Shakespeare: 80)")
    given = {key: value for key, value in vars(parser.parse_args(arguments)).items() if value is not None}
    logging.basicConfig(format="%(message)s")
    for key, flag, owner, needs in (
        ("user_fraction", "--iu", "-s iid", given.get("sampling") == "iid"),
        ("sample_fraction", "--sf", "-s", "sampling" in given),
        ("sampling_seed", "--smplseed", "-s", "sampling" in given),
        ("train_fraction", "--tf", "-t", "split" in given),
        ("split_seed", "--spltseed", "-t", "split" in given),
    ):
        if key in given and not needs:
            _LOG.warning("%s is ignored: it belongs to %s", flag, owner)
    try:
        report = leaf_preprocess(**given)
    except (OSError, ValueError) as error:
        print(f"leaf_preprocess: error: {error}", file=sys.stderr)
        return 1
    for name, users in report.users.items():
        print(f"{name}: {users:,} users with {report.samples[name]:,} samples")
    if report.num_repeated:
        print(f"{report.num_repeated:,} samples stood twice in a user and were taken once")
    if report.num_left_out:
        print(f"{report.num_left_out:,} users had too few samples to split and are left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
