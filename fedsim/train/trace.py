"""Trace a function once for every number of slots and every length of history.

`make_fx` records the operations of one call, with that call's sizes written into them as numbers. Here the call is
made with fake tensors, which have shapes and no memory, and whose changing sizes are large primes: every number in
the record that is a multiple of such a prime came from that size, and is replaced by the same multiple of the size at
hand. What is left is a plain list of operations, without functorch's overhead and without a second trace.
"""

import operator
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

# No layer is as large as these, and no product of layer sizes is likely to be a multiple of them.
_PRIMES = (1_000_003, 2_000_003)
_LOCK = threading.Lock()  # make_fx patches torch while it records
_aten = torch.ops.aten


def trace(
    function: Callable[..., Any], arguments: tuple[Any, ...], changing: tuple[tuple[int, ...], ...]
) -> Callable[..., Any]:
    """Record `function` for all sizes.

    Args:
        function: takes tensors and dictionaries of tensors, and returns them in dictionaries and tuples.
        arguments: an example call.
        changing: for each argument, how many of the leading dimensions of its tensors change from call to call: ()
            none, (0,) the first is the first size, (0, 1) also the second is the second size.

    Returns:
        A function of the same arguments, which may have other sizes in those dimensions.

    Raises:
        RuntimeError: an operation cannot be traced.
    """
    leaves, structure = pytree.tree_flatten(arguments)
    dims = [d for argument, d in zip(arguments, changing, strict=True) for _ in pytree.tree_leaves(argument)]
    returned: list[pytree.TreeSpec] = []

    def flat(*values: Tensor) -> list[Tensor]:
        results, spec = pytree.tree_flatten(function(*pytree.tree_unflatten(list(values), structure)))
        returned.append(spec)
        return results

    def prime(leaf: Tensor, which: tuple[int, ...]) -> Tensor:
        shape = [_PRIMES[d] if d in which else size for d, size in enumerate(leaf.shape)]
        return torch.empty_strided(shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)

    with _LOCK:
        with FakeTensorMode(allow_non_fake_inputs=True):
            fakes = [prime(leaf, which) for leaf, which in zip(leaves, dims, strict=True)]
        # an operation without a batching rule would be recorded once for each of a million slots
        functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
        fallback = functorch._is_vmap_fallback_enabled()
        functorch._set_vmap_fallback_enabled(False)
        try:
            recorded = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*fakes)
        finally:
            functorch._set_vmap_fallback_enabled(fallback)
    _generalise(recorded, dims)

    run = recorded.forward

    def replay(*values: Any) -> Any:
        with torch.no_grad():
            results = run(
                *[leaf for value in values for leaf in (value.values() if isinstance(value, dict) else [value])]
            )
        return pytree.tree_unflatten(results, returned[-1])

    return replay


def _generalise(recorded: GraphModule, dims: list[tuple[int, ...]]) -> None:
    """Replace multiples of the primes by multiples of the sizes at hand, and drop what computes nothing."""
    graph = recorded.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    anchor = inputs[-1]  # new nodes go behind it, one after another
    sizes: dict[int, Node] = {}
    for d, number in enumerate(_PRIMES):
        source = next((node for node, which in zip(inputs, dims, strict=True) if d in which), None)
        if source is not None:
            with graph.inserting_after(anchor):
                anchor = sizes[number] = graph.call_function(_aten.sym_size.int, (source, d))
    multiples: dict[tuple[int, int], Node] = {}

    def general(value: Any) -> Any:
        nonlocal anchor
        if type(value) is not int or value == 0:
            return value
        result, rest = None, value
        for number, node in sizes.items():
            if rest % number == 0:
                rest //= number
                result = node if result is None else multiply(result, node)
        return value if result is None else result if rest == 1 else multiply(result, rest)

    def multiply(left: Node, right: Node | int) -> Node:
        nonlocal anchor
        key = (id(left), id(right) if isinstance(right, Node) else right)
        if key not in multiples:
            with graph.inserting_after(anchor):
                anchor = multiples[key] = graph.call_function(operator.mul, (left, right))
        return multiples[key]

    views = {_aten.expand.default, _aten.view.default, _aten._unsafe_view.default}
    for node in list(graph.nodes):
        if node.op != "call_function" or node in sizes.values():
            continue
        value = node.args[0] if node.args else None
        if isinstance(value, Node) and "val" in value.meta:
            same = node.target in views and list(value.meta["val"].shape) == list(node.args[1])
            if same or node.target in (_aten.alias.default, _aten.detach.default):
                node.replace_all_uses_with(value)
                continue
        node.args = map_aggregate(node.args, general)
        node.kwargs = map_aggregate(node.kwargs, general)
    graph.set_codegen(CodeGen())  # plain arguments and results; make_fx's own takes them apart at every call
    graph.eliminate_dead_code()
    graph.lint()
    recorded.recompile()
