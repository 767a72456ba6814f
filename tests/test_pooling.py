"""Pooling in pairs: PyTorch's values and PyTorch's gradients, alone and under vmap."""

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
