"""Which node a process is, from the configuration and from the variables of torchrun and Slurm."""

import pytest

from fedsim.config import TransportConfig
from fedsim.transport.place import find_place, first_host

DISTRIBUTED = TransportConfig(name="torch_distributed")
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3",
    "MASTER_ADDR": "host0", "MASTER_PORT": "29400",
}  # fmt: skip
SLURM = {
    "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "gpu[03-05,9],cpu1",
    "SLURM_LOCALID": "0",
}  # fmt: skip


def test_one_process_is_local_whatever_the_environment():
    assert find_place("local", TransportConfig(), {**TORCHRUN, **SLURM}).role == "local"
    started = TransportConfig(name="torch_distributed", num_workers=2)
    assert find_place("local", started, {**TORCHRUN, **SLURM}).role == "local"


def test_torchrun_makes_process_0_the_server_on_loopback_if_all_are_here():
    server = find_place("local", DISTRIBUTED, TORCHRUN)
    assert (server.role, server.address, server.num_workers) == ("server", "127.0.0.1:0", 2)
    assert server.rendezvous == "host0:29400"
    worker = find_place("local", DISTRIBUTED, {**TORCHRUN, "RANK": "2", "LOCAL_RANK": "2"})
    assert (worker.role, worker.local_rank) == ("worker", 2)
    far = find_place("local", DISTRIBUTED, {**TORCHRUN, "LOCAL_WORLD_SIZE": "1"})
    assert far.address == "host0:0"


def test_slurm_makes_process_0_of_the_first_node_the_server():
    server = find_place("local", DISTRIBUTED, SLURM)
    assert (server.role, server.address, server.num_workers) == ("server", "gpu03:34567", 3)
    worker = find_place("local", DISTRIBUTED, {**SLURM, "SLURM_PROCID": "3", "SLURM_LOCALID": "1"})
    assert (worker.role, worker.address, worker.local_rank) == ("worker", "gpu03:34567", 1)
    with pytest.raises(ValueError, match="num_workers"):
        find_place("local", DISTRIBUTED, {**SLURM, "SLURM_NTASKS": "1"})


@pytest.mark.parametrize(("nodes", "first"), [("a", "a"), ("a,b", "a"), ("n[1,3]", "n1"), ("n-2-[07-09]", "n-2-07")])
def test_the_first_host_of_a_slurm_list(nodes, first):
    assert first_host(nodes) == first


def test_a_node_needs_to_know_its_parent():
    with pytest.raises(ValueError, match=r"role=worker needs transport\.address=HOST:PORT"):
        find_place("worker", TransportConfig(), {})
    assert find_place("server", TransportConfig(), {}).address == "127.0.0.1:0"
