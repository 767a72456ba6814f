"""Record a function once and replay it for every number of slots, minibatch size and length of history.

A dispatch mode writes down the operations of a small call on real tensors, with that call's sizes as plain numbers.
A second call with other sizes gives the same operations, and each number that has changed tells by its ratio which
sizes it is a multiple of, since all ratios of sizes are different primes. What is left is a plain list of operations
without the overhead of autograd and vmap.

(`make_fx` with symbolic sizes does more and imports the compiler for it: 150 MiB and two seconds.)
"""

import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# (slots, rows of history, minibatch) of the two calls; the minibatches are small, for their activations take memory.
SIZES = ((2, 11, 5), (3, 13, 7))
_RATIOS = {
    math.prod(Fraction(b, a) ** p for a, b, p in zip(*SIZES, powers, strict=True)): powers
    for powers in itertools.product((-1, 0, 1), repeat=3)
}
_aten = torch.ops.aten


@dataclass(frozen=True)
class _Ref:
    """The value that is `number`-th in a record: the arguments come first, then one for each operation."""

    number: int


class _Recorder(TorchDispatchMode):
    """Writes down every operation, as (function, arguments, keywords) with `_Ref` in the place of tensors.

    Attributes:
        plain: for each function, the one of PyTorch's interface for Python that does the same in half of the time for
            the call; None: there is none.
    """

    def __init__(self, arguments: list[Tensor]) -> None:
        super().__init__()
        self.shapes = [tuple(tensor.shape) for tensor in arguments]
        self.operations: list[tuple[Any, Any, Any]] = []
        self.plain: dict[Any, Callable[..., Any] | None] = {}
        self.constants: dict[int, Tensor] = {}
        self.refs: dict[Any, _Ref] = {}
        self.storages: list[StorageWeakRef] = []  # a storage's identity is not used again while this lives
        for number, tensor in enumerate(arguments):
            self._bind(tensor, _Ref(number))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled while this records, and the guard against it would import the compiler

    @staticmethod
    def _key(tensor: Tensor) -> Any:
        """Autograd unpacks what it has saved as new tensors over the same storage."""
        storage = tensor.untyped_storage()._cdata
        return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype

    def _bind(self, tensor: Tensor, ref: _Ref) -> None:
        self.refs[self._key(tensor)] = ref
        self.storages.append(StorageWeakRef(tensor.untyped_storage()))

    def _append(self, function: Any, args: Any, kwargs: Any) -> _Ref:
        self.operations.append((function, args, kwargs))
        return _Ref(len(self.shapes) + len(self.operations) - 1)

    def ref(self, value: Any) -> Any:
        """What stands for a value: a tensor's `_Ref`, a constant's for a tensor from outside, or the value itself."""
        if not isinstance(value, Tensor):
            return value
        key = self._key(value)
        if key not in self.refs:
            ref = self._append("constant", (), {})
            self.constants[ref.number] = value.detach().clone()
            self._bind(value, ref)
        return self.refs[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        refs, options = pytree.tree_map(self.ref, args), pytree.tree_map(self.ref, kwargs)
        if self.plain.get(func, func) is not None:
            self.plain[func] = _plain(func, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            same = self.refs.get(self._key(result))
            if func._schema.is_mutable or same is None or same not in refs:  # else it is a view of all of its argument
                self._bind(result, self._append(func, refs, options))
        else:
            whole = self._append(func, refs, options)
            for i, part in enumerate(result if isinstance(result, (tuple, list)) else ()):
                if isinstance(part, Tensor):
                    self._bind(part, self._append(operator.getitem, (whole, i), {}))
        return result


class _Calls(TorchDispatchMode):
    """Writes down which operations run, and lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def _plain(function: Any, args: Any, kwargs: Any) -> Callable[..., Any] | None:
    """The function or method of PyTorch's that is this operation and no other, for these arguments; tried on them."""
    name = function._schema.name.partition("::")[2]
    found = getattr(torch, name, None) or getattr(Tensor, name, None)
    if found is None or function._schema.is_mutable or torch.Tag.nondeterministic_seeded in function.tags:
        return None  # it cannot be tried without effect
    with _Calls() as calls:
        try:
            found(*args, **kwargs)
        except (TypeError, RuntimeError):  # it takes other arguments
            return None
    return found if calls.seen == [function] else None


def trace(function: Callable[..., Any], example: Callable[[int, int, int], tuple[Any, ...]]) -> Callable[..., Any]:
    """Record `function` for all sizes.

    Args:
        function: takes tensors and dictionaries of tensors, and returns them in dictionaries and tuples.
        example: (slots, rows of history, minibatch) -> arguments of these sizes.

    Returns:
        A function of the same arguments, of any sizes.

    Raises:
        RuntimeError: an operation cannot be batched, or the operations depend on the sizes in some other way.
    """
    records, structures, results = [], [], []
    # an operation without a batching rule would run, and be recorded, once for each slot
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    fallback = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        for sizes in SIZES:
            arguments = example(*sizes)
            recorder = _Recorder(pytree.tree_leaves(arguments))
            with recorder:
                leaves, structure = pytree.tree_flatten(function(*arguments))
            records.append(recorder)
            structures.append(structure)
            results.append([recorder.ref(leaf) for leaf in leaves])
    finally:
        functorch._set_vmap_fallback_enabled(fallback)
    if results[0] != results[1]:
        raise RuntimeError("the results depend on the sizes")
    run = _program(records[0], records[1], results[0]).forward

    def replay(*values: Any) -> Any:
        with torch.no_grad():
            leaves = run(
                *[leaf for value in values for leaf in (value.values() if isinstance(value, dict) else [value])]
            )
        return pytree.tree_unflatten(leaves, structures[0])

    return replay


def _program(one: _Recorder, two: _Recorder, results: list[_Ref]) -> GraphModule:
    """The operations of two records as one program, in which numbers that differ are computed from the sizes."""
    graph, constants = Graph(), nn.Module()
    nodes: dict[int, Node] = {i: graph.placeholder(f"argument_{i}") for i in range(len(one.shapes))}
    sizes: list[Node | None] = []
    for a, b in zip(*SIZES, strict=True):
        places = (
            (i, d)
            for i, shapes in enumerate(zip(one.shapes, two.shapes, strict=True))
            for d, pair in enumerate(zip(*shapes, strict=True))
            if pair == (a, b)
        )
        place = next(places, None)
        sizes.append(None if place is None else graph.call_function(Tensor.size, (nodes[place[0]], place[1])))

    def general(a: Any, b: Any) -> Any:
        if isinstance(a, _Ref):
            if a != b:
                raise RuntimeError("the operations depend on the sizes")
            return nodes[a.number]
        if a == b or type(a) is not type(b) or not isinstance(a, (int, float)) or not a:
            if a != b:
                raise RuntimeError(f"{a} became {b} with other sizes")
            return a
        exact = Fraction(b) / Fraction(a)
        ratio = exact if isinstance(a, int) else exact.limit_denominator(1000)
        powers = _RATIOS.get(ratio)
        if powers is None or (isinstance(a, int) and min(powers) < 0):
            raise RuntimeError(f"{a} became {b} with other sizes")
        value: Any = Fraction(a) / math.prod(Fraction(s) ** p for s, p in zip(SIZES[0], powers, strict=True))
        value = float(value) if isinstance(a, float) else int(value)  # what is not whole differs in the trial
        for size, power in zip(sizes, powers, strict=True):
            if power:
                assert size is not None, "a size that no argument has cannot change a number"
                value = graph.call_function(operator.mul if power > 0 else operator.truediv, (value, size))
        return value

    if len(one.operations) != len(two.operations):
        raise RuntimeError("the operations depend on the sizes")
    for number, ((f, args, kwargs), (g, other_args, other_kwargs)) in enumerate(
        zip(one.operations, two.operations, strict=True), start=len(nodes)
    ):
        leaves, structure = pytree.tree_flatten((args, kwargs))
        other_leaves, other_structure = pytree.tree_flatten((other_args, other_kwargs))
        if f != g or structure != other_structure:
            raise RuntimeError("the operations depend on the sizes")
        if f == "constant":
            if not torch.equal(one.constants[number], two.constants[number]):
                raise RuntimeError("a constant depends on the sizes")
            setattr(constants, f"constant_{number}", one.constants[number])
            nodes[number] = graph.get_attr(f"constant_{number}")
            continue
        args, kwargs = pytree.tree_unflatten(map(general, leaves, other_leaves), structure)
        nodes[number] = graph.call_function(f, args, kwargs)
    graph.output([nodes[ref.number] for ref in results])
    _simplify(graph)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if (plain := one.plain.get(node.target)) is not None and two.plain.get(node.target) is not None:
            node.target = plain
    graph.lint()
    return GraphModule(constants, graph)


def _simplify(graph: Graph) -> None:
    """Leave out what costs time and changes no number.

    A weight's gradient comes as (X^T D)^T, whose elements lie in the wrong order for the update, which would copy them:
    D^T X gives them in the right one. The gradient of sum(x y) by x is y, which autograd multiplies by ones of sum's.
    """

    def transposed(value: Node) -> Node:
        if _is_transpose(value):
            return value.all_input_nodes[0]
        return graph.call_function(_aten.transpose.int, (value, 1, 2))

    for node in graph.nodes:
        if _is_transpose(node) and (product := node.all_input_nodes[0]).target is _aten.bmm.default:
            left, right = product.args
            if len(product.users) == 1 and isinstance(left, Node) and isinstance(right, Node):
                with graph.inserting_before(node):
                    other = graph.call_function(_aten.bmm.default, (transposed(right), transposed(left)))
                node.replace_all_uses_with(other)
        elif (other := _times_one(node)) is not None:
            node.replace_all_uses_with(other)
        elif node.target is _aten.mul.Scalar and node.args[1] == 1 and not any(map(_writes, node.users)):
            node.replace_all_uses_with(node.all_input_nodes[0])


def _times_one(node: Node) -> Node | None:
    """y, where this is y times what autograd makes of sum(x y): ones, expanded."""
    if node.target is not _aten.mul.Tensor:
        return None
    for ones, other in (node.args, node.args[::-1]):
        chain = [ones]
        for target in (_aten.expand.default, _aten.ones_like.default, _aten.sum.default, _aten.mul.Tensor):
            if not isinstance(chain[-1], Node) or chain[-1].target is not target:
                break
            chain.append(chain[-1].args[0])
        else:
            product = chain[-2]
            if isinstance(product, Node) and isinstance(other, Node) and other in product.args:
                return other
    return None


def _writes(node: Node) -> bool:
    """Whether this may write to its arguments."""
    return node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False)


def _is_transpose(node: Node) -> bool:
    """Whether this swaps the matrices' rows and columns, behind the slots."""
    return node.target is _aten.transpose.int and sorted(d % 3 for d in node.args[1:] if isinstance(d, int)) == [1, 2]
