"""Which node of a run this process is: from the configuration, or from the variables of torchrun and Slurm."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from fedsim.config import TransportConfig

_LOOPBACK = "127.0.0.1:0"
_SLURM_PORTS = (20000, 12000)  # first, and how many: below 32768, from where on the system gives ports away
_SLURM_STEP = 997  # ports from one step of a job to the next, so that those of neighbouring jobs do not meet


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A process of a silo (`fedsim.transport.silo`).

    Attributes:
        rank: of this process, of `size`; 0 leads.
        size: how many there are.
        local_rank: of this process among those of its machine.
        address: HOST:PORT of the store where they meet.
        alone: all of them are on one machine.
        run: tells one start of them from another.
    """

    rank: int
    size: int
    local_rank: int
    address: str
    alone: bool
    run: str

    def other(self, rank: int) -> dict[str, str]:
        """The environment of another process of this machine, as torchrun would set it (`find_seat`)."""
        host, _, port = self.address.rpartition(":")
        return {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.size), "MASTER_ADDR": host, "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": self.run, "TORCHELASTIC_RESTART_COUNT": "",
        }  # fmt: skip


def find_seat(environment: Mapping[str, str] = os.environ) -> Seat | None:
    """This process's, where torchrun has started it; else None."""
    env = environment
    if "TORCHELASTIC_RUN_ID" not in env:
        return None
    return Seat(
        rank=int(env["RANK"]),
        size=int(env["WORLD_SIZE"]),
        local_rank=int(env["LOCAL_RANK"]),
        address=f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}",
        alone=env["LOCAL_WORLD_SIZE"] == env["WORLD_SIZE"],
        run=env["TORCHELASTIC_RUN_ID"] + env.get("TORCHELASTIC_RESTART_COUNT", ""),
    )


@dataclass(frozen=True, kw_only=True)
class Place:
    """A node of a run.

    Attributes:
        role: "local", "server", "scheduler", "worker", or "member": a process of a silo that is not its first.
        address: where the server listens, or where the parent of a worker or scheduler does.
        num_workers: that the server waits for; None: as the configuration says.
        local_rank: number of this process on its machine, which chooses its GPU; None: unknown.
        rendezvous: HOST:PORT of torchrun's store, through which the server tells its address; None: not needed.
        key: under which it does, another for each start of torchrun's processes and each job of a sweep.
        seat: in a silo whose processes torchrun has started; None: this process is in none, or starts the others.
        name: of this node for the others, as whoever has started it numbers it; None: it is not numbered.
    """

    role: str
    address: str | None = None
    num_workers: int | None = None
    local_rank: int | None = None
    rendezvous: str | None = None
    key: str = "fedsim/address"
    seat: Seat | None = None
    name: str | None = None


def find_place(
    role: str,
    transport: TransportConfig,
    environment: Mapping[str, str] = os.environ,
    *,
    silo: bool = False,
    job: int = 0,
) -> Place:
    """What this process is.

    torchrun's and Slurm's variables count where `transport=torch_distributed` names neither workers nor a tree to
    start here: process 0 is the server, all others are workers. Where one worker or a run in one place trains as a
    `silo`, the processes that torchrun has started are its. `job` is the number of this job of a sweep.

    Raises:
        ValueError: the configuration says what should run but not where, or srun has not started this process.
    """
    seat = find_seat(environment) if silo else None
    if seat is not None and seat.rank > 0 and (role == "worker" or (role, transport.name) == ("local", "inprocess")):
        return Place(role="member", seat=seat, local_rank=seat.local_rank)
    if role != "local":
        if role != "server" and transport.address is None:
            raise ValueError(f"role={role} needs transport.address=HOST:PORT, where its parent listens")
        return Place(role=role, address=transport.address or _LOOPBACK, seat=seat if role == "worker" else None)
    if transport.name == "inprocess":
        return Place(role="local", address=_LOOPBACK, seat=seat)
    if transport.num_workers is not None or transport.tree is not None:
        return Place(role="local", address=transport.address or _LOOPBACK)
    env = environment
    if "TORCHELASTIC_RUN_ID" in env:
        alone = env["LOCAL_WORLD_SIZE"] == env["WORLD_SIZE"]
        host = "127.0.0.1" if alone else env["MASTER_ADDR"]
        return Place(
            role="server" if env["RANK"] == "0" else "worker",
            address=transport.address or f"{host}:0",
            num_workers=int(env["WORLD_SIZE"]) - 1,
            local_rank=int(env["LOCAL_RANK"]),
            rendezvous=f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}",
            key=f"fedsim/{env['TORCHELASTIC_RUN_ID']}/{env.get('TORCHELASTIC_RESTART_COUNT', '')}/{job}/address",
            name=f"rank_{env['RANK']}",
        )
    # sbatch's script and salloc's shell have the variables of a job, SLURM_PROCID=0 among them: only a step has tasks
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        first, count = _SLURM_PORTS
        port = first + (int(env["SLURM_JOB_ID"]) + _SLURM_STEP * int(env["SLURM_STEP_ID"])) % count
        host = first_host(env["SLURM_STEP_NODELIST"])
        return Place(
            role="server" if env["SLURM_PROCID"] == "0" else "worker",
            address=transport.address or f"{host}:{port}",
            num_workers=int(env["SLURM_STEP_NUM_TASKS"]) - 1,
            local_rank=int(env["SLURM_LOCALID"]),
            name=f"task_{env['SLURM_PROCID']}",
        )
    if int(env.get("SLURM_NTASKS", "1")) > 1:
        raise ValueError(
            f"Slurm's job has {env['SLURM_NTASKS']} tasks, but this process is none of them: begin the command with "
            "srun, or give transport.num_workers=N for workers that this process starts"
        )
    raise ValueError("transport=torch_distributed needs transport.num_workers=N, transport.tree, or role=server|worker")


def first_host(nodes: str) -> str:
    """The first name of a Slurm list of nodes: "gpu[03-05,9],cpu1" -> "gpu03"."""
    match = re.match(r"([^\[,]+)(?:\[([^\]]+)\])?", nodes)
    if match is None:
        raise ValueError(f"the list of nodes {nodes!r} is not understood; give transport.address=HOST:PORT")
    prefix, numbers = match[1], match[2]
    return prefix if numbers is None else prefix + re.split(r"[-,]", numbers)[0]


def exchange_address(place: Place, address: str | None, timeout: float) -> str:
    """The server tells its `address` through torchrun's store; others (None) wait for it.

    Raises:
        ValueError: there is no store, or nobody has told it anything within `timeout` seconds.
    """
    from torch.distributed import TCPStore

    assert place.rendezvous is not None
    host, _, port = place.rendezvous.rpartition(":")
    try:
        store = TCPStore(host, int(port), None, False, timedelta(seconds=timeout), wait_for_workers=False)
        if address is None:
            address = store.get(place.key).decode()
        else:
            store.set(place.key, address)
    except RuntimeError:
        raise ValueError(f"process 0 has not told its address at torchrun's store, {place.rendezvous}") from None
    return address
