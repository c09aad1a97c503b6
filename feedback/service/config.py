"""Settings of the service."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from feedback.join.rules import JoinConfig
from indexer.sidecar.config import WorkerConfig
from indexer.sources.config import KafkaConfig, RedisConfig

REDIS = RedisConfig("", stream="gr4ad:feedback", group="gr4ad-feedback", consumer="feedback")
SERVED = RedisConfig("", stream="gr4ad:served", group="gr4ad-feedback", consumer="feedback")
KAFKA = KafkaConfig("", topic="gr4ad-feedback", group="gr4ad-feedback")


@dataclass(frozen=True)
class FeedbackConfig:
    """What a service works on.

    Attributes:
        folder: of the store.
        served: folder of a served log; None for none.
        served_redis: a stream of served records.
        redis: a stream of feedback.
        kafka: a topic of feedback.
        join: times and bounds.
        worker: sizes and times of batches.
        map_size: most bytes that the store may take.
    """

    folder: Path
    served: Path | None = None
    served_redis: RedisConfig | None = None
    redis: RedisConfig | None = None
    kafka: KafkaConfig | None = None
    join: JoinConfig = field(default_factory=JoinConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    map_size: int = 1 << 36
