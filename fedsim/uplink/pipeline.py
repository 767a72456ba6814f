"""Pipeline: the transforms of a run, one after another, with what they keep."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fedsim.client_state import ClientVectors
from fedsim.transforms.base import Closing, Sending, State, Transform, Wire


class Pipeline:
    """Transforms in their order. Nothing that lasts moves before `commit`.

    Args:
        transforms: in the order in which they change an update.
        size: elements of an update.
        like: for the dtype and the device of updates.
        seed: of the run.

    Raises:
        ValueError: a transform cannot follow those before it.
    """

    def __init__(self, transforms: Sequence[Transform], *, size: int, like: Tensor, seed: int) -> None:
        assert all(transform.fit is None for transform in transforms), "transforms are fitted to the model before"
        self.transforms, self.seed = list(transforms), seed
        self.purposes = [f"transform.{i}.{t.name}" for i, t in enumerate(self.transforms)]
        self.states: list[State] = [t.server_init() for t in self.transforms]
        self.next_states = self.states
        self.memories = [
            ClientVectors(transform.num_client_vectors * size, name=purpose, dtype=like.dtype, device=like.device)
            if transform.num_client_vectors
            else None
            for transform, purpose in zip(self.transforms, self.purposes, strict=True)
        ]
        wire = Wire.dense(size, like.dtype)
        for transform in self.transforms:
            wire = transform.wire(wire)
        self.bytes_per_update = wire.num_bytes

    def begin(self, clients: np.ndarray | None = None) -> None:
        """A round begins, or the piece of one in which these clients train; what was left unfinished is forgotten."""
        self.next_states = self.states
        for memory in self.memories:
            if memory is not None:
                memory.rollback(clients)

    def apply(self, rows: Tensor, clients: list[int], round: int, sums: dict[str, Tensor]) -> Tensor:
        """The clients' side: updates (F, P + Q) to what is sent. Adds to `sums` and may overwrite `rows`."""
        ids = np.array(clients)
        for transform, purpose, state, memory in zip(
            self.transforms, self.purposes, self.states, self.memories, strict=True
        ):
            if transform.apply is None:
                continue
            sending = Sending(
                seed=self.seed,
                round=round,
                purpose=purpose,
                clients=clients,
                state=state,
                memory=None if memory is None else memory.read(ids),
            )
            before, rows = rows, transform.apply(rows, sending)
            if not isinstance(rows, Tensor) or rows.shape != before.shape or rows.dtype != before.dtype:
                raise ValueError(
                    f"transforms.{transform.name} must give as many numbers as it takes, {tuple(before.shape)} "
                    f"{before.dtype}; it gave {getattr(rows, 'shape', type(rows).__name__)}"
                )
            if memory is not None and sending.memory is not None:
                memory.write(ids, sending.memory)
            for name, amount in sending.sums.items():
                key = f"{purpose}.{name}"
                sums[key] = sums[key] + amount if key in sums else amount
        return rows

    def close(
        self, mean: Tensor, sums: dict[str, float], *, round: int, cohort_size: float
    ) -> tuple[Tensor, dict[str, float]]:
        """The server's side: the mean (P + Q,), which may be overwritten, and the transforms' figures."""
        noise = sum(t.noise_multiplier for t in self.transforms)
        bounds = [t.bound(state) for t, state in zip(self.transforms, self.states, strict=True) if t.bound is not None]
        counts = [t.count_noise(cohort_size, noise) for t in self.transforms if t.count_noise is not None]
        figures: dict[str, float] = {}
        moved = []
        for transform, purpose, state in zip(self.transforms, self.purposes, self.states, strict=True):
            prefix = f"{purpose}."
            closing = Closing(
                seed=self.seed,
                round=round,
                purpose=purpose,
                cohort_size=cohort_size,
                state=state,
                sums={k.removeprefix(prefix): v for k, v in sums.items() if k.startswith(prefix)},
                noise_multiplier=noise,
                clip_norm=bounds[-1] if bounds else None,
                count_noise=counts[-1] if counts else None,
            )
            if transform.finish is not None:
                mean = transform.finish(mean, closing)
            figures |= transform.figures(state, closing.sums)
            moved.append(transform.server_step(closing))
        self.next_states = moved
        return mean, figures

    def commit(self) -> None:
        """The round has ended well: what lasts may move."""
        self.states = self.next_states
        for memory in self.memories:
            if memory is not None:
                memory.commit()

    def snapshot(self) -> dict[str, Tensor]:
        """All that lasts but the clients' vectors, by name, for a checkpoint."""
        found = {}
        for purpose, state in zip(self.purposes, self.states, strict=True):
            found |= {f"{purpose}.{name}": value for name, value in state.items()}
        return found

    def restore(self, found: dict[str, Tensor]) -> None:
        """Continue from a `snapshot`."""
        self.states = [
            {name: found[f"{purpose}.{name}"].to(value.device) for name, value in state.items()}
            for purpose, state in zip(self.purposes, self.states, strict=True)
        ]
        self.next_states = self.states
