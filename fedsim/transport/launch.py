"""Starts the nodes of a run on this machine, and ends them whatever happens.

A started node reads its standard input, of which only the starter holds the other end: when the starter is gone, even
by kill -9, the input ends and the node ends itself. It runs in a session of its own, so that Ctrl-C in a terminal
reaches only the starter, which then says goodbye.
"""

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from fedsim.transport.join import listen
from fedsim.transport.secret import SECRET
from fedsim.transport.tree import Branch

_MARK = "FEDSIM_STARTED"
_PATIENCE = 5.0  # seconds for nodes to end by themselves
_started: list["subprocess.Popen[bytes]"] = []  # by this process


class Nodes:
    """Processes started here.

    Args:
        directory: for what they print, a file for each.
        secret: shared by all nodes.
        settings: more arguments for each, for example "transport.timeout=5".
        device: of the workers: "auto" gives each a GPU, one after another, where there are any.
        num_workers: how many there will be, to share the processor's cores among them.
    """

    def __init__(
        self, directory: Path, *, secret: bytes, settings: Sequence[str], device: str, num_workers: int
    ) -> None:
        self.directory, self.settings, self.device = directory, list(settings), device
        threads = str(threads_each(num_workers))
        self.environment = {"OMP_NUM_THREADS": threads, **os.environ, SECRET: secret.decode(), _MARK: "1"}
        for variable in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "HYDRA_FULL_ERROR"):
            self.environment.pop(variable, None)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.workers: set[str] = set()
        directory.mkdir(parents=True, exist_ok=True)

    def start_worker(self, name: str, address: str) -> None:
        """A worker that joins the parent at `address`."""
        device = self.device
        if device == "auto" and torch.cuda.is_available():
            device = f"cuda:{len(self.workers) % torch.cuda.device_count()}"
        self.workers.add(name)
        self._start(name, "worker", address, [f"device={device}"])

    def start_tree(self, branches: Sequence[Branch], address: str) -> None:
        """The schedulers of a tree and their workers, below the parent at `address`.

        Each scheduler inherits the socket where it listens, so that its children can be told the port at once.
        """
        for branch in branches:
            listener = listen("127.0.0.1:0")
            with listener:
                host, port = listener.getsockname()[:2]
                fd = listener.fileno()
                self._start(branch.name, "scheduler", address, [f"transport.serve=fd:{fd}"], (fd,))
            self.start_tree(branch.children, f"{host}:{port}")
            for i in range(branch.workers):
                self.start_worker(f"{branch.name}_{i}", f"{host}:{port}")

    def start_member(self, name: str, seat: dict[str, str], num_threads: int) -> None:
        """A further process of this process's silo, in the seat that these variables describe."""
        environment = {**self.environment, **seat, "OMP_NUM_THREADS": str(num_threads)}
        address = f"{seat['MASTER_ADDR']}:{seat['MASTER_PORT']}"
        self._start(name, "worker", address, [f"device={self.device}"], environment=environment)

    @property
    def num_workers(self) -> int:
        """Workers that have not ended."""
        return sum(self.processes[name].poll() is None for name in self.workers)

    def failures(self) -> list[str]:
        """One line for each node that has ended: the last that it printed."""
        found = []
        for name, process in self.processes.items():
            if process.poll() is not None:
                log = self.directory / f"{name}.log"
                last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or [
                    "it printed nothing"
                ]
                found.append(f"{name} has ended: {last[0]} ({log})")
        return found

    def end(self) -> None:
        """Wait for all to end by themselves, then end them: not one is left when this returns."""
        for process in self.processes.values():
            if process.stdin is not None:
                process.stdin.close()
        deadline = time.monotonic() + _PATIENCE
        for process in self.processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # also ends one that has been stopped
                process.wait()

    def _start(
        self,
        name: str,
        role: str,
        address: str,
        arguments: list[str],
        fds: tuple[int, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        command = [
            sys.executable, "-m", "fedsim", f"role={role}", f"transport.address={address}", f"transport.node={name}",
            *self.settings, *arguments,
            f"hydra.run.dir={_quoted(self.directory)}", "hydra.job_logging.root.handlers=[console]",
        ]  # fmt: skip
        with (self.directory / f"{name}.log").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment or self.environment,
                start_new_session=True,
                pass_fds=fds,
            )
        _started.append(self.processes[name])


def _quoted(path: Path) -> str:
    """A path as a value of Hydra's grammar."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def threads_each(num_workers: int) -> int:
    """This machine's cores, shared among workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // num_workers)


def new_secret() -> bytes:
    """For nodes that one process starts."""
    return secrets.token_hex(32).encode()


def end_with_starter() -> None:
    """In a started node: end this process when the one that started it is gone. In others nothing happens."""
    if os.environ.get(_MARK) != "1":
        return

    def watch() -> None:
        while os.read(0, 1024):
            pass
        for process in _started:  # the end of their input tells them too, but not one that has been stopped
            process.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="starter").start()
