"""What adapters show: names and labels that Triton gets, values in the order they came."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from serving.backend import outcomes, scheduler_load
from serving.backend.metrics import REQUESTS, RESOLVER, SCHEDULER, SECONDS, Metrics, names
from serving.backend.scheduler_load import SchedulerLoad, make_cache
from serving.backend.settings import ServingConfig
from serving.batch import BatchReport
from serving.cache import LocalCache, RedisCache
from serving.engines.timed import TimedExecutor
from serving.load.arrivals import LoadView, Waiting
from serving.load.controller import LoadController
from serving.load.cost_model import BatchCost
from serving.load.ladder import Ladder
from serving.load.outlook import OutlookFile
from serving.load.policy import Decision, FixedPolicy
from serving.model.refusal import Refusal
from serving.search.widths import WidthPlan
from tests.fake_triton import FakeTriton

PLAN = WidthPlan((4, 8, 16), 6)
CONFIG = ServingConfig(
    slo_ms=80,
    scheduler_instances=2,
    max_batch_size=8,
    max_queue=50,
    cache_ttl_s=5,
    cache_mb=1,
    cache_url="redis://127.0.0.1:1",
)


@pytest.fixture
def triton(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler_load, "outlook_path", lambda: tmp_path / "outlook")
    return FakeTriton()


def shown(triton, name: str, **labels: str) -> list[float]:
    return triton.MetricFamily.shown[name].values[tuple(sorted({"process": "p_1", **labels}.items()))]


def test_every_family_is_well_formed():
    for name, family in (SCHEDULER | RESOLVER | REQUESTS).items():
        assert name.startswith("gr4ad_")
        assert (family.kind == "counter") == name.endswith("_total")
        assert bool(family.buckets) == (family.kind == "histogram")
        assert list(family.buckets) == sorted(set(family.buckets))
        assert "instance" not in family.labels  # Prometheus renames a label that is its own
    assert "gr4ad_level_seconds_bucket" in names()
    assert "gr4ad_level_seconds" not in names()


def test_values_arrive_with_their_labels_and_nonsense_does_not(triton):
    metrics = Metrics(triton, SCHEDULER, labels={"process": "p_1"})
    for value in (3.0, math.nan, math.inf):
        metrics.set("gr4ad_queue_depth", value)
    assert shown(triton, "gr4ad_queue_depth") == [3.0, math.inf]
    for value in (2, 0, -1, math.nan, math.inf, 1):
        metrics.add("gr4ad_cache_lookups_total", value, result="hit")
    assert shown(triton, "gr4ad_cache_lookups_total", result="hit") == [2.0, 3.0]
    metrics.observe("gr4ad_level_seconds", np.float32(0.5), level="2")
    metrics.observe("gr4ad_level_seconds", math.nan, level="2")
    assert shown(triton, "gr4ad_level_seconds", level="2") == [0.5]
    with pytest.raises(KeyError, match=r"gr4ad_queue_depth: expected labels \(\), got \('level',\)"):
        metrics.set("gr4ad_queue_depth", 1.0, level="2")


def test_calls_of_the_engine_are_timed_and_passed_on():
    class Engine:
        def prefix(self, slots, profile):
            return slots, {"carry": profile}

        def tail(self, level, carry, *, parents, token, allowed):
            return level, carry

    told = []
    timed = TimedExecutor(Engine(), last_level=4, report=lambda name, seconds: told.append((name, seconds)))
    assert timed.prefix(1, 2) == (1, {"carry": 2})
    assert [timed.tail(t, {}, parents=[], token=None, allowed=None)[0] for t in (2, 3, 4)] == [2, 3, 4]
    assert [name for name, _ in told] == ["prefix", "2", "3", "value"]
    assert all(seconds >= 0 for _, seconds in told)


def test_a_batch_is_shown_and_the_entry_told(triton, tmp_path):
    ladder = Ladder.around(PLAN)
    load = SchedulerLoad(triton, CONFIG, ladder=ladder, instance="p_1")
    entry = OutlookFile(tmp_path / "outlook")
    assert isinstance(load.policy, LoadController)
    assert (load.policy.settings.slo_s, load.policy.settings.instances) == (0.08, 2)
    assert (load.policy.settings.max_batch, load.policy.settings.max_queue) == (8, 50)
    rejected = ((0, "overloaded: late"), (1, "deadline leaves 1 ms"))
    decision = Decision(
        plan=ladder.plans[0],
        above_base=-4,
        admit=2,
        rejected=rejected,
        outlook=None,
        reason="load",
    )
    load.observe(1.0, BatchCost(2, ladder.rows[0], 0.25))
    now = time.monotonic()
    assert load.decide(now, LoadView([Waiting(now)])).outlook == entry.read(now)[0]
    assert entry.read(now)[0].search_s > 0
    load.show(
        BatchReport(decision=decision, queue_depth=12, hits=3, misses=4, searched=2, degraded=2, seconds=0.25)
    )
    assert entry.read(time.monotonic())[0].search_s == 0
    load.show(BatchReport(decision=decision, searched=1, seconds=0.5))
    load.show(BatchReport(hits=1))
    assert shown(triton, "gr4ad_rungs_above_base") == [-4.0, -4.0]
    assert shown(triton, "gr4ad_beam_rows")[-1] == ladder.rows[0]
    assert shown(triton, "gr4ad_beam_rows_base") == [4 + 8 + 6]
    assert shown(triton, "gr4ad_max_queue") == [50.0]
    assert shown(triton, "gr4ad_plan_changes_total") == [1.0]
    assert shown(triton, "gr4ad_queue_depth") == [12.0]
    assert shown(triton, "gr4ad_rejected_total", reason="overloaded")[-1] == 2.0
    assert shown(triton, "gr4ad_rejected_total", reason="deadline")[-1] == 2.0
    assert shown(triton, "gr4ad_searches_total", result="searched") == [2.0, 3.0]
    assert shown(triton, "gr4ad_searches_total", result="cached") == [3.0, 4.0]
    assert shown(triton, "gr4ad_degraded_total") == [2.0]
    assert shown(triton, "gr4ad_batch_seconds") == [0.25, 0.5]
    load.close()
    entry.close()
    assert not triton.MetricFamily.shown  # what is left to the end of the interpreter segfaults there


def test_beams_of_every_level_are_told_when_they_change(triton):
    ladder = Ladder.around(PLAN)
    load = SchedulerLoad(triton, CONFIG, ladder=ladder, instance="p_1")
    assert shown(triton, "gr4ad_slo_seconds") == [0.08]
    for rung in (0, 0, ladder.base):
        load.show(BatchReport(decision=decided(ladder.plans[rung])))
    narrow = ladder.plans[0]
    for level, beams in enumerate(PLAN.sid):
        told = shown(triton, "gr4ad_level_beams", level=str(level + 1))
        assert told == [beams, narrow.sid[level], beams]
    assert shown(triton, "gr4ad_level_beams", level="value") == [PLAN.value, narrow.value, PLAN.value]
    load.close()


def decided(plan: WidthPlan) -> Decision:
    return Decision(plan=plan, above_base=0, admit=0, rejected=(), outlook=None, reason="load")


def test_answers_are_counted_by_how_long_they_took(triton, monkeypatch):
    """Cumulative, as a histogram, and in few messages: those of a moment are told together."""
    now = [100.0]
    monkeypatch.setattr(scheduler_load.time, "monotonic", lambda: now[0])
    load = SchedulerLoad(triton, CONFIG, ladder=Ladder.around(PLAN), instance="p_1")
    name, taken = "gr4ad_answered_within_total", [0.004, 0.02, 0.0201, 0.7, 9.0]
    assert shown(triton, name, le="+Inf") == []
    load.show(BatchReport(), answered=[now[0] - s for s in taken[:1]])
    for seconds in taken[1:]:
        load.show(BatchReport(), answered=[None, now[0] - seconds, math.nan])
    assert shown(triton, name, le="+Inf") == [1]
    now[0] += 0.3
    load.show(BatchReport(), answered=[])
    for bound in SECONDS:
        expected = sum(s <= bound for s in taken)
        assert [0, *shown(triton, name, le=f"{bound:g}")][-1] == expected, bound
    assert shown(triton, name, le="+Inf") == [1, 5]
    load.show(BatchReport(), answered=[now[0]])
    values = triton.MetricFamily.shown[name].values[(("le", "0.001"), ("process", "p_1"))]
    assert values == []
    load.close()
    assert values == [1], "what was not told yet is told in the end"


def test_the_version_in_use_and_why_it_is_not_that_of_current(triton):
    fixed = CONFIG.model_copy(update={"load_control": "fixed"})
    load = SchedulerLoad(triton, fixed, ladder=Ladder((PLAN,), 0), instance="p_1")
    for version, reason in ((3, None), (3, "graphs"), (3, "files"), (4, None)):
        refused = None if reason is None else Refusal(reason, "version 4 ..")
        load.show(BatchReport(version=version, refused=refused))
    assert shown(triton, "gr4ad_model_version") == [3.0, 3.0, 3.0, 4.0]
    assert shown(triton, "gr4ad_version_refused", reason="graphs") == [1.0, 0.0]
    assert shown(triton, "gr4ad_version_refused", reason="files") == [1.0, 0.0]
    load.close()


def test_the_canary_and_why_it_is_refused(triton):
    """Each once a change; what reads it tells a version that is refused now from one that was."""
    fixed = CONFIG.model_copy(update={"load_control": "fixed"})
    load = SchedulerLoad(triton, fixed, ladder=Ladder((PLAN,), 0), instance="p_1")
    refused = Refusal("answers", "a search failed")
    for report in (
        BatchReport(),
        BatchReport(canary=2, canary_answered=3),
        BatchReport(canary=2),
        BatchReport(canary_failed=1, canary_refused=(2, refused)),
        BatchReport(canary_refused=(2, refused)),
        BatchReport(canary=3, canary_answered=2),
        BatchReport(canary_refused=(3, refused)),
        BatchReport(),
    ):
        load.show(report)
    assert shown(triton, "gr4ad_canary_version") == [2.0, 0.0, 3.0, 0.0]
    assert shown(triton, "gr4ad_canary_refused", reason="answers") == [2.0, 0.0, 3.0, 0.0]
    counts = {
        result: shown(triton, "gr4ad_canary_requests_total", result=result)
        for result in ("answered", "failed")
    }
    assert counts == {"answered": [3.0, 5.0], "failed": [1.0]}
    load.close()


def test_fixed_load_control_watches_no_queue_and_says_what_it_has_taken(triton, tmp_path):
    """The entry bounds the queue by it."""
    fixed = CONFIG.model_copy(update={"load_control": "fixed"})
    load, entry = (
        SchedulerLoad(triton, fixed, ladder=Ladder((PLAN,), 0), instance="p_1"),
        OutlookFile(tmp_path / "outlook"),
    )
    assert isinstance(load.policy, FixedPolicy)
    assert load.queue() is None
    now = time.monotonic()
    load.took([now - 0.2, None, now - 0.1, now + 60])
    (seen,) = entry.read(now)
    assert (seen.taken, seen.overloaded, seen.search_s > 0) == (now - 0.1, False, True)
    load.decide(now, LoadView([Waiting(now)]))
    load.show(BatchReport(hits=4))
    (seen,) = entry.read(time.monotonic())
    assert (seen.taken, seen.search_s) == (now - 0.1, 0)
    assert seen.began >= now
    load.took([None])
    assert entry.read(time.monotonic())[0].taken == now - 0.1, "what it knows is not forgotten"
    load.close()
    entry.close()


def test_the_cache_is_the_configured_one(monkeypatch):
    assert isinstance(make_cache(CONFIG), LocalCache)
    assert make_cache(CONFIG.model_copy(update={"cache": "off"})) is None
    found = make_cache(CONFIG.model_copy(update={"cache": "redis"}))
    assert isinstance(found, RedisCache)
    assert found._client.connection_pool.connection_kwargs["port"] == 1
    monkeypatch.setenv("GR4AD_CACHE_URL", "redis://127.0.0.1:2/3")  # a password is kept out of the repository
    found = make_cache(CONFIG.model_copy(update={"cache": "redis"}))
    assert found._client.connection_pool.connection_kwargs["port"] == 2


def test_outcomes_are_told_in_few_messages_and_none_is_lost(triton, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(outcomes.time, "monotonic", lambda: now[0])
    counts = outcomes.Outcomes(triton, model="p", last=True)
    family = triton.MetricFamily.shown["gr4ad_requests_total"]

    def told(outcome):
        return family.values[(("outcome", outcome), ("process", "p"))]

    counts.count(["answered", "failed", "answered"])
    for _ in range(50):
        now[0] += 0.001
        counts.count(["answered"])
    assert told("answered") == [2.0]
    now[0] += outcomes.TELL_EVERY_S
    counts.count(["cancelled"])
    assert told("answered") == [2.0, 52.0]
    assert told("failed") == told("cancelled") == [1.0]
    counts.count(["answered"])
    counts.close()
    assert told("answered") == [2.0, 52.0, 53.0]
