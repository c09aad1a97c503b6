"""The loop's parts without its processes: drift, pages, pairs and their interval, freshness."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from benchmarks.closed_loop.drift import AD, CATEGORY, Drift, Walk
from benchmarks.closed_loop.drift_of_logs import tables, variance
from benchmarks.closed_loop.freshness import Publishes, delays
from benchmarks.closed_loop.page import ATTENTION, CLICKS, ROUNDS, SLOTS, Page, page
from benchmarks.closed_loop.play import Asked
from benchmarks.closed_loop.report import Result, together
from benchmarks.closed_loop.revenue import BLOCKS, last_third, ratio, series
from benchmarks.closed_loop.settings import Settings
from benchmarks.closed_loop.world import NEWEST, World
from benchmarks.simulation.auction import NOBODY, hold
from benchmarks.simulation.bids import PriceShape, multiples
from benchmarks.simulation.draws import PURCHASES, uniform
from benchmarks.simulation.history import Past
from tests.once import made_once
from tests.tiny_log import open_run, write_run
from training.reward.reward_model import Scores

SHAPE = PriceShape.load()


# Drift.


def test_a_walk_has_the_variance_of_its_formula_and_leaves_the_mean_rate_as_it_is():
    walk = Walk(variance=0.6, days=20.0)
    paths = walk.paths(40_000, days=60, scale=1.0, random=np.random.default_rng(0)).astype(np.float64)
    assert (paths[0] == 0).all()
    for day in (1, 10, 60):
        expected = 0.6 * (1 - np.exp(-day / 20))
        assert paths[day].var() == pytest.approx(expected, rel=0.03), day
        assert np.exp(paths[day]).mean() == pytest.approx(1.0, abs=0.02), day
    # Steps of a day follow each other: two days apart differ as their distance says, wherever they are.
    assert (paths[50] - paths[40]).var() == pytest.approx(0.6 * (1 - np.exp(-10 / 20)), rel=0.03)


def test_twice_the_drift_has_four_times_the_variance_and_none_has_none():
    few = {"days": 30, "random": np.random.default_rng(1)}
    twice = AD.paths(20_000, scale=2.0, **few).astype(np.float64)
    assert twice[30].var() == pytest.approx(4 * AD.variance * (1 - np.exp(-30 / AD.days)), rel=0.04)
    assert (AD.paths(100, scale=0.0, **few) == 0).all()


def test_the_shift_of_an_ad_is_the_sum_of_its_walks():
    of_ad = np.array([0, 1, 1, 2])
    drift = Drift.draw(of_ad, segments=3, days=10, scale=1.0, seed=4)
    rows = np.array([2, 0])
    expected = [
        drift.category[7, 1] + drift.segment[7, 2, 1] + drift.ad[7, 2],
        drift.category[7, 0] + drift.segment[7, 2, 0] + drift.ad[7, 0],
    ]
    assert drift.at(7.9, segment=2, rows=rows) == pytest.approx(expected, abs=1e-6)
    assert (drift.at(0.5, segment=1, rows=rows) == 0).all()
    assert np.array_equal(drift.at(500.0, segment=0, rows=rows), drift.at(10.0, segment=0, rows=rows))
    again = Drift.draw(of_ad, segments=3, days=10, scale=1.0, seed=4)
    assert np.array_equal(again.ad, drift.ad)
    assert not np.array_equal(Drift.draw(of_ad, segments=3, days=10, scale=1.0, seed=5).ad, drift.ad)


def test_the_measure_of_logs_finds_a_drift_and_none_in_noise():
    """Poisson counts of series that walk, and of series that stand still."""
    random = np.random.default_rng(2)
    walk = CATEGORY.paths(300, days=26 * 7, scale=1.0, random=random)[::7]  # [weeks, s]
    for log_rate, expected in (
        (walk, CATEGORY.variance * (1 - np.exp(-91 / CATEGORY.days))),
        (0 * walk, 0.0),
    ):
        counts = random.poisson(200 * np.exp(log_rate)).T.astype(np.float64)
        totals = np.broadcast_to(counts.sum(axis=0), counts.shape)
        assert variance(counts, totals, lag=13, least=30) == pytest.approx(expected, abs=0.012)


def test_counts_of_a_log_are_those_of_loops():
    events = pl.DataFrame(
        {
            "ad_id": [1, 1, 2, 3, 1, 3, 3],
            "category": ["a", "a", "a", "b", "a", "b", "b"],
            "week": [0, 1, 1, 4, 5, 9, 9],
        }
    )
    counts, totals = tables(events, ["ad_id", "category"], ["category"], weeks=4)
    by_ad = {tuple(row): tuple(total) for row, total in zip(counts.tolist(), totals.tolist(), strict=True)}
    assert by_ad == {(2, 1, 0): (3, 1, 0), (1, 0, 0): (3, 1, 0), (0, 1, 2): (0, 1, 2)}


# Pages.


def answer(*, seed: int, count: int = 20) -> tuple[np.ndarray, np.ndarray, Scores]:
    random = np.random.default_rng(seed)
    ads = random.choice(10_000, count, replace=False)
    true = Scores(random.uniform(0.05, 0.9, count), random.uniform(1, 10, count))
    return ads, random.uniform(0.01, 0.5, count), true


def of_loops(ads, own, true, *, request, seed, by_own):
    """Expected revenue and value, and winners and prices of the first round."""
    expected = worth = 0.0
    rounds = []
    for turn in range(ROUNDS):
        bids = multiples(ads, request * ROUNDS + turn, shape=SHAPE, seed=seed) * true.value
        reserves, estimates = SHAPE.floor_share * true.value, own if by_own else true.p
        winners, price = hold(bids[None], estimates[None], reserves=reserves[None], slots=SLOTS)
        for slot, winner in enumerate(winners[0].tolist()):
            if winner != NOBODY:
                chance = true.p[winner] / np.log2(slot + 2)
                expected += chance * price[0, slot] / ROUNDS
                worth += chance * true.value[winner] / ROUNDS
        rounds.append((winners[0], price[0]))
    return expected, worth, *rounds[0]


def test_a_page_is_that_of_loops():
    ads, own, true = answer(seed=0)
    made = page(ads, own, true=true, request=9, shape=SHAPE, seed=3)
    expected, worth, winners, price = of_loops(ads, own, true, request=9, seed=3, by_own=False)
    assert made.expected == pytest.approx(expected)
    assert made.worth == pytest.approx(worth)
    assert made.alone == pytest.approx(of_loops(ads, own, true, request=9, seed=3, by_own=True)[0])
    assert made.alone != pytest.approx(expected, rel=0.01)
    assert np.array_equal(made.ads, ads[winners])
    draws = [uniform(ads[w], 9, stream=PURCHASES, seed=3) for w in winners.tolist()]
    bought = [d < true.p[w] * a for d, w, a in zip(draws, winners.tolist(), ATTENTION, strict=True)]
    assert made.bought.tolist() == bought
    assert made.paid == pytest.approx(price[bought].sum())
    assert made.clicked.tolist() == [
        d < min(CLICKS * true.p[w] * a, a) for d, w, a in zip(draws, winners.tolist(), ATTENTION, strict=True)
    ]


def test_the_expected_revenue_is_the_mean_of_what_is_paid():
    """Over many requests with the same candidates."""
    ads, estimates, true = answer(seed=1)
    pages = [page(ads, estimates, true=true, request=r, shape=SHAPE, seed=0) for r in range(3_000)]
    paid = np.array([p.paid for p in pages])
    expected = np.mean([p.expected for p in pages])
    assert paid.mean() == pytest.approx(expected, abs=4 * paid.std() / np.sqrt(len(paid)))


def test_who_clicks_includes_who_buys_and_an_empty_answer_earns_nothing():
    for seed in range(20):
        ads, estimates, true = answer(seed=seed)
        made = page(ads, estimates, true=true, request=seed, shape=SHAPE, seed=0)
        assert made.clicked[made.bought].all()
    none = np.zeros(0)
    empty = page(none.astype(np.int64), none, true=Scores(none, none), request=0, shape=SHAPE, seed=0)
    assert (empty.expected, empty.worth, empty.alone, empty.paid, len(empty.ads)) == (0.0, 0.0, 0.0, 0.0, 0)


def test_both_models_meet_the_same_bid_and_the_same_user():
    """An ad in the same slot at other estimates of others: who buys it does not change."""
    ads, estimates, true = answer(seed=2)
    one = page(ads, estimates, true=true, request=4, shape=SHAPE, seed=0)
    shuffled = np.random.default_rng(0).permutation(len(ads))
    true_too = Scores(true.p[shuffled], true.value[shuffled])
    other = page(ads[shuffled], estimates[shuffled], true=true_too, request=4, shape=SHAPE, seed=0)
    assert np.array_equal(one.ads, other.ads)
    assert np.array_equal(one.bought, other.bought)
    assert one.expected == pytest.approx(other.expected)


# Pairs.


def asked(number: int, *, user: int, online: float, frozen: float, version: int = 1) -> Asked:
    none = np.zeros(0)
    blank = Page(0.0, 0.0, 0.0, 0.0, none.astype(np.int64), none.astype(bool), none.astype(bool), none)
    pages = [replace(blank, expected=x, worth=2 * x, paid=0.0) for x in (online, frozen)]
    return Asked(number, float(number), float(number), user, version, *pages, seconds=0.1)


def test_the_last_third_is_that_of_the_numbers():
    every = [asked(n, user=0, online=1, frozen=1) for n in range(30) if n != 25]
    assert [one.number for one in last_third(every)] == [20, 21, 22, 23, 24, 26, 27, 28, 29]
    assert last_third([]) == []


def test_a_ratio_is_paired_and_its_interval_is_over_users():
    random = np.random.default_rng(0)
    taste = random.exponential(1.0, 40)  # users differ much more than models do
    rows = [
        asked(n, user=n % 40, frozen=float(taste[n % 40]), online=float(taste[n % 40] * 1.1))
        for n in range(400)
    ]
    found = ratio(rows, "revenue")
    assert found == {"ratio": 1.1, "low": 1.1, "high": 1.1}
    # One user for whom the model is much better: drawn anew he may be missing, however many requests he has.
    lucky = [replace(one, online=replace(one.online, expected=9.0)) if one.user == 3 else one for one in rows]
    found = ratio(lucky, "revenue")
    assert found["low"] < 1.11 < found["ratio"] < found["high"]
    assert ratio(rows, "paid") == {"ratio": None, "low": None, "high": None}
    assert ratio([], "revenue") == {"ratio": None, "low": None, "high": None}


def test_a_series_has_every_request_once():
    rows = [asked(n, user=n % 7, online=2.0, frozen=1.0, version=1 + n // 30) for n in range(100)]
    found = series(rows)
    assert len(found) == BLOCKS
    assert sum(row["requests"] for row in found) == 100
    assert {row["ratio"] for row in found} == {2.0}
    assert found[0]["online"] == 2000.0
    assert found[-1]["version"] == 4
    assert [row["requests"] for row in series(rows[:2])] == [1, 1]
    assert series([]) == []


def test_users_of_two_seeds_are_different_users():
    """Ahead in one seed and behind in the other: as the same user they would even out."""
    seeds = [
        Result([asked(n, user=0, online=o, frozen=1.0) for n in range(9)], {"failed_requests": 1})
        for o in (1.5, 0.5)
    ]
    found = together(seeds)
    assert (found["seeds"], found["failed_requests"]) == (2, 2)
    assert found["revenue_ratio"] == 1.0
    assert (found["revenue_ratio_low"], found["revenue_ratio_high"]) == (0.5, 1.5)


# Freshness.


def test_a_delay_ends_with_the_first_answer_by_weights_that_learnt_it():
    accepted = {1: 10.0, 4: 12.0, 5: 13.0, 9: 20.0}
    offsets = {2: 4, 3: 6, 4: 12}
    # Version 3 never answered: what it learnt first is answered by version 4.
    found = delays(accepted, offsets=offsets, first_answer={1: 0.0, 2: 15.0, 4: 30.0})
    assert found.tolist() == [5.0, 3.0, 17.0, 10.0]
    assert delays(accepted, offsets={2: 4}, first_answer={2: 15.0}).tolist() == [5.0, 3.0]
    assert delays(accepted, offsets={2: 4}, first_answer={}).tolist() == []
    assert delays({}, offsets=offsets, first_answer={2: 15.0}).tolist() == []


def test_what_a_publisher_said():
    log = (
        "reads things\nversion 2 serves: run/online/checkpoints/step-000010, 1.4 s\n"
        "run/online/checkpoints/step-000020 is not published: new weights: expected recall@50\n"
        "version 3 serves: run/online/checkpoints/step-000030, 0.9 s\n"
    )
    found = Publishes.read(log)
    assert found.steps == {2: 10, 3: 30}
    assert found.seconds == [1.4, 0.9]
    assert found.refused == ["new weights: expected recall@50"]


# The world.


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A run of 24 users, and the folder of its response model."""

    def make(folder):
        write_run(folder, users=24)

    folder = made_once(tmp_path_factory, "closed_loop", make)
    preset, *_ = open_run((folder / "preset.yaml", folder / "run"))
    cache = tmp_path_factory.mktemp("closed_loop") / "cache"

    def world(**changes):
        few = {"users": 10, "new_ads": 5, "days": 20, "drift": 1.0, "seed": 0}
        return World.open(folder / "run", preset, cache=cache, **(few | changes))

    return world


