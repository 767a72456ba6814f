"""Feature skew: the noise has its variance, the pictures are turned, bytes stay bytes, the rest stays as it was."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample

from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.partition import FeatureNoise, Holdout, Iid, Natural, Rotation
from fedsim.data.partition.skew import rotate


def pictures(count=40, value=None, dtype=torch.uint8, shape=(1, 20, 20)) -> FederatedDataset:
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.integers(0, 256, (count, *shape), dtype=np.uint8))
    inputs = torch.full_like(inputs, value) if value is not None else inputs
    train = Split(inputs=inputs.to(dtype), targets=torch.arange(count) % 4)
    test = Split(inputs=inputs[:8].to(dtype), targets=torch.arange(8) % 4)
    return FederatedDataset(name="pictures", train=train, test=test, num_classes=4)


def test_the_variance_of_the_noise_grows_with_the_client():
    # grey pictures; client c of 4 adds variance (c + 1) / 4 * 0.01 on the scale from 0 to 1, rounding 1/12 of a step
    dataset = pictures(count=400, value=128)
    noisy = FeatureNoise(base=Iid(num_clients=4), variance=0.01)(dataset, 0)
    assert noisy.train.inputs.dtype == torch.uint8
    for client in range(4):
        mine = noisy.train.inputs[noisy.train.rows(client)].double() / 255
        expected = (client + 1) / 4 * 0.01 + 1 / 12 / 255**2
        assert float(mine.var()) == pytest.approx(expected, rel=0.03)  # of 40,000 pixels: deviation 0.7 %
        assert float(mine.mean()) == pytest.approx(128 / 255, abs=0.003)
    assert (dataset.train.inputs == 128).all()  # the original is untouched
    assert noisy.test is not None
    assert dataset.test is not None
    assert noisy.test.inputs is dataset.test.inputs


def test_the_noise_of_floats_is_not_clipped_and_reproducible():
    dataset = pictures(count=100, value=0, dtype=torch.float32)
    noisy = FeatureNoise(base=Iid(num_clients=2), variance=4.0)(dataset, 0)
    assert noisy.train.inputs.dtype == torch.float32
    assert float(noisy.train.inputs[noisy.train.rows(1)].var()) == pytest.approx(4.0, rel=0.05)
    again, other = (FeatureNoise(base=Iid(num_clients=2), variance=4.0)(dataset, seed) for seed in (0, 1))
    assert torch.equal(noisy.train.inputs, again.train.inputs)
    assert not torch.equal(noisy.train.inputs, other.train.inputs)


def test_a_clients_own_test_samples_are_noisy_too():
    offsets = np.array([0, 20, 40])
    split = Split(inputs=torch.zeros(40, 3), targets=torch.zeros(40, dtype=torch.int64), offsets=offsets)
    natural = FederatedDataset(name="n", train=split, test=split, client_ids=["a", "b"], num_classes=2)
    noisy = FeatureNoise(base=Natural())(natural, 0)
    assert noisy.client_ids == ["a", "b"]
    assert noisy.test is not None
    assert float(noisy.test.inputs.std()) > 0.1
    assert not torch.equal(noisy.test.inputs, noisy.train.inputs)  # draws of their own
    held = FeatureNoise(base=Iid(num_clients=2, holdout=Holdout(test_fraction=0.5)))(pictures(value=128), 0)
    assert held.test is not None
    assert held.test.inputs is held.train.inputs


def test_each_client_sees_its_own_turn():
    dataset = pictures()
    turned = Rotation(base=Iid(num_clients=8))(dataset, 0)
    for client in range(8):
        rows = turned.train.rows(client)
        expected = torch.rot90(dataset.train.inputs[rows], client % 4, dims=(-2, -1))
        assert torch.equal(turned.train.inputs[rows], expected)


def test_turns_are_anticlockwise_and_agree_with_quarter_turns():
    picture = torch.zeros(1, 1, 9, 9)
    picture[0, 0, 4, 8] = 1  # in the middle of the right edge: a quarter turn takes it to the top
    assert rotate(picture, 90)[0, 0, 0, 4] == 1
    smooth = torch.nn.functional.avg_pool2d(
        torch.rand(3, 1, 24, 24, generator=torch.Generator().manual_seed(0)), 5, 1, 2
    )
    nearly = rotate(smooth, 90.0001)
    torch.testing.assert_close(nearly, rotate(smooth, 90), atol=1e-3, rtol=0)
    # two turns of 45 degrees are one of 90, but for interpolation and the corners
    twice = rotate(rotate(smooth, 45), 45)
    torch.testing.assert_close(twice[..., 8:16, 8:16], rotate(smooth, 90)[..., 8:16, 8:16], atol=0.05, rtol=0)
    # on a wide picture a right angle keeps the shape, and a point at (x, y) from the centre goes to (y, -x)
    wide = torch.zeros(1, 5, 9)
    wide[0, 2, 6] = 1
    assert rotate(wide, 90)[0, 0, 4] == pytest.approx(1, abs=1e-5)
    assert rotate(wide.byte() * 200, 180)[0, 2, 2] == 200


def test_turns_interpolate_as_pytorch_does():
    # in other arithmetic: theirs rounds differently from processor to processor
    shown, turn = torch.rand(3, 2, 7, 11, generator=torch.Generator().manual_seed(0)), math.radians(33)
    matrix = [[math.cos(turn), -math.sin(turn) * 7 / 11, 0], [math.sin(turn) * 11 / 7, math.cos(turn), 0]]
    grid = affine_grid(torch.tensor(matrix).expand(3, 2, 3), [3, 2, 7, 11], align_corners=False)
    expected = grid_sample(shown, grid, mode="bilinear", padding_mode="border", align_corners=False)
    torch.testing.assert_close(rotate(shown, 33.0), expected, atol=1e-5, rtol=0)


def test_skews_compose():
    both = Rotation(base=FeatureNoise(base=Iid(num_clients=4), variance=0.01))
    made = both.partition(pictures(), 0)
    assert [skew["name"] for skew in made.skews] == ["feature_noise", "rotation"]
    noisy = FeatureNoise(base=Iid(num_clients=4), variance=0.01)(pictures(), 0)
    turned = made.apply(pictures())
    rows = turned.train.rows(1)
    assert torch.equal(turned.train.inputs[rows], torch.rot90(noisy.train.inputs[rows], 1, dims=(-2, -1)))


@pytest.mark.parametrize(
    ("recipe", "dataset", "message"),
    [
        (FeatureNoise(base=Iid(num_clients=2)), pictures(dtype=torch.int32), "needs pictures or floating-point inputs"),
        (Rotation(base=Iid(num_clients=2)), pictures(shape=(3,)), r"needs pictures \(N, height, width\)"),
    ],
)
def test_inputs_that_cannot_be_transformed_are_refused(recipe, dataset, message):
    with pytest.raises(ValueError, match=message):
        recipe(dataset, 0)
