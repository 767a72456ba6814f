"""The memory planner: what it predicts is what a round takes, and what does not fit is refused."""

import json
import subprocess
import sys
import textwrap
from functools import partial

import numpy as np
import pytest
import torch

from fedsim.algorithms import ditto, fedavg, mime, scaffold
from fedsim.config import LocalConfig, ServerConfig
from fedsim.data.federated import Split
from fedsim.memory import TensorMeter, out_of_memory
from fedsim.models import leaf_cnn, logistic, mlp
from fedsim.simulation import Simulation
from fedsim.train.footprint import Footprint, require
from fedsim.train.plan import make_plan, plan_bytes
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer

SIZES = [40, 23, 31, 17, 60, 12, 28, 35]


def simulation(dataset, trainer, model, local):
    return Simulation(
        dataset,
        model,
        local=local,
        server=ServerConfig(num_rounds=1, clients_per_round=8),
        trainer=trainer,
        device="cpu",
    )


def test_the_meter_counts_what_is_alive():
    with TensorMeter() as meter:
        a = torch.ones(1000)  # 4000 bytes
        b = a + 1  # 8000
        a.add_(1)  # nothing new
        b = b.view(10, 100)  # a view
        del a  # 4000
        c = torch.ones(500)  # 6000
    assert (meter.now, meter.peak) == (6000, 8000)
    del b, c


