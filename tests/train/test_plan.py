"""The plan: every sample of every epoch once, whatever the slots; a client's minibatches are its own business."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.config import LocalConfig
from fedsim.data.federated import Split
from fedsim.rng import counter_hash
from fedsim.train.plan import _assign, make_plan


def split_of(sizes, order=None):
    total = int(np.sum(sizes))
    return Split(
        inputs=torch.zeros(total, 1),
        targets=torch.zeros(total, dtype=torch.long),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        order=order,
    )


def batches(plan, i):
    """The i-th client's minibatches as lists of rows."""
    slot, start, steps = plan.slot[i], plan.start[i], plan.steps[i]
    return [plan.rows[t, slot, : plan.counts[t, slot]].tolist() for t in range(start, start + steps)]


sizes_strategy = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


@settings(deadline=None, max_examples=60)
@given(
    sizes=sizes_strategy,
    batch=st.sampled_from([1, 3, 10, None]),
    epochs=st.integers(1, 3),
    slots=st.integers(1, 5),
    seed=st.integers(0, 3),
)
def test_each_epoch_visits_each_sample_once_in_batches_of_the_size(sizes, batch, epochs, slots, seed):
    order = np.random.default_rng(seed).permutation(int(np.sum(sizes)))
    split = split_of(sizes, order)
    local = LocalConfig(num_epochs=epochs, batch_size=batch)
    plan = make_plan(split, np.arange(len(sizes)), local, seed=seed, round=1, num_slots=slots)
    assert sorted(plan.clients) == [c for c, n in enumerate(sizes) if n]
    busy = np.zeros(plan.counts.shape, int)
    for i, client in enumerate(plan.clients):
        found = batches(plan, i)
        size = sizes[client]
        per_epoch = -(-size // (batch or size))
        assert plan.weights[i] == size
        assert len(found) == per_epoch * epochs
        for e in range(epochs):
            epoch = found[e * per_epoch : (e + 1) * per_epoch]
            assert all(len(b) == (batch or size) for b in epoch[:-1])
            assert sorted(itertools.chain(*epoch)) == sorted(split.rows(client).tolist())
        busy[plan.start[i] : plan.start[i] + plan.steps[i], plan.slot[i]] += 1
    assert busy.max() == 1, "two clients in one slot at one step"
    assert ((plan.counts > 0) == (busy > 0)).all()


@settings(deadline=None, max_examples=30)
@given(sizes=sizes_strategy, slots=st.integers(1, 6), data=st.data())
def test_a_clients_minibatches_depend_on_neither_slots_nor_cohort(sizes, slots, data):
    split, local = split_of(sizes), LocalConfig(num_epochs=2, batch_size=7)
    everyone = make_plan(split, np.arange(len(sizes)), local, seed=5, round=2, num_slots=slots)
    i = data.draw(st.integers(0, len(everyone.clients) - 1))
    alone = make_plan(split, everyone.clients[i : i + 1], local, seed=5, round=2)
    assert batches(alone, 0) == batches(everyone, i)


def test_shuffles_differ_by_seed_round_client_and_epoch():
    split, local = split_of([50, 50]), LocalConfig(num_epochs=2, batch_size=None)

    def order(client=0, epoch=0, **where):
        plan = make_plan(split, np.array([client]), local, **{"seed": 0, "round": 1, **where})
        return [row - 50 * client for row in batches(plan, 0)[epoch]]

    orders = [order(), order(client=1), order(epoch=1), order(seed=1), order(round=2)]
    assert len({tuple(o) for o in orders}) == 5


def test_shuffles_are_uniform():
    """Each of the 6 orders of 3 samples comes equally often: chi-square with 5 degrees below 20.5 (p = 0.001)."""
    clients = 6000
    split = split_of([3] * clients)
    plan = make_plan(split, np.arange(clients), LocalConfig(batch_size=3), seed=0, round=1)
    orders = plan.rows[:, 0] - 3 * plan.clients[:, None]
    _, found = np.unique(orders @ [9, 3, 1], return_counts=True)
    assert len(found) == 6
    assert ((found - 1000) ** 2 / 1000).sum() < 20.5


@pytest.mark.parametrize("sizes", [[13, 40, 7], [1, 70_000, 2, 65_537, 1, 1], [3] * 50_000], ids=str)
def test_shuffles_are_by_hash_then_index_however_many_are_sorted_at_once(sizes):
    """Against one stable sort of (client, hash) for everybody; 70,000 hashes of 32 bits have ties."""
    split = split_of(sizes)
    plan = make_plan(split, np.arange(len(sizes)), LocalConfig(batch_size=10, num_epochs=1), seed=1, round=4)
    client = np.repeat(np.arange(len(sizes)), sizes)
    index = np.arange(sum(sizes)) - split.offsets[client]
    hashed = counter_hash(1, "shuffle", 4, client, np.zeros_like(client), index) >> np.uint64(32)
    expected = np.lexsort((index, hashed, client))
    found = np.concatenate([np.concatenate([*batches(plan, i)]) for i in np.argsort(plan.clients)])
    assert np.array_equal(found, expected)


def test_num_steps_ends_inside_an_epoch_and_wraps_over_epochs():
    split = split_of([10, 3])
    plan = make_plan(split, np.arange(2), LocalConfig(num_steps=4, batch_size=4), seed=0, round=1)
    assert plan.steps.tolist() == [4, 4]
    assert [len(b) for b in batches(plan, 0)] == [4, 4, 2, 4]
    assert [len(b) for b in batches(plan, 1)] == [3, 3, 3, 3]


def test_slots_are_refilled_longest_first():
    split = split_of([40, 30, 20, 10])
    plan = make_plan(split, np.arange(4), LocalConfig(batch_size=10), seed=0, round=1, num_slots=2)
    assert plan.clients.tolist() == [0, 1, 2, 3]
    assert plan.slot.tolist() == [0, 1, 1, 0]
    assert plan.start.tolist() == [0, 0, 3, 4]
    assert (plan.counts > 0).all(), "ten steps in two slots of five leave no hole"


@settings(deadline=None, max_examples=200)
@given(
    runs=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=8),
    slots=st.integers(2, 20),
    shuffle=st.booleans(),
)
def test_each_client_takes_the_slot_that_is_free_first(runs, slots, shuffle):
    """List scheduling, client by client; many clients that take equally long are seated at once."""
    steps = np.repeat(*np.array(runs).T)
    if shuffle:
        steps = np.random.default_rng(0).permutation(steps)
    free, begins = [0] * slots, []
    for length in steps.tolist():
        place = min(range(slots), key=lambda s: (free[s], s))
        begins.append((free[place], place))
        free[place] += length
    slot, start = _assign(steps, slots)
    assert start.tolist() == [begin for begin, _ in begins]
    # slots are numbered anew, by when they run dry, the last first
    names = sorted(range(slots), key=lambda s: (-free[s], s))
    assert [names[s] for s in slot.tolist()] == [place for _, place in begins]


