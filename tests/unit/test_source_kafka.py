"""The Kafka source against the cluster that librdkafka hosts in process: the store's offsets decide."""

import sys
import time

import pytest

from indexer.sidecar.metrics import Metrics
from indexer.sidecar.worker import Worker
from indexer.sources.config import KafkaConfig
from indexer.sources.kafka import KafkaSource
from indexer.store.gaps import Gap
from tests.recording_store import RecordingStore, event
from tests.source_sidecar import SourceSidecar
from tests.waiting import wait_until

confluent_kafka = pytest.importorskip(
    "confluent_kafka", reason="confluent-kafka is not installed (make kafka-setup)"
)

TOPIC, PARTITIONS = "ads", 4  # the test cluster makes topics with 4 partitions


class Cluster:
    """One producer, which also is the broker for all others."""

    def __init__(self) -> None:
        self.producer = confluent_kafka.Producer({"test.mock.num.brokers": 1, "linger.ms": 0})
        metadata = self.producer.list_topics(TOPIC, timeout=10)
        self.brokers = ",".join(f"{b.host}:{b.port}" for b in metadata.brokers.values())

    def add(self, values, *, partition=None) -> None:
        for i, value in enumerate(values):
            where = i % PARTITIONS if partition is None else partition
            self.producer.produce(TOPIC, value, partition=where)
        assert self.producer.flush(10) == 0

    def committed(self, group="gr4ad-indexer") -> dict[int, int]:
        consumer = confluent_kafka.Consumer({"bootstrap.servers": self.brokers, "group.id": group})
        wanted = [confluent_kafka.TopicPartition(TOPIC, p) for p in range(PARTITIONS)]
        found = {p.partition: p.offset for p in consumer.committed(wanted, timeout=10)}
        consumer.close()
        return found


class Sidecar(SourceSidecar):
    def __init__(self, cluster, store, folder, **settings):
        config = KafkaConfig(cluster.brokers, TOPIC)
        super().__init__(
            store,
            folder,
            lambda worker: KafkaSource(config, worker, offset_of=store.offset, on_gap=store.record_gap),
            **settings,
        )


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def store():
    return RecordingStore()


@pytest.fixture
def start(cluster, tmp_path):
    running = []

    def start(store, **settings):
        running.append(Sidecar(cluster, store, tmp_path, **settings))
        return running[-1]

    yield start
    for sidecar in running:
        sidecar.store.gate.set()
        sidecar.stop()


def events(numbers) -> list[bytes]:
    return [event(n) for n in numbers]


def applied(store) -> list[int]:
    return sorted(a for a, _ in store.applied)


def test_all_partitions_apply_once_and_kafka_is_told(cluster, store, start):
    cluster.add(events(range(100)))
    sidecar = start(store)
    wait_until(lambda: len(store.applied) >= 100)
    cluster.add(events(range(100, 200)))
    wait_until(lambda: len(store.applied) >= 200)
    assert applied(store) == list(range(200))
    assert store.offsets == {f"kafka:{TOPIC}:{p}": b"49" for p in range(PARTITIONS)}
    for part in range(PARTITIONS):  # in order within a partition
        assert [a for a, _ in store.applied if a % PARTITIONS == part] == list(range(part, 200, PARTITIONS))
    sidecar.stop()
    assert cluster.committed() == dict.fromkeys(range(PARTITIONS), 50)


def test_a_restarted_sidecar_goes_on_where_its_store_stands(cluster, store, start):
    cluster.add(events(range(200)))
    first = start(store, batch_events=7)
    wait_until(lambda: len(store.applied) >= 30)
    first.crash()
    assert len(store.applied) >= 30
    cluster.add(events(range(200, 240)))
    start(store)
    wait_until(lambda: len(store.applied) >= 240)
    assert applied(store) == list(range(240))


def test_commits_in_kafka_do_not_decide(cluster, store, start):
    cluster.add(events(range(40)))
    consumer = confluent_kafka.Consumer({"bootstrap.servers": cluster.brokers, "group.id": "gr4ad-indexer"})
    at = [confluent_kafka.TopicPartition(TOPIC, p, 10) for p in range(PARTITIONS)]
    consumer.commit(offsets=at, asynchronous=False)
    consumer.close()
    store.offsets = {f"kafka:{TOPIC}:0": b"4"}
    start(store)
    wanted = sorted(set(range(40)) - {0, 4, 8, 12, 16})  # the first five of partition 0
    wait_until(lambda: len(store.applied) >= len(wanted))
    time.sleep(0.5)
    assert applied(store) == wanted


def test_a_topic_made_anew_is_read_from_its_start(cluster, store, start, caplog):
    cluster.add(events(range(40)))
    store.offsets = {f"kafka:{TOPIC}:1": b"5000"}
    start(store)
    wait_until(lambda: len(store.applied) >= 40)
    assert applied(store) == list(range(40))
    assert any("partition 1 holds 0 .. 10, not 5001" in r.message for r in caplog.records)
    assert store.gaps == [(f"kafka:{TOPIC}:1", Gap("offset 5000", "offset 0", lost=None))]


