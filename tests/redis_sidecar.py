"""Sidecars with a Redis source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from indexer.sources.config import RedisConfig
from indexer.sources.redis_streams import RedisSource
from tests.recording_store import RecordingStore, event
from tests.redis_server import RedisServer
from tests.source_sidecar import SourceSidecar

STREAM, GROUP = "gr4ad:ads", "gr4ad-indexer"


class RedisSidecar(SourceSidecar):
    """Reads the stream of a server."""

    def __init__(
        self, server: RedisServer, store: RecordingStore, folder: Path, *, consumer="indexer", **settings
    ):
        store.gate.set()
        config = RedisConfig(server.url, consumer=consumer, count=50)
        super().__init__(
            store,
            folder,
            lambda worker: RedisSource(config, worker, offset_of=store.offset, on_gap=store.record_gap),
            **settings,
        )


@contextmanager
def sidecars(server: RedisServer, folder: Path) -> Iterator[Callable[..., RedisSidecar]]:
    """Starts sidecars on a store; those that still run at the end are stopped."""
    running: list[RedisSidecar] = []

    def start(store: RecordingStore, **settings) -> RedisSidecar:
        running.append(RedisSidecar(server, store, folder, **settings))
        return running[-1]

    yield start
    for sidecar in running:
        sidecar.store.gate.set()
        sidecar.stop()


def add(server: RedisServer, ads, *, version: int = 1) -> list[bytes]:
    """Append a pause of each ad; ids of the entries."""
    pipeline = server.client.pipeline(transaction=False)
    for ad in ads:
        pipeline.xadd(STREAM, {"event": event(ad, version)})
    return pipeline.execute()


def pending(server: RedisServer) -> int:
    """Entries that were delivered and not acknowledged."""
    return server.client.xpending(STREAM, GROUP)["pending"]
