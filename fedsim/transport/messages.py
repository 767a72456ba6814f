"""A share of a round and its result, as messages."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import ClientRows, PartialAverage
from fedsim.transport.base import Job
from fedsim.transport.wire import Message


def _pack(rows: Mapping[str, ClientRows]) -> dict[str, Tensor]:
    tensors = {}
    for name, found in rows.items():
        tensors |= {f"clients/{name}": torch.from_numpy(found.clients), f"rows/{name}": found.rows}
        if found.weights is not None:
            tensors[f"weights/{name}"] = torch.from_numpy(found.weights)
    return tensors


def _unpack(tensors: Mapping[str, Tensor]) -> dict[str, ClientRows]:
    """The inverse of `_pack`.

    Raises:
        ValueError: these are no rows of clients.
    """
    found = {}
    for name in [key.removeprefix("rows/") for key in tensors if key.startswith("rows/")]:
        rows, clients, weights = (tensors.get(f"{part}/{name}") for part in ("rows", "clients", "weights"))
        assert rows is not None
        if clients is None or clients.dtype != torch.int64 or clients.dim() != 1 or rows.dim() != 2:
            raise ValueError(f"it sent vectors {name!r} of nobody")
        if len(rows) != len(clients) or not rows.is_floating_point():
            raise ValueError(f"it sent vectors {name!r} of another form")
        if weights is not None and (weights.dtype != torch.float64 or not torch.isfinite(weights).all()):
            raise ValueError(f"it sent vectors {name!r} with weights that are not finite")
        found[name] = ClientRows(
            clients=clients.numpy(), rows=rows, weights=None if weights is None else weights.numpy()
        )
    return found


def share_message(job: Job, number: int) -> Message:
    """A share as it travels down."""
    return Message(
        kind="job",
        fields={
            "share": number,
            "round": job.round,
            "scale": job.scale,
            "group_rounds": job.group_rounds,
            "prelude": job.prelude,
        },
        tensors={
            "cohort": torch.from_numpy(job.cohort),
            "sizes": torch.from_numpy(job.sizes),
            "broadcast": job.broadcast,
            **({} if job.max_steps is None else {"max_steps": torch.from_numpy(job.max_steps)}),
            **{f"uplink/{name}": value for name, value in job.uplink.items()},
            **_pack(job.rows),
        },
    )


def job_of(message: Message) -> Job:
    """The inverse of `share_message`."""
    fields, tensors = message.fields, message.tensors
    return Job(
        round=fields["round"],
        scale=fields["scale"],
        group_rounds=fields["group_rounds"],
        prelude=fields["prelude"],
        cohort=tensors["cohort"].numpy(),
        sizes=tensors["sizes"].numpy(),
        broadcast=tensors["broadcast"],
        max_steps=tensors["max_steps"].numpy() if "max_steps" in tensors else None,
        rows=_unpack(tensors),
        uplink={name.removeprefix("uplink/"): t for name, t in tensors.items() if name.startswith("uplink/")},
    )


def result_message(partial: PartialAverage, number: int) -> Message:
    """A partial average as it travels up."""
    fields = {"share": number, "weight": partial.weight, "scale": partial.scale, "metrics": partial.metrics}
    return Message(kind="result", fields=fields, tensors={"total": partial.total, **_pack(partial.rows)})


def partial_of(message: Message, job: Job) -> PartialAverage:
    """The inverse of `result_message`.

    Raises:
        ValueError: it is not the result of this job.
    """
    fields, total = message.fields, message.tensors.get("total")
    metrics, weight = fields.get("metrics"), fields.get("weight")
    if total is None or total.dtype not in (torch.float64, torch.float32) or total.dim() != 1:
        raise ValueError("it sent an average of another model")
    if fields.get("scale") != job.scale or not isinstance(metrics, dict) or not isinstance(weight, float):
        raise ValueError("it sent an average without weight, scale and metrics")
    if not all(isinstance(value, int | float) for value in metrics.values()):
        raise ValueError("it sent metrics that are not numbers")
    rows = _unpack(message.tensors)
    # a sum of the grid's points is finite where all of them are, and takes no memory
    if not (0 if rows else np.finfo(float).tiny) <= weight <= job.scale or not math.isfinite(total.sum().item()):
        raise ValueError("it sent an average that is not finite")
    return PartialAverage(total=total, weight=weight, scale=job.scale, metrics=metrics, rows=rows)
