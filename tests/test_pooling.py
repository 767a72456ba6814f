"""Pooling in pairs: PyTorch's values and PyTorch's gradients, alone and under vmap."""

import copy

import numpy as np
import torch
from torch import nn
from torch.func import grad, vmap

from fedsim.pooling import PairwiseMaxPool, pool_in_pairs


def test_pairwise_pooling_is_max_pooling_with_its_choice_among_equals():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (3, 2, 4, 9, 8))).double()
    weight = torch.arange(4 * 4 * 4, dtype=torch.float64).view(4, 4, 4)

    def pulled(pool):
        return vmap(grad(lambda z: (pool(z) * weight).sum()))(x)

    native = nn.MaxPool2d(2)
    assert torch.equal(vmap(PairwiseMaxPool())(x), vmap(native)(x))
    assert torch.equal(pulled(PairwiseMaxPool()), pulled(native))
    assert not PairwiseMaxPool.replaces(nn.MaxPool2d(3))
    assert not PairwiseMaxPool.replaces(nn.MaxPool2d(2, ceil_mode=True))


def test_gradients_outside_vmap_are_the_same_bits():
    x = torch.randn(4, 3, 7, 10, requires_grad=True)
    for pool in (nn.MaxPool2d(2), PairwiseMaxPool()):
        pool(x).square().sum().backward()
    assert torch.equal(*(torch.autograd.grad(p(x).square().sum(), x)[0] for p in (nn.MaxPool2d(2), PairwiseMaxPool())))


def test_only_pooling_that_fits_is_replaced():
    module = pool_in_pairs(nn.Sequential(nn.MaxPool2d(2), nn.Sequential(nn.MaxPool2d(3)), nn.ReLU()))
    assert isinstance(module[0], PairwiseMaxPool)
    assert type(module[1][0]) is nn.MaxPool2d
    assert isinstance(pool_in_pairs(nn.MaxPool2d(2)), PairwiseMaxPool)


def test_a_relu_before_pooling_comes_after_it_with_the_same_bits():
    """Among them ties, zeros and windows without a positive element."""
    x = torch.from_numpy(np.random.default_rng(0).integers(-2, 3, (5, 2, 6, 8))).double().requires_grad_()
    weight = torch.arange(3 * 4, dtype=torch.float64).view(3, 4)
    native = nn.Sequential(nn.Conv2d(2, 2, 1).double(), nn.ReLU(), nn.MaxPool2d(2))
    nn.init.eye_(native[0].weight.data.view(2, 2))
    nn.init.zeros_(native[0].bias)
    swapped = pool_in_pairs(copy.deepcopy(native))
    assert [type(m) for m in swapped] == [nn.Conv2d, nn.Identity, PairwiseMaxPool]
    assert swapped.state_dict().keys() == native.state_dict().keys()
    assert torch.equal(swapped(x), native(x))
    assert torch.equal(*(torch.autograd.grad((m(x) * weight).sum(), x)[0] for m in (swapped, native)))


def test_a_relu_that_somebody_watches_or_that_is_no_step_before_stays():
    watched = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
    watched[0].register_forward_hook(lambda *_: None)
    assert type(pool_in_pairs(watched)[0]) is nn.ReLU
    apart = pool_in_pairs(nn.Sequential(nn.ReLU(), nn.Flatten(1, 2), nn.Unflatten(1, (2, 4)), nn.MaxPool2d(2)))
    assert type(apart[0]) is nn.ReLU
    unordered = pool_in_pairs(nn.ModuleList([nn.ReLU(), nn.MaxPool2d(2)]))
    assert type(unordered[0]) is nn.ReLU
