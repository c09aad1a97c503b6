"""The parts of the sidecar put together, and what health and metrics say of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer.sidecar.bundle_watch import BundleWatch
from indexer.sidecar.intake import UnavailableError
from indexer.sidecar.metrics import Metrics
from indexer.sidecar.worker import Worker, WorkerConfig
from indexer.sources.source import Source
from indexer.store.compaction import Compactor
from indexer.store.index_store import IndexStore
from serving.index.layout import BASE, HEARTBEAT, STORE

if TYPE_CHECKING:
    from indexer.sources.kafka import KafkaConfig
    from indexer.sources.redis_streams import RedisConfig

log = logging.getLogger("gr4ad.indexer")

_ACCOUNTS_S = 5.0
_ANSWER_S = 2.0  # a scrape waits this long for the writer and then shows the values of before
Sample = tuple[str, str, dict[str, str], float]


@dataclass(frozen=True)
class SidecarConfig:
    """What a sidecar works on.

    Attributes:
        index: folder of the index.
        bundles: folder of bundles.
        accounts: file of the account ids that events may name, one a line; None for any. Read
            again when it changes.
        redis: a stream to read.
        kafka: a topic to read.
        worker: sizes and times of batches.
        map_size: most bytes that the store may take.
    """

    index: Path
    bundles: Path
    accounts: Path | None = None
    redis: RedisConfig | None = None
    kafka: KafkaConfig | None = None
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    map_size: int = 1 << 36


class Sidecar:
    """One index and all that changes it. Everything but `ready` and `samples` is for the main thread."""

    def __init__(self, config: SidecarConfig, *, watch: Callable[..., BundleWatch] = BundleWatch) -> None:
        """Open the index and load encoders; no event is taken yet.

        Raises:
            IndexStoreError: another writer holds the index, or it is damaged.
            OSError: the file of accounts is not readable.
            ImportError: the package of a source is not installed.
            ValueError: a URL is none of Redis.
        """
        self.config, self.metrics, self.sources = config, Metrics(), list[Source]()
        self._accounts_seen, self._accounts_at = 0, 0.0
        self._compaction: tuple[float, int] | None = None
        self._last: list[Sample] = []
        self.store = IndexStore(config.index, map_size=config.map_size)
        try:
            self._read_accounts()
            self.watch = watch(self.store, config.bundles)
            self.compactor = Compactor(self.store)
            self.worker = Worker(
                self.store,
                heartbeat=config.index / HEARTBEAT,
                metrics=self.metrics,
                config=config.worker,
                chores={"compaction": self._compact, "bundles": self.watch, "accounts": self._read_accounts},
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
        self.store.close()
        return True

    def ready(self) -> tuple[list[str], dict[str, Any]]:
        """What keeps events from being applied, and the state of each source."""
        problems = self.worker.problems() + self.watch.missing()
        problems += [f"{s.name}: {s.state.error}" for s in self.sources if not s.state.connected]
        return problems, {s.name: asdict(s.state) for s in self.sources}

    def samples(self) -> list[Sample]:
        """Values of all gauges."""
        try:
            self._last = self.worker.call(lambda: list(self._store_samples())).result(_ANSWER_S)
        except (FutureTimeout, UnavailableError, RuntimeError, OSError) as error:
            log.debug("metrics of the store are those of before: %r", error)
        return [*self._last, *self._other_samples()]

    def _store_samples(self) -> Iterator[Sample]:
        """In the writer's thread."""
        store, meta, none = self.store, self.store.meta, dict[str, str]()
        yield "sequence", "Index version.", none, meta.sequence
        with store.read() as transaction:
            entries = lambda table: transaction.stat(table)["entries"]  # noqa: E731
            yield (
                "ads_known",
                "Ads, those that are deleted but not forgotten included.",
                none,
                entries(store.tables.ads),
            )
            yield "dead_letters", "Events that could not be applied.", none, entries(store.tables.dead)
            for name, generation in meta.generations.items():
                tables, label = store.tables.generations[name], {"generation": name}
                known, active = entries(tables.codes), entries(tables.sids)
                text = "Ads with a semantic ID of this generation, by whether they are served."
                yield "ads", text, label | {"status": "active"}, active
                yield "ads", text, label | {"status": "inactive"}, known - active
                yield "generation_ready", "1: readers may use it.", label, generation.ready
                left = 0 if generation.ready else max(entries(store.tables.ads) - known, 0)
                yield "generation_ads_left", "Ads that are still to be encoded.", label, left
                rows = store.log_rows.get(name, 0)
                yield "changes_since_base", "Rows of the change log since the base arrays.", label, rows
        for key, value in store.counters().items():
            kind, _, what = key.partition(".")
            if kind == "unencoded":
                text = "Content changes that a generation missed for want of an encoder."
                yield "unencoded_total", text, {"generation": what}, value
            elif kind == "recovered":
                yield "recovered_total", "Dead letters that took effect later.", {"kind": what}, value
        yield "compactions_total", "Base arrays written and adopted.", none, self.compactor.compactions
        yield "compaction_failures_total", "Compactions that failed.", none, self.compactor.failures
        for part in (STORE, BASE):
            files = (p.stat() for p in (store.path / part).rglob("*") if p.is_file())
            yield "disk_bytes", "Space taken on disk.", {"part": part}, sum(s.st_blocks * 512 for s in files)

    def _other_samples(self) -> Iterator[Sample]:
        none = dict[str, str]()
        yield "queue_depth", "Events waiting for the writer.", none, self.worker.depth
        ready = not self.ready()[0]
        yield "ready", "1: events are applied at the moment.", none, ready
        try:
            beat = (self.config.index / HEARTBEAT).stat().st_mtime
            yield "heartbeat_timestamp_seconds", "When the writer's thread last turned.", none, beat
        except OSError:
            pass
        for source in self.sources:
            state, label = source.state, {"source": source.name}
            yield "source_connected", "1: its broker answers.", label, state.connected
            yield "source_events_total", "Events handed to the writer.", label, state.received
            text = "Events that had been applied before and were only acknowledged."
            yield "source_redelivered_total", text, label, state.redelivered
            yield "source_failures_total", "Failed connections or reads.", label, state.failures
            if state.lag_events is not None:
                yield "source_lag_events", "Events not applied yet.", label, state.lag_events
            if state.lag_seconds is not None:
                text = "Age of the oldest event that is not applied yet."
                yield "source_lag_seconds", text, label, state.lag_seconds

    def _add_sources(self) -> None:
        if self.config.redis is not None:
            from indexer.sources.redis_streams import RedisSource  # not before somebody wants it

            self.sources.append(RedisSource(self.config.redis, self.worker, _Offsets(self)))
        if self.config.kafka is not None:
            from indexer.sources.kafka import KafkaSource

            self.sources.append(KafkaSource(self.config.kafka, self.worker, _Offsets(self)))

    def _compact(self) -> bool:
        self.compactor.poll()
        if self._compaction and not self.compactor.running:
            began, before = self._compaction
            if self.compactor.compactions > before:
                self.metrics.compaction_seconds.observe(time.monotonic() - began)
            self._compaction = None
        elif self.compactor.running and not self._compaction:
            self._compaction = time.monotonic(), self.compactor.compactions
        return False

    def _read_accounts(self) -> bool:
        path, now = self.config.accounts, time.monotonic()
        if path is None or now < self._accounts_at:
            return False
        self._accounts_at = now + _ACCOUNTS_S
        changed = path.stat().st_mtime_ns
        if changed != self._accounts_seen:
            lines = path.read_text().splitlines()
            self.store.accounts = frozenset(line.strip() for line in lines if line.strip())
            self._accounts_seen = changed
            log.info("%d accounts read from %s", len(self.store.accounts), path)
        return False


class _Offsets:
    """Asks the store in the writer's thread."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    def offset(self, source: str) -> bytes | None:
        """As `IndexStore.offset`."""
        return self._sidecar.worker.call(lambda: self._sidecar.store.offset(source)).result(60)
