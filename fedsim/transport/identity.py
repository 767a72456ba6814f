"""What all nodes of a run must agree on, compared before any work is done."""

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedsim.vector import Layout

MESSAGE_BYTES = 1 << 27  # of clients' vectors in one message, or one client's where these are more
_MAX_VECTORS = 16  # names of vectors that clients keep
_DATA = ("data.", "partition.")  # of the configuration: what a worker with its own data states for itself


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A run, as the server knows it and hands it down.

    Attributes:
        config: the server's resolved configuration, plain values.
        comparable: what of it must be equal on every node, as dotted keys.
        config_hash: of `comparable`.
        version: of fedsim.
        dataset: `FederatedDataset.fingerprint` of the data; None: each worker holds data of its own.
        layout: `layout_hash` of the model.
        size: elements of the longest vector that travels; P + Q for FedAvg.
        num_clients: C.
        row_bytes: of one client's vectors in a message (`fedsim.transport.carry`); 0: none travel.
        choice: `Choice.facts` of trainer=auto, which the server chooses for all; None: another trainer.
    """

    config: dict[str, Any]
    comparable: dict[str, Any]
    config_hash: str
    version: str
    dataset: str | None
    layout: str
    size: int
    num_clients: int
    row_bytes: int = 0
    choice: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """As a message carries it: `Identity(**fields)`."""
        return asdict(self)

    def continues(self, other: "Identity") -> bool:
        """Whether a node that was built for `other` can serve this run as it is.

        A resumed run may lie elsewhere, report in another way and last longer.
        """
        alike = self.config.get("trainer") == other.config.get("trainer")  # which `comparable` leaves out
        return alike and replace(self, config={}) == replace(other, config={})

    @property
    def limit(self) -> int:
        """Bytes of tensors that no message of this run exceeds: two float64 vectors, two numbers a client, and those
        of the clients' vectors that fit, with their clients' numbers and weights."""
        carried = (self.clients_a_share or 0) * (self.row_bytes + _MAX_VECTORS * 16)
        return (1 << 20) + 16 * self.size + 16 * self.num_clients + carried

    @property
    def clients_a_share(self) -> int | None:
        """Most clients whose vectors travel in one message; None: any number."""
        return max(1, MESSAGE_BYTES // self.row_bytes) if self.row_bytes else None

    def objection(self, claims: dict[str, Any] | None, version: str) -> str | None:
        """Why a node that says it runs `claims` (None: whatever the server says) may not join; None: it may."""
        if version != self.version:
            return f"it runs fedsim {version}, this run fedsim {self.version}"
        if claims is None:
            return None
        keys = claims.keys() | self.comparable.keys()
        if all(key.startswith(_DATA) for key in claims):  # of the rest it takes what there is
            keys = {key for key in keys if key.startswith(_DATA)}
        if self.dataset is None:
            keys = {key for key in keys if not key.startswith(_DATA)}
        differing = [
            f"{key} ({claims.get(key, 'not set')} there, {self.comparable.get(key, 'not set')} here)"
            for key in sorted(keys)
            if claims.get(key) != self.comparable.get(key)
        ]
        return f"its configuration differs in {', '.join(differing)}" if differing else None

    def mismatch(self, built: dict[str, Any]) -> str | None:
        """Why a node that has built this (config_hash, dataset, layout) may not work; None: it may."""
        for key, what, mend in (
            ("config_hash", "configuration", "start it without options of its own"),
            ("layout", "model", "install the same versions of fedsim and of the model's code"),
            ("dataset", "data", "give it the same files in data.root, and the same partition"),
        ):
            if getattr(self, key) is not None and built.get(key) != getattr(self, key):
                return f"its {what} is not that of this run ({built.get(key)} there, {getattr(self, key)} here): {mend}"
        return None


def layout_hash(layout: Layout, dtype: object) -> str:
    """16 hexadecimal digits of names, shapes and places of all tensors of a model, and their dtype."""
    text = "\n".join(f"{e.name} {tuple(e.shape)} {e.start}" for e in (*layout.parameters, *layout.buffers))
    return hashlib.sha256(f"{dtype} {layout.num_parameters}\n{text}".encode()).hexdigest()[:16]
