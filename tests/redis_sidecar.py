"""Worker and Redis source on a recording store that outlives them."""

from __future__ import annotations

from pathlib import Path

from indexer.sidecar.config import WorkerConfig
from indexer.sidecar.metrics import Metrics
from indexer.sidecar.worker import Worker
from indexer.sources.config import RedisConfig
from indexer.sources.redis_streams import RedisSource
from tests.recording_store import RecordingStore, event
from tests.redis_server import RedisServer

STREAM, GROUP = "gr4ad:ads", "gr4ad-indexer"


class RedisSidecar:
    """Runs until `stop` or `crash`."""

    def __init__(
        self, server: RedisServer, store: RecordingStore, folder: Path, *, consumer="indexer", **settings
    ):
        store.gate.set()
        metrics = Metrics()
        self.store = store
        self.worker = Worker(
            store, heartbeat=folder / "beat", metrics=metrics, config=WorkerConfig(**settings)
        )
        config = RedisConfig(server.url, consumer=consumer, count=50)
        self.source = RedisSource(config, self.worker, offset_of=store.offset, on_gap=store.record_gap)
        self.worker.start()
        self.source.start()

    def stop(self) -> None:
        self.source.stop()
        self.worker.stop(timeout_s=5)
        self.source.close()

    def crash(self) -> None:
        """End without committing, answering or acknowledging anything more."""
        self.store.fail = OSError("the process is gone")
        self.source._acknowledge = lambda: None
        self.stop()
        self.store.fail = None


def add(server: RedisServer, ads, *, version: int = 1) -> list[bytes]:
    """Append a pause of each ad; ids of the entries."""
    pipeline = server.client.pipeline(transaction=False)
    for ad in ads:
        pipeline.xadd(STREAM, {"event": event(ad, version)})
    return pipeline.execute()


def pending(server: RedisServer) -> int:
    """Entries that were delivered and not acknowledged."""
    return server.client.xpending(STREAM, GROUP)["pending"]
