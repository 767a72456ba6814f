"""Multilayer perceptron; by default the "2NN" of federated averaging.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-efficient learning of deep networks from
decentralized data, AISTATS 2017 (section 3: two hidden layers of 200 units, ReLU, 199,210 parameters).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from fedsim.models.checks import flat_shape, positive_int


class MLP(nn.Module):
    """`body` of Linear and ReLU pairs, then `head`; (B, ...) float32 to logits (B, num_classes)."""

    def __init__(self, sizes: Sequence[int], num_classes: int) -> None:
        """`sizes`: the number of inputs, then that of each hidden layer."""
        super().__init__()
        layers = [layer for before, after in pairwise(sizes) for layer in (nn.Linear(before, after), nn.ReLU())]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1], num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs.flatten(1)))


def mlp(input_shape: Sequence[int], num_classes: int, *, hidden_sizes: Sequence[int] = (200, 200)) -> nn.Module:
    """Multilayer perceptron on samples of any shape; by default 199,210 parameters on MNIST.

    Args:
        input_shape: of one preprocessed sample, without the batch dimension.
        num_classes: size of the output.
        hidden_sizes: units of each hidden layer; empty means logistic regression.

    Raises:
        ValueError: the shape is empty or not positive, or a hidden size is not a positive integer.
    """
    shape = flat_shape("mlp", input_shape, num_classes)
    if isinstance(hidden_sizes, str) or not isinstance(hidden_sizes, Sequence):
        raise ValueError(f"model.hidden_sizes must be a list such as [200, 200], got {hidden_sizes!r}")
    hidden = [positive_int(f"model.hidden_sizes[{i}]", size) for i, size in enumerate(hidden_sizes)]
    return MLP([math.prod(shape), *hidden], num_classes)
