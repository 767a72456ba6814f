"""The way of updates in whole runs: it changes nothing where nothing is asked for, and does not depend on the trainer,
on how many clients sit side by side, on a resume or on a round that failed."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.algorithms import agnostic_fedavg, fedexp, fednova, fedper, fedprox, lg_fedavg, local_only, qfedavg
from fedsim.algorithms.base import Algorithm, Kept
from fedsim.attacks import gaussian_attack, little_is_enough, sign_flip
from fedsim.config import LocalConfig, ServerConfig
from fedsim.devices import drawn
from fedsim.models import logistic, mlp
from fedsim.robust import bulyan, geometric_median, krum, mean, median, multi_krum, norm_bounding, trimmed_mean
from fedsim.sampling import poisson, round_robin
from fedsim.simulation import Simulation
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer
from fedsim.transforms import (
    Transform,
    adaptive_clip,
    clip,
    gaussian,
    local_gaussian,
    low_rank,
    qsgd,
    random_k,
    sign,
    top_k,
)

SIZES = [7, 23, 10, 1, 31, 16, 40, 3, 12, 9]


@pytest.fixture
def dataset(make_dataset):
    """In float64, so that trainers agree to rounding."""
    made = make_dataset(SIZES, shape=(1, 6, 6))
    train, test = (dataclasses.replace(s, inputs=s.inputs.double()) for s in (made.train, made.test))
    return dataclasses.replace(made, train=train, test=test)


small = partial(mlp, hidden_sizes=(8,))


def start(
    dataset, trainer=SerialTrainer, *, rounds=4, clients=8, model=small, local=None, over_selection=1.0, **settings
):
    return Simulation(
        dataset,
        lambda shape, classes: model(shape, classes).to(dataset.train.inputs.dtype),
        local=local or LocalConfig(batch_size=8, learning_rate=0.1),
        server=ServerConfig(
            num_rounds=rounds, clients_per_round=clients, evaluate_every=0, over_selection=over_selection
        ),
        trainer=trainer,
        device="cpu",
        **settings,
    )


def run(simulation, rounds=4):
    metrics = [simulation.server.run_round() for _ in range(rounds)]
    return simulation.server.vector.clone(), metrics


WAYS = {
    "clip": {"transforms": [clip(0.3)]},
    "adaptive_clip": {"transforms": [adaptive_clip(initial_norm=0.2)]},
    "private": {"transforms": [clip(0.3), gaussian(0.2)]},
    "private and adaptive": {"transforms": [adaptive_clip(count_noise=2.0), gaussian(0.2)]},
    "local privacy": {"transforms": [local_gaussian(0.3, 0.1)]},
    "top_k": {"transforms": [top_k(0.05, momentum=0.9)]},
    "top_k, qsgd": {"transforms": [top_k(0.2), qsgd(6, 100)]},
    "random_k": {"transforms": [random_k(0.3, error_feedback=True)]},
    "sign": {"transforms": [sign()]},
    "low_rank": {"transforms": [clip(5.0), low_rank(1)]},
    "median": {"aggregator": median()},
    "krum under attack": {"aggregator": krum(2), "attack": sign_flip(0.2)},
    "trimmed, little": {"aggregator": trimmed_mean(0.3, memory_mib=0.03), "attack": little_is_enough(0.4, z=1.0)},
    "geometric, clipped, noisy": {
        "aggregator": geometric_median(),
        "transforms": [clip(0.5)],
        "attack": gaussian_attack(0.2, deviation=0.3),
    },
    "mean, little": {"attack": little_is_enough(0.4, z=1.0)},
    "equal": {"aggregator": mean(equal_weights=True)},
}


@pytest.mark.parametrize("name", WAYS)
def test_the_number_of_slots_changes_nothing(dataset, name):
    expected, figures = run(start(dataset, **WAYS[name]), 3)
    plain, _ = run(start(dataset), 3)
    assert (expected - plain).abs().max() > 1e-4, "it had no effect"
    trainer = partial(VectorizedTrainer, num_slots=8 if name == "sign" else 3)
    vector, found = run(start(dataset, trainer, **WAYS[name]), 3)
    torch.testing.assert_close(vector, expected, atol=1e-9, rtol=1e-8)
    for ours, theirs in zip(found, figures, strict=True):
        same = {k: v for k, v in theirs.items() if k not in ("seconds", "peak_memory_bytes")}
        assert {k: ours[k] for k in same} == pytest.approx(same, rel=1e-9)


def test_an_uplink_that_does_nothing_is_federated_averaging(dataset):
    expected, _ = run(start(dataset))
    nothing = Transform(name="nothing", apply=lambda rows, sending: rows)
    for trainer in (SerialTrainer, partial(VectorizedTrainer, num_slots=3)):
        simulation = start(dataset, trainer, transforms=[nothing])
        assert simulation.uplink is not None
        torch.testing.assert_close(run(simulation)[0], expected, atol=1e-9, rtol=1e-8)
    assert start(dataset).uplink is None, "a plain run has none"


def test_equal_weights_average_without_samples(dataset):
    """One round of two clients with 40 and 1 samples: the mean of what each does alone."""
    alone = []
    for client in (6, 3):
        before = start(dataset).server.vector
        one = start(dataset, sampler=lambda p, m, c=client: lambda seed, round: np.array([c]))
        alone.append(run(one, 1)[0] - before)
    both = start(dataset, sampler=lambda p, m: lambda seed, round: np.array([3, 6]), aggregator=mean(True))
    before = both.server.vector.clone()
    torch.testing.assert_close(run(both, 1)[0] - before, (alone[0] + alone[1]) / 2, atol=1e-9, rtol=1e-8)


def test_the_large_layers_are_whole_where_an_uplink_wants_them(dataset, monkeypatch):
    import fedsim.train.vectorized as vectorized_module

    monkeypatch.setattr(vectorized_module, "_MIN_FACTORED", 1)
    assert start(dataset, VectorizedTrainer).trainer.factorable
    assert not start(dataset, VectorizedTrainer, aggregator=median()).trainer.factorable


@pytest.mark.parametrize("name", WAYS)
def test_a_resumed_run_is_bitwise_the_unbroken_one(dataset, name, tmp_path):
    from fedsim.checkpoint import Checkpoint

    unbroken, figures = run(start(dataset, **WAYS[name]), 4)
    first, second = start(dataset, **WAYS[name]), start(dataset, **WAYS[name])
    for state in (*first.client_states.values(), *second.client_states.values()):
        state.locate(tmp_path / "client_state")
    run(first, 2)
    first.save(tmp_path, {})
    second.restore(Checkpoint.load(tmp_path, "cpu"), {})
    vector, found = run(second, 2)
    assert torch.equal(vector, unbroken)
    for key in ("epsilon", "clip_norm", "bytes_up"):
        assert found[-1].get(key) == figures[-1].get(key)


@pytest.mark.parametrize("transforms", [[top_k(0.1)], [adaptive_clip()]])
def test_a_round_that_fails_moves_nothing(dataset, transforms, monkeypatch):
    expected, _ = run(start(dataset, transforms=transforms), 3)
    simulation = start(dataset, transforms=transforms)
    run(simulation, 1)
    with monkeypatch.context() as patch:
        patch.setattr(simulation.server.algorithm.__class__, "server_step", property(lambda self: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            simulation.server.run_round()
    assert torch.equal(run(simulation, 2)[0], expected)


class Recorder:
    """A transform that keeps what passes."""

    def __init__(self):
        self.rows = {}

    def __call__(self, rows, sending):
        for client, row in zip(sending.clients, rows, strict=True):
            self.rows[sending.round, client] = row.clone()
        return rows


def test_the_aggregate_has_the_noise_that_was_promised(dataset):
    """z C / m with z = 2, C = 0.1, m = 8, on a mean with equal weights; 20 rounds of 36 * 200 + ... elements."""
    recorder = Recorder()
    keep = Transform(name="keep", apply=recorder, bound=lambda state: 0.1)
    simulation = start(dataset, transforms=[clip(0.1), keep, gaussian(2.0)])
    noise = []
    for t in range(1, 9):
        before = simulation.server.vector.clone()
        metrics = simulation.server.run_round()
        sent = torch.stack([row for (round, _), row in recorder.rows.items() if round == t])
        assert len(sent) == 8
        assert torch.linalg.vector_norm(sent, dim=1).max() <= 0.1 * (1 + 1e-12)
        noise.append(simulation.server.vector - before - sent.mean(0))
        assert 0 < metrics["clipped"] <= 8
    noise = torch.cat(noise)
    assert noise.std().item() == pytest.approx(2.0 * 0.1 / 8, rel=5 / (2 * len(noise)) ** 0.5)
    assert noise.mean().item() == pytest.approx(0.0, abs=5 * 0.025 / len(noise) ** 0.5)


def test_under_poisson_the_denominator_is_fixed_and_nobody_is_a_round(dataset):
    recorder = Recorder()
    keep = Transform(name="keep", apply=recorder, bound=lambda state: 0.1)
    simulation = start(dataset, transforms=[clip(0.1), keep, gaussian(1e-6)], sampler=poisson, clients=0.05)
    empty = 0
    for t in range(1, 31):
        before = simulation.server.vector.clone()
        metrics = simulation.server.run_round()
        rows = [row for (round, _), row in recorder.rows.items() if round == t]
        expected = sum(rows) / 0.5 if rows else torch.zeros_like(before)
        torch.testing.assert_close(simulation.server.vector - before, expected, atol=2e-6, rtol=1e-5)
        assert metrics["clients"] == len(rows)
        if not rows:
            empty += 1
            assert math.isnan(metrics["train_loss"])
            assert not torch.equal(simulation.server.vector, before), "noise hides that nobody came"
    assert 8 < empty < 28, "0.95^10 = 60% of the rounds"
    with pytest.raises(ValueError, match="no client of the cohort has a training sample"):
        run(start(dataset, sampler=poisson, clients=0.05), 30)


def test_under_poisson_the_server_sees_who_was_expected_and_not_who_came(dataset):
    """What moves with the number of those who came, or with their losses, would tell more than epsilon promises."""
    seen = []

    def server_step(vector, mean, state, around):
        seen.append((around.weight, around.share, around.train_loss))
        return state

    listening = Algorithm(name="listening", server_step=server_step)
    private = {"transforms": [clip(0.1), gaussian(1.0)], "sampler": poisson, "clients": 0.3}
    _, metrics = run(start(dataset, algorithm=listening, **private), 6)
    assert len({m["clients"] for m in metrics}) > 1
    assert seen == [(3.0, 0.3, None)] * 6
    for settings in (private, {"transforms": [local_gaussian()]}):
        with pytest.raises(ValueError, match=r"adaptive=true follows the clients' loss, which no noise hides"):
            run(start(dataset, algorithm=fedprox(adaptive=True), **settings), 1)


def test_nobody_is_a_round_with_devices_too(dataset):
    settings = {"sampler": poisson, "clients": 0.05, "devices": partial(drawn, latency=0.5)}
    simulation = start(dataset, transforms=[clip(0.1), gaussian(1.0)], **settings)
    _, metrics = run(simulation, 12)
    came = [m["clients"] > 0 for m in metrics]
    assert 0 < sum(came) < 12
    assert np.diff([0.0, *(m["virtual_seconds"] for m in metrics)]).tolist() == [float(some) for some in came]


def test_a_private_round_in_which_nobody_reports_is_not_tried_again(dataset):
    """If it were, a client that reports would decide whether the others are asked once more: with it the sum would have
    its update alone, and without it theirs."""
    settings = {"devices": partial(drawn, dropout=0.9, latency=0.5), "clients": 3}
    simulation = start(dataset, transforms=[clip(0.1), gaussian(1.0)], **settings)
    _, metrics = run(simulation, 12)
    assert 0 < sum(m["clients"] > 0 for m in metrics) < 12
    assert [m["started"] for m in metrics] == [3] * 12
    assert all(m["train_loss"] > 0 for m in metrics if m["clients"])
    _, repeated = run(start(dataset, **settings), 12)
    assert all(m["clients"] for m in repeated)


def test_epsilon_is_in_the_metrics_and_the_summary(dataset):
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting import rdp

    simulation = start(dataset, transforms=[clip(0.1), gaussian(1.0, delta=1e-3)])
    _, metrics = run(simulation, 3)
    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    accountant.compose(dp.SampledWithoutReplacementDpEvent(10, 8, dp.GaussianDpEvent(0.5)), 3)
    assert metrics[-1]["epsilon"] == pytest.approx(accountant.get_epsilon(1e-3))
    assert [m["epsilon"] for m in metrics] == sorted(m["epsilon"] for m in metrics)
    privacy = simulation.uplink.summary(3)["privacy"]
    assert privacy["epsilon"] == metrics[-1]["epsilon"]
    assert (privacy["sampling"], privacy["neighbours"]) == ("without_replacement", "a client replaced by another")
    assert privacy["delta"] == 1e-3
    assert start(dataset, transforms=[clip(0.1), gaussian(1.0)]).uplink.mechanism.delta == pytest.approx(10**-1.1)


def test_local_epsilon_counts_the_client_that_took_part_most(dataset):
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting import rdp

    cohorts = lambda population, count: lambda seed, round: np.array([0, 2] if round < 4 else [4, 5])  # noqa: E731
    simulation = start(dataset, transforms=[local_gaussian(0.1, 3.0, delta=1e-3)], sampler=cohorts)
    _, metrics = run(simulation, 6)
    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    accountant.compose(dp.GaussianDpEvent(1.5), 3)
    assert metrics[-1]["epsilon"] == pytest.approx(accountant.get_epsilon(1e-3))


def test_bytes_up_are_those_of_the_updates_that_came(dataset):
    size = start(dataset).model.layout.size
    plain = run(start(dataset), 1)[1][0]
    assert (plain["bytes_down"], plain["bytes_up"]) == (8 * size * 8, 8 * size * 8)
    simulation = start(dataset, transforms=[random_k(0.1), qsgd(4)])
    assert run(simulation, 1)[1][0]["bytes_up"] == 8 * (math.ceil(round(0.1 * size) * 4 / 8) + 8)
    assert simulation.uplink.summary(1)["bytes_per_update"] * 8 == run(simulation, 1)[1][0]["bytes_up"]


# a layer of 36 x 8 + 8 elements is sent, and the head of 8 x 4 + 4 stays; or the other way round
@pytest.mark.parametrize(
    ("algorithm", "transforms", "sent_bytes"),
    [
        (fedper, [sign(error_feedback=False)], math.ceil(296 / 8) + 8),
        (fedper, [clip(0.3), gaussian(0.2)], 296 * 8),
        (fedper, [random_k(0.5)], 148 * 8),
        (fedper, [low_rank(1)], (36 + 8 + 8) * 8),
        (lg_fedavg, [top_k(1.0), local_gaussian()], 36 * 8),
        (lg_fedavg, [low_rank(1)], (8 + 4 + 4) * 8),
    ],
)
def test_what_stays_with_a_client_is_neither_sent_nor_moved(dataset, algorithm, transforms, sent_bytes):
    vectors = []
    for trainer in (SerialTrainer, partial(VectorizedTrainer, num_slots=3)):
        simulation = start(dataset, trainer, algorithm=algorithm(), transforms=transforms)
        before, stays = simulation.server.vector.clone(), simulation.trainer.memory.personal
        vector, metrics = run(simulation, 3)
        assert torch.equal(vector[stays], before[stays])
        assert (vector[~stays] != before[~stays]).any()
        assert [m["bytes_up"] for m in metrics] == [8 * sent_bytes] * 3
        vectors.append(vector)
    torch.testing.assert_close(*vectors, atol=1e-9, rtol=1e-8)


def test_a_rule_sees_what_is_sent(dataset):
    """The median of each element of FedPer's shared layer, where clients keep the rest."""
    recorder = Recorder()
    keep = Transform(name="keep", apply=recorder)
    simulation = start(dataset, algorithm=fedper(), transforms=[keep], aggregator=median())
    before, stays = simulation.server.vector.clone(), simulation.trainer.memory.personal
    vector, _ = run(simulation, 1)
    rows = torch.stack(list(recorder.rows.values()))
    assert rows.shape == (8, 296)
    moved = np.median(rows.numpy(), axis=0)
    np.testing.assert_allclose((vector - before)[~stays].numpy(), moved, atol=1e-12)


