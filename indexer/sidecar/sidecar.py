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
from indexer.sidecar.writing import WritingService
from indexer.sources.submission import UnavailableError
from indexer.store.gaps import Gap
from indexer.store.index_store import IndexStore
from serving.index.layout import HEARTBEAT

_SCRAPE_S = 2.0  # a scrape waits this long for the writer and then shows the values of before


class Sidecar(WritingService):
    """One index and all that changes it."""

    log = logging.getLogger("gr4ad.indexer")

    def __init__(self, config: SidecarConfig, *, watch: Callable[..., BundleWatch] = BundleWatch) -> None:
        """Open the index and load encoders; no event is taken yet.

        Raises:
            IndexStoreError: another writer holds the index, or it is damaged.
            OSError: the file of accounts, or that of attributes, is not readable.
            ImportError: the package of a source is not installed.
            ValueError: a URL is none of Redis, or the file of attributes does not hold them.
        """
        self.config, self.metrics = config, Metrics()
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
            worker = Worker(
                self.store,
                heartbeat=config.index / HEARTBEAT,
                metrics=self.metrics,
                config=config.worker,
                chores=chores,
            )
            super().__init__(worker)
            self.read(config.redis, config.kafka)
            self.watch()  # before the first event: without an encoder a new ad is a dead letter
        except BaseException:
            self.store.close()
            raise
        self.metrics.read_from(self.samples)

    def offset(self, source: str) -> bytes | None:
        """As `IndexStore.offset`."""
        return self.store.offset(source)

    def record_gap(self, source: str, gap: Gap) -> None:
        """As `Gaps.record`."""
        self.gaps.record(source, gap)

    def problems(self) -> list[str]:
        """Of encoders, of the index, and of streams that were trimmed."""
        return self.watch.missing() + self.checker.problems() + self.gaps.problems()

    def close(self) -> None:
        """Chores, then the store."""
        self.compactor.close()
        self.checker.close()
        self.store.close()

    def samples(self) -> list[Sample]:
        """Values of all gauges."""
        try:
            self._last = self.worker.call(self._written).result(_SCRAPE_S)
        except (FutureTimeout, UnavailableError, RuntimeError, OSError) as error:
            self.log.debug("metrics of the store are those of before: %r", error)
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
