"""Shapes, published parameter counts, errors, and that every model trains in many slots at once."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from fedsim import models

# those of tokens: tests/models/test_lstm.py
FACTORIES = {name: getattr(models, name) for name in models.__all__ if not name.endswith("lstm")}
IMAGE_MODELS = ["celeba_cnn", "leaf_cnn", "convnet2", "fedavg_cnn", "cifar_cnn", "resnet18", "vgg11"]

SIZED = ["leaf_cnn", "convnet2", "fedavg_cnn", "cifar_cnn", "vgg11"]


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "input_shape", "num_classes", "options", "expected"),
    [
        # 784 x 10 + 10
        ("logistic", (1, 28, 28), 10, {}, 7_850),
        ("logistic", (784,), 10, {}, 7_850),
        # McMahan et al.'s 2NN: 784 x 200 + 200, 200 x 200 + 200, 200 x 10 + 10
        ("mlp", (1, 28, 28), 10, {}, 199_210),
        ("mlp", (3,), 2, {"hidden_sizes": [4]}, 3 * 4 + 4 + 4 * 2 + 2),
        ("mlp", (784,), 10, {"hidden_sizes": []}, 7_850),
        # LEAF: 25 x 32 + 32, 25 x 32 x 64 + 64, 7 x 7 x 64 x 2048 + 2048, 2048 x 62 + 62
        ("leaf_cnn", (1, 28, 28), 62, {}, 6_603_710),
        # the same, and a scale and a shift for each of the 32 + 64 channels
        ("convnet2", (1, 28, 28), 62, {}, 6_603_710 + 2 * 96),
        ("convnet2", (1, 28, 28), 62, {"use_batch_norm": False, "dropout": 0.5}, 6_603_710),
        # McMahan et al.: 832 + 51,264 + 3,136 x 512 + 512 + 5,130
        ("fedavg_cnn", (1, 28, 28), 10, {}, 1_663_370),
        # pfl-research: 896 + 18,496 + 14 x 14 x 64 x 128 + 128 + 1,290
        ("cifar_cnn", (3, 32, 32), 10, {}, 1_626_442),
        # He et al.'s network with the CIFAR stem; normalisation has as many parameters as batch norm's
        ("resnet18", (3, 32, 32), 10, {}, 11_173_962),
        ("resnet18", (3, 224, 224), 1000, {}, 11_689_512),
        # Simonyan & Zisserman: 9 x (3 x 64 + 64 x 128 + 128 x 256 + 256 x 256 + 256 x 512 + 3 x 512 x 512) weights and
        # 2,752 biases, then 512 x 512 + 512 twice and 5,130
        ("vgg11", (3, 32, 32), 10, {}, 9_750_922),
        ("vgg11", (3, 224, 224), 1000, {"hidden_size": 4096}, 132_863_336),
    ],
)
def test_parameter_counts_are_the_published_ones(name, input_shape, num_classes, options, expected):
    assert num_parameters(FACTORIES[name](input_shape, num_classes, **options)) == expected


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("input_shape", [(1, 28, 28), (3, 11, 9)])
def test_every_model_maps_a_batch_to_logits(name, input_shape):
    model = FACTORIES[name](input_shape, 7)
    assert model(torch.randn(2, *input_shape)).shape == (2, 7)
    assert isinstance(model.head, nn.Linear)
    assert model.head.out_features == 7


@pytest.mark.parametrize("name", FACTORIES)
def test_every_model_trains_in_slots_as_it_does_alone(name, monkeypatch):
    # two of ResNet's four stages have every kind of layer, at a twentieth of the cost
    monkeypatch.setattr("fedsim.models.resnet._WIDTHS", (64, 128))
    monkeypatch.setattr("fedsim.models.vgg._WIDTHS", ((16,), (16, 8)))
    torch.manual_seed(0)
    model = FACTORIES[name]((1, 8, 8), 3, **({"hidden_size": 16} if name in SIZED else {}))
    parameters = {key: value.detach() for key, value in model.named_parameters()}
    buffers = {key: value for key, value in model.named_buffers()}
    inputs, targets = torch.randn(2, 4, 1, 8, 8), torch.randint(0, 3, (2, 4))

    def loss(parameters, buffers, inputs, targets):
        logits = functional_call(model, (parameters, buffers), (inputs,))
        return nn.functional.cross_entropy(logits, targets)

    def stack(tensors):
        return {key: torch.stack([value, value]) for key, value in tensors.items()}

    together = vmap(grad(loss))(stack(parameters), stack(buffers), inputs, targets)
    for slot in range(2):
        own = {key: value.clone() for key, value in buffers.items()}
        alone = grad(loss)(parameters, own, inputs[slot], targets[slot])
        for key, value in alone.items():
            torch.testing.assert_close(together[key][slot], value, rtol=1e-3, atol=1e-5)


def test_dropout_is_present_only_when_asked_for():
    def num_dropouts(**options):
        return sum(isinstance(m, nn.Dropout) for m in models.convnet2((1, 28, 28), 10, **options).modules())

    assert num_dropouts() == 0
    assert num_dropouts(dropout=0.5) == 2
    assert sum(isinstance(m, nn.Dropout) for m in models.vgg11((1, 8, 8), 2, dropout=0.5).modules()) == 2


def test_resnet_keeps_small_images_large():
    # a 7 x 7 convolution against a 3 x 3 one, 64 channels from 3
    small = num_parameters(models.resnet18((3, 33, 33), 10, small_stem=True))
    assert num_parameters(models.resnet18((3, 33, 33), 10)) - small == 3 * 64 * (49 - 9)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_image_models_refuse_flat_samples(name):
    with pytest.raises(ValueError, match=rf"model={name} takes images .* have shape \(784,\): choose model=logistic"):
        FACTORIES[name]((784,), 10)


@pytest.mark.parametrize(
    ("name", "input_shape", "options", "message"),
    [
        ("leaf_cnn", (1, 3, 28), {}, "needs images of at least 4 x 4 pixels, but the data's are 3 x 28"),
        ("cifar_cnn", (3, 5, 5), {}, "needs images of at least 6 x 6 pixels"),
        ("logistic", (), {}, "at least one dimension"),
        ("mlp", (3, 0), {}, "all of them positive"),
        (
            "mlp",
            (3,),
            {"hidden_sizes": 200},
            r"model.hidden_sizes must be a list such as \[200, 200\], got 200",
        ),
        ("mlp", (3,), {"hidden_sizes": "200"}, "model.hidden_sizes must be a list"),
        (
            "mlp",
            (3,),
            {"hidden_sizes": [200, 0]},
            r"model.hidden_sizes\[1\] must be a positive integer, got 0",
        ),
        ("leaf_cnn", (1, 28, 28), {"hidden_size": "2048"}, "model.hidden_size must be a positive integer"),
        ("convnet2", (1, 28, 28), {"dropout": 1.0}, "model.dropout must be a number from 0"),
        ("cifar_cnn", (1, 28, 28), {"dropout": "0.5"}, "model.dropout must be a number from 0"),
        ("convnet2", (1, 28, 28), {"use_batch_norm": 1}, "model.use_batch_norm must be true or false, got 1"),
        ("vgg11", (1, 28, 28), {"hidden_size": 0}, "model.hidden_size must be a positive integer, got 0"),
        ("resnet18", (1, 28, 28), {"num_groups": 3}, "model.num_groups must divide 64 .* got 3"),
        ("resnet18", (1, 28, 28), {"small_stem": "yes"}, "model.small_stem must be true or false"),
    ],
)
def test_errors_name_the_setting(name, input_shape, options, message):
    with pytest.raises(ValueError, match=message):
        FACTORIES[name](input_shape, 10, **options)


def test_a_model_needs_a_class():
    with pytest.raises(ValueError, match="num_classes of model=logistic must be a positive integer, got 0"):
        models.logistic((784,), 0)
