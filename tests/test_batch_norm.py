"""BatchNorm on one value a channel: by the running statistics, which stay; everything else is PyTorch's."""

import copy

import pytest
import torch
from torch import nn

from fedsim.batch_norm import accept_single_values


def layer(kind=nn.BatchNorm1d, **options):
    norm = kind(3, **options).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
        if norm.running_mean is not None:
            norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
            norm.running_var.copy_(torch.tensor([4.0, 9.0, 0.25]))
    return norm


def test_a_single_value_is_normalised_by_the_running_statistics_which_stay():
    norm = accept_single_values(layer()).train()
    found = norm(torch.tensor([[3.0, 5.0, 3.5]], dtype=torch.float64))
    # (3 - 1) / 2 * 0.5 + 0.1, (5 - 2) / 3 * 1 + 0.2, (3.5 - 3) / 0.5 * 2 + 0.3
    torch.testing.assert_close(found, torch.tensor([[0.6, 1.2, 2.3]], dtype=torch.float64), atol=1e-4, rtol=0)
    assert norm.running_mean.tolist() == [1, 2, 3]
    assert norm.running_var.tolist() == [4, 9, 0.25]


def test_without_running_statistics_a_single_value_becomes_the_bias_in_training_and_in_evaluation():
    norm = accept_single_values(layer(track_running_stats=False))
    x = torch.tensor([[3.0, 5.0, 3.5]], dtype=torch.float64, requires_grad=True)
    for mode in (True, False):
        found = norm.train(mode)(x)
        torch.testing.assert_close(found, norm.bias[None])
        assert torch.autograd.grad(found.sum(), x)[0].abs().max() == 0, "the mean moves with its value"


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (4, 3)), (nn.BatchNorm2d, (1, 3, 2, 2))])
def test_several_values_are_pytorchs_business_and_a_copy_stands_on_its_own(kind, shape):
    plain, ours = layer(kind), accept_single_values(layer(kind))
    twin = copy.deepcopy(ours)
    x = torch.randn(shape, dtype=torch.float64)
    for mode in (True, False):
        assert torch.equal(plain.train(mode)(x), ours.train(mode)(x))
    assert torch.equal(plain.running_var, ours.running_var)
    assert twin.running_var.tolist() == [4, 9, 0.25]
    twin.train()(x)
    assert torch.equal(plain.running_var, twin.running_var)


def test_what_pytorch_refuses_otherwise_is_still_refused():
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        accept_single_values(layer())(torch.zeros(3, dtype=torch.float64))
