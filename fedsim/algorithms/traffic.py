"""What a client receives and sends in a round of an algorithm, uncompressed."""

from fedsim.algorithms.base import Algorithm, lengths, update_size
from fedsim.vector import FlatModel


def traffic(algorithm: Algorithm, model: FlatModel) -> tuple[int, int]:
    """Bytes to and from one client in a round: the model with the vectors broadcast, the update with those averaged.

    Personal elements stay where they are; a prelude is a trip of its own.
    """
    layout = model.layout
    personal = 0 if algorithm.personal is None else int(algorithm.personal(model).sum())
    down = layout.size - personal + sum(lengths(algorithm.broadcast, layout.num_parameters, layout.size).values())
    up = update_size(algorithm, layout) - personal
    if algorithm.prelude is not None:
        down, up = 2 * down, up + update_size(algorithm.prelude, layout) - personal
    itemsize = model.vector.element_size()
    return down * itemsize, up * itemsize
