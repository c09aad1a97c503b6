"""Prometheus metrics of a writer and its sources; those of the sidecar are named gr4ad_indexer_*."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, Metric

Sample = tuple[str, str, dict[str, str], float]
"""name, help, labels, value; a name that ends in `_total` is a counter, others are gauges."""


class WriterMetrics:
    """Counters of the worker, and values that are read when somebody asks (`read_from`)."""

    def __init__(self, prefix: str) -> None:
        """A registry of its own: several can live in one process. `prefix` begins every name."""
        self.registry, self._prefix = CollectorRegistry(), prefix
        self._events = Counter(
            f"{prefix}events",
            "Events by source, kind, result (applied, stale, rejected) and reason.",
            ("source", "kind", "result", "reason"),
            registry=self.registry,
        )
        self._batch_events = Histogram(
            f"{prefix}batch_events",
            "Events of one transaction.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            registry=self.registry,
        )
        self._commit_seconds = Histogram(
            f"{prefix}commit_seconds",
            "Time of one transaction: encoding, writing, syncing.",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=self.registry,
        )
        self.store_failures = Counter(
            f"{prefix}store_failures",
            "Batches or probes that the store did not take.",
            registry=self.registry,
        )
        self.chore_failures = Counter(
            f"{prefix}chore_failures", "Failed work between batches.", ("chore",), registry=self.registry
        )
        self._read: Callable[[], Iterable[Sample]] = tuple
        self._lock = threading.Lock()
        self.registry.register(self)

    def batch(self, size: int, *, seconds: float) -> None:
        """One committed transaction."""
        self._batch_events.observe(size)
        self._commit_seconds.observe(seconds)

    def outcome(self, source: str, *, kind: str, result: str, reason: str | None) -> None:
        """One event."""
        self._events.labels(source, kind, result, reason or "").inc()

    def read_from(self, read: Callable[[], Iterable[Sample]]) -> None:
        """Where the values come from that are asked for."""
        self._read = read

    def render(self) -> bytes:
        """Text format."""
        with self._lock:
            return generate_latest(self.registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not read the values."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Values of `read_from`, samples of one name together."""
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for name, text, labels, value in self._read():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = families.setdefault(name, kind(self._prefix + name, text, labels=list(labels)))
            family.add_metric(list(labels.values()), value)
        return families.values()


class Metrics(WriterMetrics):
    """Of the sidecar."""

    def __init__(self) -> None:
        """See `WriterMetrics`."""
        super().__init__("gr4ad_indexer_")
        self.compaction_seconds = Histogram(
            "gr4ad_indexer_compaction_seconds",
            "Time of one compaction, in a process of its own.",
            buckets=(0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600),
            registry=self.registry,
        )
