"""VGG-11 without normalisation.

Simonyan, Zisserman: Very deep convolutional networks for large-scale image recognition, ICLR 2015 (table 1, column A).
On small images federated learning puts 512 units in the place of the paper's two layers of 4,096 (Li et al.: Federated
learning on non-IID data silos, ICDE 2022, NIID-Bench).
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from fedsim.models.checks import image_shape, positive_int, probability
from fedsim.models.cnn import CNN

_WIDTHS = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # of the convolutions before each pooling


def vgg11(input_shape: Sequence[int], num_classes: int, *, hidden_size: int = 512, dropout: float = 0.0) -> nn.Module:
    """VGG-11; 9,750,922 parameters on CIFAR10.

    Pooling rounds odd sizes up, so that images smaller than 32 x 32 pixels keep a pixel.

    Args:
        input_shape: (channels, height, width).
        num_classes: size of the output.
        hidden_size: units of each of the two fully connected layers before the head; 4096 in the paper.
        dropout: probability of dropping one of these units; 0 means none, 0.5 in the paper.

    Raises:
        ValueError: the samples are no images, or an option has the wrong type or range.
    """
    before, height, width = image_shape("vgg11", input_shape, num_classes, min_size=1)
    hidden, rate = positive_int("model.hidden_size", hidden_size), probability("model.dropout", dropout)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for stage, widths in enumerate(_WIDTHS, start=1):
        for i, after in enumerate(widths, start=1):
            layers[f"conv{stage}_{i}"] = nn.Conv2d(before, after, kernel_size=3, padding=1)
            layers[f"relu{stage}_{i}"] = nn.ReLU()
            before = after
        layers[f"pool{stage}"] = nn.MaxPool2d(2, ceil_mode=True)
        height, width = -(-height // 2), -(-width // 2)
    layers["flatten"] = nn.Flatten()
    before *= height * width
    for i in (1, 2):
        layers[f"dense{i}"] = nn.Linear(before, hidden)
        layers[f"relu_dense{i}"] = nn.ReLU()
        if rate > 0:  # a Dropout module of rate 0 would still count as a random operation under vmap
            layers[f"dropout{i}"] = nn.Dropout(rate)
        before = hidden
    return CNN(nn.Sequential(layers), nn.Linear(hidden, num_classes))