def test_nothing_is_committed_to_kafka_before_the_store(cluster, store, start):
    store.gate.clear()
    cluster.add(events(range(8)))
    sidecar = start(store)
    wait_until(lambda: sidecar.source.state.received == 8)
    time.sleep(0.7)
    assert all(o < 0 for o in cluster.committed().values())
    store.gate.set()
    wait_until(lambda: cluster.committed() == dict.fromkeys(range(PARTITIONS), 2))


def test_poison_goes_to_the_dead_letters_and_does_not_block(cluster, store, start):
    start(store)
    cluster.add([event(1), b"{", b"\xff", None, b"", event(2)], partition=0)
    wait_until(lambda: len(store.applied) >= 2)
    assert [r for r, _ in store.rejected] == ["invalid_json", "invalid_json", "missing_field", "invalid_json"]
    assert store.offsets == {f"kafka:{TOPIC}:0": b"5"}


def test_a_full_queue_holds_the_topic_back(cluster, store, start):
    sidecar = start(store, queue_events=100)
    wait_until(lambda: sidecar.source.state.connected)
    store.gate.clear()
    cluster.add(events(range(3000)))
    time.sleep(1.5)
    assert sidecar.source.state.received <= 800
    store.gate.set()
    wait_until(lambda: len(store.applied) >= 3000)
    assert applied(store) == list(range(3000))


def test_a_store_that_fails_for_a_while_loses_nothing(cluster, store, start):
    start(store, max_retry_s=0.2)
    cluster.add(events(range(8)))
    wait_until(lambda: len(store.applied) == 8)
    store.fail = OSError(28, "No space left on device")
    cluster.add(events(range(8, 40)))
    time.sleep(1.0)
    store.fail = None
    wait_until(lambda: len(store.applied) >= 40)
    assert applied(store) == list(range(40))


def test_lag(cluster, store, start, monkeypatch):
    monkeypatch.setattr("indexer.sources.kafka._MEASURE_S", 0.1)
    sidecar = start(store)
    cluster.add(events(range(20)))
    wait_until(lambda: len(store.applied) == 20)
    wait_until(lambda: sidecar.source.state.lag_events == 0)
    store.gate.clear()
    cluster.add(events(range(20, 60)))
    wait_until(lambda: sidecar.source.state.lag_events == 40)
    wait_until(lambda: (sidecar.source.state.lag_seconds or 0) > 0.3)
    store.gate.set()
    wait_until(lambda: sidecar.source.state.lag_events == 0)
    assert sidecar.source.state.lag_seconds == 0


def test_brokers_that_are_not_there_are_a_problem_and_tried_again(tmp_path, store, monkeypatch):
    monkeypatch.setattr("indexer.sources.kafka._TIMEOUT_S", 0.5)
    worker = Worker(store, heartbeat=tmp_path / "beat", metrics=Metrics())
    config = KafkaConfig("127.0.0.1:1", TOPIC, options={"socket.connection.setup.timeout.ms": "1000"})
    source = KafkaSource(config, worker, offset_of=store.offset, on_gap=store.record_gap)
    source.start()
    try:
        wait_until(lambda: source.state.failures, timeout_s=20)
        assert not source.state.connected
        assert "KafkaException" in source.state.error
    finally:
        source.stop()
        source.close(timeout_s=20)


def test_without_the_package_the_error_says_what_to_install(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ImportError, match="make kafka-setup"):
        KafkaSource(KafkaConfig("127.0.0.1:1", TOPIC), None, offset_of=store.offset, on_gap=store.record_gap)


def test_events_that_retention_deleted_are_counted(cluster, store, start, monkeypatch):
    """Before the start and while it runs; the test cluster itself deletes nothing."""
    cluster.add(events(range(40)))
    store.offsets = {f"kafka:{TOPIC}:{p}": b"2" for p in range(PARTITIONS)}
    low, ends = {0: 7, 1: 3, 2: 0, 3: 0}, KafkaSource._ends
    monkeypatch.setattr(KafkaSource, "_ends", lambda source, p: (low[p], ends(source, p)[1]))
    sidecar = start(store)
    wait_until(lambda: len(store.applied) >= 3 + 7 + 7 + 7)
    assert store.gaps == [(f"kafka:{TOPIC}:0", Gap("offset 2", "offset 7", lost=4))]
    low[2] = 15
    cluster.add(events(range(100, 110)), partition=2)
    wait_until(lambda: len(store.applied) == 34)
    sidecar.source._next[2] = 11  # as if it had not read on
    cluster.add(events([200]), partition=2)
    wait_until(lambda: len(store.gaps) == 2)
    assert store.gaps[1] == (f"kafka:{TOPIC}:2", Gap("offset 10", "offset 15", lost=4))
