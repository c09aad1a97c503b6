"""The parts of the service put together, and what health and metrics say of them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from feedback.events.parse import SERVED, parse_item
from feedback.join.joiner import Joiner
from feedback.service.config import FeedbackConfig
from feedback.service.served_files import ServedFiles
from feedback.store.layout import STORE
from feedback.store.meta import Meta
from indexer.sidecar.metrics import Sample, WriterMetrics
from indexer.sidecar.worker import Worker
from indexer.sources.source import Source, SourceState
from indexer.sources.submission import UnavailableError
from indexer.store.gaps import Gap

log = logging.getLogger("gr4ad.feedback")

PREFIX = "gr4ad_feedback_"
HEARTBEAT = "heartbeat"
_SCRAPE_S = 2.0
_OFFSET_S = 60.0
_NO_LABELS = dict[str, str]()


class ServiceMetrics(WriterMetrics):
    """Sources of the local log are one here: each server process that ever wrote has a name of its own."""

    def outcome(self, source: str, *, kind: str, result: str, reason: str | None) -> None:
        """One event."""
        name = SERVED.rstrip(":") if source.startswith(SERVED) else source
        super().outcome(name, kind=kind, result=result, reason=reason)


class Service:
    """One store and all that changes it. Everything but `ready` and `samples` is for the main thread."""

    def __init__(self, config: FeedbackConfig) -> None:
        """Open the store; nothing is taken yet.

        Raises:
            FeedbackStoreError: another writer holds the store, or it is damaged.
            ImportError: the package of a source is not installed.
            ValueError: a URL is none of Redis.
        """
        self.config, self.metrics, self.sources = config, ServiceMetrics(PREFIX), list[Source]()
        self.joiner = Joiner(config.folder, config.join, map_size=config.map_size)
        served = config.served_redis
        streams = (f"redis:{served.stream}",) if served else ()
        try:
            self.worker = Worker(
                self.joiner,
                heartbeat=config.folder / STORE / HEARTBEAT,
                metrics=self.metrics,
                config=config.worker,
                chores={"windows": self.joiner.close_due},
                parse=functools.partial(parse_item, served_streams=streams),
            )
            self._add_sources()
        except BaseException:
            self.joiner.close()
            raise
        self._last = self.joiner.meta()
        self.metrics.read_from(self.samples)

    def start(self) -> None:
        """Take events."""
        self.worker.start()
        for source in self.sources:
            source.start()

    def stop(self) -> bool:
        """Take no more, apply and acknowledge what is in hand, close; False when the writer hangs."""
        for source in self.sources:
            source.stop()
        if not self.worker.stop():
            log.error("the writer is still busy; events that were not answered are not applied")
            return False
        for source in self.sources:
            source.close()
        self.joiner.close()
        return True

    def ready(self) -> tuple[list[str], dict[str, SourceState]]:
        """What keeps events from being applied, and the state of each source."""
        problems = self.worker.problems()
        problems += [f"{s.name}: {s.state.error}" for s in self.sources if not s.state.connected]
        return problems, {s.name: s.state for s in self.sources}

    def samples(self) -> Iterator[Sample]:
        """Values of all gauges, and counters of the store."""
        try:
            self._last = self.worker.call(self.joiner.meta).result(_SCRAPE_S)
        except (FutureTimeout, UnavailableError, RuntimeError, OSError) as error:
            log.debug("metrics of the store are those of before: %r", error)
        yield from _of_meta(self._last)
        yield "queue_depth", "Events that wait for the writer.", _NO_LABELS, self.worker.depth
        yield "ready", "1: events are applied at the moment.", _NO_LABELS, not self.ready()[0]
        for source in self.sources:
            label, state = {"source": source.name}, source.state
            yield "source_connected", "1: it can be read.", label, state.connected
            if state.lag_events is not None:
                yield "source_lag_events", "Events that are not applied yet.", label, state.lag_events

    def _add_sources(self) -> None:
        config = self.config
        wired: dict[str, Any] = {"offset_of": self._offset_of, "on_gap": self._record_gap}
        if config.served is not None:
            self.sources.append(ServedFiles(config.served, self.worker, **wired))
        for redis in filter(None, (config.served_redis, config.redis)):
            from indexer.sources.redis_streams import RedisSource  # not before somebody wants it

            self.sources.append(RedisSource(redis, self.worker, **wired))
        if config.kafka is not None:
            from indexer.sources.kafka import KafkaSource

            self.sources.append(KafkaSource(config.kafka, self.worker, **wired))

    def _offset_of(self, source: str) -> bytes | None:
        """As `Joiner.offset`, asked in the writer's thread."""
        return self.worker.call(lambda: self.joiner.offset(source)).result(_OFFSET_S)

    def _record_gap(self, source: str, gap: Gap) -> None:
        """As `Joiner.record_gap`, in the writer's thread."""
        record = functools.partial(self.joiner.record_gap, source, str(gap), lost=gap.lost)
        self.worker.call(record).result(_OFFSET_S)


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
