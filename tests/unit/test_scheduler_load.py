"""The scheduler under load control and with a result cache; index, bundle and search are real."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from serving.batch import SearchAnswer
from serving.cache import LocalCache
from serving.index.reader import IndexReader
from serving.load.policy import Decision, OverloadError
from serving.load.queue_depth import QueueReading
from serving.model.active_model import ActiveModel
from serving.scheduler import Scheduler
from serving.search.widths import WidthPlan
from tests.recording import FakeGraphs
from tests.tiny import SPEC
from tests.unit.test_bundle import edit
from tests.unit.test_scheduler import PLAN, Recorder, deployment, requests

__all__ = ["deployment"]

NARROW, WIDE = WidthPlan((2, 4, 8), 5), WidthPlan((6, 12, 24), 6)


class Policy:
    """Decides as told and writes down what it was asked and told."""

    def __init__(self) -> None:
        self.plan, self.rejected = PLAN, ()
        self.views, self.costs = [], []

    def decide(self, now, load):
        self.views.append((now, load))
        return Decision(
            plan=self.plan,
            above_base=(self.plan != PLAN) * (1 if PLAN.narrower(self.plan) else -1),
            admit=0,
            rejected=self.rejected,
            outlook=None,
            reason="load",
        )

    def observe(self, now, batch):
        self.costs.append(batch)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        self.now += 0.5
        return self.now


def make(deployment, *, cache=None, queue=lambda: None, searches=None):
    bundles, index, tokenizer_id = deployment
    reader = IndexReader(index, tokenizer_id=tokenizer_id, max_wait_s=0.0)
    policy, seen = Policy(), [] if searches is None else searches
    scheduler = Scheduler(
        reader,
        ActiveModel(bundles, reader=reader, graphs=FakeGraphs(), features=SPEC),
        plan=PLAN,
        max_plan=WIDE,
        make_executor=lambda m: Recorder(m.version, seen),
        policy=policy,
        cache=cache,
        queue=queue,
        clock=Clock(),
    )
    return scheduler, policy


def local() -> LocalCache:
    return LocalCache(ttl_s=60.0, max_bytes=10**7)


def pause(deployment, *ads) -> None:
    """In a process of its own: LMDB opens a store once a process, and this one reads it."""
    code = (
        "import sys\n"
        "from indexer.events.event import PauseEvent as Pause\n"
        "from indexer.store.incoming import Incoming\n"
        "from indexer.store.index_store import IndexStore\n"
        "with IndexStore(sys.argv[1]) as store:\n"
        "    store.apply([Incoming(Pause(ad_id=int(a), version=1), b'{}', 't') for a in sys.argv[2:]])"
    )
    subprocess.run([sys.executable, "-c", code, str(deployment[1]), *map(str, ads)], check=True)


def changed(request, **changes):
    return dataclasses.replace(request, **changes)


def test_the_policy_sees_the_queue_and_the_requests_and_learns_what_searches_cost(deployment):
    scheduler, policy = make(deployment, queue=lambda: QueueReading(7, 1000, 1.0))
    batch = [changed(r, arrived=90.0 + i, deadline=95.0) for i, r in enumerate(requests(3))]
    scheduler.search(batch)
    (_, view) = policy.views[0]
    assert [tuple(w) for w in view.requests] == [(90.0, 95.0), (91.0, 95.0), (92.0, 95.0)]
    assert (view.reading.pending, view.reading.total) == (7, 1000)
    assert policy.costs == []  # the first search of an executor is a cold one
    answers, report = scheduler.search([*batch, changed(batch[0], width_cap=2)])
    assert [c.requests for c in policy.costs] == [3, 1]
    first, second, _, values = answers[-1].beam_widths.tolist()  # more than the cap: five ads were asked for
    assert [c.rows for c in policy.costs] == [4 + 8 + 6, first + second + values]
    assert all(c.seconds == 0.5 for c in policy.costs)
    assert report.queue_depth == 7
    assert (report.searched, report.degraded) == (4, 1)


def test_the_plan_of_the_policy_counts_and_says_when_it_is_less(deployment):
    scheduler, policy = make(deployment)
    policy.plan = NARROW
    narrow = scheduler.search(requests(2)).answers
    assert [a.beam_widths.tolist() for a in narrow] == [[2, 4, 8, 5]] * 2
    assert all(a.degraded for a in narrow)
    wanted = scheduler.search([changed(requests(1)[0], plan=WIDE)]).answers[0]
    assert wanted.beam_widths[:2].tolist() == [2, 4]  # nobody gets more than the rung now
    policy.plan = WIDE
    assert not scheduler.search(requests(1)).answers[0].degraded
    assert scheduler.search([changed(requests(1)[0], plan=NARROW)]).answers[0].beam_widths[:2].tolist() == [
        2,
        4,
    ]


def test_rejected_requests_are_told_and_the_others_searched(deployment):
    searches = []
    scheduler, policy = make(deployment, searches=searches)
    policy.rejected = ((1, "overloaded: too late"),)
    answers = scheduler.search(requests(3)).answers
    assert [isinstance(a, SearchAnswer) for a in answers] == [True, False, True]
    assert isinstance(answers[1], OverloadError)
    assert str(answers[1]) == "overloaded: too late"
    assert searches == [(1, 2)]


def test_a_request_that_comes_again_is_not_searched(deployment):
    searches = []
    queue = QueueReading(0, 5, 1.0)
    scheduler, policy = make(deployment, cache=local(), searches=searches, queue=lambda: queue)
    first, _ = scheduler.search(requests(2))
    again, report = scheduler.search([*requests(2), *requests(3)[2:]])
    assert searches == [(1, 2), (1, 1)]
    for a, b in zip(first, again, strict=False):
        for field in dataclasses.fields(SearchAnswer):
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
    assert (report.hits, report.misses, report.searched) == (2, 1, 1)
    assert len(policy.views[-1][1].requests) == 1
    assert policy.views[-1][1].reading.total is None  # arrivals are no longer what must be searched
    scheduler.search(requests(2))
    assert len(policy.views) == 2  # nothing to decide


@pytest.mark.parametrize(
    "change",
    [
        {"num_ads": 6},
        {"exclude": np.array([3])},
        {"use_cache": False},
        {"plan": PLAN},
        {"width_cap": 100},
        {"profile": np.array([1, 1], np.int32)},
    ],
)
def test_what_asks_for_something_else_is_searched(deployment, change):
    searches = []
    scheduler, _ = make(deployment, cache=local(), searches=searches)
    request = requests(1)[0]
    scheduler.search([request])
    scheduler.search([changed(request, **change)])
    assert len(searches) == 2


def test_entries_serve_while_they_are_as_wide_as_a_search_would_be(deployment):
    searches = []
    scheduler, policy = make(deployment, cache=local(), searches=searches)
    policy.plan = NARROW
    scheduler.search(requests(1))
    scheduler.search(requests(1))
    assert len(searches) == 1  # narrow is what a search would be
    policy.plan = PLAN
    scheduler.search(requests(2)[1:])  # the next decision
    found = scheduler.search(requests(1)).answers[0]
    assert len(searches) == 3
    assert not found.degraded
    policy.plan = WIDE
    scheduler.search(requests(3)[2:])
    scheduler.search(requests(1))
    assert len(searches) == 4  # the configured widths are good enough while there is room for more
    policy.plan = NARROW
    scheduler.search(requests(4)[3:])
    assert not scheduler.search(requests(1)).answers[0].degraded  # wider than a search would be now


def test_what_is_paused_leaves_cached_beams_and_too_few_are_searched_again(deployment):
    searches = []
    scheduler, _ = make(deployment, cache=local(), searches=searches)
    request = requests(1, num_ads=4)[0]
    first = scheduler.search([request]).answers[0]
    snapshot = scheduler._reader.snapshot
    _, ads = snapshot.ads_of_sids(first.sids[np.isfinite(first.expected_value)])
    pause(deployment, ads[0])
    assert len(ads) > 4
    kept = scheduler.search([request]).answers[0]
    assert len(searches) == 1
    np.testing.assert_array_equal(kept.sids, first.sids)  # beams stay, whoever resolves them sees the pause
    left = scheduler._reader.snapshot
    assert ads[0] not in left.ads_of_leaves(left.leaves_of(kept.sids))[1]
    assert kept.index_version == first.index_version < left.version  # nothing newer is in them
    pause(deployment, *ads[1 : len(ads) - 3])
    again = scheduler.search([request]).answers[0]
    assert len(searches) == 2
    now = scheduler._reader.snapshot
    assert len(now.ads_of_leaves(now.leaves_of(again.sids))[1]) >= 4


def test_ads_of_beams_without_a_value_do_not_make_a_cached_answer(deployment):
    """Ranked by value they would come last, however good they are: a search gives others a value."""
    searches = []
    scheduler, _ = make(deployment, cache=local(), searches=searches)
    request = requests(1, num_ads=4)[0]
    first = scheduler.search([request]).answers[0]
    snapshot = scheduler._reader.snapshot
    with_value = np.isfinite(first.expected_value)
    ads = [snapshot.ads_of_sids(first.sids[rows])[1] for rows in (with_value, ~with_value)]
    assert with_value.sum() == 6
    assert len(ads[1]) > 4
    pause(deployment, *ads[0][: len(ads[0]) - 3])
    again = scheduler.search([request]).answers[0]
    assert len(searches) == 2
    left = scheduler._reader.snapshot
    assert len(left.ads_of_sids(again.sids[np.isfinite(again.expected_value)])[1]) >= 4
    assert scheduler.search([request]).report.hits == 1


def test_answers_do_not_depend_on_what_is_searched_with_them_and_neither_do_cached_ones(deployment):
    scheduler, _ = make(deployment, cache=local())
    small, large = requests(1, num_ads=3)[0], requests(2, num_ads=40)[1]
    together = scheduler.search([small, large]).answers[0]
    cached = scheduler.search([small]).answers[0]
    alone = scheduler.search([changed(small, use_cache=False)]).answers[0]
    count = len(alone.sids)
    for answer in (together, cached):
        np.testing.assert_array_equal(answer.sids[:count], alone.sids)
        np.testing.assert_allclose(answer.expected_value[:count], alone.expected_value, rtol=1e-5)
        assert (answer.sids[count:] == -1).all()
        assert np.isneginf(answer.scores[count:]).all()
        assert np.isnan(answer.expected_value[count:]).all()


def test_expected_values_are_corrected_as_the_version_says(deployment):
    scheduler, _ = make(deployment)
    plain = scheduler.search(requests(2)).answers
    scheduler._reader.close()
    points = [[1.0, 0.5], [4.0, 3.0]]
    edit(deployment[0] / "1", value_correction=points)
    corrected = make(deployment)[0].search(requests(2)).answers
    for before, after in zip(plain, corrected, strict=True):
        there = np.isfinite(before.expected_value)
        values = before.expected_value[there]
        np.testing.assert_allclose(
            after.expected_value[there], values + np.interp(values, [1, 4], [0.5, 3.0]), rtol=1e-5
        )
        assert np.isnan(after.expected_value[~there]).all()
        np.testing.assert_array_equal(after.sids, before.sids)