def test_the_world_is_the_same_for_a_seed_and_has_its_new_ads(opened):
    one, same, other = opened(), opened(), opened(seed=1)
    assert [u.user_id for u in one.users] == [u.user_id for u in same.users]
    assert [u.user_id for u in one.users] != [u.user_id for u in other.users]
    assert len(one.users) == 10
    assert np.array_equal(one.drift.ad, same.drift.ad)
    ids = [ad.ad_id for ad in one.new_ads]
    assert ids == list(range(60, 65))
    assert one.rows(np.array(ids)).tolist() == ids  # behind the run's
    parents = np.array([ad.like for ad in one.new_ads])
    assert np.array_equal(one.drift.of_ad[60:], one.drift.of_ad[parents])
    assert np.array_equal(one.response.candidate[60:], one.response.candidate[parents])
    with pytest.raises(ValueError, match=r"expected ads of the run or new ones, got \[65\]"):
        one.rows(np.array([3, 65]))


def test_what_users_do_is_the_response_model_with_the_drift(opened):
    world, still = opened(), opened(drift=0.0)
    user, ads, day = world.users[2], np.array([1, 7, 62]), 12
    now = world.start + day * 86_400 + 5
    past = Past.of_purchases(user.bought[-NEWEST:], user.times[-NEWEST:], now=now)
    shift = world.drift.at(float(day), segment=user.segment, rows=ads)
    assert (shift != 0).all()
    expected = world.response.score_after(past, ads, shift=shift)
    found = world.respond(user, ads, now=now)
    assert found.p == pytest.approx(expected.p)
    assert np.array_equal(found.value, world.response.value[ads].astype(np.float64))
    base = still.respond(still.users[2], ads, now=now).p
    rate, base_rate = -np.log1p(-found.p), -np.log1p(-base)
    assert np.log(rate / base_rate) == pytest.approx(shift, abs=1e-5)


def test_who_has_bought_an_ad_of_late_buys_it_as_one_of_his_own(opened):
    world = opened(drift=0.0)
    user = world.users[0]
    new = int(np.setdiff1d(np.arange(60), user.bought)[0])
    now = world.start + 86_400
    before = world.respond(user, np.array([new]), now=now).p[0]
    for _ in range(4):
        world.buy(user, np.array([new]), now=now)
    assert user.bought[-4:].tolist() == [new] * 4
    assert world.respond(user, np.array([new]), now=now + 3600).p[0] > before


def test_time_and_counts_follow_from_minutes_and_rate(tmp_path):
    settings = Settings(config="c", run=tmp_path, work=tmp_path, cache=tmp_path, minutes=10, qps=6)
    assert settings.requests == 3600
    assert settings.requests * settings.spacing_s / 86_400 == pytest.approx(91)
    assert settings.days == 92
    assert settings.new_ads == 60
