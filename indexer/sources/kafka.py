"""Events from a Kafka topic, each applied once: the store's offsets decide, commits to Kafka only inform.

All partitions are assigned, not subscribed to: an index has one writer, so there is nobody to share with. Ads
must be keyed so that the events of one ad lie in one partition, in order.
"""

from __future__ import annotations

import time
from collections import defaultdict
from concurrent.futures import Future
from typing import Any

from indexer.sources.config import KafkaConfig
from indexer.sources.source import OffsetOf, OnGap, Source, Taker, log
from indexer.sources.submission import Item
from indexer.store.gaps import Gap

_POLL_S = 0.3
_COUNT = 256
_MEASURE_S = 2.0
_PARTITIONS_S = 60.0
_TIMEOUT_S = 10.0
_COMMIT_S = 0.05  # between two looks whether all that was handed over is committed


class KafkaSource(Source):
    """Consumer of one topic; offsets are kept by partition as `kafka:<topic>:<partition>`."""

    def __init__(self, config: KafkaConfig, worker: Taker, *, offset_of: OffsetOf, on_gap: OnGap) -> None:
        """Prepare.

        Raises:
            ImportError: confluent-kafka is not installed.
            ValueError: an option that librdkafka does not know, or a value that it does not take.
        """
        try:
            import confluent_kafka
        except ImportError as error:
            raise ImportError(
                "the Kafka source needs confluent-kafka: `make kafka-setup`, or pip install -r "
                f"requirements-kafka.txt ({error})"
            ) from error
        self._kafka = confluent_kafka
        self.failures = (confluent_kafka.KafkaException, OSError)
        self.name = f"kafka:{config.topic}"
        self._config = config
        self._consumer: Any = None
        self._next: dict[int, int] = {}  # by partition: first offset that the worker has not got
        self._committed: dict[int, int] = {}  # by partition: first offset that is not applied
        self._seen_end: dict[int, int] = {}  # by partition: its end, when all was handed over
        self._told: dict[int, int] = {}
        self._applied_ms: dict[int, int] = defaultdict(int)
        self._down = ""
        self._measured_at = self._partitions_at = 0.0
        try:
            self._make_consumer().close()  # a wrong option fails at every try alike
        except confluent_kafka.KafkaException as error:
            raise ValueError(f"Kafka options: {error.args[0].str()}") from error
        super().__init__(worker, offset_of=offset_of, on_gap=on_gap)

    def _open(self) -> None:
        self._close()
        self._down = ""
        self._consumer = self._make_consumer()
        self._assign()

    def _make_consumer(self) -> Any:
        """What the source itself depends on stays as it is, whatever the options say."""
        return self._kafka.Consumer(
            {
                "client.id": "gr4ad-indexer",
                **self._config.options,
                "bootstrap.servers": self._config.brokers,
                "group.id": self._config.group,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "error_cb": self._on_error,
            }
        )

    def _on_error(self, error: Any) -> None:
        if error.code() == self._kafka.KafkaError._ALL_BROKERS_DOWN or error.fatal():
            self._down = str(error)

    def _assign(self) -> None:
        """Assign partitions that are not yet, each from behind its committed offset."""
        self._partitions_at = time.monotonic()
        topic = self._consumer.list_topics(self._config.topic, timeout=_TIMEOUT_S).topics[self._config.topic]
        if topic.error is not None:
            raise self._kafka.KafkaException(topic.error)
        assigned = {p.partition for p in self._consumer.assignment()}
        new = [self._start(p) for p in sorted(set(topic.partitions) - assigned)]
        if new:
            self._consumer.incremental_assign(new)

    def _start(self, partition: int) -> Any:
        self._seen_end.pop(partition, None)
        if partition not in self._next:
            offset = self._offset_of(self._key(partition))
            self._next[partition] = self._committed[partition] = int(offset) + 1 if offset else 0
        at = self._kafka.TopicPartition(self._config.topic, partition, self._next[partition])
        low, high = self._ends(partition)
        if not low <= at.offset <= high:
            # Deleted by retention, or the topic was made anew: all that is there counts as new; what had been
            # applied is stale by its version.
            if at.offset:
                holds = f"partition {partition} holds {low} .. {high}, not {at.offset}"
                log.warning("%s: %s: read from its start", self.name, holds)
                self._missing(partition, upto=low)
            at.offset = self._next[partition] = self._committed[partition] = low
        return at

    def _missing(self, partition: int, *, upto: int) -> None:
        """Put on record that what lies between the next offset and this one is gone.

        Not before all that was handed over is committed: after a crash it is looked for from the committed
        offset on, and must be the same one.
        """
        following = self._next[partition]
        while self._committed[partition] < following:
            if self._stop.wait(_COMMIT_S):
                return
        gap = Gap(f"offset {following - 1}", f"offset {upto}", upto - following if upto > following else None)
        log.error("%s: partition %d: %s", self.name, partition, gap)
        self._on_gap(self._key(partition), gap)

    def _poll(self) -> None:
        messages = self._consumer.consume(_COUNT, timeout=_POLL_S)
        if self._down:
            raise self._kafka.KafkaException(
                self._kafka.KafkaError(self._kafka.KafkaError._ALL_BROKERS_DOWN, self._down)
            )
        items, taken, expected, ends = [], [], dict(self._next), {}
        for message in messages:
            if message.error() is not None:
                if message.error().code() != self._kafka.KafkaError._PARTITION_EOF:
                    raise self._kafka.KafkaException(message.error())
                ends[message.partition()] = message.offset()
                continue
            if message.offset() < self._next[message.partition()]:
                self.state.redelivered += 1
                continue
            if message.offset() > expected[message.partition()]:
                self._check_retention(message.partition())
            expected[message.partition()] = message.offset() + 1
            if message.value() is None:
                self._skip_tombstone(message)
                continue
            key, offset = self._key(message.partition()), str(message.offset()).encode()
            items.append(Item(message.value(), key, offset))
            taken.append((message.partition(), message.offset(), message.timestamp()[1]))
        if items:
            submission = self._worker.submit(items, kept=True, stop=self._stop)
            if submission is None:
                return
            self._next |= {partition: offset + 1 for partition, offset, _ in taken}
            self.state.received += len(items)
            submission.future.add_done_callback(lambda future: self._done(taken, future))
        self._seen_end |= ends
        self._acknowledge()
        now = time.monotonic()
        if now - self._measured_at > _MEASURE_S:
            self._measure()
        if now - self._partitions_at > _PARTITIONS_S:
            self._assign()

    def _check_retention(self, partition: int) -> None:
        """Compaction and transactions leave offsets out, too; those below the low end were deleted."""
        low, _ = self._ends(partition)
        if self._next[partition] < low:
            self._missing(partition, upto=low)

    def _ends(self, partition: int) -> tuple[int, int]:
        """First offset that the broker holds, and the one after the last."""
        at = self._kafka.TopicPartition(self._config.topic, partition)
        low, high = self._consumer.get_watermark_offsets(at, timeout=_TIMEOUT_S)
        return low, high

    def _skip_tombstone(self, message: Any) -> None:
        """A message without a value lets compaction forget its key.

        It deletes no ad: without a version nobody knows which changes it comes after.
        """
        if not self.state.tombstones:
            where = f"{self._key(message.partition())} offset {message.offset()}"
            log.warning("%s: no value: ads are deleted by events; such are skipped", where)
        self.state.tombstones += 1

    def _key(self, partition: int) -> str:
        return f"{self.name}:{partition}"

    def _done(self, taken: list[tuple[int, int, int]], future: Future) -> None:
        """In the writer's thread, after the commit."""
        if future.exception() is None:
            for partition, offset, timestamp in taken:
                self._committed[partition] = offset + 1
                self._applied_ms[partition] = timestamp

    def _position(self, partition: int) -> int:
        """First offset that is not applied, or the end that was seen when all before it is applied.

        Not every offset is an event: a transaction ends with a marker, which no consumer is given.
        """
        committed = self._committed[partition]
        done = committed == self._next[partition]
        return max(committed, self._seen_end.get(partition, 0)) if done else committed

    def _acknowledge(self) -> None:
        positions = {partition: self._position(partition) for partition in self._committed}
        behind = {p: o for p, o in positions.items() if o and self._told.get(p) != o}
        if behind and self._consumer is not None:
            at = [self._kafka.TopicPartition(self._config.topic, p, o) for p, o in behind.items()]
            self._consumer.commit(offsets=at, asynchronous=not self._stop.is_set())
            self._told |= behind

    def _measure(self) -> None:
        self._measured_at = time.monotonic()
        lag, oldest = 0, 0.0
        for partition in self._committed:
            at = self._kafka.TopicPartition(self._config.topic, partition)
            _, high = self._consumer.get_watermark_offsets(at, cached=True)
            behind = max(high - self._position(partition), 0)  # high is negative before the first fetch
            lag += behind
            if behind and self._applied_ms[partition] > 0:
                oldest = max(oldest, time.time() - self._applied_ms[partition] / 1000)
        self.state.lag_events, self.state.lag_seconds = lag, oldest

    def _close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
