"""The model as a run begins with it: drawn from the run's seed, the same on every node.

Between kinds of processors PyTorch's draws differ in the last bit: what counts is the server's vector, from which the
clients of every round start.
"""

from collections.abc import Callable

import torch
from torch import nn

from fedsim.batch_norm import accept_single_values
from fedsim.data.federated import FederatedDataset
from fedsim.pooling import pool_in_pairs
from fedsim.rng import forked_generators, torch_stream
from fedsim.vector import FlatModel

ModelFactory = Callable[[tuple[int, ...], int], nn.Module]
"""(input shape without the batch, number of classes) -> module."""


def choose_device(name: str) -> torch.device:
    """ "auto" is a GPU if there is one.

    Raises:
        ValueError: a GPU is asked for that is not there, or something else.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r} is not supported: use auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name}, but PyTorch sees no GPU here; use device=auto or device=cpu")
    device = torch.device(name)
    if device.index is not None and device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise ValueError(f"device={name}, but there are {torch.cuda.device_count()} GPUs here, from cuda:0 on")
    return device


def build_model(dataset: FederatedDataset, model: nn.Module | ModelFactory, *, seed: int, device: str) -> FlatModel:
    """The model as a run begins with it: the same on every node. Arguments as for `Simulation`.

    Raises:
        ValueError: no clients; no such device.
    """
    if dataset.num_clients == 0:
        raise ValueError(f"data={dataset.name} has no clients yet; apply a partition first")
    where = choose_device(device)
    if where.type == "cuda":
        torch.cuda.init()  # which the next line asks for where the device has a number
        torch.cuda.reset_peak_memory_stats(where)
    module = accept_single_values(_initialise(model, dataset, seed))
    return FlatModel(pool_in_pairs(module) if where.type == "cpu" else module, where)


def _initialise(model: nn.Module | ModelFactory, dataset: FederatedDataset, seed: int, draw: int = 0) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    with forked_generators() as reseed:
        reseed(torch_stream(seed, "initialise", draw).initial_seed())
        return model(dataset.input_shape, dataset.num_classes)


def draw_model(model: nn.Module | ModelFactory, dataset: FederatedDataset, seed: int, draw: int) -> torch.Tensor:
    """(P + Q,) one more initial model, drawn as the first one (number 0) was."""
    if isinstance(model, nn.Module):
        raise ValueError("this algorithm draws several initial models: give a model factory, not a module")
    return FlatModel(_initialise(model, dataset, seed, draw)).vector
