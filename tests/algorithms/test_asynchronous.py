"""FedAsync's and FedBuff's formulas."""

import pytest
import torch

from fedsim.algorithms import fedasync, fedbuff
from fedsim.algorithms.asynchronous import staleness_function


def values(name: str) -> list[float]:
    function = staleness_function(name, exponent=0.5, slope=10.0, delay=4.0)
    return [function(s) for s in (0, 3, 4, 5, 8)]


def test_staleness_by_hand():
    """Xie et al., section 5.2: 1; (s + 1)^-0.5; 1 up to b = 4, then 1 / (10 (s - 4) + 1)."""
    assert values("constant") == [1, 1, 1, 1, 1]
    assert values("polynomial") == pytest.approx([1, 1 / 2, 1 / 5**0.5, 1 / 6**0.5, 1 / 3])
    assert values("hinge") == pytest.approx([1, 1, 1, 1 / 11, 1 / 41])


def test_fedbuff_scales_an_update_by_one_over_the_root_of_one_and_its_staleness():
    how = fedbuff(buffer_size=3).asynchronous
    assert (how.buffer_size, how.mixing) == (3, None)
    assert [how.staleness(s) for s in (0, 1, 3)] == pytest.approx([1, 1 / 2**0.5, 1 / 2])


def test_fedbuff_moves_by_its_server_learning_rate():
    vector = torch.tensor([1.0, 2.0])
    mean = torch.tensor([1.0, -1.0], dtype=torch.float64)
    fedbuff(server_learning_rate=0.5).server_step(vector, mean, {}, None)
    assert vector.tolist() == [1.5, 1.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fedasync(mixing=0.0), r"algorithm\.mixing must be in \(0, 1\]"),
        (
            lambda: fedasync(staleness="linear"),
            r"staleness='linear' does not exist; choose one of constant, polynomial",
        ),
        (lambda: fedasync(slope=-1.0), r"algorithm\.slope must not be negative"),
        (lambda: fedbuff(buffer_size=0), r"algorithm\.buffer_size must be at least 1"),
        (lambda: fedbuff(server_learning_rate=0.0), r"algorithm\.server_learning_rate must be positive"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
