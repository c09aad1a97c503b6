"""Twenty minutes of requests, events, publishes and kills: does anything grow?"""

from __future__ import annotations

import itertools
import json
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.deployment import Deployment
from benchmarks.faults.inject import kill_stub
from benchmarks.faults.observer import Answer, Observer
from benchmarks.faults.probe import ask
from benchmarks.faults.variants import add_variant
from export.publish import Place, publish
from launcher.run_file import RunFile
from launcher.stubs import SHM
from launcher.triton_admin import Admin
from serving.model.current import current_version

PUBLISH_S, KILL_S, EVENT_S, SAMPLE_S = 15.0, 40.0, 0.1, 5.0
KILLED = ("beam_scheduler", "ad_resolver", "request_features", "lazyar_prefix")
WARM = 0.25  # of the time: caches fill, the allocator finds its size, the first kills are done


def soak(deployment: Deployment, place: Place, *, seconds: float) -> dict[str, Any]:
    """Keep a deployment busy and sample what it holds.

    Events pause and resume one ad ten times a second; every fourth of a minute a version is published; one
    process of a model is killed every 40 s. A request fails only where a kill or its repair took it.

    Args:
        deployment: running.
        place: of the publishes.
        seconds: how long.

    Returns:
        `soak_requests`, `soak_failed`, `soak_publishes`, `soak_kills`, `soak_events`; `soak_pss_mb`: by kind
        of process, medians of the quarter after `WARM` and of the last quarter; `soak_pss_growth`: the
        largest of their ratios; `soak_files`: open handles, files of repository and index, regions of shared
        memory, the same two medians each.
    """
    counts = {"publishes": 0, "kills": 0, "events": 0}
    samples: list[dict[str, float]] = []
    over = threading.Event()
    link = RunFile.read(deployment.run_file)
    expected: list[Answer] = [{} for _ in deployment.tensors]  # any answer will do: versions differ
    url = deployment.sidecar.url

    def publishing() -> None:
        first = current_version(place.bundles)
        with Admin(link.grpc_url, key=link.key) as admin:
            for number in itertools.count(1):
                if over.wait(PUBLISH_S):
                    return
                add_variant(place.bundles, first + number, source=first)
                publish(first + number, place, load=admin.load)
                counts["publishes"] += 1

    def killing() -> None:
        for model in itertools.cycle(KILLED):
            if over.wait(KILL_S):
                return
            kill_stub(deployment.shm_prefix, model)
            counts["kills"] += 1

    def changing() -> None:
        for number in itertools.count():
            if over.wait(EVENT_S):
                return
            event = {"kind": ("pause", "resume")[number % 2], "ad_id": 1, "version": (1 << 43) + number}
            counts["events"] += ask(url, "POST", "/events", json.dumps(event).encode())[0] == 200

    threads = [threading.Thread(target=work) for work in (publishing, killing, changing)]
    with Observer(deployment.ask, deployment.healthy, expected=expected, every_s=0.1).watching() as seen:
        for thread in threads:
            thread.start()
        try:
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                time.sleep(SAMPLE_S)
                samples.append(_sample(deployment, place.repository))
        finally:
            over.set()
            for thread in threads:
                thread.join()
    kept = samples[int(WARM * len(samples)) :]
    quarter = max(1, len(samples) // 4)
    halves = {name: _medians(kept[:quarter], kept[-quarter:], name) for name in sorted(kept[-1])}
    pss = {name.removeprefix("pss "): both for name, both in halves.items() if name.startswith("pss ")}
    return {
        "soak_seconds": seconds,
        "soak_requests": len(seen.asked),
        "soak_failed": sum(asked.outcome != "ok" for asked in seen.asked),
        **{f"soak_{name}": count for name, count in counts.items()},
        "soak_pss_mb": pss,
        "soak_pss_growth": round(max(after / before for before, after in pss.values()), 3),
        "soak_files": {name: both for name, both in halves.items() if not name.startswith("pss ")},
    }


def _medians(first: list[dict[str, float]], last: list[dict[str, float]], name: str) -> tuple[float, float]:
    before, after = ([sample[name] for sample in part if name in sample] for part in (first, last))
    return round(statistics.median(before), 1), round(statistics.median(after), 1)


def _sample(deployment: Deployment, repository: Path) -> dict[str, float]:
    """Of one moment: PSS by kind, in MiB a process, handles, and files."""
    found: dict[str, float] = defaultdict(float)
    groups = deployment.processes()
    indexer = deployment.sidecar.process
    if indexer is not None:
        groups["indexer"] = [psutil.Process(indexer.pid)]
    for kind, processes in groups.items():
        sizes = []
        for process in processes:
            try:
                sizes.append(process.memory_full_info().pss / 2**20)
                found["handles"] += process.num_fds()
            except psutil.NoSuchProcess:  # one that was killed, or of a version that was taken away
                continue
        if sizes:
            found[f"pss {kind}"] = statistics.median(sizes)
    found["files of the repository"] = _count(repository.rglob("*"))
    found["files of the index"] = _count((deployment.run / "index").rglob("*"))
    found["regions"] = _count(SHM.glob(f"{deployment.shm_prefix}*"))
    return dict(found)


def _count(paths: Iterable[Path]) -> int:
    return sum(1 for path in paths if path.is_file())
