"""Each algorithm against its paper's loop, written here with explicit formulas in float64 for logistic regression.

Nothing of fedsim takes part but who trains and on which minibatches. `Problem`, in conftest.py, has the gradients; a
loop has the name of its algorithm, and its variables are the paper's.
"""

import dataclasses
import math

import pytest
import torch

from fedsim import algorithms
from fedsim.config import LocalConfig

ROUNDS, ETA = 3, 0.1
LOCAL = LocalConfig(batch_size=6, num_epochs=2, learning_rate=ETA)
# Five steps: a pass and a part of the next one, which some of the samples are not in.
STEPS = LocalConfig(batch_size=6, num_steps=5, learning_rate=ETA)


def average(loop):
    """A loop over rounds whose clients return their models, averaged by samples."""

    def run(p):
        w = p.start
        for t, cohort in enumerate(p.cohorts, start=1):
            w = sum(q * loop(p, w, p.batches(i, t)) for q, i in zip(p.weights(cohort), cohort, strict=True))
        return w

    return run


def sgd(p, w, batches):
    for batch in batches:
        w = w - ETA * p.grad(w, batch)
    return w


def deltas(p, w, cohort, t):
    return [sgd(p, w, p.batches(i, t)) - w for i in cohort]


def fedsgd(p):
    w = p.start
    for cohort in p.cohorts:
        w = w - ETA * sum(q * p.grad(w, p.whole(i)) for q, i in zip(p.weights(cohort), cohort, strict=True))
    return w


def fedprox(p):
    def local(p, w, batches):
        y = w
        for batch in batches:
            y = y - ETA * (p.grad(y, batch) + 0.5 * (y - w))
        return y

    return average(local)(p)


def server_optimizer(move):
    def run(p):
        w, memory = p.start, {}
        for t, cohort in enumerate(p.cohorts, start=1):
            d = sum(q * u for q, u in zip(p.weights(cohort), deltas(p, w, cohort, t), strict=True))
            w = w + move(d, memory)
        return w

    return run


def fedavgm(d, memory):
    memory["v"] = 0.8 * memory.get("v", 0) + d
    return 0.5 * memory["v"]


def nesterov(d, memory):
    memory["v"] = 0.8 * memory.get("v", 0) + d
    return 0.5 * (d + 0.8 * memory["v"])


def adaptive(second, beta1):
    def move(d, memory):
        memory["m"] = beta1 * memory.get("m", 0) + (1 - beta1) * d
        memory["v"] = second(memory.get("v", torch.full_like(d, 1e-2**2)), d)
        return 0.05 * memory["m"] / (memory["v"].sqrt() + 1e-2)

    return move


def scaffold(option):
    def run(p):
        x, c, own = p.start, torch.zeros(52).double(), [torch.zeros(52).double()] * len(p.sizes)
        for t, cohort in enumerate(p.cohorts, start=1):
            dx, dc = [], []
            for i in cohort:
                y, batches = x, list(p.batches(i, t))
                for batch in batches:
                    y = y - ETA * (p.grad(y, batch) - own[i] + c)
                new = p.grad(x, p.whole(i)) if option == 1 else own[i] - c + (x - y) / (len(batches) * ETA)
                dx.append(y - x)
                dc.append(new - own[i])
                own[i] = new
            x = x + 0.9 * sum(dx) / len(cohort)
            c = c + sum(dc) / len(p.sizes)
        return x

    return run


def feddyn(p):
    alpha, theta, h = 0.2, p.start, torch.zeros(52).double()
    own = [torch.zeros(52).double()] * len(p.sizes)
    for t, cohort in enumerate(p.cohorts, start=1):
        models = []
        for i in cohort:
            y = theta
            for batch in p.batches(i, t):
                y = y - ETA * (p.grad(y, batch) - own[i] + alpha * (y - theta))
            own[i] = own[i] - alpha * (y - theta)
            models.append(y)
        h = h - alpha / len(p.sizes) * sum(y - theta for y in models)
        theta = sum(models) / len(models) - h / alpha
    return theta


