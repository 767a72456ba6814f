"""The plan of a round: which client sits in which slot at which step, with the rows of every minibatch.

The plan is made on the host before the round starts, by a few vectorised calls for the whole cohort. A client's
minibatches are a function of (seed, round, client) alone: neither the number of slots nor the rest of the cohort
changes them.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from fedsim.config import LocalConfig
from fedsim.data.federated import Split
from fedsim.rng import counter_hash, extend_hash

# Samples sorted at once: 2^16 at most, so that keys fit 64 bits; and few enough to stay in the processor's cache.
_BLOCK = 1 << 14


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """T steps of K slots with minibatches of at most B samples, for m clients.

    Attributes:
        round: the round, from 1.
        clients: (m,) int64 client indices, longest first; clients without samples are left out.
        weights: (m,) float64: samples of each client.
        slot: (m,) int64: the slot that the client sits in.
        start: (m,) int64: its first step.
        steps: (m,) int64: how many steps it takes; the slot is free from step `start + steps`.
        rows: (T, K, B) int64 rows of the dataset; a minibatch fills its places from the front.
        counts: (T, K) int64 samples in the minibatch; 0 where the slot is idle. At every step the busy slots are
            the first ones.
        prelude: whether this is the pass that goes before (`Algorithm.prelude`).
    """

    round: int
    clients: np.ndarray
    weights: np.ndarray
    slot: np.ndarray
    start: np.ndarray
    steps: np.ndarray
    rows: np.ndarray
    counts: np.ndarray
    prelude: bool = False

    @property
    def num_slots(self) -> int:
        return self.rows.shape[1]


def make_plan(
    split: Split,
    cohort: np.ndarray,
    local: LocalConfig,
    *,
    seed: int,
    round: int,
    num_slots: int = 1,
    prelude: bool = False,
    max_steps: np.ndarray | None = None,
) -> Plan:
    """Plan a round.

    Args:
        split: the training samples and their owners.
        cohort: (m,) distinct client indices.
        local: epochs or steps, and the batch size.
        seed: the run's seed.
        round: the round, from 1.
        num_slots: K, clients that train side by side; 1 is the serial trainer.
        prelude: plan one pass over each client's samples, whatever `local` says of epochs and steps.
        max_steps: (m,) steps after which each client of the cohort stops, at least 1; None: none stops early.

    Raises:
        ValueError: no client of the cohort has a sample.
    """
    assert split.offsets is not None, "a partition must be applied before clients can train"
    able = split.offsets[cohort + 1] > split.offsets[cohort]
    cohort, max_steps = cohort[able], None if max_steps is None else max_steps[able]
    if len(cohort) == 0:
        raise ValueError(f"round {round}: no client of the cohort has a training sample; sample more clients")
    sizes = split.offsets[cohort + 1] - split.offsets[cohort]
    longest_first = np.lexsort((cohort, -sizes))
    cohort, sizes = cohort[longest_first], sizes[longest_first]

    batch, steps_per_epoch, steps = count_steps(sizes, local)
    if prelude:
        steps = steps_per_epoch
    elif local.straggler_share:
        work = _work(cohort, local.num_steps or local.num_epochs, local.straggler_share, seed, round)
        steps = work * steps_per_epoch if local.num_steps is None else work
    if max_steps is not None:
        steps = np.minimum(steps, max_steps[longest_first])
    slot, start = _assign(steps, min(num_slots, len(cohort)))

    num_epochs = -(-steps // steps_per_epoch)
    visitor = np.repeat(np.arange(len(cohort)), num_epochs)  # one segment for each client and epoch
    owned = _shuffled(seed, round, cohort[visitor], _count_up(num_epochs), sizes[visitor])
    owned += np.repeat(split.offsets[cohort[visitor]], sizes[visitor])
    owned = owned if split.order is None else split.order[owned]

    # From here on one element for each minibatch, by client and step.
    who, step = np.repeat(np.arange(len(cohort)), steps), _count_up(steps)
    epoch, part = np.divmod(step, steps_per_epoch[who])
    segment = (np.cumsum(num_epochs) - num_epochs)[who] + epoch
    first = (np.cumsum(sizes[visitor]) - sizes[visitor])[segment] + part * batch
    count = np.minimum(batch, sizes[who] - part * batch)
    taken = owned.take(first[:, None] + np.arange(batch), mode="clip")
    np.putmask(taken, np.arange(batch) >= count[:, None], 0)

    shape = (int((start + steps).max()), int(slot.max()) + 1, batch)
    place = (start[who] + step) * shape[1] + slot[who]
    rows, counts = np.zeros(shape, np.int64), np.zeros(shape[:2], np.int64)
    rows.reshape(-1, batch)[place] = taken
    counts.reshape(-1)[place] = count
    return Plan(
        round=round,
        clients=cohort,
        weights=sizes.astype(np.float64),
        slot=slot,
        start=start,
        steps=steps,
        rows=rows,
        counts=counts,
        prelude=prelude,
    )


def count_steps(sizes: np.ndarray, local: LocalConfig) -> tuple[int, np.ndarray, np.ndarray]:
    """B, and the steps of a pass and of the round for clients with `sizes` (m,) samples."""
    largest = int(sizes.max())
    batch = largest if local.batch_size is None else min(local.batch_size, largest)
    steps_per_epoch = -(-sizes // batch)
    if local.num_steps is not None:
        return batch, steps_per_epoch, np.full_like(sizes, local.num_steps)
    return batch, steps_per_epoch, steps_per_epoch * local.num_epochs


def busy_slots(steps: np.ndarray, num_slots: int) -> np.ndarray:
    """(T,) how many slots are busy at each step, for clients with `steps` (m,) steps, longest first."""
    start = _assign(steps, min(num_slots, len(steps)))[1]
    changes = np.zeros(int((start + steps).max()) + 1, np.int64)
    np.add.at(changes, start, 1)
    np.add.at(changes, start + steps, -1)
    return np.cumsum(changes)[:-1]


def _work(cohort: np.ndarray, whole: int, straggler_share: float, seed: int, round: int) -> np.ndarray:
    """(m,) int64: epochs or steps of each client, `whole` or, for stragglers, uniform in 1 ... whole - 1."""
    lots = [counter_hash(seed, "straggler", round, cohort, k) / 2.0**64 for k in (0, 1)]
    return np.where(lots[0] < straggler_share, 1 + (lots[1] * (whole - 1)).astype(np.int64).clip(max=whole - 2), whole)


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)


def _assign(steps: np.ndarray, num_slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Each client in turn takes the slot that is free first (longest-processing-time list scheduling).

    Returns:
        slot and first step of each client, (m,) int64.
    """
    if num_slots == 1:
        return np.zeros_like(steps), np.cumsum(steps) - steps
    slot, start = np.empty_like(steps), np.empty_like(steps)
    free = [(0, k) for k in range(num_slots)]
    for i, length in enumerate(steps.tolist()):
        start[i], slot[i] = free[0]
        heapq.heapreplace(free, (free[0][0] + length, free[0][1]))
    # Number the slots by when they run dry, the last first: then the busy ones are always the first ones.
    rank = np.empty(num_slots, np.int64)
    rank[[k for _, k in sorted(free, key=lambda f: (-f[0], f[1]))]] = np.arange(num_slots)
    return rank[slot], start


