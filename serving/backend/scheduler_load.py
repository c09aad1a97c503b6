"""Load control of one scheduler process, as configured, and what it shows of itself."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from serving.backend.entry import METRICS_URL, limit_path
from serving.backend.metrics import SCHEDULER, Metrics
from serving.batch import BatchReport
from serving.cache import BeamCache, LocalCache, RedisCache
from serving.load.admission import LimitFile
from serving.load.controller import ControlSettings, LoadController
from serving.load.ladder import Ladder, plan_rows
from serving.load.policy import FixedPolicy, Policy
from serving.load.queue_depth import QueueDepth, QueueReading

logger = logging.getLogger(__name__)

CACHE_URL = "GR4AD_CACHE_URL"


class SchedulerLoad:
    """Policy and queue for `serving.scheduler.Scheduler`; metrics of its batches."""

    def __init__(self, triton: Any, config: Mapping[str, str], *, ladder: Ladder, instance: str) -> None:
        """Of one process.

        Args:
            triton: the module `triton_python_backend_utils`.
            config: parameters of the model.
            ladder: plans that may be taken.
            instance: name of the process among those of the model.
        """
        self._metrics = Metrics(triton, SCHEDULER, labels={"process": instance})
        self.policy: Policy = FixedPolicy(ladder.plans[ladder.base])
        self._depth: QueueDepth | None = None
        self._limit: LimitFile | None = None
        self._plan = ladder.plans[ladder.base]
        if config["load_control"] == "adaptive":
            self.policy = LoadController(
                ladder,
                settings=ControlSettings(
                    slo_s=float(config["slo_ms"]) / 1e3,
                    instances=int(config["scheduler_instances"]),
                    max_batch=int(config["max_batch_size"]),
                    max_queue=int(config["max_queue"]),
                ),
            )
            self._depth, self._limit = (
                QueueDepth(METRICS_URL, entry="request_features"),
                LimitFile(limit_path()),
            )
        self._metrics.set("gr4ad_beam_rows_base", plan_rows(self._plan))
        self._metrics.set("gr4ad_beam_rows", plan_rows(self._plan))

    def queue(self) -> QueueReading | None:
        """What the server says of the queue; None where it does not say."""
        return None if self._depth is None else self._depth.read()

    def observe_level(self, name: str, seconds: float) -> None:
        """Time of one call of a graph; `name` as `serving.engines.timed` gives it."""
        self._metrics.observe("gr4ad_level_seconds", seconds, level=name)

    def close(self) -> None:
        """Stop watching the queue."""
        if self._depth is not None:
            self._depth.close()
        if self._limit is not None:
            self._limit.close()

    def show(self, report: BatchReport) -> None:
        """Publish a batch: metrics, and how many may wait."""
        show, decision = self._metrics, report.decision
        if decision is not None:
            if self._limit is not None:
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
        show.add("gr4ad_cache_lookups_total", report.hits, result="hit")
        show.add("gr4ad_cache_lookups_total", report.misses, result="miss")
        show.add("gr4ad_searches_total", report.hits, result="cached")
        show.add("gr4ad_searches_total", report.searched, result="searched")
        show.add("gr4ad_searches_total", report.failed, result="failed")
        show.add("gr4ad_degraded_total", report.degraded)
        if report.searched:
            show.observe("gr4ad_batch_requests", report.searched)
            show.observe("gr4ad_batch_seconds", report.seconds)


def make_cache(config: Mapping[str, str]) -> BeamCache | None:
    """Result cache as configured; None for none."""
    kind, ttl_s = config["cache"], float(config["cache_ttl_s"])
    if kind == "local":
        return LocalCache(ttl_s=ttl_s, max_bytes=int(config["cache_mb"]) << 20)
    if kind == "redis":
        return RedisCache(os.environ.get(CACHE_URL) or config["cache_url"], ttl_s=ttl_s)
    return None
