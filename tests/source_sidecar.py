"""A worker and one source on a recording store that outlives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from indexer.sidecar.config import WorkerConfig
from indexer.sidecar.metrics import Metrics
from indexer.sidecar.worker import Worker
from tests.recording_store import RecordingStore


class SourceSidecar:
    """Runs until `stop` or `crash`; `source_of` makes the source of a worker."""

    def __init__(
        self, store: RecordingStore, folder: Path, source_of: Callable[[Worker], Any], **settings: Any
    ) -> None:
        self.store = store
        self.worker = Worker(
            store, heartbeat=folder / "beat", metrics=Metrics(), config=WorkerConfig(**settings)
        )
        self.source = source_of(self.worker)
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
