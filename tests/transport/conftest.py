"""A star and its workers in one process: threads in the place of processes, real links between them."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim import LocalConfig, ServerConfig, Simulation, __version__
from fedsim.algorithms import fedavg
from fedsim.algorithms.base import Algorithm
from fedsim.initial_model import build_model
from fedsim.models import logistic
from fedsim.parts import make_uplink, poisoned
from fedsim.robust import mean
from fedsim.sampling import Population, uniform
from fedsim.train.serial import SerialTrainer
from fedsim.train.training import Training
from fedsim.transport.base import Transport
from fedsim.transport.carry import Carrying, Ledger
from fedsim.transport.dispatch import Dispatch
from fedsim.transport.identity import Identity, layout_hash
from fedsim.transport.inprocess import InProcess
from fedsim.transport.join import listen
from fedsim.transport.scheduler import Scheduler
from fedsim.transport.star import Star
from fedsim.transport.worker import Built, Worker

SECRET = b"0123456789abcdef"
SIZES = [3, 17, 40, 8, 25, 0, 12, 31, 9, 22]
LOCAL = LocalConfig(learning_rate=0.1, batch_size=5)


@dataclass
class Net:
    """A run whose rounds go to workers; `worker` and `scheduler` add nodes, `run` ends in the final vector.

    `settings` are the star's, `parts` are what happens to updates (aggregator, transforms, attack). Nobody counts as
    slow where a test does not say so, for a busy machine may stop a thread for seconds.
    """

    make_dataset: Callable[..., Any]
    algorithm: Callable[[], Algorithm] = fedavg
    parts: Callable[[], dict[str, Any]] = dict
    local: LocalConfig = LOCAL
    model: Callable[..., torch.nn.Module] = logistic
    settings: dict[str, Any] = field(default_factory=lambda: {"slow_factor": 1e6})
    config: dict[str, Any] = field(default_factory=dict)
    address: str = "127.0.0.1:0"
    timeout: float = 30.0
    expected: int = 0
    stars: list[Star] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)

    def simulation(self, transport=None, trainer: Callable[..., Any] = SerialTrainer, **server) -> Simulation:
        rounds = ServerConfig(**{"num_rounds": 4, "clients_per_round": 7, "evaluate_every": 0, **server})
        return Simulation(
            self.make_dataset(SIZES),
            self.model,
            algorithm=self.algorithm(),
            local=self.local,
            server=rounds,
            trainer=trainer,
            transport=transport,
            device="cpu",
            **self.parts(),
        )

    def identity(self, dataset, model, **changes) -> Identity:
        about: dict[str, Any] = {
            "config": self.config, "comparable": {"seed": 0, "local.batch_size": 5}, "config_hash": "c",
            "version": __version__, "dataset": dataset.fingerprint(),
            "layout": layout_hash(model.layout, model.vector.dtype), "size": model.layout.size,
            "num_clients": dataset.num_clients,
        }  # fmt: skip
        return Identity(**{**about, **changes})

    def star(self, simulation: Simulation) -> Transport:
        ledger = Ledger(simulation.own, simulation.uplink, simulation.training)
        size = 4 * simulation.model.layout.size  # as much as any of these algorithms sends
        star = Star(
            listen(self.address),
            secret=SECRET,
            identity=self.identity(simulation.dataset, simulation.model, size=size, row_bytes=ledger.row_bytes),
            own=simulation.own,
            ledger=ledger,
            timeout=self.timeout,
            join_seconds=120,
            expected=lambda: self.expected,
            **self.settings,
        )
        self.stars.append(star)
        return star if simulation.algorithm.asynchronous is None else Dispatch(star, star.close)

    def start(self, node: Worker | Scheduler) -> None:
        def run() -> None:
            try:
                node.run()
            except (ValueError, OSError) as error:
                self.errors.append(error)

        self.workers.append(node if isinstance(node, Worker) else node.worker)
        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def worker(self, address: str, **changes) -> Worker:
        sizes, wrap = changes.pop("sizes", SIZES), changes.pop("wrap", lambda own: own)
        factory = changes.pop("trainer", SerialTrainer)

        def build(identity: Identity, upstream: list[str]) -> Built:
            parts = {"aggregator": mean(), "transforms": (), "attack": None, **self.parts()}
            dataset = poisoned(self.make_dataset(sizes), parts["attack"], 0)
            model, algorithm = build_model(dataset, self.model, seed=0, device="cpu"), self.algorithm()
            drawn = uniform(Population(sizes=dataset.train.sizes), 7)
            uplink = make_uplink(model, algorithm, ServerConfig(), drawn, len(sizes), seed=0, **parts)
            training = Training(
                dataset=dataset,
                model=model,
                algorithm=algorithm,
                local=self.local,
                uplink=uplink,
                sum_dtype=parts["aggregator"].dtype,
            )
            own = Carrying(InProcess(training.trainer(factory), dataset.train, self.local, seed=0), uplink)
            ours = self.identity(dataset, model)
            ready = {"config_hash": ours.config_hash, "dataset": ours.dataset, "layout": ours.layout}
            return Built(transport=wrap(own), device=torch.device("cpu"), ready=lambda: ready)

        about: dict[str, Any] = {
            "secret": SECRET, "name": f"w{len(self.workers)}", "version": __version__, "claims": None, "build": build,
            "timeout": self.timeout, "join_seconds": 120,
        }  # fmt: skip
        node = Worker([address], **{**about, **changes})
        self.start(node)
        return node

    def scheduler(self, address: str) -> tuple[Scheduler, str]:
        listener = listen("127.0.0.1:0")
        host, port = listener.getsockname()
        node = Scheduler(
            [address], listener, secret=SECRET, name=f"s{len(self.workers)}", version=__version__, claims=None,
            timeout=self.timeout, join_seconds=120, slow_factor=3,
        )  # fmt: skip
        self.start(node)
        return node, f"{host}:{port}"

    def await_children(self, count: int) -> None:
        """Wait, between two rounds, until so many nodes are there."""
        deadline = time.monotonic() + 120
        while len(self.stars[0].children) < count:
            assert time.monotonic() < deadline, "they did not come back"
            self.stars[0].next_event(0.05)

    def run(
        self, simulation: Simulation, between: Callable[[Any], None] = lambda round: None, *, whole: bool = False
    ) -> torch.Tensor:
        """Gather the expected workers, run to the end, close; `between` is called with each round, or its metrics."""
        try:
            self.stars[0].gather()
            for metrics in simulation.rounds():
                between(metrics if whole else metrics["round"])
        finally:
            simulation.close()
        return simulation.server.vector

    def alone(self, **server) -> Simulation:
        """The same run in one process, finished."""
        simulation = self.simulation(**server)
        for _ in simulation.rounds():
            pass
        return simulation

    def reference(self, **server) -> torch.Tensor:
        """The final vector of the same run in one process."""
        return self.alone(**server).server.vector

    def close(self) -> None:
        for star in self.stars:
            if star.door.open:
                star.close()
        for worker in self.workers:
            worker.join_seconds = 0.0  # one that has lost its link waits for nobody now
        for thread in self.threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in self.threads), "a node did not end"


@pytest.fixture
def net(make_dataset) -> Iterator[Net]:
    net = Net(make_dataset)
    yield net
    net.close()


@pytest.fixture
def failing() -> Callable[[Callable[[], Star]], Callable[..., None]]:
    """What raises a RuntimeError in either of a star's two workers, but only while the other is there to try again."""

    def make(star: Callable[[], Star]) -> Callable[..., None]:
        lock, failures = threading.Lock(), list[float]()

        def fail(job: object) -> None:
            with lock:
                time.sleep(0.3)  # until the one before is dropped
                failures.append(time.monotonic())
                while len(star().children) < 2 and time.monotonic() - failures[-1] < 3:
                    time.sleep(0.01)
            if len(failures) > 8:
                raise ValueError("it never ends")
            raise RuntimeError("the step is broken")

        return fail

    return make


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Waits until something is true."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.01)

    return wait


