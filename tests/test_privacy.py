"""Epsilon is dp-accounting's own, under the neighbours that fit the sampling, and agrees with figures in print."""

import itertools
import sys

import pytest

from fedsim.privacy import Accountant, Mechanism

dp = pytest.importorskip("dp_accounting")
rdp = pytest.importorskip("dp_accounting.rdp")


def mechanism(scheme, z=1.1, num_clients=60_000, cohort_size=256.0, delta=1e-5):
    return Mechanism(scheme=scheme, noise_multiplier=z, num_clients=num_clients, cohort_size=cohort_size, delta=delta)


def direct(relation, event, count, delta=1e-5):
    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation[relation])
    accountant.compose(event, count)
    return accountant.get_epsilon(delta)


def test_poisson_is_the_librarys_and_the_known_value():
    """TensorFlow Privacy's tutorial: 60,000 samples, batches of 256, z = 1.1, 60 epochs (14,062 steps), delta = 1e-5:
    epsilon 2.92 by the conversion of 2019 (it printed 3.01 then); the tighter one of today gives 2.6 to 2.95."""
    found = Accountant(mechanism("poisson")).epsilon(14_062)
    event = dp.PoissonSampledDpEvent(256 / 60_000, dp.GaussianDpEvent(1.1))
    assert found == pytest.approx(direct("ADD_OR_REMOVE_ONE", event, 14_062), rel=1e-12)
    assert 2.5 < found < 3.02


def test_without_replacement_a_replaced_client_moves_the_sum_by_two_norms():
    found = Accountant(mechanism("without_replacement", num_clients=1000, cohort_size=10)).epsilon(100)
    event = dp.SampledWithoutReplacementDpEvent(1000, 10, dp.GaussianDpEvent(1.1 / 2))
    assert found == pytest.approx(direct("REPLACE_ONE", event, 100), rel=1e-12)
    poisson = Accountant(mechanism("poisson", num_clients=1000, cohort_size=10)).epsilon(100)
    assert found > poisson, "the same noise protects a replaced client less than an added one"


def test_everybody_every_round_is_the_plain_gaussian_mechanism():
    """RDP of order a: a / (2 s^2) a round, so 10 rounds with s = 5 cost what one costs with s = 5 / sqrt(10)."""
    everybody = mechanism("without_replacement", z=10.0, num_clients=50, cohort_size=50)
    one = direct("REPLACE_ONE", dp.GaussianDpEvent(5.0 / 10**0.5), 1)
    assert Accountant(everybody).epsilon(10) == pytest.approx(one)
    poisson = mechanism("poisson", z=5.0, num_clients=50, cohort_size=50.0)
    assert Accountant(poisson).epsilon(10) == pytest.approx(one)


def test_local_privacy_is_not_amplified():
    found = Accountant(mechanism("local", z=4.0)).epsilon(3)
    assert found == pytest.approx(direct("REPLACE_ONE", dp.GaussianDpEvent(2.0), 3), rel=1e-12)


def test_epsilon_is_0_before_the_first_round_and_grows():
    accountant = Accountant(mechanism("poisson"))
    found = [accountant.epsilon(t) for t in (0, 1, 2, 5, 9)]
    assert found[0] == 0.0
    assert all(a < b for a, b in itertools.pairwise(found))


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ValueError, match=r"pip install '.\[privacy\]'"):
        Accountant(mechanism("poisson", z=1.234))
