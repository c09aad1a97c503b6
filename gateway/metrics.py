"""Prometheus metrics of the gateway, all named gr4ad_gateway_*."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_PREFIX = "gr4ad_gateway_"


class Metrics:
    """Counters of one gateway."""

    def __init__(self) -> None:
        """A registry of its own: several can live in one process."""
        self.registry = CollectorRegistry()
        self._requests = Counter(
            f"{_PREFIX}requests",
            "Inferences by outcome: answered, invalid, unavailable, late, failed, gone (the client left).",
            ("outcome",),
            registry=self.registry,
        )
        self._answered = self._requests.labels("answered")
        self._refused = Counter(
            f"{_PREFIX}refused",
            "Connections and requests refused before they became an inference, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self._seconds = Histogram(
            f"{_PREFIX}request_seconds",
            "Time of an answered inference, from its whole body to its answer.",
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
            registry=self.registry,
        )
        self._connections = Gauge(f"{_PREFIX}connections", "Open connections.", registry=self.registry)
        self._ready = Gauge(
            f"{_PREFIX}ready",
            "1 where the last one who asked for readiness was told yes.",
            registry=self.registry,
        )

    def answered(self, seconds: float) -> None:
        """One inference with its answer."""
        self._answered.inc()
        self._seconds.observe(seconds)

    def outcome(self, outcome: str) -> None:
        """One inference without."""
        self._requests.labels(outcome).inc()

    def refused(self, reason: str) -> None:
        """One connection or request that never became an inference."""
        self._refused.labels(reason).inc()

    def ready(self, ready: bool) -> None:
        """What was said of readiness."""
        self._ready.set(ready)

    def count_connections(self, count: Callable[[], int]) -> None:
        """Where the number of open connections comes from."""
        self._connections.set_function(count)

    def render(self) -> bytes:
        """Text format."""
        return generate_latest(self.registry)