def fednova(momentum, mu, decay=0.0, nesterov=False):
    """||a||_1 from the definition: the local rule is linear in the gradients, so a_j is the response to the j-th."""

    def response(steps):
        total = 0.0
        for j in range(steps):
            moved = velocity = 0.0
            for k in range(steps):
                slope = (1.0 if k == j else 0.0) - ETA * (mu + decay) * moved
                velocity = momentum * velocity + slope
                moved = moved + (slope + momentum * velocity if nesterov else velocity)
            total += moved
        return total

    def run(p):
        w = p.start
        for t, cohort in enumerate(p.cohorts, start=1):
            quotients, norms = [], []
            for i in cohort:
                y, v, batches = w, torch.zeros(52).double(), list(p.batches(i, t))
                for batch in batches:
                    g = p.grad(y, batch) + mu * (y - w) + decay * y
                    v = momentum * v + g
                    y = y - ETA * (g + momentum * v if nesterov else v)
                norms.append(response(len(batches)))
                quotients.append((y - w) / norms[-1])
            q = p.weights(cohort)
            tau = sum(a * b for a, b in zip(q, norms, strict=True))
            w = w + tau * sum(a * d for a, d in zip(q, quotients, strict=True))
        return w

    return run


def mime(lite):
    def run(p):
        beta, x, m = 0.7, p.start, torch.zeros(52).double()
        for t, cohort in enumerate(p.cohorts, start=1):
            q = p.weights(cohort)
            c = sum(a * p.grad(x, p.whole(i)) for a, i in zip(q, cohort, strict=True))
            models = []
            for i in cohort:
                y = x
                for batch in p.batches(i, t):
                    g = p.grad(y, batch) if lite else p.grad(y, batch) - p.grad(x, batch) + c
                    y = y - ETA * ((1 - beta) * g + beta * m)
                models.append(y)
            x = sum(a * y for a, y in zip(q, models, strict=True))
            m = (1 - beta) * c + beta * m
        return x

    return run


def qfedavg(p):
    q, w, big = 1.5, p.start, 1 / ETA
    for t, cohort in enumerate(p.cohorts, start=1):
        top, bottom = 0.0, 0.0
        for i in cohort:
            f = p.loss(w, p.whole(i))
            dw = big * (w - sgd(p, w, p.batches(i, t)))
            top = top + f**q * dw
            bottom = bottom + q * f ** (q - 1) * (dw**2).sum() + big * f**q
        w = w - top / bottom
    return w


def agnostic(p):
    """Domains 0 and 1 alternate; a window of two rounds."""
    w, domain = p.start, [i % 2 for i in range(len(p.sizes))]
    share = [sum(n for i, n in enumerate(p.sizes) if domain[i] == d) / sum(p.sizes) for d in (0, 1)]
    lam, window = list(share), [share]
    for t, cohort in enumerate(p.cohorts, start=1):
        size = [sum(row[d] for row in window) / len(window) for d in (0, 1)]
        pull = [lam[domain[i]] / size[domain[i]] * p.sizes[i] for i in cohort]
        new = sum(a / sum(pull) * (w + d) for a, d in zip(pull, deltas(p, w, cohort, t), strict=True))
        counts = [sum(p.sizes[i] for i in cohort if domain[i] == d) for d in (0, 1)]
        losses = [
            sum(p.sizes[i] * p.loss(w, p.whole(i)) for i in cohort if domain[i] == d) / counts[d] if counts[d] else 0.0
            for d in (0, 1)
        ]
        lam = [a * math.exp(0.3 * f) for a, f in zip(lam, losses, strict=True)]
        lam = [a / sum(lam) for a in lam]
        window = [*window, [n / sum(counts) for n in counts]][-2:]
        w = new
    return w


def fedsam(p):
    def local(p, w, batches):
        for batch in batches:
            g = p.grad(w, batch)
            w = w - ETA * p.grad(w + 0.2 * g / g.norm(), batch)
        return w

    return average(local)(p)


def fedexp(p):
    w = p.start
    for t, cohort in enumerate(p.cohorts, start=1):
        q, d = p.weights(cohort), deltas(p, w, cohort, t)
        mean = sum(a * u for a, u in zip(q, d, strict=True))
        rate = max(1.0, float(sum(a * u @ u for a, u in zip(q, d, strict=True)) / (2 * (mean @ mean + 1e-4))))
        w = w + rate * mean
    return w


def perfedavg(hessian_free):
    """The Hessian is autograd's, not a difference: they agree to the square of delta."""

    def local(p, w, batches):
        m, alpha = (3 if hessian_free else 2), 0.05
        for x, y in batches:
            parts = [(x[j::m], y[j::m]) if len(y) > j else (x[::m], y[::m]) for j in range(m)]
            direction = p.grad(w - alpha * p.grad(w, parts[0]), parts[1])
            if hessian_free:
                hessian = torch.autograd.functional.hessian(lambda v, b=parts[2]: p.loss(v, b), w)
                direction = direction - alpha * hessian @ direction
            w = w - ETA * direction
        return w

    return average(local)


