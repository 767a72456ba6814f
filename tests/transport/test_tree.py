"""transport.tree: what it describes, and what it does not."""

import pytest

from fedsim.transport.tree import Branch, count_workers, read_tree

TREE = {"east": 2, "west": {"workers": 1, "address": "10.0.0.2:5000", "children": {"north": {"workers": 3}}}}


def test_a_tree_is_schedulers_with_workers_and_schedulers():
    east, west = read_tree(TREE)
    north = Branch(name="north", workers=3, children=(), address=None)
    assert east == Branch(name="east", workers=2, children=(), address=None)
    assert west == Branch(name="west", workers=1, children=(north,), address="10.0.0.2:5000")
    assert [(branch.name, parent and parent.name) for branch, parent in west.walk()] == [
        ("west", None),
        ("north", "west"),
    ]
    assert count_workers((east, west)) == 6
    assert read_tree(None) == ()


def test_a_tree_may_be_a_file(tmp_path):
    (tmp_path / "tree.yaml").write_text(
        "east: 2\nwest: {workers: 1, address: '10.0.0.2:5000', children: {north: {workers: 3}}}"
    )
    assert read_tree(str(tmp_path / "tree.yaml")) == read_tree(TREE)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([2, 2], "must name its schedulers"),
        ({}, "must name its schedulers"),
        ({"east": 0}, "transport.tree.east.workers must be a positive number"),
        ({"east": {"worker": 2}}, "transport.tree.east must be a number of workers or a mapping of address, children"),
        ({"east": {"children": {"a": "b"}}}, "transport.tree.east.children.a must be"),
        ({"east": {"workers": True}}, "workers must be a positive number"),
        ({"a": 1, "b": {"children": {"a": 1}}}, "two schedulers are named 'a'"),
        ("/nowhere.yaml", "cannot read /nowhere.yaml"),
    ],
)
def test_a_wrong_tree_is_one_line(tree, message):
    with pytest.raises(ValueError, match=r"transport\.tree") as caught:
        read_tree(tree)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
