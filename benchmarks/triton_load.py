"""The same requests through a real Triton and in this process, both on the same cores, at rising load.

Closed loop: a client on other cores keeps `concurrency` requests outstanding and sends the next one when an
answer is there. In process, the load is the batch size.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import catalogue
from benchmarks.burst import Tensors, burst
from benchmarks.cores import pinned
from benchmarks.in_process import InProcess
from benchmarks.pinned_server import Server
from benchmarks.seeded_run import prepare, with_shared_layers
from export.render import render
from serving.backend.settings import ServingConfig
from serving.index.snapshot import IndexSnapshot
from training.preset.preset import Preset

LOADS = (1, 2, 4, 8)
TOLERANCE = 1e-3  # of scores and values, between Triton and this process


def faults(answer: Tensors, expected: Tensors, *, snapshot: IndexSnapshot) -> Counter[str]:
    """What is wrong with an answer of one row, by kind; "invalid" counts SIDs."""
    found: Counter[str] = Counter()
    ad_ids, sids = answer["ad_ids"][0], answer["sids"][0]
    real = ad_ids >= 0
    found["short"] = int(real.sum() < expected["ad_ids"].size)
    found["invalid"] = int((snapshot.leaves_of(sids[real]) < 0).sum())
    codes, known = snapshot.sids_of(ad_ids[real])
    found["unknown ad"] = int((~known).sum())
    found["SID of another ad"] = int((codes[known] != sids[real][known]).any(axis=1).sum())
    found["same ad twice"] = len(ad_ids) - len(np.unique(ad_ids))
    same = answer["sids"].shape == expected["sids"].shape
    found["other SIDs than in process"] = int(not same or (answer["sids"] != expected["sids"]).any())
    for name in ("scores", "expected_value"):
        close = same and np.abs(answer[name] - expected[name]).max() <= TOLERANCE
        found[f"other {name} than in process"] = int(not close)
    return +found  # without zeros


@dataclass(frozen=True)
class Sample:
    """One cell in one round; it counts only without faults."""

    qps: float
    latencies: list[float]
    cpu_ms: float
    faults: Counter[str]
    client_share: float = 0.0


@dataclass(frozen=True)
class Deployment:
    """A prepared run, served and in this process, and what it must answer."""

    server: Server
    client: ProcessPoolExecutor
    local: InProcess
    tensors: list[Tensors]
    expected: list[Tensors]
    cores: set[int]

    def triton(self, concurrency: int, seconds: float) -> Sample:
        """Measure requests over gRPC."""
        before = self.server.cpu_seconds()
        url = self.server.grpc_url
        work = self.client.submit(burst, url, self.tensors, concurrency=concurrency, seconds=seconds)
        seen = work.result()
        cpu_ms = (self.server.cpu_seconds() - before).total() * 1e3 / max(seen.total, 1)
        failed = Counter(f"failed: {text}" for text in seen.failures)
        wrong = self._faults(seen.answers) + failed
        return Sample(
            qps=seen.completed / seen.seconds,
            latencies=seen.latencies,
            cpu_ms=cpu_ms,
            faults=wrong,
            client_share=seen.client_share,
        )

    def in_process(self, batch: int, seconds: float) -> Sample:
        """Measure batches in this thread; the latency is the batch's."""
        latencies: list[float] = []
        answers: dict[int, Tensors] = {}
        with pinned(self.cores):
            cpu, start = time.process_time(), time.perf_counter()
            while (began := time.perf_counter()) < start + seconds:
                first = len(latencies) * batch
                rows = [i % len(self.tensors) for i in range(first, first + batch)]
                answers |= zip(rows, self.local.answer([self.tensors[i] for i in rows]), strict=True)
                latencies.append(time.perf_counter() - began)
            elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
        done = len(latencies) * batch
        return Sample(done / elapsed, latencies, cpu * 1e3 / done, self._faults(answers))

    def _faults(self, answers: dict[int, Tensors]) -> Counter[str]:
        snapshot = self.local.reader.snapshot
        each = (faults(a, self.expected[at], snapshot=snapshot) for at, a in answers.items())
        return sum(each, Counter())


@contextmanager
def deployed(
    runs: dict[str, Path],
    serving: ServingConfig,
    *,
    server_cores: Iterable[int] = (0,),
    client_cores: Iterable[int] = (1,),
    distinct: int = 64,
    more: dict[str, tuple[str, Path]] | None = None,
) -> Iterator[dict[str, Deployment]]:
    """Servers of prepared and rendered runs, all up at once; only the one that is asked uses its cores.

    `more` names further servers: of which run, and another repository rendered for it.
    """
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
        client = stack.enter_context(
            ProcessPoolExecutor(1, context, initializer=os.sched_setaffinity, initargs=(0, set(client_cores)))
        )
        found = {}
        for name, run in runs.items():
            local = InProcess(run, serving)
            stack.callback(local.reader.close)
            tensors = catalogue.requests(distinct, local.spec, local.reader.snapshot)
            with pinned(server_cores):
                expected = [local.answer([t])[0] for t in tensors]
            server = stack.enter_context(Server(run / "repository", cores=server_cores))
            found[name] = Deployment(
                server=server,
                client=client,
                local=local,
                tensors=tensors,
                expected=expected,
                cores=set(server_cores),
            )
        for name, (run_name, repository) in (more or {}).items():
            server = stack.enter_context(Server(repository, cores=server_cores))
            found[name] = replace(found[run_name], server=server)
        yield found


