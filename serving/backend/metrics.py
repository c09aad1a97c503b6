"""Metrics of the request path: every name, kind and bucket in one place, and how an adapter sets them.

They appear on Triton's metrics port beside Triton's own. Dashboards and alert rules in `deploy/` may name
only what stands here (tested).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

logger = logging.getLogger(__name__)

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True)
class Family:
    """One metric.

    Attributes:
        kind: counter (name ends with _total), gauge or histogram.
        text: what it says.
        labels: names of its labels, besides those that every metric of an adapter carries.
        buckets: upper bounds, of a histogram.
    """

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


SCHEDULER: dict[str, Family] = {
    "gr4ad_beam_rows": Family("gauge", "Beam rows of the width plan in use, all levels together"),
    "gr4ad_beam_rows_base": Family("gauge", "Beam rows of the configured width plan"),
    "gr4ad_rungs_above_base": Family(
        "gauge", "Rung of the ladder in use: 0 is the configured plan, below 0 is narrower"
    ),
    "gr4ad_level_beams": Family(
        "gauge", "Beams of a level by the width plan in use: 1 .. T, and value", ("level",)
    ),
    "gr4ad_slo_seconds": Family("gauge", "Time within which load control wants a request answered"),
    "gr4ad_max_queue": Family("gauge", "Searches that may wait; the entry refuses more"),
    "gr4ad_queue_depth": Family("gauge", "Requests waiting for the beam scheduler, as load control saw them"),
    "gr4ad_arrival_rate": Family("gauge", "Requests a second, as load control estimates them"),
    "gr4ad_batch_fixed_seconds": Family(
        "gauge", "Estimated seconds of a batch that do not depend on its beams"
    ),
    "gr4ad_request_seconds": Family(
        "gauge", "Estimated seconds of a request that do not depend on its beams"
    ),
    "gr4ad_beam_row_seconds": Family("gauge", "Estimated seconds of one beam row"),
    "gr4ad_plan_changes_total": Family("counter", "Changes of the width plan by load control"),
    "gr4ad_searches_total": Family("counter", "Requests searched or answered from the cache", ("result",)),
    "gr4ad_degraded_total": Family("counter", "Answers with less than the configured widths"),
    "gr4ad_rejected_total": Family("counter", "Requests refused by load control", ("reason",)),
    "gr4ad_answered_within_total": Family(
        "counter",
        "Answers of the scheduler by the seconds since their request came in, each le counts those below it "
        "too, as in a histogram",
        ("le",),
    ),
    "gr4ad_cache_lookups_total": Family("counter", "Look-ups in the result cache", ("result",)),
    "gr4ad_model_version": Family("gauge", "Model version in use"),
    "gr4ad_version_refused": Family(
        "gauge",
        "1 while the version that CURRENT names does not answer; reason: manifest, features, graphs (not "
        "loaded), files (damaged), generation (of the index), answers (of its graphs)",
        ("reason",),
    ),
    "gr4ad_canary_version": Family("gauge", "Version that answers a share of the requests; 0 for none"),
    "gr4ad_canary_requests_total": Family(
        "counter",
        "Requests of the canary's share: answered; failed, and answered by the version in use instead",
        ("result",),
    ),
    "gr4ad_canary_refused": Family(
        "gauge",
        "Version that CANARY names and that does not answer, 0 for none; reason: as of gr4ad_version_refused",
        ("reason",),
    ),
    "gr4ad_batch_requests": Family(
        "histogram", "Requests of a batch", buckets=(1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)
    ),
    "gr4ad_batch_seconds": Family("histogram", "Seconds of a batch in the scheduler", buckets=SECONDS),
    "gr4ad_level_seconds": Family(
        "histogram", "Seconds of one call of a graph: prefix, 2 .. T for tails, value", ("level",), SECONDS
    ),
}
"""Of the beam scheduler."""

REQUESTS: dict[str, Family] = {
    "gr4ad_requests_total": Family(
        "counter", "Requests of clients, counted once, by how they ended", ("outcome",)
    )
}
"""Of the three models that a request passes: where it ends, it is counted."""

ENTRY: dict[str, Family] = {"gr4ad_rejected_total": SCHEDULER["gr4ad_rejected_total"]}
"""Of request_features, where requests come in; one series of both with the reason `queue`."""

REQUEST_FEATURES: dict[str, Family] = {
    "gr4ad_unknown_values_total": Family(
        "counter", "Values of request features that the model does not know, taken as unknown", ("feature",)
    )
}
"""Of request_features, where the model has such features."""

RESOLVER: dict[str, Family] = {
    "gr4ad_index_version": Family("gauge", "Sequence number of the index that answers are resolved with"),
    "gr4ad_index_lag_seconds": Family(
        "gauge", "Age of the index sidecar's last sign of life; grows without it"
    ),
    "gr4ad_ads_returned_total": Family("counter", "Ads in answers"),
    "gr4ad_short_answers_total": Family("counter", "Answers with fewer ads than asked for"),
    "gr4ad_served_records_total": Family(
        "counter",
        "Records of answers: written; dropped, where the sink was too slow or gone; failed, not made",
        ("result",),
    ),
    "gr4ad_reranked_total": Family("counter", "Answers that the ranking stage ordered"),
    "gr4ad_rerank_seconds": Family(
        "histogram", "Seconds of the ranking stage for the answers of a batch", buckets=SECONDS
    ),
}
"""Of the ad resolver."""


class Metrics:
    """Metrics of one adapter. A value that cannot be counted is left out."""

    def __init__(self, triton: Any, families: Mapping[str, Family], *, labels: Mapping[str, str]) -> None:
        """Register.

        Args:
            triton: the module `triton_python_backend_utils`, or a stand-in with the same names.
            families: `SCHEDULER` or `RESOLVER`.
            labels: of every metric; two processes that set the same gauge need one that differs.
        """
        self._known, self._labels = families, dict(labels)
        self._metrics: dict[tuple[str, ...], Any] = {}
        self._families: dict[str, Any] = {}
        try:
            kinds = triton.MetricFamily
            # Triton forgets a family, and all that belongs to it, when its object goes.
            self._families = {
                name: kinds(name=name, description=f.text, kind=getattr(kinds, f.kind.upper()))
                for name, f in families.items()
            }
        except Exception as error:  # a server may be started without metrics
            logger.warning("no metrics: %s", error)
            return
        for name, family in families.items():
            if not family.labels:
                self._metric(name, {})  # there from the start, at 0

    def close(self) -> None:
        """Give them back to Triton; call in `finalize`.

        What is left to the end of the interpreter is given back by a stub that has closed its way to the
        server already: it segfaults.
        """
        self._metrics.clear()
        self._families.clear()

    def show(self, name: str, **labels: str) -> None:
        """Have a counter there at 0: of one that first shows up at 1, no rate tells."""
        if self._families:
            self._metric(name, labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge; infinity is a value too."""
        if not math.isnan(value) and self._families:
            self._metric(name, labels).set(float(value))

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        if math.isfinite(value) and value > 0 and self._families:
            self._metric(name, labels).increment(float(value))

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Count into a histogram."""
        if math.isfinite(value) and self._families:
            self._metric(name, labels).observe(float(value))

    def _metric(self, name: str, labels: Mapping[str, str]) -> Any:
        key = (name, *labels.values())
        if key not in self._metrics:
            family = self._known[name]
            if set(labels) != set(family.labels):
                raise KeyError(f"metric {name}: expected labels {family.labels}, got {tuple(labels)}")
            options = {"buckets": list(family.buckets)} if family.kind == "histogram" else {}
            self._metrics[key] = self._families[name].Metric(labels={**self._labels, **labels}, **options)
        return self._metrics[key]


def names(
    families: Iterable[Mapping[str, Family]] = (SCHEDULER, RESOLVER, REQUESTS, REQUEST_FEATURES),
) -> set[str]:
    """Every series name that a query may use, the parts of histograms included."""
    found = set()
    for name, family in (item for group in families for item in group.items()):
        found |= {f"{name}{part}" for part in ("_bucket", "_sum", "_count")} if family.buckets else {name}
    return found
