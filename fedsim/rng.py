"""Every random draw is a function of (seed, purpose, round, client); there is no global random state.

Two tools: `stream` makes a NumPy generator for one draw (a cohort, a partition, an initialisation), and
`counter_hash` hashes whole arrays of counters at once, for the shuffles of thousands of clients.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _purpose_code(purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def stream(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """A generator of its own for one (seed, purpose, round, client); equal arguments give equal draws."""
    entropy = np.random.SeedSequence([seed, _purpose_code(purpose), round, client])
    return np.random.Generator(np.random.Philox(entropy))


def torch_stream(seed: int, purpose: str, round: int = 0, client: int = 0) -> torch.Generator:
    """The same as `stream`, as a CPU `torch.Generator`."""
    value = int(stream(seed, purpose, round, client).integers(0, 2**63))
    return torch.Generator().manual_seed(value)


# Who reads a generator's state has its lock and makes an object; what the collector of garbage then ends may let
# another thread run, and one that waits for that lock with the interpreter's in hand would wait for ever.
_turn = threading.RLock()


@contextmanager
def forked_generators(enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """PyTorch's own generators, of the CPU and of the GPUs in use, are put back at the end of the `with`.

    Yields the function that seeds them. `torch.manual_seed` would also reach GPUs that nobody has used yet, whose state
    cannot be put back. With `enabled` false nothing is kept, and nothing may be seeded.
    """
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []

    def seed(value: int) -> None:
        assert enabled, "what is seeded must be put back"
        with _turn:
            for generator in (torch.random.default_generator, *(torch.cuda.default_generators[i] for i in gpus)):
                generator.manual_seed(value)

    forked = torch.random.fork_rng(gpus, enabled=enabled)
    with _turn:
        forked.__enter__()
    try:
        yield seed
    finally:
        with _turn:
            forked.__exit__(None, None, None)


def generator_states() -> list[torch.Tensor]:
    """Of PyTorch's own generators, of the CPU and of the GPUs in use."""
    with _turn:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014) of (...) uint64, in place: a bijection."""
    shifted = np.empty_like(x)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= np.right_shift(x, np.uint64(shift), out=shifted)
        x *= np.uint64(factor)
    x ^= np.right_shift(x, np.uint64(31), out=shifted)
    return x


def counter_hash(seed: int, purpose: str, *counters: np.ndarray | int) -> np.ndarray:
    """Hash broadcastable arrays of non-negative integers to uniform uint64, element by element.

    The hash of an element depends on (seed, purpose) and on its own counters only, so the order in which
    clients are visited, and who else is in the cohort, change nothing.
    """
    state = _mix(np.array([(seed ^ _purpose_code(purpose)) & _MASK], dtype=np.uint64))
    for counter in counters:
        state = extend_hash(state, counter)
    return state


def extend_hash(state: np.ndarray, counter: np.ndarray | int) -> np.ndarray:
    """Hash one more counter into the uint64 result of `counter_hash`, broadcast; `counter_hash` is this, repeated."""
    golden = np.uint64(_GOLDEN)
    mixed = state ^ _mix(np.atleast_1d(counter).astype(np.uint64) + golden)
    mixed += golden
    return _mix(mixed)
