"""The processes of a silo (`fedsim.train.silo`) and what they exchange: a broadcast from the first, a sum over all."""

from datetime import timedelta
from typing import Any

from torch import Tensor
from torch.distributed import AllreduceOptions, BroadcastOptions, ProcessGroupGloo, ReduceOp, Store


class SiloBroken(ConnectionError):
    """A process of the silo is gone or stands still: this silo trains no more."""


class Group:
    """The processes of a silo, the first of which leads. Tensors travel over gloo, through the memory of the host.

    Args:
        store: where they find each other.
        rank: of this process; 0 leads.
        size: how many there are.
        device: a place in the network for gloo (`fedsim.transport.link.gloo_device`).
        timeout: seconds for everybody to come, and for each exchange.

    Raises:
        SiloBroken: not all came in time.
    """

    def __init__(self, store: Store, rank: int, size: int, *, device: object, timeout: float) -> None:
        self.rank, self.size, self.timeout = rank, size, timedelta(seconds=timeout)
        options = ProcessGroupGloo._Options()  # pyright: ignore[reportAttributeAccessIssue]
        options._timeout, options._devices = self.timeout, [device]
        try:
            self.group: Any = ProcessGroupGloo(store, rank, size, options)  # pyright: ignore[reportArgumentType]
        except RuntimeError as error:
            raise _broken(error) from None

    def broadcast(self, tensor: Tensor, within: timedelta | None = None) -> Tensor:
        """Make a contiguous CPU tensor, in place, what it is in the first process.

        Raises:
            SiloBroken: somebody is gone or did not come within `within` (None: the timeout).
        """
        options = BroadcastOptions()
        options.rootRank, options.timeout = 0, within or self.timeout
        return self._wait("broadcast", tensor, options)

    def add(self, tensor: Tensor) -> Tensor:
        """Make a contiguous CPU tensor, in place, the sum over all processes. Raises as `broadcast`."""
        options = AllreduceOptions()
        options.reduceOp, options.timeout = ReduceOp.SUM, self.timeout  # pyright: ignore[reportAttributeAccessIssue]
        return self._wait("allreduce", tensor, options)

    def _wait(self, what: str, tensor: Tensor, options: object) -> Tensor:
        if self.group is None:
            raise SiloBroken("this silo has lost a process before: start it again")
        try:
            getattr(self.group, what)([tensor], options).wait()
        except RuntimeError as error:
            self.leave()
            raise _broken(error) from None
        return tensor

    def leave(self) -> None:
        """Break the connections: whoever waits for this process is told at once."""
        self.group = None


def _broken(error: RuntimeError) -> SiloBroken:
    late = "imed out" in str(error) or "timeout" in str(error)
    what = "does not answer" if late else "is gone"
    return SiloBroken(f"a process of this silo {what}: it trains no more; start it again, and it joins again")
