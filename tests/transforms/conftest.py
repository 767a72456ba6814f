"""Rows sent through one transform."""

from collections.abc import Callable

import pytest
import torch

from fedsim.transforms import Sending, Transform, Wire


@pytest.fixture
def send() -> Callable[..., torch.Tensor]:
    """send(transform, rows, ...) -> what the server gets; `memory` is changed in place, `sums` too."""

    def send(transform: Transform, rows, *, clients=None, seed=0, round=1, memory=None, sums=None, state=None):
        sending = Sending(
            seed=seed,
            round=round,
            purpose=transform.name,
            clients=clients or list(range(len(rows))),
            state=state or transform.server_init(),
            memory=memory,
            sums={} if sums is None else sums,
        )
        assert transform.apply is not None
        return transform.apply(rows.clone(), sending)

    return send


@pytest.fixture
def num_bytes() -> Callable[..., int]:
    """num_bytes(size, transforms...) -> bytes of a float32 update on the wire."""

    def count(size: int, *transforms: Transform) -> int:
        wire = Wire.dense(size, torch.float32)
        for transform in transforms:
            wire = transform.wire(wire)
        return wire.num_bytes

    return count
