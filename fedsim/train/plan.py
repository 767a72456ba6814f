"""The plan of a round: which client sits in which slot at which step, with the rows of every minibatch.

The plan is made on the host before the round starts, by a few vectorised calls for the whole cohort. A client's
minibatches are a function of (seed, round, client) alone: neither the number of slots nor the rest of the cohort
changes them.
"""

from dataclasses import dataclass
from heapq import heapreplace

import numpy as np

from fedsim.config import LocalConfig
from fedsim.data.federated import Split
from fedsim.devices import work_done
from fedsim.rng import counter_hash, extend_hash

# Samples sorted at once, or one client: few enough to stay in the processor's cache.
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
        rows: (T, K, B) rows of the dataset, int32 or, for more than 2^31 of them, int64; a minibatch fills its places
            from the front.
        counts: (T, K), integers as in `rows`: samples in the minibatch; 0 where the slot is idle. At every step the
            busy slots are the first ones.
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
    longest_first = ((sizes.max() - sizes << 32) + cohort).argsort()  # both are below 2^31
    cohort, sizes = cohort[longest_first], sizes[longest_first]

    batch, steps_per_epoch, steps = count_steps(sizes, local)
    if prelude:
        steps = steps_per_epoch
    elif local.straggler_share:
        work = work_done(cohort, local, seed, round)
        steps = work * steps_per_epoch if local.num_steps is None else work
    if max_steps is not None:
        steps = np.minimum(steps, max_steps[longest_first])
    slot, start = _assign(steps, min(num_slots, len(cohort)))

    # From here on one element for each segment: an epoch of a client, the longest first.
    num_epochs = -(-steps // steps_per_epoch)
    who, epoch = np.repeat(np.arange(len(cohort)), num_epochs), _count_up(num_epochs)
    before = epoch * steps_per_epoch[who]
    num_parts = np.minimum(steps_per_epoch[who], steps[who] - before)
    state = counter_hash(seed, "shuffle", round, cohort[who], epoch)
    owner_start, size = split.offsets[cohort[who]], sizes[who]

    num_steps, width = int((start + steps).max()), int(slot.max()) + 1
    # the places of all minibatches, segment by segment: each `width` behind the one before
    ends = np.cumsum(num_parts)
    place = np.repeat((start[who] + before - ends + num_parts) * width + slot[who], num_parts)
    place += np.arange(ends[-1]) * width
    number = np.int32 if max(len(split.inputs), split.offsets[-1]) <= 2**31 else np.int64
    rows, counts = np.zeros((num_steps, width, batch), number), np.zeros((num_steps, width), number)
    counts.ravel()[place] = batch
    counts.ravel()[place[ends - 1]] = np.minimum(batch, size - (num_parts - 1) * batch)
    whole = rows.view(f"V{rows[0, 0].nbytes}").ravel()  # a minibatch moves in one piece, in half the time
    begin = done = 0
    while begin < len(who):
        s = slice(begin, begin + max(1, _BLOCK // int(size[begin])))
        taken = _shuffled(state[s], owner_start[s], size[s], split.order, batch, number)
        pieces = taken.view(f"V{taken[0, 0].nbytes}")[..., 0][np.arange(taken.shape[1]) < num_parts[s, None]]
        here = place[done : done + len(pieces)]
        if taken.shape[2] == batch:
            whole[here] = pieces
        else:
            rows.reshape(-1, batch)[here, : taken.shape[2]] = pieces.view(number).reshape(len(pieces), -1)
        begin, done = s.stop, done + len(pieces)
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


def plan_bytes(sizes: np.ndarray, local: LocalConfig, num_slots: int = 1, *, whole: bool = False) -> int:
    """What a plan for clients with `sizes` (m,) samples takes, with the losses of its steps.

    Args:
        sizes, local: of a round.
        num_slots: K.
        whole: count the rows of idle places too: they travel to a GPU, but on a host no page of memory is behind most.
    """
    sizes = np.sort(sizes[sizes > 0])[::-1]
    batch, steps_per_epoch, steps = count_steps(sizes, local)
    # of a step: rows, count and loss of 4 bytes each, two running sums of 8; of a pass: eight numbers of 8
    busy, width = int(steps.sum()), min(num_slots, len(steps))
    idle = int((_assign(steps, width)[1] + steps).max()) * width - busy
    passes = int((-(-steps // steps_per_epoch)).sum())
    return busy * (4 * batch + 24) + idle * (4 * batch * whole + 24) + passes * 64


def busy_slots(steps: np.ndarray, num_slots: int) -> np.ndarray:
    """(T,) how many slots are busy at each step, for clients with `steps` (m,) steps, longest first."""
    start = _assign(steps, min(num_slots, len(steps)))[1]
    changes = np.zeros(int((start + steps).max()) + 1, np.int64)
    np.add.at(changes, start, 1)
    np.add.at(changes, start + steps, -1)
    return np.cumsum(changes)[:-1]


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
    free = np.arange(num_slots)  # (step from which a slot is free, slot), as one integer
    runs = np.flatnonzero(np.diff(steps, append=-1)) + 1  # where neighbours that take equally long end
    if len(runs) * 8 > len(steps):
        heap = free.tolist()
        taken = np.array([heapreplace(heap, heap[0] + length) for length in (steps * num_slots).tolist()])
        free = np.array(heap)
    else:
        pieces, begin = [], 0
        for end in runs.tolist():
            # n such clients take the n earliest of the times at which a slot could begin one of them, and one more ...
            n, length = end - begin, int(steps[begin]) * num_slots
            each = n // num_slots + int(free.max() - free.min()) // length + 3
            times = (free[:, None] + length * np.arange(each)).ravel()
            times.sort()
            pieces.append(times[:n])
            free = free + length * np.bincount(times[:n] % num_slots, minlength=num_slots)
            begin = end
        taken = np.concatenate(pieces)
    start, slot = np.divmod(taken, num_slots)
    # Number the slots by when they run dry, the last first: then the busy ones are always the first ones.
    rank = np.empty(num_slots, np.int64)
    dry, last = np.divmod(free, num_slots)
    rank[last[np.lexsort((last, -dry))]] = np.arange(num_slots)
    return rank[slot], start


def _shuffled(
    state: np.ndarray,
    start: np.ndarray,
    size: np.ndarray,
    order: np.ndarray | None,
    batch: int,
    number: type[np.signedinteger],
) -> np.ndarray:
    """The minibatches of n segments: rows of the dataset in a random order of each.

    A segment is sorted by the upper 32 bits of a hash of (its state, index), ties by index: both in one integer. All
    are sorted at once in a matrix as wide as the first of them.

    Args:
        state: (n,) uint64, of `counter_hash`.
        start, size: (n,) where each segment lies among the owned samples; the longest comes first.
        order: the row of each owned sample; None: itself.
        batch: B.
        number: the type of the rows.

    Returns:
        (n, parts, B or the longest size if that is less) of them; 0 in the places that are left over.
    """
    longest = int(size[0])
    parts = -(-longest // batch)
    index = np.arange(parts * min(batch, longest), dtype=np.uint64)
    some = slice(int(size[-1]), None)  # the columns where some segment has ended
    left_over = index[some] >= size[:, None].astype(np.uint64)
    key = extend_hash(state[:, None], index)
    key &= np.uint64(0xFFFFFFFF << 32)
    key |= index  # 2^32 samples at most
    key[:, some][left_over] = ~np.uint64(0)
    key.sort(axis=1)
    owned = key.astype(np.uint32).astype(number)
    owned += start.astype(number)[:, None]
    owned[:, some][left_over] = 0
    if order is not None:
        owned = order[owned].astype(number)
        owned[:, some][left_over] = 0
    return owned.reshape(len(size), parts, -1)
