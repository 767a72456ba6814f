"""The local update step: the only one in the project, for one client or K side by side.

The arithmetic is `torch.optim.SGD`'s (dampening 0) behind `torch.nn.utils.clip_grad_norm_`, on lists of tensors: the
layers' views of one client's vector, or of K clients' with the slot as first dimension.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.config import LocalConfig
from fedsim.data.federated import ELSEWHERE, FederatedDataset
from fedsim.memory import out_of_memory
from fedsim.objective import Objective, PerSample, cross_entropy
from fedsim.rng import forked_generators, generator_states
from fedsim.train.precision import autocast
from fedsim.vector import FlatModel

Tensors = list[Tensor] | tuple[Tensor, ...]


def unshared(gradients: Tensors, local: LocalConfig) -> Tensors:
    """The gradients, each in memory of its own where the step changes them in place.

    Autograd gives one tensor to several parameters whose gradients are equal (the summands of a weight that is a sum),
    and one element for many (a bias that is summed). Only such tensors are copied.
    """
    if not local.weight_decay and local.max_gradient_norm is None and not local.nesterov:
        return gradients
    seen: set[int] = set()
    separate = []
    for gradient in gradients:
        place = gradient.data_ptr()
        again = place in seen or 0 in gradient.stride()
        separate.append(gradient.clone(memory_format=torch.contiguous_format) if again else gradient)
        seen.add(place)
    return separate


def clip_(gradients: Tensors, norm: Tensor, max_norm: float) -> None:
    """Scale gradients of a larger norm down to `max_norm`, in place.

    `norm` is their Euclidean norm: 0-d for one client, or (K,) for gradients (K, ...), each slot by itself.
    """
    scale = (max_norm / (norm + 1e-6)).clamp_(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view([-1] + [1] * (gradient.dim() - 1)) if norm.dim() else scale)


def sgd_(
    parameters: Tensors,
    gradients: Tensors,
    momenta: Tensors | None,
    local: LocalConfig,
    learning_rate: float | None = None,
) -> None:
    """One SGD step: moves `parameters` and `momenta` in place and may overwrite `gradients`.

    A learning rate of None is `local.learning_rate`.
    """
    if local.weight_decay:
        torch._foreach_add_(gradients, parameters, alpha=local.weight_decay)
    if momenta is not None:
        torch._foreach_mul_(momenta, local.momentum)
        torch._foreach_add_(momenta, gradients)
        if local.nesterov:
            torch._foreach_add_(gradients, momenta, alpha=local.momentum)
        else:
            gradients = momenta
    torch._foreach_add_(parameters, gradients, alpha=-(local.learning_rate if learning_rate is None else learning_rate))


def sgd_product_(weight: Tensor, left: Tensor, right: Tensor, momentum: Tensor | None, local: LocalConfig) -> None:
    """`sgd_` of one matrix (out, in) whose gradient is left^T right, for left (B, out) and right (B, in).

    The gradient is added as it is computed, in one pass over the matrix, and never written down.
    """
    rate, decay = local.learning_rate, local.weight_decay
    if momentum is not None:
        momentum.addmm_(left.T, right, beta=local.momentum)
        if decay:
            momentum.add_(weight, alpha=decay)
    if momentum is None or local.nesterov:
        weight.addmm_(left.T, right, beta=1 - rate * decay, alpha=-rate)
    if momentum is not None:
        weight.add_(momentum, alpha=-rate * (local.momentum if local.nesterov else 1))


class SerialStep:
    """The step of one client on the shared model: plain autograd, then `sgd_`, each layer a tensor by itself.

    Memory besides the model: the gradient, without that of the linear layers in `products`, and the momentum where
    there is one.

    Args:
        model: whose vector is moved.
        local: the rule.
        precision: of the forward pass.
        products: names of linear layers, each with a weight of its own and called with (B, in), whose gradients are
            not written down (`sgd_product_`). A step that does not call one exactly once writes all of them down.
        objective: outputs and targets -> (B,) losses; None: cross-entropy.
    """

    def __init__(
        self,
        model: FlatModel,
        local: LocalConfig,
        precision: str = "float32",
        products: Iterable[str] = (),
        objective: PerSample | None = None,
    ) -> None:
        self.model, self.local, self.precision = model, local, precision
        self.objective = objective or cross_entropy()
        self.parameters: list[Tensor] = [*model.parameters]
        self.momentum = torch.zeros_like(model.vector[: model.num_parameters]) if local.momentum else None
        self.momenta = None
        if self.momentum is not None:
            self.momenta = [self.momentum[e.start : e.stop].view(e.shape) for e in model.layout.parameters]
        places = {e.name: i for i, e in enumerate(model.layout.parameters)}
        self.layers = {
            places[f"{name}.weight" if name else "weight"]: model.module.get_submodule(name) for name in products
        }

    def use(self, local: LocalConfig) -> None:
        """Go on with another learning rate."""
        self.local = local

    def begin(self) -> None:
        """A new client starts: its momentum is zero."""
        if self.momentum is not None:
            self.momentum.zero_()

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One minibatch; returns the mean loss before the step (0-d, on the device)."""
        with _calls(self.layers) as calls, autocast(self.precision, inputs.device):
            outputs = self.model.module(inputs)
        loss = self.objective(outputs, targets).mean()
        if any(len(called) != 1 for called in calls.values()):
            calls.clear()
        rest = [i for i in range(len(self.parameters)) if i not in calls]
        leaves = [*(self.model.parameters[i] for i in rest), *(called[0][1] for called in calls.values())]
        found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            gradients = unshared(found[: len(rest)], self.local)
            lefts, rights = list(found[len(rest) :]), [called[0][0] for called in calls.values()]
            if self.local.max_gradient_norm is not None:
                # || D^T X ||^2 = sum of (D D^T) * (X X^T)
                squares = [((d @ d.T) * (x @ x.T)).sum().clamp(min=0.0) for d, x in zip(lefts, rights, strict=True)]
                norms = [*torch._foreach_norm(gradients), *(square.sqrt() for square in squares)]
                clip_([*gradients, *lefts], torch.linalg.vector_norm(torch.stack(norms)), self.local.max_gradient_norm)
            momenta = self.momenta
            sgd_(
                [self.parameters[i] for i in rest],
                gradients,
                None if momenta is None else [momenta[i] for i in rest],
                self.local,
            )
            for i, left, right in zip(calls, lefts, rights, strict=True):
                sgd_product_(self.parameters[i], left, right, None if momenta is None else momenta[i], self.local)
        return loss.detach()


