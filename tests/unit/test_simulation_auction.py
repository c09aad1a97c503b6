"""The auction against loops, bids that know no taste, and draws that do not depend on who shows an ad."""

import numpy as np
import pytest
from scipy.stats import kstest, spearmanr

from benchmarks.simulation.auction import NOBODY, Rules, hold, revenue
from benchmarks.simulation.bids import PriceShape, multiples
from benchmarks.simulation.draws import PURCHASES, judged, uniform
from benchmarks.simulation.fit_bids import distance, fit
from training.data.folds import user_fold
from training.reward.reward_model import Scores

SHAPE = PriceShape.load()
RULES = Rules(attention=(1.0, 0.7, 0.5), reserve=0.3, rounds=3, seed=5)


def held_by_loops(bids, estimates, reserves, slots):
    """One auction, as it would be told: who is left and scores highest takes the next slot."""
    left = [i for i in range(len(bids)) if bids[i] >= reserves[i] and bids[i] * estimates[i] > 0]
    winners, prices = [], []
    for _ in range(slots):
        if not left:
            winners.append(NOBODY)
            prices.append(0.0)
            continue
        best = max(left, key=lambda i: (bids[i] * estimates[i], -i))
        left.remove(best)
        beaten = max((bids[i] * estimates[i] for i in left), default=0.0)
        winners.append(best)
        prices.append(max(beaten / estimates[best], reserves[best]))
    return winners, prices


@pytest.mark.parametrize("candidates", [1, 2, 3, 4, 12])
def test_the_auction_is_that_of_loops(candidates):
    random = np.random.default_rng(candidates)
    shape = (200, candidates)
    # Few different values, so that scores are equal now and then; estimates of 0 take no part.
    bids, estimates, reserves = (random.integers(0, 5, shape) / 4.0 for _ in range(3))
    winners, prices = hold(bids, estimates, reserves=reserves, slots=3)
    for i in range(len(bids)):
        expected = held_by_loops(bids[i], estimates[i], reserves[i], 3)
        assert winners[i].tolist() == expected[0]
        assert prices[i] == pytest.approx(expected[1], abs=1e-12)


def test_nobody_pays_more_than_the_bid_nor_less_than_the_reserve():
    random = np.random.default_rng(0)
    bids, estimates, reserves = random.random((3, 500, 8))
    winners, prices = hold(bids, estimates, reserves=reserves, slots=3)
    shown = winners != NOBODY
    at = np.maximum(winners, 0)
    assert shown.any()
    assert not shown.all()
    assert (prices <= np.take_along_axis(bids, at, 1) + 1e-12)[shown].all()
    assert (prices >= np.take_along_axis(reserves, at, 1) - 1e-12)[shown].all()


def test_revenue_is_that_of_loops():
    random = np.random.default_rng(1)
    ads = np.stack([random.permutation(30)[:6] for _ in range(40)])
    ads[3, 2:], ads[4] = -1, -1
    estimates, p, value = random.random((3, 40, 6))
    requests = random.integers(0, 10**6, 40)
    found = revenue(ads, estimates, true=Scores(p, value), requests=requests, rules=RULES, shape=SHAPE)
    for i in range(40):
        there = np.flatnonzero(ads[i] >= 0)
        total = 0.0
        for turn in range(RULES.rounds):
            bids = [multiples(ads[i, j], turn, shape=SHAPE, seed=5) * value[i, j] for j in there]
            reserves = 0.3 * value[i, there]
            winners, prices = held_by_loops(bids, estimates[i, there], reserves, 3)
            for slot, (winner, price) in enumerate(zip(winners, prices, strict=True)):
                if winner == NOBODY:
                    continue
                j = there[winner]
                draw = uniform(requests[i], ads[i, j], turn, stream=PURCHASES, seed=5)
                total += price * bool(draw < p[i, j] * RULES.attention[slot])
        assert found[i] == pytest.approx(total / RULES.rounds)
    assert found[4] == 0


