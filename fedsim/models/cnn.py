"""Small convolutional networks that federated-learning papers and benchmarks report on.

- `fedavg_cnn`: McMahan et al., Communication-efficient learning of deep networks from decentralized data,
  AISTATS 2017, section 3 (1,663,370 parameters on MNIST).
- `leaf_cnn`: Caldas et al., LEAF: a benchmark for federated settings, 2018, FEMNIST (6,603,710 parameters).
- `convnet2`: Xie et al., FederatedScope, VLDB 2023; LEAF's network with batch normalisation and dropout.
- `celeba_cnn`: LEAF's network for CelebA (31,202 parameters on 84 x 84 pixels and two classes).
- `cifar_cnn`: Granqvist et al., pfl-research, NeurIPS 2024, its CIFAR10 network (1,626,442 parameters).

Layers start from PyTorch's default initialisation, where the TensorFlow originals use Glorot's.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from fedsim.models.checks import flag, image_shape, positive_int, probability


class CNN(nn.Module):
    """`body`: float32 images (B, channels, height, width) to features (B, F); `head`: to logits (B, C)."""

    def __init__(self, body: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))


def fedavg_cnn(input_shape: Sequence[int], num_classes: int, *, hidden_size: int = 512) -> nn.Module:
    """Two 5x5 convolutions (32 and 64 channels, same padding), both with ReLU and pooling, then 512 units.

    Args:
        input_shape: (channels, height, width), at least 4 x 4 pixels.
        num_classes: size of the output.
        hidden_size: units of the fully connected layer.

    Raises:
        ValueError: the samples are no images or too small, or `hidden_size` is not a positive integer.
    """
    return _two_convolutions("fedavg_cnn", input_shape, num_classes, hidden_size)


def leaf_cnn(input_shape: Sequence[int], num_classes: int, *, hidden_size: int = 2048) -> nn.Module:
    """LEAF's FEMNIST network: `fedavg_cnn` with 2,048 units; 6,603,710 parameters on FEMNIST's 62 classes.

    Args, errors: as for `fedavg_cnn`.
    """
    return _two_convolutions("leaf_cnn", input_shape, num_classes, hidden_size)


def convnet2(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    hidden_size: int = 2048,
    use_batch_norm: bool = True,
    dropout: float = 0.0,
) -> nn.Module:
    """FederatedScope's ConvNet2: LEAF's network with optional batch normalisation and dropout.

    Args:
        input_shape: (channels, height, width), at least 4 x 4 pixels.
        num_classes: size of the output.
        hidden_size: units of the fully connected layer.
        use_batch_norm: normalise after each convolution, before its ReLU.
        dropout: probability of dropping a feature before either fully connected layer; 0 means none.

    Raises:
        ValueError: the samples are no images or too small, or an option has the wrong type or range.
    """
    return _two_convolutions(
        "convnet2", input_shape, num_classes, hidden_size, use_batch_norm=use_batch_norm, dropout=dropout
    )


def cifar_cnn(
    input_shape: Sequence[int], num_classes: int, *, hidden_size: int = 128, dropout: float = 0.0
) -> nn.Module:
    """pfl-research's CIFAR10 network: two 3x3 convolutions (32 and 64 channels, no padding), then pooling.

    Args:
        input_shape: (channels, height, width), at least 6 x 6 pixels.
        num_classes: size of the output.
        hidden_size: units of the fully connected layer.
        dropout: probability of dropping a feature before either fully connected layer; 0 means none.

    Raises:
        ValueError: the samples are no images or too small, or an option has the wrong type or range.
    """
    channels, height, width = image_shape("cifar_cnn", input_shape, num_classes, min_size=6)
    hidden = positive_int("model.hidden_size", hidden_size)
    rate = probability("model.dropout", dropout)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(channels, 32, kernel_size=3)
    layers["relu1"] = nn.ReLU()
    layers["conv2"] = nn.Conv2d(32, 64, kernel_size=3)
    layers["relu2"] = nn.ReLU()
    layers["pool"] = nn.MaxPool2d(2)
    _add_dense(layers, 64 * ((height - 4) // 2) * ((width - 4) // 2), hidden, rate)
    return CNN(nn.Sequential(layers), nn.Linear(hidden, num_classes))


def celeba_cnn(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    num_channels: int = 32,
    num_blocks: int = 4,
    use_batch_norm: bool = True,
) -> nn.Module:
    """LEAF's CelebA network: four times a 3x3 convolution, batch normalisation, pooling and ReLU; a linear head.

    Pooling rounds odd sizes up, as TensorFlow's "same" does.

    Args:
        input_shape: (channels, height, width).
        num_classes: size of the output.
        num_channels: of each convolution.
        num_blocks: convolutions.
        use_batch_norm: normalise after each convolution.

    Raises:
        ValueError: the samples are no images, or an option has the wrong type or range.
    """
    channels, height, width = image_shape("celeba_cnn", input_shape, num_classes, min_size=1)
    wide = positive_int("model.num_channels", num_channels)
    normalised = flag("model.use_batch_norm", use_batch_norm)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, positive_int("model.num_blocks", num_blocks) + 1):
        layers[f"conv{i}"] = nn.Conv2d(channels, wide, kernel_size=3, padding=1)
        if normalised:
            layers[f"norm{i}"] = nn.BatchNorm2d(wide)
        layers[f"pool{i}"] = nn.MaxPool2d(2, ceil_mode=True)
        layers[f"relu{i}"] = nn.ReLU()
        channels, height, width = wide, -(-height // 2), -(-width // 2)
    layers["flatten"] = nn.Flatten()
    return CNN(nn.Sequential(layers), nn.Linear(wide * height * width, num_classes))


def _two_convolutions(
    model: str,
    input_shape: Sequence[int],
    num_classes: int,
    hidden_size: int,
    *,
    use_batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    channels, height, width = image_shape(model, input_shape, num_classes, min_size=4)
    hidden = positive_int("model.hidden_size", hidden_size)
    rate = probability("model.dropout", dropout)
    normalised = flag("model.use_batch_norm", use_batch_norm)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (before, after) in enumerate([(channels, 32), (32, 64)], start=1):
        layers[f"conv{i}"] = nn.Conv2d(before, after, kernel_size=5, padding=2)
        if normalised:
            layers[f"norm{i}"] = nn.BatchNorm2d(after)
        layers[f"relu{i}"] = nn.ReLU()
        layers[f"pool{i}"] = nn.MaxPool2d(2)
    _add_dense(layers, 64 * (height // 4) * (width // 4), hidden, rate)
    return CNN(nn.Sequential(layers), nn.Linear(hidden, num_classes))


def _add_dense(layers: "OrderedDict[str, nn.Module]", num_inputs: int, num_outputs: int, dropout: float) -> None:
    """Append flatten, a dense layer and its ReLU, with dropout before this layer and before the head."""
    layers["flatten"] = nn.Flatten()
    # A Dropout module of rate 0 would still count as a random operation under vmap: leave it out.
    if dropout > 0:
        layers["dropout1"] = nn.Dropout(dropout)
    layers["dense"] = nn.Linear(num_inputs, num_outputs)
    layers["relu_dense"] = nn.ReLU()
    if dropout > 0:
        layers["dropout2"] = nn.Dropout(dropout)
