"""Where the streams are; apart from their sources, so that no client is imported before it is wanted."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RedisConfig:
    """Where the stream is.

    Attributes:
        url: redis://, rediss:// or unix://, with password and database.
        stream: key of the stream.
        group: consumer group; an index has one of its own.
        consumer: name in the group.
        field: field of an entry that holds the event's JSON.
        count: entries of one read.
    """

    url: str
    stream: str = "gr4ad:ads"
    group: str = "gr4ad-indexer"
    consumer: str = "indexer"
    field: str = "event"
    count: int = 256


@dataclass(frozen=True)
class KafkaConfig:
    """Where the topic is.

    Attributes:
        brokers: host:port, comma separated.
        topic: its name.
        group: consumer group whose offsets tell other tools how far the index is.
        options: further settings of librdkafka (security.protocol, sasl.*).
    """

    brokers: str
    topic: str
    group: str = "gr4ad-indexer"
    options: dict[str, str] = field(default_factory=dict)
