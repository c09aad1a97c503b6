"""What the metrics page shows beside the counters: values of store, sources and writer, when it is asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from indexer.sidecar.checker import Checker
from indexer.sidecar.compactor import Compactor
from indexer.sidecar.gaps import Gaps
from indexer.sidecar.metrics import Sample
from indexer.sidecar.readers import Readers
from indexer.sources.source import Source
from indexer.store.file import StoreFile
from serving.index.layout import BASE, HEARTBEAT, STORE

_NO_LABELS = dict[str, str]()


def store_samples(file: StoreFile) -> Iterator[Sample]:
    """What the index holds; in the writer's thread."""
    yield "sequence", "Index version.", _NO_LABELS, file.meta.sequence
    text = "Of the store's file, what no table has: the next changes may use it once no reader sees it."
    yield "store_free_bytes", text, _NO_LABELS, file.free_bytes()
    with file.read() as reading:
        known, dead = reading.entries(reading.tables.ads), reading.entries(reading.tables.dead)
        yield "ads_known", "Ads, those that are deleted but not forgotten included.", _NO_LABELS, known
        yield "dead_letters", "Events that could not be applied.", _NO_LABELS, dead
        for name, generation in file.meta.generations.items():
            handles, label = reading.tables.generations[name], {"generation": name}
            encoded, active = reading.entries(handles.codes), reading.entries(handles.sids)
            text = "Ads with a semantic ID of this generation, by whether they are served."
            yield "ads", text, label | {"status": "active"}, active
            yield "ads", text, label | {"status": "inactive"}, encoded - active
            yield "generation_ready", "1: readers may use it.", label, generation.ready
            left = 0 if generation.ready else max(known - encoded, 0)
            yield "generation_ads_left", "Ads that are still to be encoded.", label, left
            rows = file.log_rows[name]
            yield "changes_since_base", "Rows of the change log since the base arrays.", label, rows
    for key, value in file.counters.items():
        what, _, name = key.partition(".")
        if what == "unencoded":
            text = "Content changes that a generation missed for want of an encoder."
            yield "unencoded_total", text, {"generation": name}, value
        elif what == "unknown_text":
            text = "Texts encoded that hold no word of the tokenizer: their ads share one prefix."
            yield "unknown_texts_total", text, {"generation": name}, value
        elif what == "recovered":
            yield "recovered_total", "Dead letters that took effect later.", {"kind": name}, value
    for part in (STORE, BASE):
        files = (p.stat() for p in (file.path / part).rglob("*") if p.is_file())
        yield "disk_bytes", "Space taken on disk.", {"part": part}, sum(s.st_blocks * 512 for s in files)


def compactor_samples(compactor: Compactor) -> Iterator[Sample]:
    """What became of compactions; in the writer's thread."""
    yield "compactions_total", "Base arrays written and adopted.", _NO_LABELS, compactor.compactions
    yield "compaction_failures_total", "Compactions that failed.", _NO_LABELS, compactor.failures


def reader_samples(readers: Readers) -> Iterator[Sample]:
    """Who reads the store; in the writer's thread."""
    yield "readers", "Slots in LMDB's table of readers; it has 126.", _NO_LABELS, readers.open
    text = "Transactions that the oldest open read transaction is behind."
    yield "oldest_reader_lag", text, _NO_LABELS, readers.lag
    text = "Readers that died inside a transaction and were cleared."
    yield "dead_readers_total", text, _NO_LABELS, readers.cleared


def damage_samples(checker: Checker) -> Iterator[Sample]:
    """What is not as it was written; in any thread."""
    text = "Damaged tables and files (store), generations with damaged base arrays (base)."
    for part, count in checker.damaged().items():
        yield "damaged", text, {"part": part}, count


def writer_samples(index: Path, *, depth: int, ready: bool) -> Iterator[Sample]:
    """Whether events are applied; in any thread."""
    yield "queue_depth", "Events waiting for the writer.", _NO_LABELS, depth
    yield "ready", "1: events are applied at the moment.", _NO_LABELS, ready
    try:
        beat = (index / HEARTBEAT).stat().st_mtime
    except OSError:
        return
    yield "heartbeat_timestamp_seconds", "When the writer's thread last turned.", _NO_LABELS, beat


def source_samples(sources: Iterable[Source]) -> Iterator[Sample]:
    """How far the streams are; in any thread."""
    for source in sources:
        state, label = source.state, {"source": source.name}
        yield "source_connected", "1: its broker answers.", label, state.connected
        yield "source_events_total", "Events handed to the writer.", label, state.received
        text = "Events that had been applied before and were only acknowledged."
        yield "source_redelivered_total", text, label, state.redelivered
        text = "Messages without a value, which were skipped."
        yield "source_tombstones_total", text, label, state.tombstones
        yield "source_failures_total", "Failed connections or reads.", label, state.failures
        if state.lag_events is not None:
            yield "source_lag_events", "Events not applied yet.", label, state.lag_events
        if state.lag_seconds is not None:
            text = "Age of the oldest event that is not applied yet."
            yield "source_lag_seconds", text, label, state.lag_seconds


def gap_samples(gaps: Gaps) -> Iterator[Sample]:
    """What streams lost; in any thread."""
    for name, one in gaps.known.items():
        label = {"source": name}
        yield "source_gaps_total", "Times that events were gone when they were to be read.", label, one.gaps
        yield "source_lost_events_total", "Events lost in gaps whose size is known.", label, one.lost
        yield "source_gaps_unseen", "Gaps that nobody has acknowledged.", label, one.unseen