@pytest.fixture
def is_open() -> Callable[[str], bool]:
    """Whether somebody listens at HOST:PORT."""

    def probe(address: str) -> bool:
        host, _, port = address.rpartition(":")
        with socket.socket() as sock:
            return sock.connect_ex((host, int(port))) == 0

    return probe


@pytest.fixture
def free_address() -> str:
    """HOST:PORT on loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def page_commands(free_address: str) -> Callable[[str], list[list[str]]]:
    """The lines of the commands in a section of docs/deployment.md, as words, at an address that is free."""
    page = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"

    def read(section: str) -> list[list[str]]:
        text = page.read_text().split(f"## {section}\n")[1]
        (block,) = re.findall(r"```sh\n(.*?)```", text.split("\n## ")[0], re.DOTALL)
        block = block.replace("127.0.0.1:5000", free_address)
        return [shlex.split(line) for line in block.splitlines()]

    return read


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts `python -m fedsim ARGUMENTS` (or another module) in a folder; a test that fails leaves no process."""
    started: list[subprocess.Popen[str]] = []
    package = str(Path(fedsim.__file__).resolve().parents[1])

    def start(cwd: Path, *arguments: str, module=("-m", "fedsim"), **environment: str) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable, *module, *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def finish() -> Callable[..., str]:
    """Waits for such a process to end with a code, and gives what it printed."""

    def finish(process: subprocess.Popen[str], code: int = 0) -> str:
        out, _ = process.communicate(timeout=400)
        assert process.returncode == code, out
        return out

    return finish


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes of a test know the same one."""
    monkeypatch.setenv("FEDSIM_SECRET", SECRET.decode())
