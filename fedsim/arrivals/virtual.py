"""Updates arrive when the clients' devices have them: `fedsim.events`."""

from torch import Tensor

from fedsim.arrivals.base import Buffer, train
from fedsim.events import Queue
from fedsim.transport.base import MakeJob, Transport


class Virtual:
    """The queue runs ahead until there are enough; only then they are trained."""

    def __init__(self, queue: Queue) -> None:
        self.queue = self.ahead = queue

    @property
    def seconds(self) -> float:
        """Virtual time so far."""
        return self.queue.seconds

    def first(self, num_updates: int, version: int) -> list[tuple[int, int]]:
        queue = self.queue.copy()
        queue.run(num_updates, version)
        return queue.arrived

    def collect(self, num_updates: int, version: int, make_job: MakeJob, transport: Transport) -> Buffer:
        self.ahead = self.queue.copy()
        sent = self.ahead.run(num_updates, version)
        arrived = list(self.ahead.arrived)
        self.ahead.arrived.clear()
        return Buffer(
            arrived=arrived,
            partials=train(arrived, make_job, transport),
            needed=self.ahead.versions(),
            metrics={"virtual_seconds": self.ahead.seconds, **sent},
        )

    def settle(self, version: int, make_job: MakeJob, transport: Transport) -> None:
        self.queue = self.ahead

    def state_dict(self) -> dict[str, Tensor]:
        return self.queue.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.queue.load_state_dict(state)