def test_attackers_are_counted_and_defended_against(dataset):
    """Sign flips of 30 times the update by 2 of 10 clients: the mean is lost, the median is not."""
    attack = sign_flip(clients=[1, 5], scale=30.0)
    accuracy = {}
    for name, aggregator in (("mean", mean()), ("median", median()), ("bulyan", bulyan(1))):
        simulation = start(dataset, clients=10, model=logistic, aggregator=aggregator, attack=attack)
        _, metrics = run(simulation, 12)
        assert metrics[0]["attackers"] == 2
        accuracy[name] = simulation.evaluate()["test_accuracy"]
    assert accuracy["median"] > 0.8
    assert accuracy["mean"] < 0.5


def test_batch_norms_statistics_are_part_of_the_update(dataset):
    class Normed(nn.Module):
        def __init__(self, input_shape, num_classes):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, num_classes))

        def forward(self, x):
            return self.net(x)

    recorder = Recorder()
    local = LocalConfig(batch_size=None, learning_rate=0.1)  # BatchNorm refuses minibatches of one
    simulation = start(
        dataset,
        model=Normed,
        local=local,
        sampler=lambda p, m: lambda seed, round: np.array([1, 2]),
        transforms=[clip(0.1), Transform(name="keep", apply=recorder)],
    )
    run(simulation, 1)
    rows = torch.stack(list(recorder.rows.values()))
    assert rows.shape[1] == simulation.model.layout.size > simulation.model.num_parameters
    assert torch.linalg.vector_norm(rows, dim=1).max() <= 0.1 * (1 + 1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transforms": [gaussian()]}, "gaussian needs clip or adaptive_clip as the last change"),
        ({"transforms": [clip(), qsgd(), gaussian()]}, r"transforms=\[clip,qsgd,gaussian\]: gaussian needs clip"),
        ({"transforms": [clip(), gaussian(), gaussian()]}, "noise is added once"),
        ({"transforms": [clip(), gaussian()], "aggregator": median()}, "use aggregator=mean in the place of median"),
        ({"transforms": [clip(), gaussian()], "sampler": round_robin}, "sampler=uniform and sampler=poisson"),
        ({"transforms": [adaptive_clip(), gaussian(2.0)]}, "count_noise above 1"),
        ({"transforms": [adaptive_clip(count_noise=0.0), gaussian(0.1)]}, "count_noise above 0.05"),
        ({"aggregator": bulyan(2)}, "Bulyan|bulyan with num_attackers=2 needs at least 4 f"),
        ({"transforms": [top_k(), sign()]}, "sign cannot follow"),
        ({"transforms": [adaptive_clip(), local_gaussian()]}, "which local_gaussian does not hide: leave it out"),
        ({"aggregator": mean(equal_weights=True), "algorithm": agnostic_fedavg()}, "agnostic_fedavg weighs clients"),
        (
            {"algorithm": fednova(), "transforms": [clip()]},
            r"\(effective_steps\), which transforms=\[clip\] would change",
        ),
        (
            {"algorithm": qfedavg(), "transforms": [random_k()]},
            r"qfedavg sends numbers beside the update \(lipschitz\)",
        ),
        ({"algorithm": fedexp(), "transforms": [clip(), gaussian()]}, r"leave the transforms out"),
        ({"algorithm": fednova(), "transforms": [low_rank()]}, r"transforms=\[low_rank\] would change"),
        ({"algorithm": fednova(), "aggregator": krum()}, "mean in the place of aggregator=krum"),
        ({"algorithm": fednova(), "aggregator": multi_krum()}, "median, trimmed_mean or mean"),
        ({"algorithm": fedexp(), "aggregator": bulyan()}, "in the place of aggregator=bulyan"),
        ({"algorithm": qfedavg(), "aggregator": geometric_median()}, "in the place of aggregator=geometric_median"),
        ({"algorithm": fednova(), "aggregator": norm_bounding()}, "in the place of aggregator=norm_bounding"),
        ({"algorithm": local_only(), "transforms": [clip()]}, "local_only sends nothing that could be changed"),
        ({"algorithm": local_only(), "aggregator": median()}, "leave transforms, attack and aggregator out"),
        ({"transforms": [clip(), gaussian()], "algorithm": agnostic_fedavg()}, "where privacy has all of them count"),
        (
            {"transforms": [clip(), gaussian()], "devices": drawn, "over_selection": 1.2},
            r"no epsilon is known: set server\.over_selection=1",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_at_once(dataset, settings, message):
    with pytest.raises(ValueError, match=message):
        start(dataset, **settings)


def test_the_numbers_beside_the_update_pass_a_rule_of_each_element(dataset):
    """Three clients of equal steps under FedNova: each sends its mean step and their number, so the median moves the
    model as FedAvg's does."""
    cohort = {"sampler": lambda p, m: lambda seed, round: np.array([2, 8, 9]), "aggregator": median()}
    local = LocalConfig(batch_size=None, num_steps=4, learning_rate=0.1)
    expected, _ = run(start(dataset, local=local, **cohort), 3)
    found, _ = run(start(dataset, local=local, algorithm=fednova(), **cohort), 3)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-8)


def test_what_an_algorithm_averages_beside_the_update_goes_the_same_way(dataset):
    """A hooked algorithm that keeps, sends and averages a vector: the message is the update with the vector behind it,
    clipped and bounded as one, in both trainers."""
    means = []

    def finish(clients, update):
        clients.vectors["seen"].add_(update[:, : clients.model.shape[1]])
        return {"seen": clients.vectors["seen"].clone()}

    def server_step(vector, mean, state, around):
        means.append(around.sums["seen"].clone())
        vector.add_(mean.to(vector.dtype))
        return state

    def algorithm():
        return Algorithm(
            name="seen",
            finish=finish,
            keeps={"seen": Kept(size="parameters")},
            sums={"seen": "parameters"},
            server_step=server_step,
        )

    vectors = []
    for trainer in (SerialTrainer, partial(VectorizedTrainer, num_slots=3)):
        recorder = Recorder()
        keep = Transform(name="keep", apply=recorder)
        simulation = start(
            dataset, trainer, algorithm=algorithm(), transforms=[clip(0.2), top_k(0.5), keep], aggregator=median()
        )
        vector, metrics = run(simulation, 3)
        vectors.append((vector, torch.stack(means)))
        means.clear()
        size = simulation.model.layout.size
        rows = torch.stack([row for (round, _), row in recorder.rows.items() if round == 3])
        assert rows.shape == (8, 2 * size), "no running statistics here, so P = P + Q"
        assert metrics[0]["bytes_up"] == 8 * simulation.uplink.bytes_per_update
        assert simulation.uplink.bytes_per_update > size * 8, "half of 2 P values of 8 bytes"
        expected = rows.numpy()
        np.testing.assert_allclose(vectors[-1][1][-1].numpy(), np.median(expected[:, size:], axis=0))
    for ours, theirs in zip(*vectors, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-8)


def test_an_algorithm_of_two_messages_a_round_is_refused(dataset):
    two = Algorithm(name="two", prelude=Algorithm(name="first"))
    with pytest.raises(ValueError, match="algorithm=two does not send one message a round"):
        start(dataset, algorithm=two, aggregator=median())
