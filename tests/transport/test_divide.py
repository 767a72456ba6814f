"""The division is complete and disjoint, and keeps the bound of list scheduling."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsim.transport.divide import Pace, divide

works = st.lists(st.integers(0, 1000), max_size=40).map(lambda values: np.array(values, np.int64))


@given(works, st.lists(st.floats(0.1, 100), min_size=1, max_size=6))
def test_every_task_goes_to_exactly_one_node(work, speeds):
    parts = divide(work, speeds)
    assert len(parts) == len(speeds)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(work)))
    assert all(np.array_equal(part, np.sort(part)) for part in parts)


@given(works, st.integers(1, 6))
def test_equal_nodes_keep_the_bound_of_list_scheduling(work, num_nodes):
    """Graham 1966: the node that ends last was the least loaded one when it got its last task."""
    loads = [work[part].sum() for part in divide(work, [1.0] * num_nodes)]
    assert max(loads) <= work.sum() / num_nodes + (1 - 1 / num_nodes) * work.max(initial=0) + 1e-9


def test_a_node_of_twice_the_speed_gets_twice_the_work():
    parts = divide(np.ones(300, np.int64), [2.0, 1.0])
    assert [len(part) for part in parts] == [200, 100]


def test_worked_example():
    """7, 5, 4, 3, 1 on two nodes: 7 | 5, then 4 to the second (9), 3 to the first (10), 1 to the second (10)."""
    first, second = divide(np.array([3, 5, 7, 1, 4]), [1.0, 1.0])
    assert (first.tolist(), second.tolist()) == ([0, 2], [1, 3, 4])


@given(st.floats(1, 1e4), st.integers(2, 6), st.integers(0, 10))
def test_a_node_that_once_looked_slow_gets_work_again_and_shows_its_speed(slower, num_nodes, more):
    """As the star does it: who got nothing is hoped to be faster, and who works is measured; all are equally fast.

    1.5 ** n >= slower after n divisions without work, and nodes of one speed all get one of as many tasks."""
    paces = [Pace(1000.0) for _ in range(num_nodes)]
    paces[0] = Pace(1000.0 / slower)
    work = np.full(num_nodes + more, 100)
    idle = 0
    for _ in range(80):
        speeds = [pace.speed or 1.0 for pace in paces]
        for i, (pace, part) in enumerate(zip(paces, divide(work, speeds), strict=True)):
            if len(part):
                pace.saw(float(work[part].sum()), work[part].sum() / 1000.0)
            else:
                pace.passed_over(max(speeds))
                idle += i == 0
    assert idle <= np.log(slower) / np.log(1.5) + 1
    assert paces[0].speed > 900


def test_a_pace_forgets_and_hopes_no_further_than_the_fastest():
    pace = Pace()
    pace.passed_over(10.0)
    assert pace.speed is None
    pace.saw(6.0, 2.0)
    assert pace.speed == 3.0
    pace.saw(5.0, 1.0)
    assert pace.speed == 4.0
    pace.passed_over(5.0)
    assert pace.speed == 5.0
    pace.passed_over(1.0)
    assert pace.speed == 5.0
