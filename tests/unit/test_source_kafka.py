"""The Kafka source against the cluster that librdkafka hosts in process: the store's offsets decide."""

import sys
import time
from types import SimpleNamespace

import pytest

from indexer.sidecar.metrics import Metrics
from indexer.sidecar.samples import source_samples
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
    cluster.add([event(1), b"{", b"\xff", b"", event(2)], partition=0)
    wait_until(lambda: len(store.applied) >= 2)
    assert [r for r, _ in store.rejected] == ["invalid_json", "invalid_json", "invalid_json"]
    assert store.offsets == {f"kafka:{TOPIC}:0": b"4"}


def test_tombstones_are_counted_said_once_and_no_dead_letters(cluster, store, start, monkeypatch, caplog):
    monkeypatch.setattr("indexer.sources.kafka._MEASURE_S", 0.1)
    sidecar = start(store)
    cluster.add([event(1), None, event(2), None, None], partition=0)
    cluster.add([None], partition=1)  # alone
    wait_until(lambda: len(store.applied) >= 2)
    wait_until(lambda: sidecar.source.state.tombstones == 4)
    wait_until(lambda: sidecar.source.state.lag_events == 0)  # also behind the last event
    assert store.rejected == []
    assert store.offsets == {f"kafka:{TOPIC}:0": b"2"}
    assert len([r for r in caplog.records if "no value" in r.message]) == 1
    samples = {name: value for name, _, _, value in source_samples([sidecar.source])}
    assert samples["source_tombstones_total"] == 4
    cluster.add(events([7]), partition=1)
    wait_until(lambda: len(store.applied) == 3)
    wait_until(lambda: cluster.committed() == {0: 5, 1: 2, 2: -1001, 3: -1001})


class TransactionalConsumer:
    """What librdkafka shows of one partition whose transactions end with a marker: its offset, no message."""

    def __init__(self, log: list[bytes | None], settings: dict) -> None:
        self._log, self._settings = log, settings
        self._at = self._told_end = -1
        self.commits: list[int] = []

    def list_topics(self, topic, timeout):
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None, partitions={0: None})})

    def assignment(self):
        return [confluent_kafka.TopicPartition(TOPIC, 0)] if self._at >= 0 else []

    def incremental_assign(self, partitions):
        self._at = partitions[0].offset

    def get_watermark_offsets(self, partition, **_):
        return 0, len(self._log)

    def commit(self, offsets, asynchronous):
        self.commits += [at.offset for at in offsets]

    def consume(self, count, timeout):
        time.sleep(0.01)
        found = [self._message(at, value) for at, value in enumerate(self._log) if at >= self._at and value]
        self._at = end = len(self._log)
        if self._settings.get("enable.partition.eof") and end != self._told_end:
            self._told_end = end
            code = confluent_kafka.KafkaError(confluent_kafka.KafkaError._PARTITION_EOF)
            found.append(self._message(end, b"", error=code))
        return found

    @staticmethod
    def _message(offset, value, error=None):
        fields = {"offset": offset, "value": value, "error": error, "partition": 0, "timestamp": (1, 1000)}
        return SimpleNamespace(**{name: lambda value=value: value for name, value in fields.items()})

    def close(self):
        pass


def test_markers_of_transactions_are_no_lag(store, tmp_path, monkeypatch):
    monkeypatch.setattr("indexer.sources.kafka._MEASURE_S", 0.05)
    log, made = [event(1), event(2), None], []

    def consumer(settings):
        made.append(TransactionalConsumer(log, settings))
        return made[-1]

    monkeypatch.setattr(confluent_kafka, "Consumer", consumer)
    sidecar = Sidecar(SimpleNamespace(brokers="127.0.0.1:1"), store, tmp_path)
    try:
        wait_until(lambda: len(store.applied) == 2)
        wait_until(lambda: sidecar.source.state.lag_events == 0)
        assert sidecar.source.state.lag_seconds == 0
        wait_until(lambda: made[-1].commits[-1:] == [3])  # other tools see no lag either
        store.gate.clear()
        log.extend([event(3), None])
        wait_until(lambda: sidecar.source.state.lag_events)
        store.gate.set()
        wait_until(lambda: len(store.applied) == 3)
        wait_until(lambda: sidecar.source.state.lag_events == 0)
        assert store.offsets == {f"kafka:{TOPIC}:0": b"3"}  # of the last event, as ever
        assert store.gaps == []
    finally:
        store.gate.set()
        sidecar.stop()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nonsense": "1"}, 'No such configuration property: "nonsense"'),
        ({"fetch.min.bytes": "x"}, "fetch.min.bytes"),
    ],
)
def test_an_option_that_can_never_work_is_refused_at_the_start(store, options, message):
    config = KafkaConfig("127.0.0.1:1", TOPIC, options=options)
    with pytest.raises(ValueError, match=f"Kafka options: .*{message}"):
        KafkaSource(config, None, offset_of=store.offset, on_gap=store.record_gap)


def test_options_do_not_change_what_the_source_stands_on(cluster, store, tmp_path):
    own = {"enable.auto.commit": "true", "group.id": "other", "auto.offset.reset": "latest"}
    config = KafkaConfig(cluster.brokers, TOPIC, options=own)
    cluster.add(events(range(8)))
    sidecar = SourceSidecar(
        store,
        tmp_path,
        lambda worker: KafkaSource(config, worker, offset_of=store.offset, on_gap=store.record_gap),
    )
    try:
        wait_until(lambda: len(store.applied) == 8)
        wait_until(lambda: cluster.committed() == dict.fromkeys(range(PARTITIONS), 2))
    finally:
        sidecar.stop()


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
