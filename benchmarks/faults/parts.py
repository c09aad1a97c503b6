"""Parts of the bench: each brings up what it needs, does its faults and gives figures and rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from benchmarks.faults import sidecar as sidecar_faults
from benchmarks.faults.deployment import WIDTHS, Deployment, prepared, requests
from benchmarks.faults.fuzz import fuzz as send_malformed
from benchmarks.faults.probe import ask
from benchmarks.faults.publishes import publish_series
from benchmarks.faults.server import server_faults
from benchmarks.faults.soak import soak as run_soak
from benchmarks.faults.stop import stop_under_load
from benchmarks.faults.trial import Row
from benchmarks.gateway import lone, servers
from benchmarks.live_index.deployment import sidecar as sidecar_of
from benchmarks.live_index.kills import Redis
from examples.client import send
from export.publish import Place
from launcher.run_file import RunFile
from launcher.triton_admin import Admin

Part = tuple[dict[str, Any], list[Row]]
"""Figures, and rows of faults."""
Say = Callable[[str], None]


def server(run: Path, *, quick: bool, say: Say) -> Part:
    """Processes that die or stand still, files that go away."""
    prepared(run)
    with Deployment(run) as deployment:
        return {}, server_faults(deployment, quick=quick, say=say)


def stop(run: Path, *, quick: bool, say: Say) -> Part:
    """SIGTERM with requests in flight, several times."""
    prepared(run)
    tries = []
    for _ in range(2 if quick else 5):
        with Deployment(run) as deployment:
            deployment.observer()  # its first requests, which are slow
            tries.append(stop_under_load(deployment))
        say(f"stop: {tries[-1]}")
    seen = [t["stub_segfaults"] for t in tries]
    return {
        "sigterm_failed": sum(t["sigterm_failed"] for t in tries),
        "stub_segfaults": None if None in seen else sum(seen),
        "left_in_memory": sum(len(t["left"]) for t in tries),
        "stop_s": max(t["stop_s"] for t in tries),
    }, []


def publishes(run: Path, *, quick: bool, say: Say) -> Part:
    """Versions in a row, under half load, with every watch on."""
    preset = prepared(run, "serving.load_control=fixed")  # each request at the widths that it asks for
    with Deployment(run) as deployment:
        deployment.observer()
        link = RunFile.read(deployment.run_file)
        with Admin(link.grpc_url, key=link.key) as admin:
            figures = publish_series(
                lambda number: send(
                    deployment.grpc_url,
                    deployment.tensors[number % len(deployment.tensors)],
                    timeout_s=10.0,
                    parameters={"cache": "bypass", "widths": WIDTHS},
                ),
                Place(run / "bundles", run / "repository", run / "index", preset.serving),
                requests=deployment.tensors,
                load=admin.load,
                processes=lambda: [p for group in deployment.processes().values() for p in group],
                count=20 if quick else 100,
            )
    say(f"publishes: {figures}")
    return figures, []


def soak(run: Path, *, quick: bool, say: Say) -> Part:
    """Everything at once for a long time: what grows?"""
    preset = prepared(run, "serving.load_control=fixed")
    with Deployment(run) as deployment:
        deployment.observer()
        place = Place(run / "bundles", run / "repository", run / "index", preset.serving)
        figures = run_soak(deployment, place, seconds=20.0 if quick else 1200.0)
    say(f"soak: {figures}")
    return figures, []


def sidecar(run: Path, *, quick: bool, say: Say) -> Part:
    """What is done to the one writer of the index."""
    prepared(run)
    rows: list[Row] = []

    def row(name: str, figures: dict[str, Any]) -> None:
        rows.append({"fault": f"sidecar: {name}"} | figures)
        say(str(rows[-1]))

    index, log = run / "index", run / "sidecar.log"
    with sidecar_of(run) as process:
        url = process.url
        row("big dead letters", sidecar_faults.big_dead_letters(url, ad_id=1, letters=300 if quick else 1000))
        row("nested bulk", sidecar_faults.nested_bulk(url, ad_id=1, rows=2_000 if quick else 10_000))
        row("silent connections", sidecar_faults.silent_connections(url, ad_id=1))
        assert process.process is not None
        row("too few files", sidecar_faults.few_files(url, ad_id=1, pid=process.process.pid, log=log))
        row("readers killed inside a transaction", sidecar_faults.dead_readers(url, index, ad_id=1))
        row("base array cut", sidecar_faults.broken_base(url, index))
    row("flipped bits", sidecar_faults.flipped_bits(index, run / "flipped", flips=10 if quick else 40))
    store = Redis(run / "redis")
    store.start()
    try:
        options = f"--redis-url={store.url}", "--redis-stream=ads"
        with sidecar_of(run, *options) as process, redis.Redis.from_url(store.url) as client:
            event = {"kind": "pause", "ad_id": 1, "version": 1 << 62}  # later than all that came before
            client.xadd("ads", {"event": json.dumps(event)})
            until = time.monotonic() + 30
            while b"paused" not in ask(process.url, "GET", "/ads/1")[1]:  # it has a position in the stream
                if time.monotonic() > until:
                    raise TimeoutError("sidecar: expected an event of the stream to be applied within 30 s")
                time.sleep(0.1)
            row("stream trimmed while away", sidecar_faults.trimmed_stream(process, client, stream="ads"))
    finally:
        store.kill()
    return {}, rows


def fuzz(run: Path, *, quick: bool, say: Say) -> Part:
    """Malformed requests."""
    prepared(run)
    with Deployment(run) as deployment:
        deployment.observer()
        figures = send_malformed(deployment, count=1_000 if quick else 20_000)
    say(f"fuzz: {figures}")
    return figures, []


def gateway(run: Path, *, quick: bool, say: Say) -> Part:
    """What the gateway adds to a lone request, against Triton's own HTTP server."""
    prepared(run, "serving.load_control=fixed")
    with servers(run / "repository", None) as ways:
        figures = {
            encoding: lone(ways, requests(run), binary=encoding == "binary", count=100 if quick else 500)
            for encoding in ("binary", "json")
        }
    say(f"gateway: {figures}")
    return {
        "gateway_added_p50_ms": figures["binary"]["added_p50_ms"]["gateway"],
        "gateway_added_p50_json_ms": figures["json"]["added_p50_ms"]["gateway"],
    }, []
