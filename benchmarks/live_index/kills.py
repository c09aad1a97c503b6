"""SIGKILL at random moments, of the sidecar and of Redis: every acknowledged event must take effect once.

Two producers with ads of their own, one over HTTP, one through a Redis stream, note every event that was
acknowledged and send again what was not. In the end the index must hold what the events say, and must have
applied each of them exactly once.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

from benchmarks.live_index.deployment import build_index, free_port, sidecar
from benchmarks.live_index.events import Event, ad_events
from indexer.store.index_store import IndexStore
from indexer.store.verify import verify
from launcher.indexer_process import IndexerProcess
from serving.model.bundle import read_manifest

ADS = 20_000
BULK = 20
STREAM = "ads"
_LONGEST_S = 1.0  # of a sidecar's or a Redis's life, from when it is ready


class Redis:
    """A real server on a free port; what it acknowledged is on disk."""

    def __init__(self, folder: Path) -> None:
        """Describe."""
        self.port, self._folder = free_port(), folder
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start, or start again on the same data.

        Raises:
            RuntimeError: there is no redis-server, or it does not answer.
        """
        binary = shutil.which("redis-server")
        if binary is None:
            raise RuntimeError("no redis-server here; Debian: apt install redis-server")
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self._folder, "save": ""}
        options |= {"appendonly": "yes", "appendfsync": "always"}
        words = [w for name, value in options.items() for w in (f"--{name}", str(value))]
        self._process = subprocess.Popen([binary, *words], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                with redis.Redis.from_url(self.url) as client:
                    client.ping()
                return
            except redis.RedisError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError("redis-server does not answer") from error
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Producer(threading.Thread):
    """Sends events in order and notes those that were acknowledged; a batch that was not is sent again."""

    def __init__(self, events: Iterator[Event], send: Callable[[list[Event]], bool]) -> None:
        """`send` tells whether the whole batch was acknowledged."""
        super().__init__(daemon=True)
        self._events, self._send = events, send
        self._over = threading.Event()
        self.acknowledged: list[Event] = []
        self.again = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        """Until told to end; the last batch is acknowledged."""
        try:
            while not self._over.is_set():
                batch = [next(self._events) for _ in range(BULK)]
                while not self._send(batch):
                    self.again += 1
                    time.sleep(0.02)
                self.acknowledged += batch
                time.sleep(0.01)
        except BaseException as error:  # shown by whoever waits
            self.error = error

    def end(self) -> None:
        """Let it finish its batch."""
        self._over.set()
        self.join(timeout=120)
        if self.error:
            raise self.error


def measure(
    run: Path, *, kills: int, redis_kills: int, seed: int = 0, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Kill, recover and verify; `run` holds a prepared bundle."""
    manifest = read_manifest(run / "bundles" / "1", verify=False)
    work = run / "kills"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "bundles").symlink_to((run / "bundles").resolve())
    sizes, tokenizer_id = manifest.level_sizes, manifest.tokenizer_id
    build_index(work / "index", ads=ADS, level_sizes=sizes, tokenizer_id=tokenizer_id)
    server = Redis(work / "redis")
    server.start()
    indexer = sidecar(work, f"--redis-url={server.url}", f"--redis-stream={STREAM}")
    client = redis.Redis.from_url(server.url, socket_timeout=5)

    def by_http(batch: list[Event]) -> bool:
        if not indexer.url:  # it is just starting
            return False
        request = urllib.request.Request(
            f"{indexer.url}/events/bulk", json.dumps(batch).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                outcomes = json.loads(answer.read())["rows"]
        except urllib.error.HTTPError as error:
            if error.code in (503, 507):
                return False
            raise
        except OSError:
            return False
        rejected = [o for o in outcomes if o["result"] == "rejected"]
        if rejected:
            raise RuntimeError(f"a valid event was rejected: {rejected[0]}")
        return True

    def by_redis(batch: list[Event]) -> bool:
        # One at a time, each with its acknowledgement: what was sent twice must have its effect once.
        try:
            with client.pipeline(transaction=True) as pipeline:
                for event in batch:
                    pipeline.xadd(STREAM, {"event": json.dumps(event)})
                pipeline.execute()
            return True
        except redis.RedisError:
            return False

    half = ADS // 2
    producers = [
        Producer(ad_events(seed=seed, first_new=10**6, known=(1, half)), by_http),
        Producer(ad_events(seed=seed + 1, first_new=2 * 10**6, known=(half + 1, ADS)), by_redis),
    ]
    chance, problems, clean = random.Random(seed), [], 0
    restarts: list[float] = []
    redis_at = set(chance.sample(range(kills), min(redis_kills, kills)))
    try:
        indexer.start()
        for producer in producers:
            producer.start()
        for number in range(kills):
            time.sleep(chance.uniform(0.0, _LONGEST_S))
            if number in redis_at:
                server.kill()
                time.sleep(chance.uniform(0.0, 0.3))
                server.start()
                time.sleep(chance.uniform(0.0, 0.3))
            indexer.kill()
            found = verify(work / "index")
            clean += not found
            problems += found[:1]
            began = time.monotonic()
            indexer.start()
            restarts.append(time.monotonic() - began)
            for producer in producers:
                if producer.error:
                    raise producer.error
            say(f"kills: {number + 1} of {kills}, {sum(len(p.acknowledged) for p in producers):,} events")
        for producer in producers:
            producer.end()
        _drain(client, indexer)
    finally:
        client.close()
        indexer.stop()
        server.kill()
    found = verify(work / "index")
    problems += found[:1]
    events = [e for p in producers for e in p.acknowledged]
    lost, applied = _compare(work / "index", events)
    return {
        "kills": kills,
        "redis_kills": len(redis_at),
        "acknowledged": len(events),
        "batches_sent_again": sum(p.again for p in producers),
        "lost": lost,
        "duplicated": applied - len(events) + lost,
        "verified": kills + 1,
        "verify_clean": clean == kills and not found,
        "problems": problems[:3],
        "restart_s": sorted(restarts)[len(restarts) // 2],
    }


def _drain(client: redis.Redis, indexer: IndexerProcess, *, timeout_s: float = 120.0) -> None:
    """Wait until the sidecar has acknowledged the whole stream."""
    deadline = time.monotonic() + timeout_s
    while True:
        groups: Any = client.xinfo_groups(STREAM)
        last: Any = client.xinfo_stream(STREAM)
        # Not by the group's lag, which Redis only estimates after XGROUP SETID.
        if groups and all(
            not g["pending"] and g["last-delivered-id"] == last["last-generated-id"] for g in groups
        ):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"the stream is not drained: {groups}; {indexer.log[-1000:]}")
        time.sleep(0.1)


def _compare(index: Path, events: list[Event]) -> tuple[int, int]:
    """Events whose effect is missing, and how many were applied as the index counts them."""
    status: dict[int, tuple[int, str]] = {}
    content: dict[int, tuple[int, str]] = {}
    for event in events:  # of one ad in rising versions
        kind, ad, version = event["kind"], event["ad_id"], event["version"]
        if kind != "update":
            name = {"pause": "paused", "delete": "deleted"}.get(kind, "active")
            status[ad] = version, name
        if kind in ("create", "update"):
            content[ad] = version, event["text"]
    lost = 0
    with IndexStore(index) as store:
        for ad in status.keys() | content.keys():
            view = store.ad(ad)
            if view is None:
                lost += 1
                continue
            found = (
                (view.status_version, view.status),
                (view.content_version, (view.content or {}).get("text")),
            )
            lost += found != (status.get(ad, found[0]), content.get(ad, found[1]))
        applied = sum(count for name, count in store.file.counters.items() if name.startswith("applied."))
    return lost, applied
