"""Traces: the same numbers at every size, by PyTorch's own functions, and with nothing in them that changes nothing."""

import inspect
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import dropout

from fedsim.models import logistic
from fedsim.train.gradient import SlotGradient, Slots
from fedsim.train.trace import SIZES, trace


def example(slots, history, batch):
    generator = torch.Generator().manual_seed(slots * batch)
    return (torch.randn(slots, batch, 6, generator=generator), torch.randn(slots, 4, 6, generator=generator))


def test_a_trace_serves_other_sizes():
    def function(x, w):
        return {"y": torch.softmax(x @ w.mT, 2).flatten(1) / x.shape[1]}

    replay = trace(function, example)
    for sizes in ((1, 0, 1), (4, 0, 9)):
        torch.testing.assert_close(replay(*example(*sizes)), function(*example(*sizes)), rtol=0, atol=0)


def test_what_draws_random_numbers_is_not_tried():
    """An operation that is tried draws: the numbers after it would be others than without a trace."""
    states = []
    for function in (lambda x, w: {"y": x * w.sum()}, lambda x, w: {"y": dropout(x, 0.5) * w.sum()}):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        trace(function, example)
        states.append(not torch.equal(before, torch.get_rng_state()))
    assert states == [False, True]
    torch.manual_seed(0)
    for sizes in SIZES:  # as often as the function itself draws, and no oftener
        dropout(example(*sizes)[0], 0.5)
    once = torch.get_rng_state()
    torch.manual_seed(0)
    trace(lambda x, w: {"y": dropout(x, 0.5) * w.sum()}, example)
    assert torch.equal(torch.get_rng_state(), once)


def test_what_depends_on_the_sizes_is_refused():
    smaller = min(batch for *_, batch in SIZES)
    with pytest.raises(RuntimeError, match="sizes"):
        trace(lambda x, w: {"y": x[:, ::2] if x.shape[1] > smaller else x}, example)


def test_the_step_of_a_linear_model_is_short():
    """No call through the dispatcher's table, no ones that autograd makes, and the weight's gradient as D^T X."""
    gradient = SlotGradient(logistic((6,), 4), set(), stochastic=False)
    generator = torch.Generator().manual_seed(0)
    n, batch = 3, 5
    slots = Slots(
        parameters={
            "head.weight": torch.randn(n, 4, 6, generator=generator),
            "head.bias": torch.randn(n, 4, generator=generator),
        },
        buffers={},
        kept=torch.ones(n),
        coefficients=torch.ones(n, 0),
        inputs={},
        gradients={},
    )
    x, y = torch.randn(n, batch, 6, generator=generator), torch.randint(0, 4, (n, batch), generator=generator)
    counts = torch.tensor([5, 3, 1])
    found = gradient(slots, {}, x, y, counts)
    for i, count in enumerate(counts.tolist()):
        w, b = (slots.parameters[f"head.{name}"][i].clone().requires_grad_() for name in ("weight", "bias"))
        loss = torch.nn.functional.cross_entropy(x[i, :count] @ w.T + b, y[i, :count])
        grads = torch.autograd.grad(loss, (w, b))
        for name, expected in zip(("weight", "bias"), grads, strict=True):
            torch.testing.assert_close(found.parameters[f"head.{name}"][i], expected)
        torch.testing.assert_close(found.loss_sums[i], loss.detach() * count)
    assert gradient.function is not None
    code = inspect.getclosurevars(gradient.function).nonlocals["run"].__self__.code
    calls = [line for line in code.splitlines() if "torch" in line]
    assert len(calls) <= 22, code
    assert not any(word in code for word in ("torch.ops", "ones_like", "expand"))


def test_a_first_step_imports_no_compiler():
    """SymPy alone takes 35 MiB and half a second."""
    program = """
import sys
import torch
from fedsim.models import logistic
from fedsim.train.gradient import SlotGradient, Slots
gradient = SlotGradient(logistic((6,), 4), set(), stochastic=False)
weights = {"head.weight": torch.randn(2, 4, 6), "head.bias": torch.randn(2, 4)}
ones = torch.ones(2, 1)
slots = Slots(parameters=weights, buffers={}, kept=ones[:, 0], coefficients=ones[:, 1:], inputs={}, gradients={})
gradient(slots, {}, torch.randn(2, 5, 6), torch.zeros(2, 5, dtype=torch.int64), torch.tensor([5, 5]))
print(sorted({"sympy", "torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
