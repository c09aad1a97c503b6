"""From an accepted event to a Triton answer that shows it, under load; and what updates cost the requests.

Core 0 serves (Triton and its Python processes); core 1 has the sidecar and this client. Requests come open
loop (Poisson, and the probes) at half of what the server can do. Windows with and without updates take turns.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import tritonclient.grpc.aio

from benchmarks import catalogue
from benchmarks.burst import Tensors, burst
from benchmarks.cores import pinned
from benchmarks.live_index.deployment import prepare, sidecar
from benchmarks.live_index.events import ad_events
from benchmarks.pinned_server import Server
from examples.client import infer_inputs
from launcher.indexer_process import IndexerProcess
from loadtest.sampler import read_metrics
from serving.index.reader import IndexReader
from serving.model.bundle import read_manifest

EVENTS_PER_S, BULK = 500, 25
PROBE_EVERY_S = 0.4
SETTLE_S = 2.0  # between windows: what the last one began must be over
_TIMEOUT_S = 30.0


@dataclass
class Seen:
    """What a run saw; times are `time.perf_counter` seconds.

    Attributes:
        answers: when an answer came and which index version it was searched with.
        latencies: seconds from the intended start of each request, of probes from their sending, by window.
        accepted: when a batch of events was sent, when acknowledged, its sequence number and its events.
        probes: kind of a probe event, seconds from its acknowledgement until an answer showed it.
        failures: texts.
    """

    answers: list[tuple[float, int]] = field(default_factory=list)
    latencies: dict[tuple[int, bool], list[float]] = field(default_factory=dict)
    accepted: list[tuple[float, float, int, int]] = field(default_factory=list)
    probes: list[tuple[str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def measure(
    run: Path, *, ads: int, windows: int, window_s: float, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Prepare, start server and sidecar, measure; returns figures and the series behind them."""
    say(f"visible: index of {ads:,} ads")
    prepare(run, ads=ads)
    spec = read_manifest(run / "bundles" / "1", verify=False).features
    reader = IndexReader(run / "index")
    tensors = catalogue.requests(64, spec, reader.snapshot)
    probe = catalogue.requests(1, spec, reader.snapshot, seed=1)[0]
    reader.close()
    with (
        pinned({1}),
        Server(run / "repository", cores={0}) as server,
        sidecar(run, cores={1}) as indexer,
    ):
        burst(server.grpc_url, tensors, concurrency=4, seconds=3.0)
        full = burst(server.grpc_url, tensors, concurrency=4, seconds=8.0)
        capacity = full.completed / full.seconds
        say(f"visible: {capacity:.1f} QPS at saturation; {windows} windows of {window_s} s of each kind")
        seen = asyncio.run(
            _run(
                server.grpc_url,
                indexer.url,
                tensors=tensors,
                probe=probe,
                rate=max(capacity / 2 - 1 / PROBE_EVERY_S, 0.5),
                ads=ads,
                windows=windows,
                window_s=window_s,
            )
        )
        metrics = sidecar_metrics(indexer)
    return _figures(seen, capacity=capacity, failed=len(full.failures)) | {"sidecar": metrics}


def sidecar_metrics(indexer: IndexerProcess) -> dict[str, float]:
    """Values of the sidecar's own metrics that have no labels."""
    samples = read_metrics(f"{indexer.url}/metrics", timeout_s=30)
    return {s.name: s.value for s in samples if s.name.startswith("gr4ad_") and not s.labels}