def pfedme(p):
    lam, lr, w = 2.0, 0.05, p.start
    for t, cohort in enumerate(p.cohorts, start=1):
        models = []
        for i in cohort:
            own = theta = w
            for batch in p.batches(i, t):
                for _ in range(4):
                    theta = theta - lr * (p.grad(theta, batch) + lam * (theta - own))
                own = own - ETA * lam * (own - theta)
            models.append(own)
        mean = sum(q * m for q, m in zip(p.weights(cohort), models, strict=True))
        w = 0.6 * mean + 0.4 * w
    return w


CASES = {
    "fedsgd": (algorithms.fedsgd, fedsgd, LOCAL),
    "fedprox": (lambda: algorithms.fedprox(0.5), fedprox, LOCAL),
    "fedprox with stragglers": (
        lambda: algorithms.fedprox(0.5),
        fedprox,
        dataclasses.replace(LOCAL, num_epochs=4, straggler_share=0.5),
    ),
    "fedavgm": (lambda: algorithms.fedavgm(0.8, 0.5), server_optimizer(fedavgm), LOCAL),
    "fedavgm nesterov": (lambda: algorithms.fedavgm(0.8, 0.5, nesterov=True), server_optimizer(nesterov), LOCAL),
    "fedadagrad": (
        lambda: algorithms.fedadagrad(0.05, 0.3, 1e-2),
        server_optimizer(adaptive(lambda v, d: v + d**2, 0.3)),
        LOCAL,
    ),
    "fedadam": (
        lambda: algorithms.fedadam(0.05, 0.9, 0.99, 1e-2),
        server_optimizer(adaptive(lambda v, d: 0.99 * v + 0.01 * d**2, 0.9)),
        LOCAL,
    ),
    "fedyogi": (
        lambda: algorithms.fedyogi(0.05, 0.9, 0.99, 1e-2),
        server_optimizer(adaptive(lambda v, d: v - 0.01 * d**2 * torch.sign(v - d**2), 0.9)),
        LOCAL,
    ),
    "scaffold option 1": (lambda: algorithms.scaffold(1, 0.9), scaffold(1), LOCAL),
    "scaffold option 1 in steps": (lambda: algorithms.scaffold(1, 0.9), scaffold(1), STEPS),
    "scaffold option 2": (lambda: algorithms.scaffold(2, 0.9), scaffold(2), LOCAL),
    "feddyn": (lambda: algorithms.feddyn(0.2), feddyn, LOCAL),
    "fednova": (algorithms.fednova, fednova(0.0, 0.0), LOCAL),
    "fednova momentum": (algorithms.fednova, fednova(0.9, 0.0), dataclasses.replace(LOCAL, momentum=0.9)),
    "fednova both": (lambda: algorithms.fednova(0.3), fednova(0.9, 0.3), dataclasses.replace(LOCAL, momentum=0.9)),
    "fednova nesterov": (
        lambda: algorithms.fednova(0.3),
        fednova(0.8, 0.3, 0.2, nesterov=True),
        dataclasses.replace(LOCAL, momentum=0.8, nesterov=True, weight_decay=0.2),
    ),
    "mime": (lambda: algorithms.mime(0.7), mime(lite=False), LOCAL),
    "mimelite": (lambda: algorithms.mimelite(0.7), mime(lite=True), LOCAL),
    "qfedavg": (lambda: algorithms.qfedavg(1.5), qfedavg, LOCAL),
    "qfedavg in steps": (lambda: algorithms.qfedavg(1.5), qfedavg, STEPS),
    "agnostic": (lambda: algorithms.agnostic_fedavg(None, 2, 0.3, 2), agnostic, LOCAL),
    "agnostic in steps": (lambda: algorithms.agnostic_fedavg(None, 2, 0.3, 2), agnostic, STEPS),
    "fedsam": (lambda: algorithms.fedsam(0.2), fedsam, LOCAL),
    "fedexp": (lambda: algorithms.fedexp(1e-4), fedexp, LOCAL),
    "perfedavg first order": (lambda: algorithms.perfedavg(0.05), perfedavg(False), LOCAL),
    "perfedavg hessian-free": (lambda: algorithms.perfedavg(0.05, True, 1e-4), perfedavg(True), LOCAL),
    "pfedme": (lambda: algorithms.pfedme(2.0, 0.05, 4, 0.6), pfedme, LOCAL),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_papers_loop(make_problem, case):
    algorithm, loop, local = CASES[case]
    simulation, problem = make_problem(algorithm(), local)
    expected = loop(problem)
    for _ in range(ROUNDS):
        simulation.server.run_round()
    torch.testing.assert_close(simulation.server.vector, expected, atol=1e-9, rtol=1e-7)
    assert (expected - problem.start).abs().max() > 1e-2
