"""Settings of a sidecar."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from indexer.sources.config import KafkaConfig, RedisConfig


@dataclass(frozen=True)
class WorkerConfig:
    """Settings of the worker.

    Attributes:
        batch_events: events of one transaction.
        batch_bytes: bytes that end one early.
        batch_ms: wait for more events after the first.
        queue_events: events that may wait, single ones of HTTP and all others each; streams use half of it.
        queue_bytes: bytes that may wait, likewise.
        max_retry_s: longest pause between two tries of a store that fails.
        stuck_s: a turn of the loop that takes longer makes the sidecar unready.
    """

    batch_events: int = 256
    batch_ms: float = 10.0
    batch_bytes: int = 4 << 20
    queue_events: int = 4096
    queue_bytes: int = 64 << 20
    max_retry_s: float = 30.0
    stuck_s: float = 60.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("batch_events", "batch_bytes", "queue_events", "queue_bytes", "max_retry_s", "stuck_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"expected {name} > 0, got {getattr(self, name)}")
        if self.batch_ms < 0:
            raise ValueError(f"expected batch_ms >= 0, got {self.batch_ms}")


@dataclass(frozen=True)
class SidecarConfig:
    """What a sidecar works on.

    Attributes:
        index: folder of the index.
        bundles: folder of bundles.
        accounts: file of the account ids that events may name, one a line; None for any. Read
            again when it changes.
        attributes: file of the preset's `serving.attributes` as JSON; None for the one that the export left
            among the bundles. Read again when it changes.
        redis: a stream to read.
        kafka: a topic to read.
        worker: sizes and times of batches.
        map_size: most bytes that the store may take.
        check_wait_s: the start waits so long for the check of the index; a longer one goes on meanwhile.
        check_every_s: time between two checks of everything while it runs.
    """

    index: Path
    bundles: Path
    accounts: Path | None = None
    attributes: Path | None = None
    redis: RedisConfig | None = None
    kafka: KafkaConfig | None = None
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    map_size: int = 1 << 36
    check_wait_s: float = 30.0
    check_every_s: float = 3600.0
