"""FlatModel: an nn.Module whose trainable parameters and running statistics are views into one vector.

The vector is laid out as [parameters | buffers]: first the P trainable parameters, in the module's own order, then
the Q values of its floating-point buffers (BatchNorm's running mean and variance). Loading a model is one copy and
averaging models is arithmetic on vectors; only this file knows which layer lies where.

Integer buffers (BatchNorm's `num_batches_tracked`) stay in the module: they are counters, and the mean of counters
means nothing. Frozen parameters (`requires_grad=False`) stay there too, shared by every client.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in the vector: elements `start` to `stop`, of shape `shape`."""

    name: str
    shape: torch.Size
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """Names, shapes and places of everything in the vector.

    Attributes:
        parameters: one entry for each trainable parameter, in the module's order.
        buffers: one entry for each floating-point buffer, behind the parameters.
    """

    parameters: tuple[Entry, ...]
    buffers: tuple[Entry, ...]

    @property
    def num_parameters(self) -> int:
        """P: trainable parameters."""
        return self.parameters[-1].stop

    @property
    def size(self) -> int:
        """P + Q: length of the vector."""
        return (self.buffers or self.parameters)[-1].stop

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Names to views of a (P + Q,) vector, as `torch.func.functional_call` takes them."""
        return {e.name: vector[e.start : e.stop].view(e.shape) for e in (*self.parameters, *self.buffers)}

    def without(self, left_out: Tensor) -> "Layout":
        """The layout of what a mask (P + Q,) leaves, one element behind another; a tensor that loses some is flat."""
        kept = [(e, int((~left_out[e.start : e.stop]).sum())) for e in (*self.parameters, *self.buffers)]
        stops = [0, *accumulate(count for _, count in kept)]
        entries = [
            Entry(e.name, e.shape if count == e.shape.numel() else torch.Size([count]), start, start + count)
            for (e, count), start in zip(kept, stops, strict=False)
        ]
        return Layout(tuple(entries[: len(self.parameters)]), tuple(entries[len(self.parameters) :]))


def _entries(named: Sequence[tuple[str, Tensor]], start: int) -> Iterator[Entry]:
    for name, tensor in named:
        yield Entry(name, tensor.shape, start, start + tensor.numel())
        start += tensor.numel()


class FlatModel:
    """A module whose parameters and floating-point buffers are views into `vector`.

    Attributes:
        module: the module itself; call it as usual.
        vector: (P + Q,) float tensor that holds the module's state; writing to it changes the module. It is the model's
            own, or after `rest_on` somebody else's, who must not find it changed.
        layout: what lies where.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        module = module.to(device)
        parameters = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        buffers = [(n, b) for n, b in module.named_buffers() if b.is_floating_point()]
        if not parameters:
            raise ValueError(f"{type(module).__name__} has no trainable parameter, so there is nothing to learn")
        for name, parameter in parameters:
            if not parameter.is_floating_point():  # complex numbers have no mean on the grid of `OnlineAverage`
                raise ValueError(f"{name} is {parameter.dtype}, and only real floating-point parameters can be trained")
        dtypes = {t.dtype for _, t in (*parameters, *buffers)}
        if len(dtypes) > 1:
            raise ValueError(f"all parameters and buffers must share one dtype, found {sorted(map(str, dtypes))}")
        for name, child in module.named_modules():
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.momentum is None:
                raise ValueError(
                    f"{name}: BatchNorm with momentum=None keeps a count that cannot be averaged; set a momentum"
                )
        entries = tuple(_entries(parameters, 0))
        self.layout = Layout(entries, tuple(_entries(buffers, entries[-1].stop)))
        self.module, self.resting = module, False
        self.parameters = [p for _, p in parameters]
        self._named = dict((*parameters, *buffers))
        # by name: a module that assigns a new tensor has another one under it
        counters = {n: b for n, b in module.state_dict().items() if isinstance(b, Tensor) and not b.is_floating_point()}
        self._counters = {name: counter.clone() for name, counter in counters.items()}
        self.vector = torch.empty(self.layout.size, dtype=parameters[0][1].dtype, device=device)
        with torch.no_grad():
            for name, view in self.layout.views(self.vector).items():
                view.copy_(self._named[name])
        self._point()

    @property
    def num_parameters(self) -> int:
        return self.layout.num_parameters

    @property
    def device(self) -> torch.device:
        return self.vector.device

    def _point(self) -> None:
        """The module's tensors are views into `vector`."""
        for name, view in self.layout.views(self.vector).items():
            self._named[name].data = view  # the Parameter object stays the same, so tied weights stay tied

    def rest_on(self, vector: Tensor) -> None:
        """Be the model `vector`, (P,), itself, without memory of its own, until `own` or the `load` of another.

        A call may change floating-point buffers, which are no part of such a vector.
        """
        assert not self.layout.buffers
        self.vector, self.resting = vector, True
        self._point()

    def own(self) -> None:
        """Have memory of its own (again): who trains the module calls this first."""
        if self.resting:
            self.vector, self.resting = self.vector.clone(), False
            self._point()

    def load(self, vector: Tensor) -> None:
        """Make the module the model `vector`, (P + Q,): one copy, but none where it rests on that very vector."""
        if self.resting and vector.data_ptr() == self.vector.data_ptr():
            return
        self.own()
        self.vector.copy_(vector)

    def state_dict(self, vector: Tensor) -> dict[str, Tensor]:
        """The module's `state_dict` with `vector` (P + Q,) in it, as contiguous CPU tensors of their own.

        It has the module's own keys: tied weights under each of their names, and no buffer that is not persistent.
        Integer buffers are those of the module at first: how often it has been called here says nothing of the vector.
        """
        named = (*self.module.named_parameters(), *self.module.named_buffers())
        views, names = self.layout.views(vector), {id(tensor): name for name, tensor in named}
        kept: dict[str, Tensor] = self.module.state_dict(keep_vars=True)
        first = {name: self._counters.get(name, tensor) for name, tensor in kept.items()}
        state = {name: views.get(names.get(id(kept[name]), ""), tensor) for name, tensor in first.items()}
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
