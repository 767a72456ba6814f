"""Multinomial logistic regression: one linear layer over the flattened sample."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from fedsim.models.checks import flat_shape


class Logistic(nn.Module):
    """`head`: Linear(num_inputs, num_classes); (B, ...) float32 to logits (B, num_classes)."""

    def __init__(self, num_inputs: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(num_inputs, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs.flatten(1))


def logistic(input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """Logistic regression on samples of any shape; 7,850 parameters on MNIST.

    Args:
        input_shape: of one preprocessed sample, without the batch dimension.
        num_classes: size of the output.

    Raises:
        ValueError: the shape is empty or not positive.
    """
    return Logistic(math.prod(flat_shape("logistic", input_shape, num_classes)), num_classes)