@contextmanager
def _calls(layers: Mapping[int, nn.Module]) -> Iterator[dict[int, list[tuple[Tensor, Tensor]]]]:
    """The input and the output of each call of these layers within the `with`."""
    calls: dict[int, list[tuple[Tensor, Tensor]]] = {i: [] for i in layers}
    handles = [
        layer.register_forward_hook(lambda _m, x, y, seen=calls[i]: seen.append((x[0].detach(), y)))
        for i, layer in layers.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def is_stochastic(model: FlatModel, dataset: FederatedDataset) -> bool:
    """Whether training draws random numbers inside the model: dropout, as a layer or as a function, noise, and so on.

    Two copies of a training sample go through the model in training mode, and PyTorch's generators tell. The model's
    buffers and the generators are put back.

    Raises:
        ValueError: the model draws from Python's or NumPy's global generator, which a run does not seed; or it cannot
            take the sample.
    """
    module = model.module
    layers = any(  # seen without a trial: cuDNN's recurrent layers draw from a state of their own
        (isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0) or (isinstance(m, nn.RNNBase) and m.dropout > 0)
        for m in module.modules()
    )
    sample = dataset.preprocess(dataset.train.inputs[:1]).to(model.device)
    was_training, buffers = module.training, [(b, b.clone()) for b in module.buffers()]
    elsewhere = {"random": random.getstate, "numpy.random": np.random.get_state}
    with torch.no_grad(), forked_generators():
        before = [str(state()) for state in elsewhere.values()], generator_states()
        try:
            _try(module.train(), torch.cat([sample, sample]), dataset)
            after = [str(state()) for state in elsewhere.values()], generator_states()
        finally:
            module.train(was_training)
            for buffer, value in buffers:
                buffer.copy_(value)
    for name, old, new in zip(elsewhere, before[0], after[0], strict=True):
        if old != new:
            raise ValueError(
                f"{type(module).__name__} draws from {name} in training, which a run cannot seed for each client: "
                "draw from torch in its place"
            )
    return layers or any(not torch.equal(old, new) for old, new in zip(before[1], after[1], strict=True))


def _try(module: nn.Module, samples: Tensor, dataset: FederatedDataset) -> None:
    """The samples' first way through the model: where it takes none like them, that is said.

    Raises:
        ValueError: shape and type of what the model cannot take; it gives no tensor, or too few outputs.
    """
    try:
        outputs = module(samples)
    except (RuntimeError, IndexError, TypeError) as error:
        if out_of_memory(error):
            raise
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"the model cannot take samples of {dataset.name}, of shape {tuple(samples.shape[1:])} and type "
            f"{str(samples.dtype).removeprefix('torch.')} ({what}): choose another model= or data="
        ) from error
    _refuse_outputs(outputs, module, dataset)


