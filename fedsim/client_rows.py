"""ClientRows: a vector for each client that lasts from round to round, such as what a compressor has not yet sent.

Only clients that were ever written take space, in RAM. Writes of a round count for later reads at once and for good
only after `commit`, so that a round that fails or is interrupted leaves no trace.
"""

import numpy as np
import torch
from torch import Tensor


class ClientRows:
    """(C, size) rows, zero where nothing was written.

    Args:
        size: elements of a row.
        num_clients: C.
        name: of the vectors, for errors.
        dtype: of the rows.
        device: where rows are read to; they are kept on the CPU.
    """

    def __init__(
        self,
        size: int,
        *,
        num_clients: int,
        name: str = "state",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.size, self.num_clients, self.name, self.dtype = size, num_clients, name, dtype
        self.device = torch.device(device)
        self.rows: dict[int, Tensor] = {}
        self.written: dict[int, Tensor] = {}  # in the round that goes on

    def read(self, clients: np.ndarray) -> Tensor:
        """(m, size): copies of the rows of the clients (m,), on `device`."""
        rows = torch.zeros((len(clients), self.size), dtype=self.dtype, device=self.device)
        for i, client in enumerate(clients.tolist()):
            found = self.written.get(client, self.rows.get(client))
            if found is not None:
                rows[i] = found
        return rows

    def write(self, clients: np.ndarray, rows: Tensor) -> None:
        """Keep a copy of rows (m, size) for the clients (m,)."""
        for client, row in zip(clients.tolist(), rows, strict=True):
            self.written[client] = row.detach().to("cpu", self.dtype, copy=True)

    def commit(self) -> None:
        """What was written since the last commit lasts."""
        self.rows |= self.written
        self.written = {}

    def rollback(self) -> None:
        """What was written since the last commit is forgotten."""
        self.written = {}

    def snapshot(self) -> dict[str, Tensor]:
        """The rows that last, for a checkpoint: "clients" (n,) int64 and "rows" (n, size); {} if there are none."""
        if not self.rows:
            return {}
        clients = sorted(self.rows)
        return {"clients": torch.tensor(clients), "rows": torch.stack([self.rows[c] for c in clients])}

    def restore(self, found: dict[str, Tensor]) -> None:
        """Continue from a `snapshot`."""
        self.written = {}
        clients = found["clients"].tolist() if found else []
        self.rows = {c: found["rows"][i].cpu().clone() for i, c in enumerate(clients)}
