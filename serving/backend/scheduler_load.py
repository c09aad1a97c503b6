"""Load control of one scheduler process, as configured, and what it shows of itself."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from serving.backend.entry import METRICS_URL, limit_path
from serving.backend.metrics import SCHEDULER, Metrics
from serving.backend.settings import ServingConfig
from serving.batch import BatchReport
from serving.cache import BeamCache, LocalCache, RedisCache
from serving.load.admission import LimitFile
from serving.load.controller import LoadController
from serving.load.ladder import Ladder, plan_rows
from serving.load.policy import FixedPolicy, Policy
from serving.load.queue_depth import QueueDepth, QueueReading
from serving.model.active_model import Reason

logger = logging.getLogger(__name__)

CACHE_URL = "GR4AD_CACHE_URL"


class SchedulerLoad:
    """Policy and queue for `serving.scheduler.Scheduler`; metrics of its batches."""

    def __init__(self, triton: Any, config: ServingConfig, *, ladder: Ladder, instance: str) -> None:
        """Of one process.

        Args:
            triton: the module `triton_python_backend_utils`.
            config: the preset's section.
            ladder: plans that may be taken.
            instance: name of the process among those of the model.
        """
        self._metrics = Metrics(triton, SCHEDULER, labels={"process": instance})
        self.policy: Policy = FixedPolicy(ladder.plans[ladder.base])
        self._depth: QueueDepth | None = None
        self._limit: LimitFile | None = None
        self._plan = ladder.plans[ladder.base]
        self._refused: Reason | None = None
        if config.control is not None:
            self.policy = LoadController(ladder, settings=config.control)
            self._depth = QueueDepth(METRICS_URL, entry="request_features")
            self._limit = LimitFile(limit_path())
        self._metrics.set("gr4ad_max_queue", config.max_queue)
        self._metrics.set("gr4ad_beam_rows_base", plan_rows(self._plan))
        self._metrics.set("gr4ad_beam_rows", plan_rows(self._plan))

    def queue(self) -> QueueReading | None:
        """What the server says of the queue; None where it does not say."""
        return None if self._depth is None else self._depth.read()

    def observe_level(self, name: str, seconds: float) -> None:
        """Time of one call of a graph; `name` as `serving.engines.timed` gives it."""
        self._metrics.observe("gr4ad_level_seconds", seconds, level=name)

    def close(self) -> None:
        """Stop watching the queue, and see `Metrics.close`."""
        self._metrics.close()
        if self._depth is not None:
            self._depth.close()
        if self._limit is not None:
            self._limit.close()

    def show(self, report: BatchReport) -> None:
        """Publish a batch: metrics, and how many may wait."""
        show, decision = self._metrics, report.decision
        if decision is not None:
            if self._limit is not None and decision.limit is not None:
                self._limit.write(time.monotonic(), decision.limit)
            if decision.plan != self._plan and decision.reason != "deadline":
                self._plan = decision.plan
                show.add("gr4ad_plan_changes_total")
            show.set("gr4ad_beam_rows", plan_rows(decision.plan))
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
        show.add("gr4ad_cache_lookups_total", report.hits, result="hit")
        show.add("gr4ad_cache_lookups_total", report.misses, result="miss")
        show.add("gr4ad_searches_total", report.hits, result="cached")
        show.add("gr4ad_searches_total", report.searched, result="searched")
        show.add("gr4ad_searches_total", report.failed, result="failed")
        show.add("gr4ad_degraded_total", report.degraded)
        if report.searched:
            show.observe("gr4ad_batch_requests", report.searched)
            show.observe("gr4ad_batch_seconds", report.seconds)

    def _show_version(self, report: BatchReport) -> None:
        reason = None if report.refused is None else report.refused.reason
        if report.version is not None:
            self._metrics.set("gr4ad_model_version", report.version)
        if self._refused is not None and self._refused != reason:
            self._metrics.set("gr4ad_version_refused", 0, reason=self._refused)
        if reason is not None:
            self._metrics.set("gr4ad_version_refused", 1, reason=reason)
        self._refused = reason


def make_cache(config: ServingConfig) -> BeamCache | None:
    """Result cache as configured; None for none."""
    if config.cache == "local":
        return LocalCache(ttl_s=config.cache_ttl_s, max_bytes=config.cache_mb << 20)
    if config.cache == "redis":
        return RedisCache(os.environ.get(CACHE_URL) or config.cache_url, ttl_s=config.cache_ttl_s)
    return None
