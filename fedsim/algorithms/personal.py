"""Which elements of the model stay with a client, as masks over the vector (P + Q,)."""

import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from fedsim.algorithms.base import Algorithm, Kept
from fedsim.vector import FlatModel

Mask = Callable[[FlatModel], Tensor]
"""model -> (P + Q,) bool."""


def keep(name: str, mask: Mask) -> Algorithm:
    """FedAvg in which every client keeps the masked elements to itself."""
    return Algorithm(name=name, personal=mask, keeps={"personal": Kept(size="personal", start="model")})


def layers(patterns: Sequence[str] | None) -> Mask:
    """The parameters and running statistics whose names match one of the patterns, or begin with one and a dot.

    None: those of the last layer that has parameters.

    Raises:
        ValueError: on use, for a pattern that matches nothing (lists near names) or for no pattern.
    """
    if patterns is not None and not patterns:
        raise ValueError("no layer is named: name parameters or layers of the model, or null for the last one")

    def mask(model: FlatModel) -> Tensor:
        entries = (*model.layout.parameters, *model.layout.buffers)
        chosen = [model.layout.parameters[-1].name.rpartition(".")[0]] if patterns is None else list(patterns)
        marked = torch.zeros(model.layout.size, dtype=torch.bool, device=model.device)
        for pattern in chosen:
            found = [e for e in entries if fnmatchcase(e.name, pattern) or _inside(e.name, pattern)]
            if not found:
                names = [e.name for e in entries]
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:8]
                raise ValueError(f"the layer {pattern!r} matches no parameter of the model; there is {', '.join(near)}")
            for entry in found:
                marked[entry.start : entry.stop] = True
        return marked

    return mask


def _inside(name: str, layer: str) -> bool:
    return not layer or name.startswith(layer + ".")


def all_but(mask: Mask) -> Mask:
    """The complement.

    Raises:
        ValueError: on use, if it is empty.
    """

    def complement(model: FlatModel) -> Tensor:
        marked = ~mask(model)
        if not marked.any():
            raise ValueError("all layers are averaged, so none stays with the clients: share fewer, or use fedavg")
        return marked

    return complement


_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)


def normalisation(model: FlatModel) -> Tensor:
    """Parameters and running statistics of normalisation layers.

    Raises:
        ValueError: there is none.
    """
    names = [name for name, module in model.module.named_modules() if isinstance(module, _NORMS)]
    entries = (*model.layout.parameters, *model.layout.buffers)
    marked = torch.zeros(model.layout.size, dtype=torch.bool, device=model.device)
    for entry in entries:
        if entry.name.rpartition(".")[0] in names:
            marked[entry.start : entry.stop] = True
    if not marked.any():
        raise ValueError(
            f"algorithm=fedbn: {type(model.module).__name__} has no normalisation layer with parameters to keep; "
            "use a model with one, for example model=convnet2"
        )
    return marked


def everything(model: FlatModel) -> Tensor:
    """The whole model."""
    return torch.ones(model.layout.size, dtype=torch.bool, device=model.device)