def test_draws_are_common_to_all_arms():
    """The same ad in the same request and slot is bought or not, whatever is shown with it."""
    random = np.random.default_rng(2)
    requests = np.arange(300)
    one, other = np.tile([7, 1, 2], (300, 1)), np.tile([9, 7, 11], (300, 1))
    p = np.where(one == 7, 0.5, 0.0), np.where(other == 7, 0.5, 0.0)
    # Ad 7 alone is ever bought, and wins the first slot of both arms; what it pays is the same reserve.
    first = [np.where(ads == 7, 1.0, 0.0) for ads in (one, other)]
    rules = Rules(attention=(1.0,), reserve=0.01, rounds=4, seed=1)
    value = np.ones((300, 3))
    earned = [
        revenue(ads, e, true=Scores(true, value), requests=requests, rules=rules, shape=SHAPE)
        for ads, e, true in zip((one, other), first, p, strict=True)
    ]
    assert earned[0].any()
    np.testing.assert_array_equal(*earned)
    shuffled = random.permutation(300)
    again = revenue(
        one[shuffled],
        first[0][shuffled],
        true=Scores(p[0][shuffled], value),
        requests=requests[shuffled],
        rules=rules,
        shape=SHAPE,
    )
    np.testing.assert_array_equal(again, earned[0][shuffled])


def test_draws_are_uniform_and_independent_across_what_they_are_for():
    ads, requests = np.meshgrid(np.arange(100), np.arange(100))
    draws = uniform(requests, ads, 0, stream=PURCHASES, seed=0)
    assert kstest(draws.ravel(), "uniform").pvalue > 0.01
    for other in (
        uniform(requests, ads, 1, stream=PURCHASES, seed=0),
        uniform(requests, ads, 0, stream=PURCHASES, seed=1),
        uniform(ads, requests, 0, stream=PURCHASES, seed=0),
        uniform(requests + 1, ads, 0, stream=PURCHASES, seed=0),
    ):
        assert abs(spearmanr(draws.ravel(), other.ravel()).statistic) < 0.04  # 4 standard errors


def test_bids_know_no_taste():
    """Neither how often an ad is bought nor what it is worth tells its bid, in any round."""
    ads = np.arange(20_000)
    random = np.random.default_rng(3)
    popularity, value = random.zipf(1.5, 20_000), random.exponential(1, 20_000)
    for turn in range(3):
        bids = multiples(ads, turn, shape=SHAPE, seed=0)
        assert bids.mean() == pytest.approx(1, abs=0.03)
        for taste in (popularity, value, ads):
            assert abs(spearmanr(bids, taste).statistic) < 4 / np.sqrt(20_000)
    rounds = [multiples(ads, turn, shape=SHAPE, seed=0) for turn in (0, 1)]
    assert abs(spearmanr(*rounds).statistic) < 4 / np.sqrt(20_000)
    # Who is asked together with whom changes nothing.
    alone = [float(multiples(ad, 0, shape=SHAPE, seed=0)) for ad in ads[:50]]
    np.testing.assert_array_equal(alone, rounds[0][:50])


def test_the_fit_finds_the_mixture_that_prices_were_drawn_from():
    random = np.random.default_rng(4)
    prices = np.exp(
        np.where(random.random(20_000) < 0.4, random.normal(2, 0.3, 20_000), random.normal(5, 0.5, 20_000))
    )
    found = fit(prices, prices / 4, components=2)
    assert found["weights"] == pytest.approx([0.4, 0.6], abs=0.02)
    assert found["means"] == pytest.approx([2, 5], abs=0.02)
    assert found["deviations"] == pytest.approx([0.3, 0.5], abs=0.02)
    assert found["floor_share"] == pytest.approx(0.25)
    assert distance(found, prices) < 0.02 < distance(found, prices * 2)


def test_shipped_prices_have_the_shape_they_were_fitted_to():
    """Quartiles of the log as counted by script: 28, 70, 151 fen; mean 93."""
    drawn = multiples(np.arange(100_000), 0, shape=SHAPE, seed=1) * SHAPE.mean
    assert SHAPE.mean == pytest.approx(93, rel=0.03)
    assert np.percentile(drawn, [25, 50, 75]) == pytest.approx([28, 70, 151], rel=0.1)
    assert SHAPE.floor_share == pytest.approx(24 / 93, rel=0.05)


def test_users_are_split_by_id_alone():
    users = np.arange(10_000)
    chosen = judged(users, folds=4, seed=0)
    assert chosen.mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(judged(users[::-1], folds=4, seed=0), chosen[::-1])
    assert (judged(users, folds=4, seed=1) != chosen).any()
    # The reward model's folds of the same seed tell nothing about who is judged.
    assert chosen[user_fold(users, folds=2, seed=0) == 0].mean() == pytest.approx(0.25, abs=0.03)