def compare(
    deployments: dict[str, Deployment],
    cells: list[tuple[str, str, int]],
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Rows of cells (deployment, "triton" or "in_process", load), interleaved.

    In every round each cell gets `seconds`, in random order; one short round more warms up.
    """
    random = np.random.default_rng(0)
    samples: list[list[Sample]] = [[] for _ in cells]
    for round_number in range(rounds + 1):
        say(f"Triton, round {round_number} of {rounds}")
        for at in random.permutation(len(cells)):
            name, path, load = cells[at]
            sample = getattr(deployments[name], path)(load, seconds if round_number else 1.0)
            if round_number or sample.faults:
                samples[at].append(sample)
    return [
        {"variant": c[0], "path": c[1], "load": c[2]} | summary(s)
        for c, s in zip(cells, samples, strict=True)
    ]


def summary(samples: list[Sample]) -> dict[str, Any]:
    """Figures of a cell over its rounds; none where a request failed or an answer was wrong."""
    wrong = sum((s.faults for s in samples), Counter())
    if wrong:
        return {"qps": None, "reason": dict(wrong.most_common(5)), "faults": dict(wrong)}
    latencies = np.concatenate([s.latencies for s in samples]) * 1e3
    median, p95 = np.percentile(latencies, [50, 95])
    return {
        "qps": round(float(np.median([s.qps for s in samples])), 2),
        "qps_rounds": [round(s.qps, 2) for s in samples],
        "latency_ms": {"median": round(float(median), 2), "p95": round(float(p95), 2)},
        "cpu_ms": round(float(np.median([s.cpu_ms for s in samples])), 2),
        "client_share": round(max(s.client_share for s in samples), 3),
    }


def ratio(
    rows: list[dict[str, Any]], above: tuple[str, str], below: tuple[str, str], load: int
) -> float | None:
    """Median over the rounds of the QPS of one cell by that of another; None where one has no figures."""
    found = {(r["variant"], r["path"]): r.get("qps_rounds", []) for r in rows if r["load"] == load}
    rounds = [a / b for a, b in zip(found[above], found[below], strict=False)]
    return float(np.median(rounds)) if rounds else None


def measure(
    preset: Preset,
    run: Path,
    *,
    shared_layers: int,
    quick: bool = False,
    ads: int = 100_000,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The part of `make bench` that goes through Triton: LazyAR and K = 0, one core for the server."""
    runs = {"lazyar": run / "triton" / f"k{shared_layers}", "k0": run / "triton" / "k0"}
    for name, folder in runs.items():
        say(f"Triton: bundle, index and repository of {name}")
        layers = shared_layers if name == "lazyar" else 0
        prepare(folder, ads=ads, preset=with_shared_layers(preset, layers))
    full, own = LOADS[-1], run / "triton" / "graphs_in_scheduler"
    shutil.rmtree(own, ignore_errors=True)
    source = runs["lazyar"]
    settings = preset.serving.model_copy(update={"graph_calls": "in_process"})
    render(source / "bundles", own, index=source / "index", config=settings)
    cells = [("lazyar", path, load) for path in ("triton", "in_process") for load in LOADS]
    cells += [("k0", path, full) for path in ("triton", "in_process")]
    cells += [("lazyar_inside", "triton", load) for load in LOADS]
    with deployed(runs, preset.serving, more={"lazyar_inside": ("lazyar", own)}) as deployments:
        rows = compare(deployments, cells, rounds=3 if quick else 5, seconds=2.0 if quick else 3.0, say=say)
    wrong = sum((Counter(r.get("faults", {})) for r in rows), Counter())
    through = [r for r in rows if (r["variant"], r["path"]) == ("lazyar", "triton")]
    local = [r for r in rows if (r["variant"], r["path"]) == ("lazyar", "in_process")]
    inside = [r for r in rows if r["variant"] == "lazyar_inside"]
    return {
        "rows": [r | {"concurrency": r["load"]} for r in through],
        "inside": [r | {"concurrency": r["load"]} for r in inside],
        "in_process": local,
        "in_process_qps": local[-1]["qps"],
        "k0": [r for r in rows if r["variant"] == "k0"],
        "lazyar_vs_k0": ratio(rows, ("lazyar", "triton"), ("k0", "triton"), full),
        "triton_vs_inprocess": ratio(rows, ("lazyar", "triton"), ("lazyar", "in_process"), full),
        "triton_inside_vs_inprocess": ratio(
            rows, ("lazyar_inside", "triton"), ("lazyar", "in_process"), full
        ),
        "invalid": wrong["invalid"],
        "short": wrong["short"] + sum(n for text, n in wrong.items() if text.startswith("failed")),
        "faults": dict(wrong),
    }
