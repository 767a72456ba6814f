"""ClientRows: what was written lasts once the round has ended well."""

import numpy as np
import torch

from fedsim.client_rows import ClientRows


def ids(*clients):
    return np.array(clients)


def test_rows_are_read_back_and_others_are_zero():
    rows = ClientRows(2, num_clients=10)
    rows.write(ids(3, 7), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert rows.read(ids(7, 1, 3)).tolist() == [[3, 4], [0, 0], [1, 2]]


def test_a_round_that_fails_leaves_no_trace():
    rows = ClientRows(1, num_clients=10)
    rows.write(ids(1), torch.ones(1, 1))
    rows.commit()
    rows.write(ids(1, 2), torch.full((2, 1), 5.0))
    assert rows.read(ids(1, 2)).tolist() == [[5], [5]], "within the round"
    assert rows.snapshot()["clients"].tolist() == [1], "a checkpoint does not see the round that goes on"
    rows.rollback()
    assert rows.read(ids(1, 2)).tolist() == [[1], [0]]


def test_a_snapshot_is_restored():
    rows, other = ClientRows(1, num_clients=10), ClientRows(1, num_clients=10)
    assert rows.snapshot() == {}
    rows.write(ids(4), torch.full((1, 1), 2.0))
    rows.commit()
    other.restore(rows.snapshot())
    assert other.read(ids(4, 5)).tolist() == [[2], [0]]
    other.restore({})
    assert other.read(ids(4)).tolist() == [[0]]


def test_what_is_read_and_written_is_a_copy():
    rows, given = ClientRows(1, num_clients=3), torch.ones(1, 1)
    rows.write(ids(0), given)
    given.fill_(9.0)
    rows.read(ids(0)).fill_(8.0)
    assert rows.read(ids(0)).tolist() == [[1]]