async def _run(
    grpc_url: str,
    http_url: str,
    *,
    tensors: list[Tensors],
    probe: Tensors,
    rate: float,
    ads: int,
    windows: int,
    window_s: float,
) -> Seen:
    seen, random = Seen(), np.random.default_rng(0)
    inputs = [infer_inputs(t) for t in tensors]
    asked = np.unique(np.concatenate([t["history_ad_ids"].ravel() for t in [*tensors, probe]]))
    toggled: set[int] = set()
    version = itertools.count(1_000_000)  # of probes, above what other events of their ads have
    async with (
        tritonclient.grpc.aio.InferenceServerClient(grpc_url) as client,
        aiohttp.ClientSession(http_url, timeout=aiohttp.ClientTimeout(_TIMEOUT_S)) as session,
    ):

        async def answer(request: Any) -> np.ndarray:
            result = await client.infer("gr4ad", request, client_timeout=_TIMEOUT_S)
            seen.answers.append((time.perf_counter(), int(result.as_numpy("index_version")[0, 0])))
            return result.as_numpy("ad_ids")[0]

        async def load(window: tuple[int, bool]) -> None:
            due, end, running = time.perf_counter(), time.perf_counter() + window_s, []

            async def one(intended: float, request: Any) -> None:
                try:
                    await answer(request)
                    seen.latencies.setdefault(window, []).append(time.perf_counter() - intended)
                except Exception as error:  # whatever it is, it counts
                    seen.failures.append(f"request: {type(error).__name__}: {error}")

            for number in itertools.count():
                due += random.exponential(1 / rate)
                if due > end:
                    break
                await asyncio.sleep(max(due - time.perf_counter(), 0))
                running.append(asyncio.create_task(one(due, inputs[number % len(inputs)])))
            await asyncio.gather(*running)

        events = ad_events(seed=1, first_new=ads + 1, known=(1, ads), untouched=frozenset(map(int, asked)))

        async def updates() -> None:
            due, end = time.perf_counter(), time.perf_counter() + window_s
            while due < end:
                batch = list(itertools.islice((e for e in events if e["ad_id"] not in toggled), BULK))
                await asyncio.sleep(max(due - time.perf_counter(), 0))
                await post(batch)
                due += BULK / EVENTS_PER_S

        async def post(batch: list[dict[str, Any]]) -> float:
            sent = time.perf_counter()
            async with session.post("/events/bulk", json=batch) as response:
                body = await response.json()
            now = time.perf_counter()
            wrong = [o for o in body["rows"] if o["result"] != "applied"]
            if response.status != 200 or wrong:
                seen.failures.append(f"events: {response.status} {json.dumps(wrong[:1] or body)[:300]}")
                return now
            seen.accepted.append((sent, now, max(o["sequence"] for o in body["rows"]), len(batch)))
            return now

        async def probes(window: tuple[int, bool]) -> None:
            """One ad of the probe's answer is paused, must go, is resumed, must come back.

            One request every PROBE_EVERY_S, with updates or without; a change is made right before one.
            """
            request, due, end = infer_inputs(probe), time.perf_counter(), time.perf_counter() + window_s
            kind, ad, sought, changed = "resume", -1, False, 0.0  # last change; whether it is yet to be seen
            while due < end or sought:
                await asyncio.sleep(max(due - time.perf_counter(), 0))
                due += PROBE_EVERY_S
                change = window[1] and not sought and ad >= 0
                if change and (kind == "pause" or due + 4 * PROBE_EVERY_S < end):
                    kind, sought = "resume" if kind == "pause" else "pause", True
                    changed = await post([{"kind": kind, "ad_id": ad, "version": next(version)}])
                began = time.perf_counter()
                found = await answer(request)
                seen.latencies.setdefault(window, []).append(time.perf_counter() - began)
                if not sought and kind == "resume":
                    ad = int(found[len(seen.probes) % 10])
                    toggled.add(ad)
                elif sought and (ad in found) == (kind == "resume"):
                    seen.probes.append((kind, time.perf_counter() - changed))
                    sought = False
                elif sought and time.perf_counter() - changed > _TIMEOUT_S:
                    seen.failures.append(f"probe: {kind} of ad {ad} is not seen")
                    return

        pause = 1 / (rate + 1 / PROBE_EVERY_S)
        for number in range(windows):
            for with_updates in random.permutation([False, True]).tolist():
                work = [load((number, with_updates)), probes((number, with_updates))]
                await asyncio.gather(*work, *([updates()] if with_updates else []))
                # Requests go on at their pace until the last events are seen, too.
                last = max((sequence for _, _, sequence, _ in seen.accepted), default=0)
                end = time.perf_counter() + _TIMEOUT_S
                while not seen.failures and seen.answers[-1][1] < last:
                    if time.perf_counter() > end:
                        seen.failures.append(f"events up to {last} are not seen after {_TIMEOUT_S:.0f} s")
                    await asyncio.sleep(pause)
                    await answer(infer_inputs(probe))
                await asyncio.sleep(SETTLE_S)
    return seen


def _figures(seen: Seen, *, capacity: float, failed: int) -> dict[str, Any]:
    answers = sorted(seen.answers)
    when = np.array([at for at, _ in answers])
    newest = np.maximum.accumulate([version for _, version in answers])
    visible, from_send, unseen = [], [], 0
    for sent, accepted, sequence, count in seen.accepted:
        at = int(np.searchsorted(newest, sequence))
        if at == len(when):
            unseen += count
            continue
        # An answer may have shown the event before its acknowledgement came back.
        visible += [max(when[at] - accepted, 0.0)] * count
        from_send += [when[at] - sent] * count
    rounds = sorted({number for number, _ in seen.latencies})
    p99 = {
        with_updates: np.percentile(np.concatenate([seen.latencies[n, with_updates] for n in rounds]), 99)
        for with_updates in (False, True)
    }
    spans = [s[0] for s in seen.accepted]
    probes = np.array([s for _, s in seen.probes] or [np.nan])
    return {
        "capacity_qps": capacity,
        "requests": sum(map(len, seen.latencies.values())),
        "events": sum(s[3] for s in seen.accepted),
        "events_unseen": unseen,
        "visible_p50_ms": float(np.percentile(visible, 50) * 1e3),
        "visible_p99_ms": float(np.percentile(visible, 99) * 1e3),
        "visible_from_send_p50_ms": float(np.percentile(from_send, 50) * 1e3),
        "visible_from_send_p99_ms": float(np.percentile(from_send, 99) * 1e3),
        "accepted_p50_ms": float(np.median([a - s for s, a, _, _ in seen.accepted]) * 1e3),
        "probes": len(seen.probes),
        "probe_p50_ms": float(np.percentile(probes, 50) * 1e3),
        "probe_p99_ms": float(np.percentile(probes, 99) * 1e3),
        "p99_ms": p99[False] * 1e3,
        "p99_with_updates_ms": p99[True] * 1e3,
        "p50_ms": float(np.median(np.concatenate([seen.latencies[n, False] for n in rounds])) * 1e3),
        "p50_with_updates_ms": float(
            np.median(np.concatenate([seen.latencies[n, True] for n in rounds])) * 1e3
        ),
        "p99_with_updates_ratio": float(p99[True] / p99[False]),
        "failures": failed + len(seen.failures),
        "first_failures": seen.failures[:3],
        "seconds": spans[-1] - spans[0] if spans else 0.0,
    }
