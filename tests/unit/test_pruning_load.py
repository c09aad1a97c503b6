"""When searches are pruned, the rows that load control plans with, and what the scheduler makes of both."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from serving.backend.adapter import ranked_among
from serving.backend.settings import ServingConfig
from serving.cache import LocalCache
from serving.cached_answers import CachedAnswers
from serving.load.arrivals import LoadView, Waiting
from serving.load.controller import LoadController
from serving.load.cost_model import BatchCost
from serving.load.ladder import Ladder, plan_rows
from serving.load.pruning import Asked, CallCost, Pruning
from serving.load.settings import ControlSettings
from serving.search import beam_search as module
from serving.search.widths import WidthPlan
from tests.fake_triton import Request
from tests.unit.test_scheduler import deployment, make, requests

__all__ = ["deployment"]  # a fixture

PLAN = WidthPlan((128, 256, 512), 64)
WIDE = WidthPlan((256, 512, 1024), 64)


def timed(pruning, *, call, row, calls=200):
    random = np.random.default_rng(0)
    for rows in random.integers(8, 1024, calls).tolist():
        pruning.calls.observe(rows, (call + row * rows) * random.uniform(0.9, 1.1))


def test_an_answer_is_made_of_what_is_asked_for_and_what_is_ranked_anew():
    assert PLAN.pool(10, ranked_among=0) == 10
    assert PLAN.pool(10, ranked_among=40) == 40
    assert PLAN.pool(10, ranked_among=sys.maxsize) == 64, "beams that have a value"
    assert PLAN.pool(100, ranked_among=sys.maxsize) == 100
    assert WidthPlan((4, 8, 16), 64).pool(10, ranked_among=sys.maxsize) == 16, "there are no more"


def test_what_a_call_and_a_row_cost_is_learnt():
    cost = CallCost()
    assert cost.coefficients == (0.0, 0.0)
    random = np.random.default_rng(1)
    for rows in random.integers(10, 2000, 400).tolist():
        cost.observe(rows, (6e-4 + 2e-5 * rows) * random.uniform(0.8, 1.2))
    assert cost.known
    assert cost.coefficients == pytest.approx((6e-4, 2e-5), rel=0.25)


def test_calls_of_one_size_tell_no_row_from_a_call():
    cost = CallCost()
    for _ in range(50):
        cost.observe(64, 1e-3)
    call, row = cost.coefficients
    assert call + 64 * row == pytest.approx(1e-3)
    assert min(call, row) >= 0


def test_short_answers_are_pruned_and_long_ones_not():
    pruning = Pruning(levels=3)
    assert pruning.pays(PLAN, Asked(10), requests=1), "before anything is known"
    assert not pruning.pays(PLAN, Asked(512), requests=1)
    timed(pruning, call=6e-4, row=2e-5)
    assert pruning.pays(PLAN, Asked(10), requests=1)
    assert not pruning.pays(PLAN, Asked(512), requests=8)


def test_where_calls_are_dear_only_batches_are_pruned():
    pruning = Pruning(levels=3)
    timed(pruning, call=5e-3, row=2e-5)
    assert not pruning.pays(PLAN, Asked(10), requests=1)
    assert pruning.pays(PLAN, Asked(10), requests=8)


def test_what_was_seen_counts_and_what_does_not_pay_is_tried_again_now_and_then():
    pruning = Pruning(levels=3)
    timed(pruning, call=6e-4, row=2e-5)
    for _ in range(50):
        pruning.observe(PLAN, [Asked(10), Asked(10)], rows=470)  # a model that is not sure of anything
    assert pruning.needed(PLAN, Asked(10)) == pytest.approx(470)
    assert pruning.needed(PLAN, Asked(40)) < 400, "another pool"
    tried = sum(pruning.pays(PLAN, Asked(10), requests=4) for _ in range(2560))
    assert tried == 10


def test_a_wider_plan_is_taken_to_need_what_the_next_one_did():
    pruning = Pruning(levels=3)
    pruning.observe(PLAN, [Asked(10)], rows=120)
    assert pruning.needed(WIDE, Asked(10)) == 120
    assert pruning.needed(WidthPlan((8, 16, 32), 8), Asked(10)) == 34, "no more than there are: 8 + 16 + pool"
    pruning.observe(WIDE, [Asked(10)], rows=150)
    assert pruning.needed(WIDE, Asked(10)) == 150
    assert pruning.needed(PLAN, Asked(10)) == 120


def test_rows_of_a_load_are_those_of_its_requests():
    pruning = Pruning(levels=3)
    timed(pruning, call=6e-4, row=2e-5)
    assert pruning.rows(PLAN) == plan_rows(PLAN)
    pruning.observe(PLAN, [Asked(10)], rows=120)
    for num_ads in (10, 10, 10, 512):
        pruning.came(Asked(num_ads))
    assert pruning.rows(PLAN) == pytest.approx((3 * 120 + 128 + 256 + 512) / 4)
    for _ in range(256):
        pruning.came(Asked(10))
    assert pruning.rows(PLAN) == pytest.approx(120), "those before are forgotten"


def test_an_idle_server_searches_wider_where_answers_are_short():
    """The same machine, load and SLO; only the rows of its requests differ."""
    ladder = Ladder.around(PLAN, up=4.0)

    def rung(rows):
        control = LoadController(ladder, settings=ControlSettings(slo_s=0.06), rows=rows)
        now, random = 0.0, np.random.default_rng(0)
        for _ in range(300):
            now += 0.05
            decision = control.decide(now, LoadView([Waiting(now, None)], None))
            seconds = (1e-3 + 2e-3 + 1.5e-5 * rows(decision.plan)) * random.uniform(0.95, 1.05)
            control.observe(now + seconds, BatchCost(1, rows(decision.plan), seconds))
        return decision.plan

    assert plan_rows(rung(lambda plan: min(plan_rows(plan), 140))) >= 2 * plan_rows(PLAN)
    assert rung(lambda plan: 3 * plan_rows(plan)).narrower(ladder.plans[-1])


@pytest.fixture
def pruning(monkeypatch):
    monkeypatch.setattr(module, "narrow_widths", lambda widths, *, pool: (2, 3, pool))
    return Pruning(levels=3)


def always(plan, asked, *, requests):
    return True


def test_the_scheduler_answers_the_same_pruned(deployment, pruning, monkeypatch):
    scheduler, asked = make(deployment), requests(4, num_ads=5)
    monkeypatch.setattr(pruning, "pays", always)
    plain = scheduler.search(asked).answers
    scheduler._pruning = pruning
    for got, wanted in zip(scheduler.search(asked).answers, plain, strict=True):
        np.testing.assert_array_equal(got.sids[:5], wanted.sids[:5])
        np.testing.assert_allclose(got.scores[:5], wanted.scores[:5], atol=1e-5)
        np.testing.assert_allclose(got.expected_value[:5], wanted.expected_value[:5], rtol=1e-4)
        assert got.beam_widths.tolist() == [4, 8, 16, 6]
        assert np.isnan(got.expected_value[5:]).all()


def test_what_does_not_pay_is_searched_apart_and_load_control_learns_rows_that_ran(
    deployment, pruning, monkeypatch
):
    scheduler, seen = make(deployment), []
    scheduler._pruning = pruning
    monkeypatch.setattr(pruning, "pays", lambda plan, asked, *, requests: asked.num_ads <= 2)
    monkeypatch.setattr(scheduler._policy, "observe", lambda now, batch: seen.append(batch))
    asked = [dataclasses.replace(r, num_ads=n) for r, n in zip(requests(3), (2, 9, 2), strict=True)]
    scheduler.search(asked)  # the first search of an executor is not learnt from
    scheduler.search(asked)
    by_size = {batch.requests: batch.rows for batch in seen[-2:]}
    assert by_size[1] == 4 + 8 + 9, "not pruned: the widths, and a value for each ad"
    assert by_size[2] == pruning.needed(WidthPlan((4, 8, 16), 6), Asked(2)) < 4 + 8 + 6


def test_a_pruned_answer_is_no_entry_for_another_order(deployment, pruning, monkeypatch):
    scheduler = make(deployment)
    scheduler._pruning = pruning
    scheduler._cached = CachedAnswers(LocalCache(ttl_s=60.0, max_bytes=1 << 20), plan=scheduler._plan)
    monkeypatch.setattr(pruning, "pays", always)
    [by_p] = requests(1, num_ads=3)
    by_value = dataclasses.replace(by_p, ranked_among=sys.maxsize)
    for asked, hits, valued in ((by_p, 0, 3), (by_p, 1, 3), (by_value, 0, 6), (by_p, 1, 6), (by_value, 1, 6)):
        [answer], report = scheduler.search([asked])
        assert report.hits == hits
        assert np.isfinite(answer.expected_value).sum() == valued


@pytest.mark.parametrize(
    ("parameters", "settings", "expected"),
    [
        ({}, {}, (0, False)),
        ({"rank_by": "value"}, {}, (sys.maxsize, True)),
        ({}, {"rank_by": "value"}, (sys.maxsize, True)),
        ({"rerank": "reward"}, {"rerank_pool": 40}, (40, False)),
        ({"rerank": "reward", "rank_by": "value"}, {}, (sys.maxsize, False)),
        ({"rerank": "off"}, {"rerank": "reward", "rerank_pool": 40}, (0, False)),
    ],
)
def test_the_scheduler_knows_what_the_resolver_orders(parameters, settings, expected):
    config = SimpleNamespace(serving=ServingConfig(**settings), ranker="reward")
    assert ranked_among(Request({}, json.dumps(parameters)), config) == expected


def test_answers_by_value_are_learnt_apart():
    pruning = Pruning(levels=3)
    by_value = Asked(10, sys.maxsize, True)
    plan = WidthPlan((128, 256, 512), 512)
    pruning.observe(plan, [by_value], rows=450)
    assert pruning.needed(plan, by_value) == 450
    assert pruning.needed(plan, Asked(512)) == 896