def _shuffled(seed: int, round: int, client: np.ndarray, epoch: np.ndarray, size: np.ndarray) -> np.ndarray:
    """A random order of 0 ... size-1 for each segment, (sum(size),) int64, segment after segment.

    Segments are sorted by the upper 32 bits of a hash of (round, client, epoch, index), ties by index. A few segments
    at a time are sorted as one, by (segment, hash, index) in one integer.
    """
    prefix = counter_hash(seed, "shuffle", round, client, epoch)
    order = np.empty(int(size.sum()), np.int64)
    ends = np.cumsum(size)
    first = begin = 0
    while first < len(size):
        last = max(first + 1, int(np.searchsorted(ends, begin + _BLOCK, "right")))
        sizes, end = size[first:last], int(ends[last - 1])
        index = _count_up(sizes).astype(np.uint64)
        index_bits = np.uint64(int(sizes.max() - 1).bit_length())
        # at most 2^16 segments of at most 2^16 samples, or one segment: 64 bits hold the three
        key = extend_hash(np.repeat(prefix[first:last], sizes), index) >> np.uint64(32)
        key |= np.repeat(np.arange(len(sizes), dtype=np.uint64) << np.uint64(32), sizes)
        key <<= index_bits
        key |= index
        key.sort()
        key &= (np.uint64(1) << index_bits) - np.uint64(1)
        order[begin:end] = key
        first, begin = last, end
    return order