def _refuse_outputs(outputs: object, module: nn.Module, dataset: FederatedDataset) -> None:
    name, targets = type(module).__name__, dataset.train.targets
    one_each = dataset.objective.targets == "classes" and targets.dim() == 1
    for split in (dataset.train, dataset.test, dataset.validation):
        if split is not None:
            dataset.objective.refuse(split.targets, dataset.name)
    if not isinstance(outputs, Tensor):
        raise ValueError(f"{name} must return a tensor of outputs, (B, classes); it returned {type(outputs).__name__}")
    if one_each and outputs.dim() == 2 and outputs.shape[1] < dataset.num_classes:
        raise ValueError(
            f"{name} has {outputs.shape[1]} outputs and {dataset.name} {dataset.num_classes} classes: give the model "
            "one output for each class, which a model factory is told as num_classes"
        )
    if dataset.source != ELSEWHERE:  # where there is no target yet
        some = targets[[0, len(targets) - 1]].to(outputs.device)
        _refuse_figures(dataset.objective, outputs.detach(), some)


def _refuse_figures(objective: Objective, outputs: Tensor, targets: Tensor) -> None:
    """Of a minibatch of two samples, outputs and targets (2, ...), every figure must be (2,), one of each sample alone.

    Raises:
        ValueError: says which is not, and how it may be mended.
    """
    outputs, targets = objective.prepared(outputs, targets)
    beside = torch.cat([outputs[:1], 0.3 - outputs[1:]]), targets[[0, 0]]  # the same sample beside another one
    for name, of in {"loss": objective.losses, **objective.metrics}.items():
        what = f"the {name} of the objective {objective.name}"
        leaf = outputs.clone().requires_grad_(name == "loss")
        try:
            with torch.enable_grad(), forked_generators() as reseed:
                reseed(0)
                found = of(leaf, targets)
                reseed(0)
                again = of(*beside)
        except ValueError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            why = next(iter(str(error).splitlines()), "")
            raise ValueError(
                f"{what} cannot be taken of outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} of type "
                f"{targets.dtype} ({type(error).__name__}: {why})"
            ) from error
        if not isinstance(found, Tensor) or found.shape != (len(outputs),):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"{what} must be a number for each of {len(outputs)} samples, ({len(outputs)},); it is {shape}: a loss "
                'of torch.nn is told reduction="none", and a mean is taken over what is left of each sample'
            )
        if name == "loss" and not found.requires_grad:
            raise ValueError(f"{what} has no gradient: leave out detach, argmax and the like")
        if not torch.allclose(found[:1].double(), again[:1].double(), rtol=1e-3, atol=1e-6, equal_nan=True):
            raise ValueError(
                f"{what} lets samples meet: that of the first changes with the second. Outputs are "
                f"{tuple(outputs.shape)} and targets {tuple(targets.shape)} here: make their shapes alike where they "
                "are compared, and leave out what is taken over a minibatch"
            )
