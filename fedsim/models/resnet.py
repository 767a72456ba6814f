"""ResNet-18 with group normalisation.

He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016 (table 1, 18 layers; projection
shortcuts, option B). Batch normalisation mixes up statistics of clients with different data; Hsieh,
Phanishayee, Mutlu, Gibbons: The non-IID data quagmire, ICML 2020, and Reddi et al.: Adaptive federated
optimization, ICLR 2021, put group normalisation with two groups in its place.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from fedsim.models.checks import flag, image_shape, positive_int

_WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; (B, before, h, w) to (B, after, h / stride, w / stride)."""

    def __init__(self, before: int, after: int, stride: int, num_groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(num_groups, after)
        self.conv2 = nn.Conv2d(after, after, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(num_groups, after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, kernel_size=1, stride=stride, bias=False),
                nn.GroupNorm(num_groups, after),
            )

    def forward(self, inputs: Tensor) -> Tensor:
        features = relu(self.norm1(self.conv1(inputs)))
        return relu(self.norm2(self.conv2(features)) + self.shortcut(inputs))


class ResNet(nn.Module):
    """`stem`, `body` of basic blocks, mean over the pixels, `head`; images (B, c, h, w) to logits (B, C)."""

    def __init__(self, channels: int, num_classes: int, *, num_groups: int, small_stem: bool) -> None:
        super().__init__()
        if small_stem:
            convolution: list[nn.Module] = [nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)]
            pooling: list[nn.Module] = []
        else:
            convolution = [nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)]
            pooling = [nn.MaxPool2d(3, stride=2, padding=1)]
        self.stem = nn.Sequential(*convolution, nn.GroupNorm(num_groups, 64), nn.ReLU(), *pooling)
        blocks: list[nn.Module] = []
        before = 64
        for after in _WIDTHS:
            blocks.append(BasicBlock(before, after, 1 if after == before else 2, num_groups))
            blocks.append(BasicBlock(after, after, 1, num_groups))
            before = after
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(before, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(self.stem(inputs)).mean((2, 3)))


def resnet18(
    input_shape: Sequence[int], num_classes: int, *, num_groups: int = 2, small_stem: bool | None = None
) -> nn.Module:
    """ResNet-18 with group normalisation; 11,173,962 parameters on CIFAR10.

    Args:
        input_shape: (channels, height, width).
        num_classes: size of the output.
        num_groups: groups of each normalisation; divides 64.
        small_stem: one 3x3 convolution in place of the 7x7 convolution and pooling that shrink the image
            to a quarter; None means where the image has 32 x 32 pixels or fewer.

    Raises:
        ValueError: the samples are no images, or an option has the wrong type or range.
    """
    channels, height, width = image_shape("resnet18", input_shape, num_classes, min_size=1)
    if 64 % positive_int("model.num_groups", num_groups) != 0:
        raise ValueError(f"model.num_groups must divide 64 (1, 2, 4, ... 64), got {num_groups}")
    small = max(height, width) <= 32 if small_stem is None else flag("model.small_stem", small_stem)
    return ResNet(channels, num_classes, num_groups=num_groups, small_stem=small)
