"""RowPool: rows of equal length in the memory of one device, which knows the one that was not used for longest."""

import itertools
from collections import OrderedDict

import torch
from torch import Tensor


class RowPool:
    """At most `capacity` rows.

    Attributes:
        slots: key -> row of the tensor, the least recently used key first.
    """

    def __init__(self, capacity: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.capacity, self.size, self.dtype, self.device = capacity, size, dtype, device
        self.clear()

    def clear(self) -> None:
        """Forget all rows and give their memory back."""
        self.slots: OrderedDict[int, int] = OrderedDict()
        self.free: list[int] = []
        self.rows: Tensor | None = None

    def get(self, keys: list[int]) -> Tensor:
        """A copy of their rows."""
        assert self.rows is not None
        return self.rows[torch.tensor([self.slots[key] for key in keys], device=self.device)]

    def touch(self, keys: list[int]) -> None:
        """They are used now."""
        for key in keys:
            self.slots.move_to_end(key)

    def crowded(self, num_rows: int) -> list[int]:
        """Whose rows must leave before so many others enter: the least recently used ones."""
        return list(itertools.islice(self.slots, max(0, len(self.slots) + num_rows - self.capacity)))

    def put(self, keys: list[int], rows: Tensor) -> None:
        """Keep a copy of rows (n, size) for keys that have none; there must be room."""
        if self.rows is None:  # a CPU gives memory to a page when it is first touched
            self.rows = torch.empty((self.capacity, self.size), dtype=self.dtype, device=self.device)
        for key in keys:
            self.slots[key] = self.free.pop() if self.free else len(self.slots)
        self.rows[torch.tensor([self.slots[key] for key in keys], device=self.device)] = rows.to(
            self.device, self.dtype
        )

    def drop(self, key: int) -> None:
        """Forget the row of this key, if it has one."""
        slot = self.slots.pop(key, None)
        if slot is not None:
            self.free.append(slot)