@pytest.mark.parametrize(
    ("algorithm", "optimizer"), [(fedavg, "sgd"), (fedavg, "adam"), (scaffold, "sgd"), (ditto, "sgd"), (mime, "sgd")]
)
@pytest.mark.parametrize("trainer", [SerialTrainer, partial(VectorizedTrainer, num_slots=4)])
def test_no_client_leaves_a_tensor_until_the_round_has_ended(make_dataset, trainer, optimizer, algorithm):
    """Small ones among large ones that come and go leave the heap in pieces: 100 MiB with 10,000 clients a round."""

    class Alive(TensorMeter):
        most = 0

        def _count(self, value):
            super()._count(value)
            self.most = max(self.most, len(self.alive))

    most = []
    for num_clients in (12, 48):
        dataset = make_dataset([10, 20, 30] * (num_clients // 3))
        local = LocalConfig(batch_size=5, optimizer=optimizer)
        found = Simulation(
            dataset,
            partial(mlp, hidden_sizes=(20,)),
            algorithm=algorithm(),
            local=local,
            server=ServerConfig(num_rounds=2, clients_per_round=num_clients),
            trainer=trainer,
            device="cpu",
        )
        found.server.run_round()
        with Alive() as meter:
            found.server.run_round()
        most.append(meter.most)
    assert most[0] == most[1]


@pytest.mark.parametrize("local", [LocalConfig(batch_size=5), LocalConfig(batch_size=5, momentum=0.9, num_epochs=2)])
@pytest.mark.parametrize("trainer", [SerialTrainer, partial(VectorizedTrainer, num_slots=3), VectorizedTrainer])
@pytest.mark.parametrize("model", ["cnn", "wide"])
def test_the_prediction_is_within_ten_percent_of_the_peak_of_a_round(make_dataset, trainer, model, local):
    dataset = make_dataset(SIZES, shape=(1, 8, 8))
    models = {"cnn": partial(leaf_cnn, hidden_size=2048), "wide": partial(mlp, hidden_sizes=(2000, 500))}
    found = simulation(dataset, trainer, models[model], local)
    needed = found.footprint()
    with TensorMeter() as meter:
        found.server.run_round()
    # one step gathers fewer samples at once than a round: up to a MiB in storage, some as floats
    assert meter.peak == pytest.approx(needed.extra, rel=0.1, abs=4 << 20)


def test_the_prediction_is_within_ten_percent_of_the_resident_memory(tmp_path):
    program = """
        import json, torch
        from functools import partial
        from fedsim import FederatedDataset, Split
        from fedsim.config import LocalConfig, ServerConfig
        from fedsim.models import leaf_cnn
        from fedsim.simulation import Simulation
        from fedsim.train.vectorized import VectorizedTrainer
        import numpy as np
        torch.set_num_threads(1)
        sizes = np.full(16, 30)
        x, y = torch.randn(480, 1, 28, 28), torch.randint(0, 10, (480,))
        split = Split(inputs=x, targets=y, offsets=np.arange(17) * 30)
        dataset = FederatedDataset(name="x", train=split, client_ids=[str(i) for i in range(16)], num_classes=10)
        run = Simulation(dataset, leaf_cnn, local=LocalConfig(batch_size=10), device="cpu",
                         server=ServerConfig(num_rounds=2, clients_per_round=16),
                         trainer=partial(VectorizedTrainer, num_slots=8, factor=False))
        needed = run.footprint()
        print(json.dumps([needed.peak, max(run.server.run_round()["peak_memory_bytes"] for _ in range(2))]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    predicted, peak = json.loads(done.stdout)
    assert predicted == pytest.approx(peak, rel=0.1)


def test_who_has_nothing_to_train_with_takes_no_slot(make_dataset):
    needed = []
    for sizes in ([20] * 4, [20] * 4 + [0] * 60):
        server = ServerConfig(clients_per_round=len(sizes))
        trainer = partial(VectorizedTrainer, num_slots=64)
        found = Simulation(make_dataset(sizes), logistic, server=server, trainer=trainer, device="cpu").footprint()
        needed.append((found.num_slots, found.slot, found.plan))
    assert needed[0] == needed[1]
    assert needed[0][0] == 4


def test_what_does_not_fit_is_refused_with_three_settings():
    needed = Footprint(held=0, fixed=10 << 20, slot=1 << 20, num_slots=30)
    require(needed, 40 << 20, LocalConfig())
    with pytest.raises(
        ValueError,
        match=r"lower trainer.num_slots \(now 30\) or local.batch_size \(now 10\), or choose a smaller model",
    ):
        require(needed, 39 << 20, LocalConfig())


def test_a_plan_is_counted_and_what_makes_it_long_is_named():
    sizes, local = np.array([30, 0, 5]), LocalConfig(batch_size=10, num_epochs=1000)
    split = Split(inputs=torch.zeros(35, 1), targets=torch.zeros(35), offsets=np.array([0, 30, 30, 35]))
    plan = make_plan(split, np.arange(3), local, seed=0, round=1)
    steps = 3 * 1000 + 1000
    assert plan.rows.nbytes + plan.counts.nbytes == 4 * 11 * steps
    assert plan_bytes(sizes, local) == 4 * 11 * steps + (4 + 8 + 8) * steps + 64 * 2 * 1000
    beside = make_plan(split, np.arange(3), local, seed=0, round=1, num_slots=2)  # 2,000 idle places
    assert beside.rows.nbytes + beside.counts.nbytes == 4 * 11 * (steps + 2000)
    idle = {whole: plan_bytes(sizes, local, 9, whole=whole) - plan_bytes(sizes, local) for whole in (False, True)}
    assert idle == {False: 24 * 2000, True: (40 + 24) * 2000}
    needed = Footprint(held=0, fixed=10 << 20, slot=1 << 20, num_slots=3, plan=100 << 20)
    assert needed.fewer_steps(LocalConfig(num_epochs=1)) == "server.clients_per_round"
    assert "100 MiB for the plan" in str(needed)
    with pytest.raises(ValueError, match=r"lower local.num_epochs \(now 1000\) or server.clients_per_round"):
        require(needed, 112 << 20, local)
    with pytest.raises(ValueError, match=r"lower local.num_steps \(now 7000\)"):
        require(needed, 112 << 20, LocalConfig(num_steps=7000))


def test_out_of_memory_halves_the_slots_and_starts_the_round_again(make_dataset, monkeypatch, caplog):
    dataset = make_dataset(SIZES, shape=(1, 8, 8))
    local = LocalConfig(batch_size=5)
    whole = simulation(dataset, partial(VectorizedTrainer, num_slots=2), leaf_cnn, local)
    whole.server.run_round()
    short = simulation(dataset, partial(VectorizedTrainer, num_slots=8), leaf_cnn, local)
    real = VectorizedTrainer._run

    def run(self, plan, broadcast, average):
        result = real(self, plan, broadcast, average)
        if plan.num_slots > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(VectorizedTrainer, "_run", run)
    short.server.run_round()
    assert short.trainer.num_slots == 2
    assert [r.message for r in caplog.records] == [
        "round 1: out of memory with 8 slots; the round starts again with 4",
        "round 1: out of memory with 4 slots; the round starts again with 2",
    ]
    torch.testing.assert_close(short.server.vector, whole.server.vector, rtol=0, atol=0)


def test_out_of_memory_with_one_slot_is_an_error(make_dataset, monkeypatch):
    found = simulation(make_dataset(SIZES), SerialTrainer, mlp, LocalConfig())

    def train(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(SerialTrainer, "train", train)
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried"))
    assert out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    with pytest.raises(RuntimeError) as error:  # as this machine says it
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(error.value)
    with pytest.raises(RuntimeError, match="not enough memory"):
        found.server.run_round()
