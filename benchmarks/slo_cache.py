"""The result cache in `make loadtest-slo`: its gain at saturation, and that no paused ad comes out of it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import polars as pl

from benchmarks.pinned_server import Server
from benchmarks.slo_load import Bench, offer_for
from examples.client import send
from indexer.events.event import PauseEvent, ResumeEvent
from indexer.store.incoming import Incoming
from indexer.store.index_store import IndexStore
from loadtest.outcomes import OK
from loadtest.sampler import read_metrics
from serving.index.reader import MAX_WAIT_S

REPEATS = 0.278
STALE_TRIES = 20


def cache(bench: Bench) -> dict[str, Any]:
    """Repeats at saturation, with and without the cache, in turns; then ads that are paused while cached."""
    rounds: dict[str, list[float]] = {"local": [], "off": []}
    with (
        bench.serving("cached", load_control="fixed", cache="local") as cached,
        bench.serving("uncached", load_control="fixed", cache="off") as uncached,
    ):
        for number in range(1 if bench.quick else 3):
            for name, server in (("local", cached), ("off", uncached)):
                seen = offer_for(
                    bench,
                    server,
                    users=16,
                    seconds=bench.seconds(20.0),
                    repeats=REPEATS,
                    seed=10 + number,
                )
                rounds[name].append(seen.requests.filter(pl.col("outcome") == OK).height / seen.seconds)
        stale, hits = _stale(bench, cached)
    ratios = [a / b for a, b in zip(rounds["local"], rounds["off"], strict=True)]
    return {"qps": rounds, "ratio": float(np.median(ratios)), "stale_ads": stale, "stale_hits": hits}


def _stale(bench: Bench, server: Server) -> tuple[int, int]:
    """Answers, from the cache, that held an ad after it was paused, and how many came from the cache."""

    def hits() -> float:
        lookups = [s for s in read_metrics(server.metrics_url) if s.name == "gr4ad_cache_lookups_total"]
        return sum(s.value for s in lookups if s.labels["result"] == "hit")

    stale, before = 0, hits()
    with IndexStore(bench.work / "index") as store:
        for tensors in bench.mix.users[:STALE_TRIES]:
            send(server.grpc_url, tensors)
            ads = send(server.grpc_url, tensors)["ad_ids"][0]  # from the cache
            view = store.ad(int(ads[0]))
            assert view is not None
            paused = PauseEvent(ad_id=view.ad_id, version=view.status_version + 1)
            store.apply([Incoming(paused, b"{}", "slo")])
            time.sleep(MAX_WAIT_S + 0.02)  # readers follow within that
            again = send(server.grpc_url, tensors)["ad_ids"][0]
            stale += int(ads[0] in again)
            resumed = ResumeEvent(ad_id=view.ad_id, version=view.status_version + 2)
            store.apply([Incoming(resumed, b"{}", "slo")])
    return stale, int(hits() - before)
