"""The parts of the sidecar put together, and what health and metrics say of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout

from indexer.sidecar.accounts import AccountsFile
from indexer.sidecar.audience_columns import AudienceColumns
from indexer.sidecar.bundle_watch import BundleWatch
from indexer.sidecar.checker import Checker, StartCheck
from indexer.sidecar.chores import Chore
from indexer.sidecar.compactor import Compactor
from indexer.sidecar.config import SidecarConfig
from indexer.sidecar.gaps import Gaps
from indexer.sidecar.metrics import Metrics, Sample
from indexer.sidecar.readers import Readers
from indexer.sidecar.samples import (
    compactor_samples,
    damage_samples,
    gap_samples,
    reader_samples,
    source_samples,
    store_samples,
    writer_samples,
)
from indexer.sidecar.worker import Worker
from indexer.sources.source import Source, SourceState
from indexer.sources.submission import UnavailableError
from indexer.store.gaps import Gap
from indexer.store.index_store import IndexStore
from serving.index.layout import HEARTBEAT

log = logging.getLogger("gr4ad.indexer")

_SCRAPE_S = 2.0  # a scrape waits this long for the writer and then shows the values of before
_OFFSET_S = 60.0


class Sidecar:
    """One index and all that changes it. Everything but `ready` and `samples` is for the main thread."""

    def __init__(self, config: SidecarConfig, *, watch: Callable[..., BundleWatch] = BundleWatch) -> None:
        """Open the index and load encoders; no event is taken yet.

        Raises:
            IndexStoreError: another writer holds the index, or it is damaged.
            OSError: the file of accounts, or that of attributes, is not readable.
            ImportError: the package of a source is not installed.
            ValueError: a URL is none of Redis, or the file of attributes does not hold them.
        """
        self.config, self.metrics, self.sources = config, Metrics(), list[Source]()
        self._last: list[Sample] = []
        checked = StartCheck(config.index, wait_s=config.check_wait_s)
        self.store = IndexStore(config.index, map_size=config.map_size)
        try:
            self.gaps = Gaps(self.store.file)
            self.watch = watch(self.store, config.bundles)
            self.compactor = Compactor(self.store.file, observe=self.metrics.compaction_seconds.observe)
            self.readers = Readers(self.store.file.environment)
            self.checker = Checker(
                self.store.file,
                first=checked,
                make_base=self.compactor.replace,
                every_s=config.check_every_s,
            )
            chores: dict[str, Chore] = {
                "check": self.checker,
                "compaction": self.compactor.poll,
                "bundles": self.watch,
                "readers": self.readers,
            }
            if config.accounts is not None:
                chores["accounts"] = AccountsFile(config.accounts, self.store)
                chores["accounts"]()
            columns = AudienceColumns(self.store, config.bundles, attributes=config.attributes)
            chores["audience_columns"] = columns
            columns()
            self.worker = Worker(
                self.store,
                heartbeat=config.index / HEARTBEAT,
                metrics=self.metrics,
                config=config.worker,
                chores=chores,
            )
            self._add_sources()
            self.watch()  # before the first event: without an encoder a new ad is a dead letter
        except BaseException:
            self.store.close()
            raise
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
        self.compactor.close()
        self.checker.close()
        self.store.close()
        return True

    def ready(self) -> tuple[list[str], dict[str, SourceState]]:
        """What keeps events from being applied, and the state of each source."""
        problems = self.worker.problems() + self.watch.missing()
        problems += self.checker.problems() + self.gaps.problems()
        problems += [f"{s.name}: {s.state.error}" for s in self.sources if not s.state.connected]
        return problems, {s.name: s.state for s in self.sources}

    def samples(self) -> list[Sample]:
        """Values of all gauges."""
        try:
            self._last = self.worker.call(self._written).result(_SCRAPE_S)
        except (FutureTimeout, UnavailableError, RuntimeError, OSError) as error:
            log.debug("metrics of the store are those of before: %r", error)
        ready = not self.ready()[0]
        writer = writer_samples(self.config.index, depth=self.worker.depth, ready=ready)
        return [
            *self._last,
            *writer,
            *source_samples(self.sources),
            *gap_samples(self.gaps),
            *damage_samples(self.checker),
        ]

    def _written(self) -> list[Sample]:
        file, readers = self.store.file, reader_samples(self.readers)
        return [*store_samples(file), *compactor_samples(self.compactor), *readers]

    def _add_sources(self) -> None:
        if (redis := self.config.redis) is not None:
            from indexer.sources.redis_streams import RedisSource  # not before somebody wants it

            self.sources.append(
                RedisSource(redis, self.worker, offset_of=self._offset_of, on_gap=self._record_gap)
            )
        if (kafka := self.config.kafka) is not None:
            from indexer.sources.kafka import KafkaSource

            self.sources.append(
                KafkaSource(kafka, self.worker, offset_of=self._offset_of, on_gap=self._record_gap)
            )

    def _offset_of(self, source: str) -> bytes | None:
        """As `IndexStore.offset`, asked in the writer's thread."""
        return self.worker.call(lambda: self.store.offset(source)).result(_OFFSET_S)

    def _record_gap(self, source: str, gap: Gap) -> None:
        """As `Gaps.record`, in the writer's thread."""
        self.worker.call(lambda: self.gaps.record(source, gap)).result(_OFFSET_S)
