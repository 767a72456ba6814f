"""What is promised to be the same on every machine, as one table of digests: partitions, data, cohorts, plans, splits.

They are 12 hexadecimal digits of what each recipe made on the first machine. On another processor, with another NumPy,
PyTorch or C library, nothing here may differ: docs/partitions.md says on which they were seen. Where a digest changes
because the recipe does, nobody can make again what was published with it: that belongs in the change log.
"""

import hashlib
import json
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.ft2font import __freetype_version__

from fedsim import devices, sampling
from fedsim.cli import conf_dir
from fedsim.config import LocalConfig
from fedsim.data import partition as p
from fedsim.data import synthetic
from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.femnist import femnist
from fedsim.data.held_out import hold_out
from fedsim.data.leaf_sample import Selection, sample_iid, sample_niid, split_samples, split_users
from fedsim.data.shakespeare import shakespeare
from fedsim.rng import counter_hash
from fedsim.train.plan import make_plan

SEED = 3
NUM_SAMPLES = 2400


def digits(*parts: Any) -> str:
    """12 hexadecimal digits of arrays of integers, or of anything that JSON can hold."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(str(part.shape).encode())
            sha.update(np.ascontiguousarray(part, dtype="<i8").data)
        else:
            sha.update(json.dumps(part, sort_keys=True).encode())
    return sha.hexdigest()[:12]


# Samples that are integers from the start: the same everywhere, whatever makes them.
NOISE = counter_hash(0, "test_every_machine", np.arange(NUM_SAMPLES)[:, None], np.arange(36))
LABELS = (NOISE[:, 0] % np.uint64(9)).astype(np.int64)
NATURAL = np.array([0, *np.cumsum(20 + np.arange(40) * 7 % 53)])
NATURAL = NATURAL[NATURAL <= NUM_SAMPLES]


def toy(kind: str) -> FederatedDataset:
    """NUM_SAMPLES of nine classes: "points" around the origin, "bytes" and "floats" pictures, "owned" by clients."""
    if kind in ("bytes", "floats"):
        inputs = torch.from_numpy((NOISE >> np.uint64(56)).astype(np.uint8)).view(-1, 1, 6, 6)
        inputs = inputs if kind == "bytes" else inputs.float() / 255
    else:
        inputs = torch.from_numpy((NOISE[:, :3] >> np.uint64(40)).astype(np.float32) / 2.0**23 - 1)
    order = (np.arange(NUM_SAMPLES) * 7 % NUM_SAMPLES) if kind == "owned" else None
    train = Split(
        inputs=inputs,
        targets=torch.from_numpy(LABELS),
        offsets=NATURAL if kind == "owned" else None,
        order=order,
    )
    ids = [f"w{c}" for c in range(len(NATURAL) - 1)] if kind == "owned" else ()
    return FederatedDataset(name="toy", train=train, client_ids=ids, num_classes=9)


HELD = p.Holdout(validation_fraction=0.1, test_fraction=0.2)
STRATIFIED = p.Holdout(validation_fraction=0.15, test_fraction=0.15, stratified=True)

# name in conf/partition, and what is chosen -> recipe, toy data
PARTITIONS: dict[str, tuple[Any, str]] = {
    "iid": (p.Iid(num_clients=30), "points"),
    "iid sizes": (p.Iid(num_clients=3, sizes=[1000, 300, 50]), "points"),
    "iid holdout": (p.Iid(num_clients=30, holdout=HELD), "points"),
    "iid stratified": (p.Iid(num_clients=30, holdout=STRATIFIED), "points"),
    "quantity_lognormal": (p.Iid(num_clients=60, sizes=p.LogNormal(sigma=2.0)), "points"),
    "quantity_dirichlet": (p.Iid(num_clients=60, sizes=p.DirichletSizes(alpha=0.5)), "points"),
    "quantity_dirichlet alpha=0.01": (p.Iid(num_clients=60, sizes=p.DirichletSizes(alpha=0.01)), "points"),
    "quantity_linear": (p.Iid(num_clients=60, sizes=p.Power(exponent=1.0)), "points"),
    "quantity_square": (p.Iid(num_clients=60, sizes=p.Power(exponent=2.0)), "points"),
    "quantity_square exponent=1.3": (p.Iid(num_clients=60, sizes=p.Power(exponent=1.3)), "points"),
    "quantity_exponential": (p.Iid(num_clients=60, sizes=p.Exponential()), "points"),
    "dirichlet": (p.Dirichlet(num_clients=30, alpha=0.5, min_samples=10), "points"),
    "dirichlet alpha=0.1": (p.Dirichlet(num_clients=60, alpha=0.1, min_samples=1), "points"),
    "dirichlet alpha=0.01, repaired": (p.Dirichlet(num_clients=100, alpha=0.01, min_samples=8), "points"),
    "dirichlet alpha=100": (p.Dirichlet(num_clients=30, alpha=100.0), "points"),
    "dirichlet stratified": (p.Dirichlet(num_clients=30, alpha=0.3, holdout=STRATIFIED), "points"),
    "dirichlet_balanced": (p.DirichletSized(num_clients=60, alpha=0.5), "points"),
    "dirichlet_balanced alpha=0.01": (p.DirichletSized(num_clients=100, alpha=0.01), "points"),
    "dirichlet_balanced alpha=100": (p.DirichletSized(num_clients=30, alpha=100.0), "points"),
    "dirichlet_sized": (p.DirichletSized(num_clients=60, alpha=0.1, sizes=p.LogNormal(sigma=1.0)), "points"),
    "shards": (p.Shards(num_clients=35), "points"),
    "label_skew": (p.LabelSkew(num_clients=40, classes_per_client=3), "points"),
    "pathological": (p.Pathological(num_clients=40), "points"),
    "continuous": (p.Continuous(num_clients=40, strictness=0.7, score=partial(p.mean_input)), "points"),
    "continuous floats": (p.Continuous(num_clients=40, strictness=1.0, score=partial(p.mean_input)), "floats"),
    "continuous bytes": (p.Continuous(num_clients=40, strictness=1.0, score=partial(p.mean_input)), "bytes"),
    "continuous target": (p.Continuous(num_clients=40, strictness=0.9, score=p.target), "points"),
    "fcube": (p.Fcube(num_clients=40), "points"),
    "natural": (p.Natural(num_clients=20, holdout=HELD), "owned"),
    "natural all": (p.Natural(), "owned"),
    "grouped_natural": (p.GroupedNatural(num_clients=7, holdout=STRATIFIED), "owned"),
    "feature_noise": (p.FeatureNoise(base=p.Iid(num_clients=30)), "bytes"),
    "rotation": (p.Rotation(base=p.Dirichlet(num_clients=10)), "bytes"),
}


def partition(name: str) -> str:
    recipe, kind = PARTITIONS[name]
    made = recipe.partition(toy(kind), SEED)
    return digits(made.digest(), made.recipe, made.facts)


# Data that is drawn or transformed -> its fingerprint, of every sample, label and owner
DATA: dict[str, Callable[[], FederatedDataset]] = {
    "synthetic_fedprox": lambda: synthetic.synthetic_fedprox(seed=SEED),
    "synthetic_iid": lambda: synthetic.synthetic_fedprox(alpha=0, beta=0, iid=True, seed=SEED),
    "synthetic_leaf": lambda: synthetic.synthetic_leaf(num_clients=100, clusters=(0.3, 0.7), seed=SEED),
    "fcube": lambda: synthetic.fcube(seed=SEED),
    "femnist glyphs": lambda: femnist(source="glyphs", num_clients=6, seed=SEED),
    "shakespeare stand-in": lambda: shakespeare(source="stand_in", num_clients=5, seed=SEED),
    "noise in bytes": lambda: p.FeatureNoise(base=p.Iid(num_clients=9))(toy("bytes"), SEED),
    "noise in floats": lambda: p.FeatureNoise(base=p.Iid(num_clients=9))(toy("floats"), SEED),
    "quarter turns": lambda: p.Rotation(base=p.Iid(num_clients=9))(toy("floats"), SEED),
    "turned bytes": lambda: p.Rotation(base=p.Iid(num_clients=9), angles=[0, 30, 45])(toy("bytes"), SEED),
    "turned floats": lambda: p.Rotation(base=p.Iid(num_clients=9), angles=[7, 30, 45])(toy("floats"), SEED),
}


def data(name: str) -> str:
    return DATA[name]().fingerprint()[:12]


SIZES = np.diff(NATURAL)
EVERYONE = np.arange(len(SIZES))
SAMPLERS: dict[str, Callable[[sampling.Population], sampling.Sampler]] = {
    "uniform": lambda whom: sampling.uniform(whom, 9),
    "poisson": lambda whom: sampling.poisson(whom, 0.2),
    "weighted": lambda whom: sampling.weighted(whom, 9),
    "power_of_choice": lambda whom: sampling.power_of_choice(whom, 5),
    "round_robin": lambda whom: sampling.round_robin(whom, 9),
    "available": lambda whom: sampling.available(whom, 9),
    "present": lambda whom: sampling.present(whom, 9),
    "fixed": lambda whom: sampling.fixed(whom, 2, cohorts=[[0, 1], [5, 2]]),
}


def cohorts(name: str) -> str:
    """Of 40 rounds."""
    phones = devices.drawn(len(SIZES), (), SEED, availability=0.7) if name == "present" else None
    whom = sampling.Population(
        sizes=SIZES,
        losses=lambda clients: clients * 7.0 % 11,
        there=None if phones is None else lambda round: EVERYONE[phones.available(EVERYONE, round)],
    )
    return digits(*[SAMPLERS[name](whom)(SEED, round) for round in range(1, 41)])


PLANS = {
    "epochs": LocalConfig(num_epochs=2, batch_size=10),
    "steps": LocalConfig(num_steps=7, batch_size=4),
    "stragglers": LocalConfig(num_epochs=5, batch_size=8, straggler_share=0.5),
}


def plan(name: str) -> str:
    made = make_plan(toy("owned").train, np.arange(3, 19), PLANS[name], seed=SEED, round=4, num_slots=5)
    return digits(made.clients, made.slot, made.start, made.steps, made.rows, made.counts)


# LEAF's sampling and splits of users with so many samples
USERS = Selection(
    names=[f"u{user}" for user in EVERYONE], groups=(), samples=np.split(np.arange(NATURAL[-1]), NATURAL[1:-1])
)
THIRD = Fraction(1, 3)
LEAF: dict[str, Callable[[], tuple[Selection, ...]]] = {
    "niid": lambda: (sample_niid(USERS, THIRD, SEED, in_time=False),),
    "iid": lambda: (sample_iid(USERS, THIRD, THIRD, SEED),),
    "split users": lambda: split_users(USERS, THIRD, SEED),
    "split samples": lambda: split_samples(USERS, THIRD, SEED, None),
}


def selected(name: str) -> str:
    return digits(*[part for one in LEAF[name]() for part in (list(one.names), *one.samples)])


def held_out() -> str:
    held = hold_out(NUM_SAMPLES, LABELS, 0.3, SEED)
    return digits(held.train, held.test, held.train_offsets, held.test_offsets)


MADE: dict[str, Callable[[], str]] = {
    **{f"partition {name}": partial(partition, name) for name in PARTITIONS},
    **{f"data {name}": partial(data, name) for name in DATA},
    **{f"cohorts {name}": partial(cohorts, name) for name in SAMPLERS},
    **{f"plan {name}": partial(plan, name) for name in PLANS},
    **{f"leaf {name}": partial(selected, name) for name in LEAF},
    "hold_out": held_out,
}
DIGESTS = {
    "partition iid": "23cfc8c573e8",
    "partition iid sizes": "79cb2e23443d",
    "partition iid holdout": "869a0a26969c",
    "partition iid stratified": "418d92f03107",
    "partition quantity_lognormal": "b4422fad4a85",
    "partition quantity_dirichlet": "17eb61996e03",
    "partition quantity_dirichlet alpha=0.01": "2c40acf00ce6",
    "partition quantity_linear": "668b2e2c687b",
    "partition quantity_square": "e59015f39a57",
    "partition quantity_square exponent=1.3": "addf9d0811c6",
    "partition quantity_exponential": "710a4362bc10",
    "partition dirichlet": "4bf447435b11",
    "partition dirichlet alpha=0.1": "91aac05b6be6",
    "partition dirichlet alpha=0.01, repaired": "a4fcf0195ee8",
    "partition dirichlet alpha=100": "294afe2f92c2",
    "partition dirichlet stratified": "9d67c54c320a",
    "partition dirichlet_balanced": "c590819eea02",
    "partition dirichlet_balanced alpha=0.01": "0add496f8000",
    "partition dirichlet_balanced alpha=100": "03ae4bff2af6",
    "partition dirichlet_sized": "88bd516bfa02",
    "partition shards": "79c271ea0e0c",
    "partition label_skew": "4d70ad688e3d",
    "partition pathological": "b7087252a3bf",
    "partition continuous": "77b58eea41ab",
    "partition continuous floats": "deab15a5028a",
    "partition continuous bytes": "328c603b11c4",
    "partition continuous target": "ec9f431131ec",
    "partition fcube": "81914923fbe2",
    "partition natural": "69b410579f42",
    "partition natural all": "d51b2847c6a8",
    "partition grouped_natural": "93b692ae9ae4",
    "partition feature_noise": "bf1d83fec52e",
    "partition rotation": "3f8590461c88",
    "data synthetic_fedprox": "f0ae71c3a884",
    "data synthetic_iid": "9172bd48afcf",
    "data synthetic_leaf": "ac5cc6a7c5d1",
    "data fcube": "84d5f73f379d",
    "data femnist glyphs": "4f7df0c23d1e",
    "data shakespeare stand-in": "18c07e788b7d",
    "data noise in bytes": "84bd09e0191d",
    "data noise in floats": "07dd0d5ec362",
    "data quarter turns": "d6f939e0090c",
    "data turned bytes": "88ea2ac0b2cf",
    "data turned floats": "d61f27238001",
    "cohorts uniform": "e409e839fbd6",
    "cohorts poisson": "9ee2ab8c6e75",
    "cohorts weighted": "bf6f9aa77442",
    "cohorts power_of_choice": "fbffade30193",
    "cohorts round_robin": "e0e34d6c0835",
    "cohorts available": "e407e642f8d3",
    "cohorts present": "e942fbedc05f",
    "cohorts fixed": "bbff420cda8f",
    "plan epochs": "ce818d2e7857",
    "plan steps": "9a66c1483308",
    "plan stragglers": "10cab577c842",
    "leaf niid": "11e8fff2ccb8",
    "leaf iid": "1b95766516da",
    "leaf split users": "c6a952c43c4c",
    "leaf split samples": "535df5f8eb37",
    "hold_out": "4e866efa296b",
}
# FreeType 2.6.1, in matplotlib before 3.11, rounds outlines of one of the nine fonts to another 64th of a point.
if __freetype_version__ == "2.6.1":
    DIGESTS["data femnist glyphs"] = "ada212d38009"


@pytest.mark.parametrize("name", MADE)
def test_it_is_what_it_was_on_the_first_machine(name):
    assert MADE[name]() == DIGESTS[name]


def test_the_table_knows_every_partition_and_sampler():
    # from_file draws nothing: it gives back what the file says
    stems = {path.stem for path in (conf_dir() / "partition").glob("*.yaml")} - {"from_file"}
    assert stems == {name.split()[0] for name in PARTITIONS}
    assert {path.stem for path in (conf_dir() / "sampler").glob("*.yaml")} == {*SAMPLERS}
