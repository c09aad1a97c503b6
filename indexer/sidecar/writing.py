"""What services that write what they are told have in common: a writer, streams, start and end in order."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import ClassVar, TypedDict

from indexer.sidecar.worker import Worker
from indexer.sources.config import KafkaConfig, RedisConfig
from indexer.sources.source import OffsetOf, OnGap, Source, SourceState
from indexer.store.gaps import Gap

_CALL_S = 60.0


class Wired(TypedDict):
    """Functions by which a source asks and tells the store, in the writer's thread."""

    offset_of: OffsetOf
    on_gap: OnGap


class WritingService(ABC):
    """A store, its writer and its sources. Everything but `ready` and samples is for the main thread.

    Attributes:
        log: of its errors.
        worker: the writer.
        sources: the streams that are read.
        wired: for further sources.
    """

    log: ClassVar[logging.Logger]

    def __init__(self, worker: Worker) -> None:
        """Nothing is taken yet."""
        self.worker, self.sources = worker, list[Source]()
        self.wired: Wired = {
            "offset_of": lambda source: worker.call(lambda: self.offset(source)).result(_CALL_S),
            "on_gap": lambda source, gap: worker.call(lambda: self.record_gap(source, gap)).result(_CALL_S),
        }

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
            self.log.error("the writer is still busy; events that were not answered are not applied")
            return False
        for source in self.sources:
            source.close()
        self.close()
        return True

    def ready(self) -> tuple[list[str], dict[str, SourceState]]:
        """What keeps events from being applied, and the state of each source."""
        problems = self.worker.problems() + self.problems()
        problems += [f"{s.name}: {s.state.error}" for s in self.sources if not s.state.connected]
        return problems, {s.name: s.state for s in self.sources}

    def read(self, *streams: RedisConfig | KafkaConfig | None) -> None:
        """Add the sources of streams; None is none.

        Raises:
            ImportError: the package of a source is not installed.
            ValueError: a URL is none of Redis.
        """
        for stream in streams:
            if isinstance(stream, RedisConfig):
                from indexer.sources.redis_streams import RedisSource  # not before somebody wants it

                self.sources.append(RedisSource(stream, self.worker, **self.wired))
            elif stream is not None:
                from indexer.sources.kafka import KafkaSource

                self.sources.append(KafkaSource(stream, self.worker, **self.wired))

    @abstractmethod
    def offset(self, source: str) -> bytes | None:
        """Offset of the last event of a source that took effect; called in the writer's thread."""

    @abstractmethod
    def record_gap(self, source: str, gap: Gap) -> None:
        """Put on record what a source misses; called in the writer's thread."""

    @abstractmethod
    def problems(self) -> list[str]:
        """What keeps events from being applied, beside the writer and the sources."""

    @abstractmethod
    def close(self) -> None:
        """Close the store and what works beside the writer."""
