"""A day in fast-forward: millions of events on the same ads; neither file nor memory may grow with them."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event as Flag
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.live_index.build import private_bytes
from benchmarks.live_index.deployment import build_index, text
from indexer.encode.bundle_encoder import load_encoder
from indexer.events.event import AdEvent
from indexer.events.parse import event_of
from indexer.sidecar.compactor import Compactor
from indexer.store.incoming import Incoming
from indexer.store.index_store import IndexStore
from serving.index.reader import IndexReader

BATCH = 1_000
_TEXTS = 5_000
_MIX = (("pause", 0.4), ("resume", 0.75), ("delete", 0.8), ("update", 1.0))  # cumulative
_WARM = 0.1  # of the events, after which sizes are compared with those at the end


def measure(
    run: Path, *, ads: int, events: int, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Apply the events through the store, with its compactor and a reader at work; `run` holds a bundle.

    Transactions are not flushed to disk one by one, which a real writer does: a day must fit into minutes.
    """
    work = run / "growth"
    shutil.rmtree(work, ignore_errors=True)
    encoder = load_encoder(run / "bundles" / "1")
    say(f"growth: index of {ads:,} ads")
    build_index(work / "index", ads=ads, level_sizes=encoder.level_sizes, tokenizer_id=encoder.tokenizer_id)
    context = multiprocessing.get_context("spawn")
    over, served = context.Event(), context.Value("q", 0)
    follower = context.Process(target=_follow, args=(work / "index", over, served), daemon=True)
    follower.start()
    series: list[dict[str, float]] = []
    began = time.monotonic()
    try:
        with IndexStore(work / "index", encoders=[encoder], sync=False) as store:
            compactor = Compactor(store.file)
            stream = _events(ads)
            for done in range(0, events, BATCH):
                store.apply([Incoming(next(stream), b"{}", "bench") for _ in range(BATCH)])
                compactor.poll()
                if done % max(events // 200 // BATCH * BATCH, BATCH) == 0:
                    series.append(
                        {
                            "events": done + BATCH,
                            "file_mb": _size(work / "index") / 1e6,
                            "writer_mb": private_bytes() / 1e6,
                            "reader_mb": private_bytes(int(follower.pid or 0)) / 1e6,
                            "reader_behind": store.meta.sequence - served.value,
                            "seconds": time.monotonic() - began,
                        }
                    )
                    say(f"growth: {done:,} of {events:,} events, {series[-1]['file_mb']:.0f} MB")
            seconds, compactions = time.monotonic() - began, compactor.compactions
            compactor.close()
    finally:
        over.set()
        follower.join(timeout=30)
    warm = [s for s in series if s["events"] <= max(events * _WARM, series[0]["events"])][-1]

    def grown(name: str) -> float:
        # Of the last tenth, so that one sample in the middle of a compaction does not decide.
        late = [s[name] for s in series if s["events"] > 0.9 * events] or [series[-1][name]]
        return float(np.median(late) / warm[name])

    return {
        "ads": ads,
        "events": events,
        "events_per_s": events / seconds,
        "compactions": compactions,
        "file_growth": grown("file_mb"),
        "memory_growth": max(grown("writer_mb"), grown("reader_mb")),
        "series": series,
    }


def _events(ads: int) -> Iterator[AdEvent]:
    random = np.random.default_rng(0)
    texts = [text(random) for _ in range(_TEXTS)]
    versions, deleted = np.zeros(ads + 1, np.int64), np.zeros(ads + 1, bool)
    while True:
        for ad, draw in zip(random.integers(1, ads + 1, 4096).tolist(), random.random(4096), strict=True):
            versions[ad] += 1
            kind = next(k for k, upto in _MIX if draw < upto)
            if deleted[ad]:
                kind = "create"
            deleted[ad] = kind == "delete"
            fields: dict[str, str] = {}
            if kind in ("create", "update"):
                words = texts[int(draw * 1e6) % _TEXTS]
                fields = {"account_id": f"a{ad % 97}", "conversion_type": "plain", "text": words}
            yield event_of({"kind": kind, "ad_id": ad, "version": int(versions[ad]), **fields})


def _follow(index: Path, over: Flag, served: Any) -> None:
    reader = IndexReader(index)
    while not over.wait(0.1):
        reader.refresh()
        served.value = reader.snapshot.version


def _size(index: Path) -> int:
    total = 0
    for path in index.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except OSError:  # compaction took it away
            continue
    return total
