"""What publishes cost those who ask meanwhile, and what many swaps leave behind."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.faults.deployment import CONFIG, SMALL, Deployment, requests
from benchmarks.faults.publishes import is_of, saturated_qps
from benchmarks.faults.variants import Answer, Expected
from benchmarks.live_index.deployment import prepare
from benchmarks.loop.publishing import Published, Trainer, steady
from examples.client import send
from export.verdicts import VERDICTS
from serving.model.bundle import versions
from serving.model.current import HISTORY, point_current
from training.preset.preset import Preset

ADS = 20_000
FOLLOWS = ("serving.graph_calls=in_process", "serving.load_control=fixed", "serving.threads=1")
"""The schedulers run the graphs and follow CURRENT; each request is searched at the configured widths."""
IN_A_ROW = 5  # publishes of a block, between two blocks without
ALONE = 200  # requests, one after another, before anything counts
IN_TURN = 2_000  # requests to each of two servers
SAMPLES = 40

Say = Callable[[str], None]


def publishes(run: Path, *, count: int, every_s: float, say: Say) -> dict[str, Any]:
    """Publishes while requests come at half of what the server can do, on a model of the demo's size.

    Blocks with publishes and without take turns, so that both see the same machine.

    Args:
        run: folder to work in.
        count: publishes.
        every_s: between the beginnings of two.
        say: is told how it goes.

    Returns:
        `publishes`, `publish_p50_s`, `publish_p99_s` (from weights that are ready to the first answer by
        them), `publish_cpu_s` (median, of the trainer), `failed_requests`, `mixed_versions` (answers that are
        not those of the version that they name), `versions_seen`, `requests`, `qps`, `p99_quiet_ms`,
        `p99_with_publishes_ms`, `p99_with_publishes_ratio`.
    """
    settings = (*FOLLOWS, "serving.cache='off'", f"publish.kept={count + 2}")
    preset = prepared(run, settings)
    with Deployment(run) as deployment, Trainer(run, preset=_words(settings)) as trainer:
        ask = _ask(deployment)
        for number in range(ALONE):
            ask(number)  # the first ones are slow
        qps = 0.5 * saturated_qps(ask, len(deployment.tensors))
        done: list[Published] = []
        blocks: list[tuple[float, float, bool]] = []
        with steady(ask, qps=qps) as seen:
            while len(done) < count:
                for busy in (False, True):
                    began = time.monotonic()
                    for i in range(IN_A_ROW):
                        if busy and len(done) < count:
                            done.append(trainer.publish())
                        time.sleep(max(0.0, began + (i + 1) * every_s - time.monotonic()))
                    blocks.append((began, time.monotonic(), busy))
                say(f"publishes: {len(done)} of {count}, {len(seen)} requests")
            _until(lambda: seen and seen[-1].version == done[-1].version)
    answered = [a for a in seen if a.answer is not None]
    expected = Expected(run / "bundles", run / "index", deployment.tensors, widths=preset.serving.widths)
    mixed = [
        a
        for a in answered
        if not is_of(a.answer or {}, expected.of(a.version)[a.number % len(deployment.tensors)])
    ]
    times = {
        busy: [a.ended - a.due for a in seen for b, e, kind in blocks if kind == busy and b <= a.due < e]
        for busy in (False, True)
    }
    quiet, with_publishes = (float(np.percentile(times[busy], 99)) for busy in (False, True))
    firsts = {p.version: min(a.ended for a in answered if a.version == p.version) for p in done}
    taken = [firsts[p.version] - p.ready for p in done]
    _forget(run)
    return {
        "publishes": len(done),
        "publish_p50_s": round(statistics.median(taken), 2),
        "publish_p99_s": round(float(np.percentile(taken, 99)), 2),
        "publish_cpu_s": round(statistics.median(p.cpu_s for p in done), 2),
        "failed_requests": len(seen) - len(answered),
        "failures": sorted({a.failure for a in seen if a.failure})[:5],
        "mixed_versions": len(mixed),
        "versions_seen": len({a.version for a in answered}),
        "requests": len(seen),
        "qps": round(qps, 1),
        "p99_quiet_ms": round(1e3 * quiet, 1),
        "p99_with_publishes_ms": round(1e3 * with_publishes, 1),
        "p99_with_publishes_ratio": round(with_publishes / quiet, 3),
    }


def swaps(run: Path, *, count: int, say: Say) -> dict[str, Any]:
    """Swap after swap on a small model, each seen in an answer: does anything grow, does anything get slow?

    Args:
        run: folder to work in.
        count: swaps.
        say: is told how it goes.

    Returns:
        `swaps`; `swap_pss_mb` (medians of a sixth of the samples, after the first quarter and at the end) and
        `memory_growth`, their ratio; `swap_fds`, the same two of open handles, and `fds_growth`, their
        difference; `request_ms`, medians of requests sent one by one after all swaps, in turn to a server of
        the same folder that was just started and to the one that was swapped, and `request_creation_ratio`,
        their ratio; `swap_s`, median.
    """
    settings = (*SMALL, *FOLLOWS, "serving.cache=local")
    prepared(run, settings)
    with Deployment(run) as deployment, Trainer(run, preset=_words(settings)) as trainer:
        ask = _ask(deployment)
        for number in range(ALONE):
            ask(number)
        samples, taken = [], []
        for number in range(count):
            published = trainer.publish()
            _until(lambda: ask(number)["model_version"].ravel()[0] == published.version)  # noqa: B023
            taken.append(time.monotonic() - published.ready)
            if number % max(1, count // SAMPLES) == 0:
                samples.append(_sizes(deployment))
                say(f"swaps: {number + 1} of {count}, {samples[-1]}")
        with _just_started(run, deployment.tensors) as other:
            new, swapped = _in_turn_ms(_ask(other), ask)
    early, late = (
        samples[len(samples) // 4 :][: max(1, len(samples) // 6)],
        samples[-max(1, len(samples) // 6) :],
    )
    pss, fds = ([statistics.median(s[i] for s in part) for part in (early, late)] for i in (0, 1))
    return {
        "swaps": count,
        "swap_s": round(statistics.median(taken), 2),
        "swap_pss_mb": [round(x, 1) for x in pss],
        "memory_growth": round(pss[1] / pss[0], 3),
        "swap_fds": fds,
        "fds_growth": fds[1] - fds[0],
        "request_ms": [round(new, 2), round(swapped, 2)],
        "request_creation_ratio": round(swapped / new, 3),
    }


def _words(settings: tuple[str, ...]) -> tuple[str, ...]:
    return f"--config={CONFIG}", *(f"--set={setting}" for setting in settings)


def prepared(run: Path, settings: tuple[str, ...]) -> Preset:
    """Version 1, its index and repository; versions of before are gone."""
    _forget(run)
    preset = Preset.load(CONFIG, settings)
    prepare(run, ads=ADS, preset=preset)
    return preset


def _forget(run: Path) -> None:
    """Remove every version but the first, and all where that was superseded."""
    bundles = run / "bundles"
    if not (bundles / "1").is_dir():
        shutil.rmtree(run, ignore_errors=True)
        return
    (bundles / HISTORY).unlink(missing_ok=True)
    (bundles / VERDICTS).unlink(missing_ok=True)
    point_current(bundles, 1)
    for version in versions(bundles):
        if version != 1:
            shutil.rmtree(bundles / str(version))


def _ask(deployment: Deployment) -> Callable[[int], Answer]:
    tensors = deployment.tensors or requests(deployment.run)
    return lambda number: send(deployment.grpc_url, tensors[number % len(tensors)], timeout_s=10.0)


@contextmanager
def _just_started(run: Path, tensors: list[Answer]) -> Iterator[Deployment]:
    """One more server on a run's folder, for these requests, without a sidecar."""
    deployment = Deployment(run, launcher=(f"--log={run / 'other.log'}",))
    deployment.run_file, deployment.tensors = run / "other.json", tensors
    deployment.start()
    try:
        yield deployment
    finally:
        deployment.stop()


def _in_turn_ms(*asks: Callable[[int], Answer]) -> list[float]:
    """Medians of requests one by one, to each in turn, after some that do not count."""
    times: list[list[float]] = [[] for _ in asks]
    for number in range(ALONE + IN_TURN):
        places = list(zip(asks, times, strict=True))
        for ask, found in places if number % 2 else places[::-1]:
            began = time.perf_counter()
            ask(number)
            found.append(time.perf_counter() - began)
    return [1e3 * statistics.median(found[ALONE:]) for found in times]


def _sizes(deployment: Deployment) -> tuple[float, float]:
    """PSS in MiB and open handles of all processes of the deployment."""
    pss = fds = 0.0
    for process in (p for group in deployment.processes().values() for p in group):
        try:
            pss += process.memory_full_info().pss / 2**20
            fds += process.num_fds()
        except psutil.NoSuchProcess:  # ended a moment ago
            continue
    return round(pss, 1), fds


def _until(true: Callable[[], object], *, within_s: float = 120.0) -> None:
    ends = time.monotonic() + within_s
    while not true():
        if time.monotonic() > ends:
            raise TimeoutError(f"expected an answer by the new version within {within_s:g} s, got none")
        time.sleep(0.02)
