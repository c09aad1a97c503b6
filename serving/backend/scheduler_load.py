"""Load control of one scheduler process, as configured, and what it shows of itself."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from typing import Any

from serving.backend.answer_times import AnswerTimes
from serving.backend.entry import outlook_path
from serving.backend.metrics import SCHEDULER, Metrics
from serving.backend.settings import ServingConfig
from serving.batch import BatchReport
from serving.cache import BeamCache, LocalCache, RedisCache
from serving.load.arrivals import LoadView
from serving.load.controller import LoadController
from serving.load.cost_model import BatchCost
from serving.load.ladder import Ladder, plan_rows
from serving.load.outlook import Outlook, OutlookFile
from serving.load.policy import Decision, FixedPolicy, Policy
from serving.load.pruning import Pruning
from serving.load.queue_depth import QueueDepth, QueueReading
from serving.model.refusal import Reason, Refusal
from serving.search.widths import WidthPlan

logger = logging.getLogger(__name__)

_BUSY_S = 1e-6  # a search of unknown length

CACHE_URL = "GR4AD_CACHE_URL"
METRICS_URL = os.environ.get("GR4AD_METRICS_URL", "http://127.0.0.1:8002/metrics")
"""Metrics page of this server; the launcher sets it."""


class SchedulerLoad:
    """Policy and queue for `serving.scheduler.Scheduler`; tells the entry, and metrics, of its batches."""

    def __init__(
        self,
        triton: Any,
        config: ServingConfig,
        *,
        ladder: Ladder,
        instance: str,
        pruning: Pruning | None = None,
    ) -> None:
        """Of one process.

        Args:
            triton: the module `triton_python_backend_utils`.
            config: the preset's section.
            ladder: plans that may be taken.
            instance: name of the process among those of the model.
            pruning: what knows the rows of a request; None where searches are not pruned.
        """
        self._metrics = Metrics(triton, SCHEDULER, labels={"process": instance})
        self.policy: Policy = FixedPolicy(ladder.plans[ladder.base])
        self._depth: QueueDepth | None = None
        self._outlooks = OutlookFile(outlook_path())
        self._slot = int(instance.rpartition("_")[2])  # <model>_<group>_<number>
        self._outlook = _nothing_known(config)  # the one that the entry sees
        self._plan = ladder.plans[ladder.base]
        self._refused: Reason | None = None
        self._canary = 0
        self._canary_refused: tuple[int, Refusal] | None = None
        if config.control is not None:
            rows = plan_rows if pruning is None else pruning.rows
            self.policy = LoadController(ladder, settings=config.control, rows=rows)
            self._depth = QueueDepth(
                METRICS_URL, entry="request_features", outside=("request_features", "ad_resolver")
            )
        self._answer_times = AnswerTimes(self._metrics)
        self._shown: WidthPlan | None = None
        self._metrics.set("gr4ad_max_queue", config.max_queue)
        self._metrics.set("gr4ad_slo_seconds", config.slo_ms / 1e3)
        self._metrics.set("gr4ad_beam_rows_base", plan_rows(self._plan))
        self._show_plan(self._plan)

    def took(self, arrived: Iterable[float | None]) -> None:
        """A batch of requests that came in then wait no more, whether they must be searched or not."""
        now, busy = time.monotonic(), max(self._outlook.search_s, _BUSY_S)
        newest = max((at for at in arrived if at is not None and at <= now), default=0.0)
        taken = max(self._outlook.taken, newest)
        self._tell(now, self._outlook._replace(taken=taken, began=now, search_s=busy))

    def decide(self, now: float, load: LoadView) -> Decision:
        """See `Policy`; the entry knows before the search begins."""
        decision = self.policy.decide(now, load)
        if (outlook := decision.outlook) is not None:
            self._tell(now, outlook._replace(taken=max(outlook.taken, self._outlook.taken)))
        return decision

    def observe(self, now: float, batch: BatchCost) -> None:
        """See `Policy`."""
        self.policy.observe(now, batch)

    def _tell(self, now: float, outlook: Outlook) -> None:
        self._outlooks.write(now, outlook, slot=self._slot)
        self._outlook = outlook

    def queue(self) -> QueueReading | None:
        """What the server says of the queue; None where it does not say."""
        return None if self._depth is None else self._depth.read()

    def observe_level(self, name: str, seconds: float) -> None:
        """Time of one call of a graph; `name` as `serving.engines.timed` gives it."""
        self._metrics.observe("gr4ad_level_seconds", seconds, level=name)

    def close(self) -> None:
        """Stop watching the queue, and see `Metrics.close`."""
        self._answer_times.tell()
        self._metrics.close()
        if self._depth is not None:
            self._depth.close()
        self._outlooks.close()

    def show(self, report: BatchReport, *, answered: Iterable[float | None] = ()) -> None:
        """Publish metrics of a batch, and tell the entry that the process is free.

        Args:
            report: what was done.
            answered: when each request came in that has an answer now, see `SearchRequest.arrived`.
        """
        now = time.monotonic()
        self._answer_times.count(now - at for at in answered if at is not None)
        self._tell(now, self._outlook._replace(began=now, search_s=0.0))
        show, decision = self._metrics, report.decision
        if decision is not None:
            if decision.plan != self._plan and decision.reason not in ("deadline", "queue"):
                self._plan = decision.plan
                show.add("gr4ad_plan_changes_total")
            self._show_plan(decision.plan)
            show.set("gr4ad_rungs_above_base", decision.above_base)
            for _, reason in decision.rejected:
                show.add("gr4ad_rejected_total", reason=reason.partition(":")[0].partition(" ")[0])
        if report.queue_depth is not None:
            show.set("gr4ad_queue_depth", report.queue_depth)
        if isinstance(self.policy, LoadController):
            fixed, request, row = self.policy.cost.coefficients
            show.set("gr4ad_batch_fixed_seconds", fixed)
            show.set("gr4ad_request_seconds", request)
            show.set("gr4ad_beam_row_seconds", row)
            show.set("gr4ad_arrival_rate", self.policy.arrivals_qps)
        self._show_version(report)
        self._show_canary(report)
        show.add("gr4ad_cache_lookups_total", report.hits, result="hit")
        show.add("gr4ad_cache_lookups_total", report.misses, result="miss")
        show.add("gr4ad_searches_total", report.hits, result="cached")
        show.add("gr4ad_searches_total", report.searched, result="searched")
        show.add("gr4ad_searches_total", report.failed, result="failed")
        show.add("gr4ad_degraded_total", report.degraded)
        if report.searched:
            show.observe("gr4ad_batch_requests", report.searched)
            show.observe("gr4ad_batch_seconds", report.seconds)

    def _show_plan(self, plan: WidthPlan) -> None:
        """Once a change: each value is a message to the server."""
        if plan != self._shown:
            self._shown = plan
            self._metrics.set("gr4ad_beam_rows", plan_rows(plan))
            for level, beams in enumerate(plan.sid, 1):
                self._metrics.set("gr4ad_level_beams", beams, level=str(level))
            self._metrics.set("gr4ad_level_beams", plan.value, level="value")

    def _show_version(self, report: BatchReport) -> None:
        reason = None if report.refused is None else report.refused.reason
        if report.version is not None:
            self._metrics.set("gr4ad_model_version", report.version)
        if self._refused is not None and self._refused != reason:
            self._metrics.set("gr4ad_version_refused", 0, reason=self._refused)
        if reason is not None:
            self._metrics.set("gr4ad_version_refused", 1, reason=reason)
        self._refused = reason

    def _show_canary(self, report: BatchReport) -> None:
        """Once a change, and nothing where there never was one."""
        version, refused = report.canary or 0, report.canary_refused
        if version != self._canary:
            self._canary = version
            self._metrics.set("gr4ad_canary_version", version)
        if self._canary_refused is not None and self._canary_refused != refused:
            self._metrics.set("gr4ad_canary_refused", 0, reason=self._canary_refused[1].reason)
        if refused is not None and self._canary_refused != refused:
            self._metrics.set("gr4ad_canary_refused", refused[0], reason=refused[1].reason)
        self._canary_refused = refused
        for result, count in (("answered", report.canary_answered), ("failed", report.canary_failed)):
            if count:
                self._metrics.add("gr4ad_canary_requests_total", count, result=result)


def _nothing_known(config: ServingConfig) -> Outlook:
    """Of a scheduler that has nothing to do, or whose policy predicts nothing."""
    return Outlook(
        taken=0.0,
        began=0.0,
        search_s=0.0,
        batch_s=0.0,
        request_s=0.0,
        spread=0.0,
        slo_s=config.slo_ms / 1e3,
        max_batch=config.max_batch_size,
        overloaded=False,
    )


def make_cache(config: ServingConfig) -> BeamCache | None:
    """Result cache as configured; None for none."""
    if config.cache == "local":
        return LocalCache(ttl_s=config.cache_ttl_s, max_bytes=config.cache_mb << 20)
    if config.cache == "redis":
        return RedisCache(os.environ.get(CACHE_URL) or config.cache_url, ttl_s=config.cache_ttl_s)
    return None
