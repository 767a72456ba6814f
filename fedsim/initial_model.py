"""The model as a run begins with it: drawn from the run's seed, the same on every node."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fedsim.batch_norm import accept_single_values
from fedsim.data.federated import FederatedDataset
from fedsim.memory import out_of_memory
from fedsim.pooling import pool_in_pairs
from fedsim.rng import forked_generators, torch_stream
from fedsim.vector import FlatModel

ModelFactory = Callable[[tuple[int, ...], int], nn.Module]
"""(input shape without the batch, number of classes) -> module."""


def choose_device(name: str) -> torch.device:
    """ "auto" is a GPU if there is one.

    Raises:
        ValueError: a GPU is asked for that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
        torch.cuda.reset_peak_memory_stats(where)
    module = accept_single_values(_initialise(model, dataset, seed))
    return FlatModel(pool_in_pairs(module) if where.type == "cpu" else module, where)


@contextmanager
def told_if_unfit(dataset: FederatedDataset, model: FlatModel) -> Iterator[None]:
    """Around the first steps of a run: an error that comes from a model which cannot take the data's samples says so.

    The sample is tried only after such an error, so that a run that goes well pays nothing.

    Raises:
        ValueError: shape and type of what the model cannot take.
    """
    try:
        yield
    except (RuntimeError, IndexError, TypeError, NotImplementedError) as error:
        if out_of_memory(error):
            raise
        sample = dataset.preprocess(dataset.train.inputs[:1].to(model.device))
        try:
            with torch.no_grad(), forked_generators():
                model.module(sample)
        except Exception as reason:
            what = next(iter(str(reason).splitlines()), type(reason).__name__)
            raise ValueError(
                f"the model cannot take samples of {dataset.name}, of shape {tuple(sample.shape[1:])} and type "
                f"{str(sample.dtype).removeprefix('torch.')} ({what}): choose another model= or data="
            ) from error
        raise


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
