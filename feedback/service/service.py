"""The parts of the service put together, and what health and metrics say of them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeout

from feedback.events.parse import SERVED, parse_item
from feedback.join.joiner import Joiner
from feedback.service.config import FeedbackConfig
from feedback.service.served_files import ServedFiles
from feedback.store.layout import STORE
from feedback.store.meta import Meta
from indexer.sidecar.metrics import Sample, WriterMetrics
from indexer.sidecar.worker import Worker
from indexer.sidecar.writing import WritingService
from indexer.sources.submission import UnavailableError
from indexer.store.gaps import Gap

PREFIX = "gr4ad_feedback_"
HEARTBEAT = "heartbeat"
_SCRAPE_S = 2.0
_NO_LABELS = dict[str, str]()


class ServiceMetrics(WriterMetrics):
    """Sources of the local log are one here: each server process that ever wrote has a name of its own."""

    def outcome(self, source: str, *, kind: str, result: str, reason: str | None) -> None:
        """One event."""
        name = SERVED.rstrip(":") if source.startswith(SERVED) else source
        super().outcome(name, kind=kind, result=result, reason=reason)


class Service(WritingService):
    """One store and all that changes it."""

    log = logging.getLogger("gr4ad.feedback")

    def __init__(self, config: FeedbackConfig) -> None:
        """Open the store; nothing is taken yet.

        Raises:
            FeedbackStoreError: another writer holds the store, or it is damaged.
            ImportError: the package of a source is not installed.
            ValueError: a URL is none of Redis.
        """
        self.config, self.metrics = config, ServiceMetrics(PREFIX)
        self.joiner = Joiner(config.folder, config.join, map_size=config.map_size)
        served = config.served_redis
        streams = (f"redis:{served.stream}",) if served else ()
        try:
            worker = Worker(
                self.joiner,
                heartbeat=config.folder / STORE / HEARTBEAT,
                metrics=self.metrics,
                config=config.worker,
                chores={"windows": self.joiner.close_due},
                parse=functools.partial(parse_item, served_streams=streams),
            )
            super().__init__(worker)
            if (folder := config.served) is not None:
                self.sources.append(ServedFiles(folder, worker, **self.wired))
            self.read(config.served_redis, config.redis, config.kafka)
        except BaseException:
            self.joiner.close()
            raise
        self._last = self.joiner.meta()
        self.metrics.read_from(self.samples)

    def offset(self, source: str) -> bytes | None:
        """As `Joiner.offset`."""
        return self.joiner.offset(source)

    def record_gap(self, source: str, gap: Gap) -> None:
        """As `Joiner.record_gap`."""
        self.joiner.record_gap(source, str(gap), lost=gap.lost)

    def problems(self) -> list[str]:
        """None of its own."""
        return []

    def close(self) -> None:
        """The store."""
        self.joiner.close()

    def samples(self) -> Iterator[Sample]:
        """Values of all gauges, and counters of the store."""
        try:
            self._last = self.worker.call(self.joiner.meta).result(_SCRAPE_S)
        except (FutureTimeout, UnavailableError, RuntimeError, OSError) as error:
            self.log.debug("metrics of the store are those of before: %r", error)
        yield from _of_meta(self._last)
        yield "queue_depth", "Events that wait for the writer.", _NO_LABELS, self.worker.depth
        yield "ready", "1: events are applied at the moment.", _NO_LABELS, not self.ready()[0]
        for source in self.sources:
            label, state = {"source": source.name}, source.state
            yield "source_connected", "1: it can be read.", label, state.connected
            if state.lag_events is not None:
                yield "source_lag_events", "Events that are not applied yet.", label, state.lag_events


def _of_meta(meta: Meta) -> Iterator[Sample]:
    yield "sequence", "Sequence number of the newest sample.", _NO_LABELS, meta.sequence
    yield "waiting_requests", "Requests that feedback waits for.", _NO_LABELS, meta.waiting
    text = "Events not taken, and requests by what became of them."
    for name, count in meta.counters.items():
        what, _, source = name.partition(".")
        if source:
            yield "lost_total", "Events lost before they were read, at least.", {"source": source}, count
        else:
            yield "joined_total", text, {"what": what}, count
