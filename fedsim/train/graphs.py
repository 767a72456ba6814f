"""Steps as CUDA graphs: some hundred kernels, launched as one.

A small model's step is over before the host has launched its next operation, so that a GPU waits for Python. A graph
is captured once for each form of a step, and then launched as a whole. It reads and writes memory at fixed places:
whatever changes from step to step is copied there first.
"""

import weakref
from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from fedsim.config import LocalConfig
from fedsim.memory import out_of_memory
from fedsim.train.slots import SlotState
from fedsim.train.step import SerialStep

Run = Callable[[], Tensor]


class CannotCapture(ValueError):
    """A step cannot be captured; the device is in no state to go on."""


class Capture(Protocol):
    """Turns work on tensors at fixed places into a function that repeats it."""

    def warm_up(self, run: Run) -> Tensor:
        """Do the work once, so that libraries take what they need before it is captured."""
        ...

    def capture(self, run: Run) -> Run:
        """Record the work without doing it; the function returned does it, and gives the same tensor every time."""
        ...


class CudaCapture:
    """CUDA graphs that share one pool of memory: they run one after another, and none reads what another has left."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.alive: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def warm_up(self, run: Run) -> Tensor:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = run()
        current.wait_stream(self.stream)
        result.record_stream(current)
        return result

    def capture(self, run: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        # PyTorch refuses to capture into the pool of graphs that are all gone, if anything of it is still in use
        pool = next((other.pool() for other in self.alive), None)
        with (
            torch.cuda.device(self.device),  # a capture begins by waiting for the current device
            # other threads may go on, such as the one that gathers the next samples into pinned memory
            torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"),
        ):
            result = run()
        self.alive.add(graph)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class StepGraphs:
    """One graph for each form of a step: the first time it runs as it is, the second time it is captured.

    Args:
        capture: how.
        limit: no more graphs than this; other forms go on running as they are.
    """

    def __init__(self, capture: Capture, *, limit: int = 16) -> None:
        self.how, self.limit = capture, limit
        self.seen: set[Hashable] = set()
        self.graphs: dict[Hashable, Run] = {}

    def __call__(self, form: Hashable, run: Run) -> Tensor:
        """Do the work; the result is valid until the next call.

        Args:
            form: whatever makes the work different.
            run: reads and writes nothing but tensors that stay where they are.

        Raises:
            CannotCapture: the work waits for the device, or takes numbers from the host.
        """
        if form not in self.graphs:
            if form not in self.seen or len(self.graphs) == self.limit:
                self.seen.add(form)
                return self.how.warm_up(run)
            try:
                self.graphs[form] = self.how.capture(run)
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                # what a capture leaves that was broken off is not certain, so nothing goes on without it
                reason = str(error).split("\n")[0]
                raise CannotCapture(
                    f"a step of this model cannot be captured as a CUDA graph ({reason}): set trainer.cuda_graphs=false"
                ) from error
        return self.graphs[form]()


class GraphedStep:
    """`SerialStep` as graphs, one for each number of samples in a minibatch."""

    def __init__(self, step: SerialStep, capture: Capture) -> None:
        self.step, self.capture = step, capture
        self.graphs = StepGraphs(capture)
        self.inputs = self.targets = torch.empty(0)

    def use(self, local: LocalConfig) -> None:
        """Go on with another learning rate, which is a constant in a graph."""
        if local != self.step.local:
            self.step.use(local)
            self.graphs = StepGraphs(self.capture)

    def begin(self) -> None:
        """A new client starts."""
        self.step.begin()

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """As `SerialStep`."""
        n = len(inputs)
        if len(self.inputs) < n:  # the first minibatch of a round's longest client is the largest
            self.inputs, self.targets = torch.empty_like(inputs), torch.empty_like(targets)
            self.graphs = StepGraphs(self.capture)
        x, y = self.inputs[:n], self.targets[:n]
        x.copy_(inputs)
        y.copy_(targets)
        return self.graphs(n, lambda: self.step(x, y)).clone()


class GraphedSlots:
    """`SlotState` as graphs, for 1, 2, 4 ... and K busy slots; the slots between are computed on nothing.

    It serves round after round, since a graph knows the places of the slots.

    Args:
        state: K slots, none of whose layers is factored.
        capture: how.
    """

    def __init__(self, state: SlotState, capture: Capture) -> None:
        assert not state.bases, "a history that grows has no fixed place"
        self.state, self.capture = state, capture
        self.graphs = StepGraphs(capture)
        self.inputs = self.targets = torch.empty(0)
        self.counts = torch.zeros(len(state.rows), dtype=torch.int64, device=state.rows.device)

    def restart(self, broadcast: Tensor, local: LocalConfig) -> None:
        """Another round."""
        if local != self.state.local:  # the learning rate is a constant in a graph
            self.graphs = StepGraphs(self.capture)
        self.state.restart(broadcast, local)

    def computed(self, n: int) -> int:
        """How many slots are computed when the first n are busy."""
        return min(len(self.state.rows), 1 << (n - 1).bit_length())

    def advance(self, n: int, x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        """As `SlotState.advance`; a slot from n to `computed(n)` - 1 must hold nothing that is still needed."""
        width = self.computed(n)
        if self.inputs.shape[1:] != x.shape[1:]:
            self.inputs, self.targets = (v.new_zeros((len(self.state.rows), *v.shape[1:])) for v in (x, y))
            self.graphs = StepGraphs(self.capture)
        self.inputs[:n].copy_(x)
        self.targets[:n].copy_(y)
        self.counts[:n].copy_(counts)
        self.counts[n:width].zero_()
        arguments = (width, self.inputs[:width], self.targets[:width], self.counts[:width])
        return self.graphs(width, lambda: self.state.advance(*arguments))[:n]


def find_capture(asked: bool | None, device: torch.device, *, plain: bool, stochastic: bool) -> Capture | None:
    """How steps are captured; None: they are not.

    Args:
        asked: True: they must be; False: they must not; None: they are where it works.
        device: where training runs.
        plain: local steps are plain SGD, without an algorithm's hooks.
        stochastic: the model draws random numbers.

    Raises:
        ValueError: it is asked for where it does not work.
    """
    reasons = {
        f"the run is on the {device.type}": device.type != "cuda",
        "the algorithm or the local optimizer does more than plain SGD": not plain,
        "the model draws random numbers, which a graph would draw in another order": stochastic,
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    if asked and why is not None:
        raise ValueError(f"trainer.cuda_graphs=true does not work here, since {why}: leave it null")
    return None if why is not None or asked is False else CudaCapture(device)
