"""The initial model: drawn from the run's seed, without a trace in the process."""

import subprocess
import sys
import textwrap

import pytest
import torch

from fedsim.initial_model import choose_device, draw_model
from fedsim.models import logistic
from fedsim.rng import forked_generators


def test_an_initial_model_is_a_function_of_the_seed_and_leaves_the_generators_alone(make_dataset):
    dataset, vectors = make_dataset([4, 4]), []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        vectors.append(draw_model(logistic, dataset, 5, 0))
        assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(*vectors)
    assert not torch.equal(vectors[0], draw_model(logistic, dataset, 6, 0))
    assert not torch.equal(vectors[0], draw_model(logistic, dataset, 5, 1))


def test_seeding_queues_nothing_for_gpus_that_are_not_in_use(monkeypatch):
    """`torch.manual_seed` does: it would seed every GPU anew when the process first uses one."""
    queued = []
    monkeypatch.setattr(torch.cuda, "_lazy_call", lambda call, **_: queued.append(call))
    torch.manual_seed(torch.initial_seed())
    before = len(queued)
    with forked_generators() as seed:
        seed(3)
        drawn = torch.rand(4)
    assert len(queued) == before
    assert torch.equal(drawn, torch.rand(4, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("name", ["mps", "tpu", "gpu:0", ""])
def test_a_device_that_is_not_supported_is_refused(name):
    with pytest.raises(ValueError, match=r"is not supported: use auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_a_gpu_of_a_number_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="device=cuda:2, but there are 2 GPUs here, from cuda:0 on"):
        choose_device("cuda:2")


@pytest.mark.gpu
def test_a_gpu_with_a_number_is_the_first_thing_that_a_process_uses():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    program = """
        import torch
        from fedsim.data.femnist import femnist
        from fedsim.initial_model import build_model
        from fedsim.models import logistic
        print(build_model(femnist(num_clients=2), logistic, seed=0, device="cuda:0").device)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout == "cuda:0\n"


@pytest.mark.gpu
def test_the_generators_of_gpus_are_put_back():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.cuda.init()
    before = torch.cuda.get_rng_state_all()
    with forked_generators() as seed:
        drawn = []
        for _ in range(2):
            seed(3)
            drawn.append(torch.rand(4, device="cuda"))
    assert torch.equal(*drawn)
    assert all(map(torch.equal, before, torch.cuda.get_rng_state_all()))
