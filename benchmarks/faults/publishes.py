"""Publishes in a row under load: failed requests, answers that mix versions, memory and files over time."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.faults.variants import CHECKED, Answer, Expected, add_variant
from export.publish import Place, publish
from serving.model.current import current_version

TOLERANCE = 1e-4  # of scores, which depend a little on the batch
CLIENTS = 4
MEASURE_S = 3.0


@dataclass
class Seen:
    """What came back, in the order it came.

    Attributes:
        answers: number of the request, version that it names, outputs.
        failures: texts.
    """

    answers: list[tuple[int, int, Answer]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def publish_series(
    ask: Callable[[int], Answer],
    place: Place,
    *,
    requests: Sequence[Answer],
    load: Callable[[str], object],
    processes: Callable[[], list[psutil.Process]],
    count: int = 100,
    every_s: float = 2.0,
    share: float = 0.5,
) -> dict[str, Any]:
    """Publish versions at a steady rate while requests come at a share of what the server can do.

    Args:
        ask: sends request i of `requests`, searched anew at the configured widths; raises where it fails.
        place: from where to where.
        requests: of one row each, with a time of their own.
        load: see `publish`.
        processes: of the deployment, now.
        count: publishes.
        every_s: from the beginning of one to that of the next; more where one takes longer.
        share: of the rate at which the server answers `CLIENTS` at once.

    Returns:
        `publishes`, `publish_failed_requests`, `mixed_versions` (answers that are not those of the version
        that they name), `requests`, `qps`, `versions_seen`, `last_seen` (whether the last version answers),
        `publish_s` (median), `pss_mb`, `handles`, `files` (first and last third of the series, medians),
        `texts` (failures).
    """
    first = current_version(place.bundles)
    expected = Expected(place.bundles, place.index, list(requests), widths=place.config.widths)
    qps = share * saturated_qps(ask, len(requests))
    seen, over, series = Seen(), threading.Event(), []
    with ThreadPoolExecutor(32, thread_name_prefix="ask") as pool:
        sender = threading.Thread(target=_send, args=(ask, pool, seen, over), kwargs={"every_s": 1 / qps})
        sender.start()
        try:
            began = time.monotonic()
            for number in range(count):
                version = first + number + 1
                add_variant(place.bundles, version, source=first)
                expected.of(version)
                time.sleep(max(0.0, began + number * every_s - time.monotonic()))
                at = time.monotonic()
                publish(version, place, load=load)
                series.append({"publish_s": time.monotonic() - at, **_sizes(processes(), place.repository)})
            time.sleep(every_s)
            last = int(ask(0)["model_version"].ravel()[0])
        finally:
            over.set()
            sender.join()
    versions = {version for _, version, _ in seen.answers}
    mixed = [a for a in seen.answers if not is_of(a[2], expected.of(a[1])[a[0] % len(requests)])]
    third = max(1, count // 3)
    return {
        "publishes": count,
        "publish_failed_requests": len(seen.failures),
        "mixed_versions": len(mixed),
        "requests": len(seen.answers) + len(seen.failures),
        "qps": round(qps, 1),
        "versions_seen": len(versions),
        "last_seen": last == first + count,
        "publish_s": round(statistics.median(s["publish_s"] for s in series), 2),
        **{
            name: [
                round(statistics.median(s[name] for s in part), 1)
                for part in (series[third // 2 : third + 1], series[-third:])
            ]
            for name in ("pss_mb", "handles", "files")
        },
        "texts": sorted(set(seen.failures))[:5],
    }


def _send(
    ask: Callable[[int], Answer],
    pool: ThreadPoolExecutor,
    seen: Seen,
    over: threading.Event,
    *,
    every_s: float,
) -> None:
    due = time.monotonic()
    for number in itertools.count():
        if over.wait(max(0.0, due - time.monotonic())):
            return
        pool.submit(_one, ask, seen, number)
        due += every_s


def _one(ask: Callable[[int], Answer], seen: Seen, number: int) -> None:
    try:
        found = ask(number)
    except Exception as error:  # noqa: BLE001  (whatever it is, the user has no answer)
        seen.failures.append(str(error)[:300])
        return
    seen.answers.append((number, int(found["model_version"].ravel()[0]), found))


def saturated_qps(ask: Callable[[int], Answer], requests: int) -> float:
    """Answers a second with `CLIENTS` requests under way all the time."""
    ends = time.monotonic() + MEASURE_S

    def client(number: int) -> int:
        done = 0
        while time.monotonic() < ends:
            ask((number + done) % requests)
            done += 1
        return done

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(client, range(CLIENTS))) / MEASURE_S


def is_of(found: Answer, expected: Answer) -> bool:
    """Whether an answer is one of this version: ads, SIDs, scores and values."""
    for name in CHECKED:
        got, want = found[name][0], expected[name]
        if got.shape != want.shape:
            return False
        same = np.abs(got - want) <= TOLERANCE if want.dtype.kind == "f" else got == want
        if not same.all():
            return False
    return True


def _sizes(processes: list[psutil.Process], repository: Path) -> dict[str, float]:
    pss = handles = 0
    for process in processes:
        try:
            pss += process.memory_full_info().pss
            handles += process.num_fds()
        except psutil.NoSuchProcess:  # of a version that was just taken away
            continue
    files = sum(1 for path in repository.rglob("*") if path.is_file())
    return {"pss_mb": pss / 2**20, "handles": handles, "files": files}
