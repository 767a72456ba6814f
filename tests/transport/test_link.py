"""A link between two nodes, and who may speak on it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from fedsim.transport.link import GlooPair, Link, Lost, gloo_device
from fedsim.transport.wire import Message


@pytest.mark.parametrize("key", [b"of the parent", b"a guess"])
def test_a_child_hears_its_parent_and_nobody_in_its_place(key):
    """The name under which they meet can be read from the store, and somebody else be there first."""
    store = HashStore()
    with ThreadPoolExecutor() as pool:
        device = gloo_device("127.0.0.1")
        parent, child = pool.map(lambda rank: GlooPair(store, rank, device, 30.0, 30.0), range(2))
    theirs, ours = Link(parent, name="child", key=key), Link(child, name="parent", key=b"of the parent")
    theirs.send(Message(kind="welcome"))
    heard = ours.receive(30)
    if key == b"a guess":
        assert isinstance(heard, Lost)
        assert "not from this peer" in heard.reason
    else:
        assert isinstance(heard, Message)
        assert heard.kind == "welcome"
    for link in (theirs, ours):
        link.abort()
        link.join()
