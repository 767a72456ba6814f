"""Which node a process is, from the configuration and from the variables of torchrun and Slurm."""

import pytest

from fedsim.config import TransportConfig
from fedsim.transport.place import exchange_address, find_place, first_host

DISTRIBUTED = TransportConfig(name="torch_distributed")
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3",
    "MASTER_ADDR": "host0", "MASTER_PORT": "29400",
}  # fmt: skip
SLURM = {
    "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "gpu[01-05,9],cpu1",
    "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "gpu[03-05,9],cpu1",
}  # fmt: skip
# what sbatch's script sees (Slurm 22.05), and the shell that salloc opens on the first node
BATCH = {
    key: SLURM[key] for key in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_LOCALID")
}
INTERACTIVE = {**SLURM, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "gpu03"}


def test_one_process_is_local_whatever_the_environment():
    assert find_place("local", TransportConfig(), {**TORCHRUN, **SLURM}).role == "local"
    started = TransportConfig(name="torch_distributed", num_workers=2)
    assert find_place("local", started, {**TORCHRUN, **SLURM}).role == "local"


def test_torchrun_makes_process_0_the_server_on_loopback_if_all_are_here():
    server = find_place("local", DISTRIBUTED, TORCHRUN)
    assert (server.role, server.address, server.num_workers) == ("server", "127.0.0.1:0", 2)
    assert server.rendezvous == "host0:29400"
    worker = find_place("local", DISTRIBUTED, {**TORCHRUN, "RANK": "2", "LOCAL_RANK": "2"})
    assert (worker.role, worker.local_rank, worker.name) == ("worker", 2, "rank_2")
    far = find_place("local", DISTRIBUTED, {**TORCHRUN, "LOCAL_WORLD_SIZE": "1"})
    assert far.address == "host0:0"


def test_workers_of_a_later_start_wait_for_the_address_of_their_own_server():
    """torchrun keeps its store when it starts its processes again, and so does a sweep for all of its jobs."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    here = {**TORCHRUN, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    starts = [({"TORCHELASTIC_RESTART_COUNT": str(count)}, job) for count in (0, 1) for job in (0, 1)]
    for i, (start, job) in enumerate(starts):
        server, worker = (
            find_place("local", DISTRIBUTED, {**here, **start, "RANK": rank}, job=job) for rank in ("0", "1")
        )
        with pytest.raises(ValueError, match="process 0 has not told its address"):
            exchange_address(worker, None, 0.2)
        exchange_address(server, f"127.0.0.1:{i}", 10)
        assert exchange_address(worker, None, 10) == f"127.0.0.1:{i}"


def test_slurm_makes_process_0_of_the_first_node_the_server():
    server = find_place("local", DISTRIBUTED, SLURM)
    assert (server.role, server.address, server.num_workers) == ("server", "gpu03:30567", 3)  # 1,234,567 % 12,000
    worker = find_place("local", DISTRIBUTED, {**SLURM, "SLURM_PROCID": "3", "SLURM_LOCALID": "1"})
    assert (worker.role, worker.address, worker.local_rank) == ("worker", "gpu03:30567", 1)
    assert worker.name == "task_3"  # as srun calls it
    with pytest.raises(ValueError, match=r"transport=torch_distributed needs transport\.num_workers=N"):
        find_place("local", DISTRIBUTED, {**SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"})


def test_steps_of_a_job_and_neighbouring_jobs_have_ports_of_their_own():
    """Two runs of one allocation at the same time, and those of the jobs submitted beside it."""
    places = [
        find_place("local", DISTRIBUTED, {**SLURM, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).address
        for job in range(11990, 12290) for step in range(12)
    ]  # fmt: skip
    ports = [int(str(address).partition(":")[2]) for address in places]
    assert len(set(ports)) == len(ports)
    assert min(ports) >= 20000
    assert max(ports) < 32768  # the first that Linux gives to those who ask for any


@pytest.mark.parametrize("environment", [BATCH, INTERACTIVE], ids=["sbatch", "salloc"])
def test_a_command_in_a_job_that_srun_has_not_started_is_told_so_at_once(environment):
    """It would wait for three workers that nobody starts."""
    with pytest.raises(
        ValueError, match=r"Slurm's job has 4 tasks, .*: begin the command with srun, or give transport"
    ):
        find_place("local", DISTRIBUTED, environment)
    here = TransportConfig(name="torch_distributed", num_workers=2)
    assert find_place("local", here, environment).role == "local"


@pytest.mark.parametrize(("nodes", "first"), [("a", "a"), ("a,b", "a"), ("n[1,3]", "n1"), ("n-2-[07-09]", "n-2-07")])
def test_the_first_host_of_a_slurm_list(nodes, first):
    assert first_host(nodes) == first


def test_a_node_needs_to_know_its_parent():
    with pytest.raises(ValueError, match=r"role=worker needs transport\.address=HOST:PORT"):
        find_place("worker", TransportConfig(), {})
    assert find_place("server", TransportConfig(), {}).address == "127.0.0.1:0"
