"""Checks that the models share: their settings come from YAML, their shapes from the data set."""

from collections.abc import Sequence


def positive_int(key: str, value: object) -> int:
    """`value` itself when it is a positive integer.

    Raises:
        ValueError: it is not; the message names the configuration key.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} must be a positive integer, got {value!r}")
    return value


def flag(key: str, value: object) -> bool:
    """`value` itself when it is a bool.

    Raises:
        ValueError: it is not; the message names the configuration key.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, got {value!r}")
    return value


def probability(key: str, value: object) -> float:
    """`value` as a float when it is a number in [0, 1).

    Raises:
        ValueError: it is not; the message names the configuration key.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{key} must be a number from 0 up to, but not including, 1, got {value!r}")
    return float(value)


def flat_shape(model: str, input_shape: Sequence[int], num_classes: int) -> tuple[int, ...]:
    """The sample's shape, at least one dimension, all of them positive.

    Raises:
        ValueError: a model of vectors cannot take this shape, or there is no class to predict.
    """
    positive_int(f"num_classes of model={model}", num_classes)
    if not input_shape or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in input_shape):
        raise ValueError(
            f"model={model} takes samples with at least one dimension, all of them positive; "
            f"the data's samples have shape {tuple(input_shape)}"
        )
    return tuple(input_shape)


def image_shape(model: str, input_shape: Sequence[int], num_classes: int, *, min_size: int) -> tuple[int, int, int]:
    """(channels, height, width) of an image that is at least `min_size` pixels high and wide.

    Raises:
        ValueError: the samples are no images, or are so small that pooling would leave nothing.
    """
    shape = flat_shape(model, input_shape, num_classes)
    if len(shape) != 3:
        raise ValueError(
            f"model={model} takes images of shape (channels, height, width), but the data's samples "
            f"have shape {shape}: choose model=logistic or model=mlp, or data with images"
        )
    channels, height, width = shape
    if min(height, width) < min_size:
        raise ValueError(
            f"model={model} needs images of at least {min_size} x {min_size} pixels, but the data's "
            f"are {height} x {width}: choose model=logistic or model=mlp, or larger images"
        )
    return channels, height, width
