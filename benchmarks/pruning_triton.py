"""A server that prunes and one that does not, both on one core, asked in turn."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.burst import Burst, Tensors, burst
from benchmarks.pinned_server import Server
from export.render import render
from loadtest.mix import from_logs
from serving.backend.settings import ServingConfig

COUNTS = (10, 20, 50, 512)  # ads
USERS, CONCURRENCY = 64, 8
SECONDS = 5.0  # of a cell in a round
SERVER_CORE, CLIENT_CORE = 0, 1


def through_triton(run: Path, serving: ServingConfig, *, rounds: int) -> dict[str, Any]:
    """By number of ads: requests a second with pruning over without, the median over rounds.

    Widths are fixed and nothing is cached. `cpu_ratio` is the same of the server's CPU time a request, which
    neighbours on the machine change less.

    Args:
        run: trained, exported and indexed.
        serving: settings of both servers.
        rounds: of two cells each, in changing order.

    Raises:
        RuntimeError: a request failed, or the two servers answer unlike each other.
    """
    config = serving.model_copy(
        update={
            "max_num_ads": max(COUNTS),
            "load_control": "fixed",
            "cache": "off",
            "scheduler_instances": 1,
            "threads": 1,
        }
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        context = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
        cores = {CLIENT_CORE % (os.cpu_count() or 1)}
        client = stack.enter_context(
            ProcessPoolExecutor(1, context, initializer=os.sched_setaffinity, initargs=(0, cores))
        )
        servers = {}
        for prune in ("off", "exact"):
            repository = folder / prune
            changed = config.model_copy(update={"prune": prune})
            render(run / "bundles", repository, index=run / "index", config=changed)
            servers[prune] = stack.enter_context(Server(repository, cores={SERVER_CORE}))
        return {
            str(n): _compared(
                client, servers, from_logs(run, users=USERS, num_ads=n)[0], num_ads=n, rounds=rounds
            )
            for n in COUNTS
        }


def _compared(
    client: Executor, servers: dict[str, Server], asked: list[Tensors], *, num_ads: int, rounds: int
) -> dict[str, Any]:
    """Figures of one number of ads."""
    seen: dict[str, list[tuple[float, float]]] = {prune: [] for prune in servers}
    answers = {}
    for number in range(rounds + 1):  # the first one warms up, and learns what pays
        for prune in list(servers) if number % 2 else list(servers)[::-1]:
            server = servers[prune]
            before = server.cpu_seconds()
            work: Burst = client.submit(
                burst, server.grpc_url, asked, concurrency=CONCURRENCY, seconds=SECONDS
            ).result()
            if work.failures:
                raise RuntimeError(f"prune {prune}, {num_ads} ads: {work.failures[0]}")
            answers[prune] = work.answers
            cpu_s = (server.cpu_seconds() - before).total() / max(work.total, 1)
            if number:
                seen[prune].append((work.completed / work.seconds, cpu_s))
    _check(answers, num_ads=num_ads)
    off, exact = np.array(seen["off"]), np.array(seen["exact"])
    return {
        "qps": {"off": float(np.median(off[:, 0])), "exact": float(np.median(exact[:, 0]))},
        "ratio": float(np.median(exact[:, 0] / off[:, 0])),
        "rounds": (exact[:, 0] / off[:, 0]).tolist(),
        "cpu_ratio": float(np.median(off[:, 1] / exact[:, 1])),
    }


def _check(answers: dict[str, dict[int, Any]], *, num_ads: int) -> None:
    """Both servers give the same scores, place by place: beams of one score may be swapped."""
    for at in answers["off"].keys() & answers["exact"].keys():
        off, exact = answers["off"][at]["scores"], answers["exact"][at]["scores"]
        if off.shape != exact.shape or np.abs(off - exact).max() > 1e-4:
            raise RuntimeError(f"{num_ads} ads, user {at}: expected the scores {off[0]}, got {exact[0]}")