def test_no_samples_at_all_is_refused():
    with pytest.raises(ValueError, match="round 4: no client of the cohort has a training sample"):
        make_plan(split_of([0, 5]), np.array([0]), LocalConfig(), seed=0, round=4)


def test_stragglers_do_a_part_of_their_epochs_and_are_drawn_by_client_and_round():
    split = Split(
        inputs=torch.zeros(4000, 1), targets=torch.zeros(4000, dtype=torch.long), offsets=np.arange(0, 4001, 4)
    )
    local = LocalConfig(batch_size=4, num_epochs=5, straggler_share=0.3)

    def epochs(cohort, round=1):
        plan = make_plan(split, cohort, local, seed=1, round=round)
        return dict(zip(plan.clients.tolist(), plan.steps.tolist(), strict=True))

    everyone = epochs(np.arange(1000))
    partial = [n for n in everyone.values() if n < 5]
    assert 250 < len(partial) < 350  # 300 expected, standard deviation 14
    # uniform over 1 ... 4: each expected 75 times, standard deviation 7.5
    assert all(45 < partial.count(n) < 105 for n in (1, 2, 3, 4))
    assert epochs(np.arange(100, 110)) == {c: everyone[c] for c in range(100, 110)}
    assert epochs(np.arange(1000), round=2) != everyone


def test_stragglers_need_something_to_leave_out():
    with pytest.raises(ValueError, match=r"straggler_share needs local.num_epochs or local.num_steps of at least 2"):
        LocalConfig(straggler_share=0.5)


@pytest.mark.parametrize(("num_rows", "number"), [(2**31, np.int32), (2**31 + 1, np.int64)])
def test_row_numbers_are_as_short_as_the_data_allows(num_rows: int, number: type) -> None:
    samples = torch.zeros(1).expand(num_rows)
    split = Split(inputs=samples, targets=samples, offsets=np.array([0, num_rows - 4, num_rows]))
    plan = make_plan(split, np.array([1]), LocalConfig(batch_size=4), seed=0, round=1)
    assert plan.rows.dtype == plan.counts.dtype == number
    assert sorted(plan.rows[0, 0].tolist()) == list(range(num_rows - 4, num_rows))
