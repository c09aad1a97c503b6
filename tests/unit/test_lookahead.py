"""The predicted tail against formulas and against long simulations."""

import heapq
import math
from statistics import NormalDist

import numpy as np
import pytest

from serving.load.lookahead import tail_seconds


def lognormal(spread, *, count=400):
    """A sample of factors of mean 1 and that deviation, evenly spread."""
    variance = math.log1p(spread**2)
    normal = NormalDist(-variance / 2, math.sqrt(variance) or 1e-9)
    return [math.exp(normal.inv_cdf((i + 0.5) / count)) for i in range(count)]


def long_run(*, load, instances, max_batch, spread, requests=100_000):
    """99th percentile of the time in the system, by a plain loop; a search of k takes .4 + .6 k."""
    rng = np.random.default_rng(11)
    rate = load * instances
    arrivals = np.cumsum(rng.exponential(1 / rate, requests))
    variance = math.log1p(spread**2)
    free, times, at = [0.0] * instances, [], 0
    while at < requests:
        start = max(heapq.heappop(free), arrivals[at])
        taken = int(np.clip(np.searchsorted(arrivals, start, side="right") - at, 1, max_batch))
        seconds = (0.4 + 0.6 * taken) * rng.lognormal(-variance / 2, math.sqrt(variance))
        times.append(start + seconds - arrivals[at : at + taken])
        heapq.heappush(free, start + seconds)
        at += taken
    return rate, np.quantile(np.concatenate(times), 0.99)


@pytest.mark.parametrize("instances", [1, 2, 4])
@pytest.mark.parametrize("max_batch", [1, 16])
@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_the_tail_of_a_long_run(instances, max_batch, load):
    rate, expected = long_run(load=load, instances=instances, max_batch=max_batch, spread=0.3)
    found = tail_seconds(
        lambda k: 0.4 + 0.6 * k, rate=rate, instances=instances, max_batch=max_batch, factors=lognormal(0.3)
    )
    assert found == pytest.approx(expected, rel=0.3)


def test_one_server_with_random_times_as_m_g_1_says_for_m_m_1():
    """M/M/1: the time in the system is exponential with mean s / (1 - load). Lognormal times of spread 1 have
    the same first two moments and a somewhat heavier tail."""
    found = tail_seconds(lambda k: 1.0, rate=0.3, instances=1, max_batch=1, factors=lognormal(1.0))
    assert found == pytest.approx(math.log(100) / 0.7, rel=0.2)


def test_a_request_that_never_waits_takes_its_search():
    found = tail_seconds(lambda k: 0.01, rate=0.001, instances=1, max_batch=1, factors=lognormal(0.0))
    assert found == pytest.approx(0.01)
    noisy = tail_seconds(lambda k: 0.01, rate=0.001, instances=1, max_batch=1, factors=lognormal(0.2))
    assert noisy == pytest.approx(
        0.01
        * np.quantile(
            np.random.default_rng(0).lognormal(-math.log1p(0.04) / 2, math.sqrt(math.log1p(0.04)), 200_000),
            0.99,
        ),
        rel=0.02,
    )


def test_more_of_anything_takes_longer():
    def tail(**changes):
        return tail_seconds(
            changes.pop("seconds", lambda k: 0.005 + 0.005 * k),
            **{"rate": 60.0, "instances": 1, "max_batch": 8, "factors": lognormal(0.1), **changes},
        )

    assert tail(rate=30.0) < tail() < tail(rate=90.0)
    assert tail() < tail(factors=lognormal(0.4))
    assert tail() < tail(burst=0.5) < tail(burst=1.0)
    assert tail(instances=2) < tail()
    assert tail() < tail(seconds=lambda k: 0.006 + 0.006 * k)


def test_equal_inputs_give_equal_tails():
    first, again = (
        tail_seconds(lambda k: 0.01, rate=50.0, instances=1, max_batch=4, factors=lognormal(0.3), burst=0.4)
        for _ in "ab"
    )
    assert first == again
