"""The tree of a run, as `transport.tree` writes it: schedulers by name, with their workers and their own schedulers.

    east: {workers: 2, address: 10.0.0.2:5000}
    west: {workers: 1, children: {north: 2, south: 2}}

A number instead of a mapping is a scheduler with so many workers. `address` is where a scheduler listens; it is needed
only where the nodes are started one by one on several machines.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_KEYS = {"workers", "children", "address"}


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A scheduler of the tree.

    Attributes:
        name: unique in the tree.
        workers: that join it directly.
        children: schedulers that join it.
        address: HOST:PORT where it listens; None: any free port of loopback.
    """

    name: str
    workers: int
    children: tuple["Branch", ...]
    address: str | None

    def walk(self, parent: "Branch | None" = None) -> Iterator[tuple["Branch", "Branch | None"]]:
        """This branch and all below, each with its parent (None: the server)."""
        yield self, parent
        for child in self.children:
            yield from child.walk(self)


def read_tree(tree: Any) -> tuple[Branch, ...]:
    """The branches at the server; none for None.

    Args:
        tree: a mapping as above, or the path of a YAML file that holds one.

    Raises:
        ValueError: names the node that is described wrongly.
    """
    if tree is None:
        return ()
    if isinstance(tree, str):
        try:
            tree = yaml.safe_load(Path(tree).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"transport.tree: cannot read {tree} ({' '.join(str(error).split())})") from None
    branches = _branches(tree, "transport.tree")
    names = [branch.name for top in branches for branch, _ in top.walk()]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"transport.tree: two schedulers are named {name!r}; names must differ")
    return branches


def _branches(tree: Any, where: str) -> tuple[Branch, ...]:
    if not isinstance(tree, dict) or not tree:
        raise ValueError(
            f"{where} must name its schedulers, for example {{east: 2, west: {{workers: 2}}}}, got {tree!r}"
        )
    return tuple(_branch(str(name), node, f"{where}.{name}") for name, node in tree.items())


def _branch(name: str, node: Any, where: str) -> Branch:
    if isinstance(node, int):
        node = {"workers": node}
    if not isinstance(node, dict) or not node.keys() <= _KEYS:
        raise ValueError(
            f"{where} must be a number of workers or a mapping of {', '.join(sorted(_KEYS))}, got {node!r}"
        )
    workers, children = node.get("workers", 0), node.get("children")
    if type(workers) is not int or workers < 0 or (workers == 0 and not children):
        raise ValueError(f"{where}.workers must be a positive number, got {workers!r}")
    below = () if children is None else _branches(children, f"{where}.children")
    return Branch(name=name, workers=workers, children=below, address=node.get("address"))


def count_workers(branches: tuple[Branch, ...]) -> int:
    """Workers in the whole tree."""
    return sum(branch.workers for top in branches for branch, _ in top.walk())
