"""The feedback service in this process: its sources, its HTTP API, what it says of itself."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from feedback.commands import serve
from feedback.http.app import create_app
from feedback.join.rules import JoinConfig
from feedback.service.config import KAFKA, REDIS, SERVED, FeedbackConfig
from feedback.service.served_files import ServedFiles
from feedback.service.service import Service
from feedback.store.samples import decode_sample
from indexer.http.api import ApiLimits, WriterApi
from indexer.http.guard import Guard
from serving.served_log.segments import SegmentWriter, segments
from tests.redis_server import RedisServer, needs_redis
from tests.served import served
from tests.waiting import wait_until

TIMES = JoinConfig(window_s=0.2, correct_s=1_000, wait_s=30)


def now_served(name: str, **changes) -> bytes:
    """A record of just now."""
    return served(name, written=time.time(), timestamp=int(time.time()), **changes).encode()


def event(name: str = "r1", ad_id: int = 30, **changes) -> dict:
    base = {"request_id": name, "ad_id": ad_id, "behavior": "click", "timestamp": int(time.time())}
    return base | changes


def sample_ids(service: Service) -> list[tuple[str | None, int]]:
    """Request and number of facts of every sample."""
    joiner = service.joiner

    def read():
        with joiner.environment.begin() as txn, txn.cursor(db=joiner._tables["samples"]) as cursor:
            found = [decode_sample(0, bytes(value)) for _, value in cursor.iternext()]
        return [(sample.record.request_id, len(sample.facts)) for sample in found]

    return service.worker.call(read).result(10)


@pytest.fixture
def start(tmp_path):
    """Starts services on one store; those that still run at the end are stopped."""
    with contextlib.ExitStack() as running:

        def begin(**settings) -> Service:
            settings = {"join": TIMES, "map_size": 1 << 28} | settings
            service = Service(FeedbackConfig(tmp_path / "store", **settings))
            service.start()
            running.callback(lambda: service.stop() if service.worker.crash is None else None)
            return service

        yield begin


def client_of(service: Service, *, token: str | None = None, host: str = "127.0.0.1", **limits) -> TestClient:
    api = WriterApi(
        worker=service.worker,
        metrics=service.metrics,
        guard=Guard(host, token=token, variable=serve.TOKEN),
        ready=service.ready,
        limits=ApiLimits(**limits),
    )
    app = create_app(api, service.joiner)
    return TestClient(app, base_url="http://127.0.0.1:8020", raise_server_exceptions=False)


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "log"


def test_the_log_is_followed_over_files_writers_and_restarts(start, log) -> None:
    service = start(served=log)  # before there is a folder
    first = SegmentWriter(log, file_bytes=1_500, keep_files=100)
    for n in range(20):
        first.write([now_served(f"a{n}")])
    wait_until(lambda: len(sample_ids(service)) == 20)
    assert len(segments(log)[next(iter(segments(log)))]) > 3
    service.stop()
    time.sleep(0.01)
    second = SegmentWriter(log, file_bytes=1_500, keep_files=100)
    for n in range(20):
        (first if n % 2 else second).write([now_served(f"b{n}")])
    service = start(served=log)
    wait_until(lambda: len(sample_ids(service)) == 40)
    time.sleep(0.3)
    names = [name for name, _ in sample_ids(service)]
    assert sorted(names) == sorted([f"a{n}" for n in range(20)] + [f"b{n}" for n in range(20)])
    assert service.joiner.meta().counters.get("repeated", 0) == 0


def test_a_torn_tail_and_damage_cost_no_other_record(start, log) -> None:
    log.mkdir()
    (log / "00000000000000000001-1.00000000.jsonl").write_bytes(
        now_served("whole") + b"\n" + now_served("damaged")[:50] + b"\n" + now_served("torn")[:80]
    )
    (log / "00000000000000000002-2.00000000.jsonl").write_bytes(now_served("next") + b"\n")
    service = start(served=log)
    wait_until(lambda: len(sample_ids(service)) == 2)
    assert {name for name, _ in sample_ids(service)} == {"whole", "next"}
    (rejected,) = service.worker.call(lambda: service.joiner.rejected(limit=9)).result(10)
    assert rejected["source"] == "served:00000000000000000001-1"
    assert "served record: " in rejected["message"]


def test_files_that_went_before_they_were_read_are_on_record(start, log) -> None:
    writer = SegmentWriter(log, file_bytes=1, keep_files=100)
    writer.write([now_served("a")])
    service = start(served=log)
    wait_until(lambda: len(sample_ids(service)) == 1)
    service.stop()
    for n in range(5):
        writer.write([now_served(f"b{n}")])
    ((name, row),) = segments(log).items()
    for segment in row[:3]:
        (log / segment.name).unlink()
    service = start(served=log)
    wait_until(lambda: len(sample_ids(service)) == 4)
    meta = service.worker.call(service.joiner.meta).result(10)
    assert list(meta.gaps) == [f"served:{name}"]
    assert "are gone from the stream, which goes on at file 3" in meta.gaps[f"served:{name}"]
    assert 'gr4ad_feedback_lost_total{source="served:' in service.metrics.render().decode()


def test_a_whole_row_of_files_that_went_unread_is_on_record(log) -> None:
    """A reader that is slower than the log is removed; and no gap where it had seen everything."""
    writer = SegmentWriter(log, file_bytes=1, keep_files=100)
    writer.write([now_served("a")])
    writer.write([now_served("b")])
    handed, gaps = [], []
    taker = type("Taker", (), {"submit": lambda self, items, **_: handed.extend(items) or self})()
    reader = ServedFiles(log, taker, offset_of=lambda _: None, on_gap=lambda *gap: gaps.append(gap))
    reader._poll()  # the first file
    assert len(handed) == 1
    for file in log.iterdir():
        file.unlink()
    reader._poll()
    ((source, gap),) = gaps
    assert source.startswith("served:")
    assert (gap.after.partition(",")[0], gap.resumes) == ("file 0", "another server's records")
    other = SegmentWriter(log, file_bytes=1, keep_files=100)
    other.write([now_served("c")])
    for _ in range(2):
        reader._poll()
    for file in log.iterdir():
        file.unlink()
    reader._poll()
    assert (len(handed), len(gaps)) == (2, 1)


@needs_redis
def test_feedback_and_records_from_redis_and_a_trimmed_stream(start, tmp_path) -> None:
    (tmp_path / "redis").mkdir()
    redis = RedisServer(tmp_path / "redis")
    streams = {"redis": replace(REDIS, redis.url), "served_redis": replace(SERVED, redis.url)}
    try:
        service = start(**streams)
        add = redis.client.xadd
        for n in range(10):
            add(REDIS.stream, {"event": json.dumps(event(f"r{n}"))})  # before the records
        for n in range(10):
            add(SERVED.stream, {"event": now_served(f"r{n}")})
        add(REDIS.stream, {"event": now_served("forged")})
        add(REDIS.stream, {"other": "x"})
        wait_until(lambda: len(sample_ids(service)) == 10)
        assert sorted(sample_ids(service)) == [(f"r{n}", 1) for n in range(10)]
        reasons = [
            r["reason"] for r in service.worker.call(lambda: service.joiner.rejected(limit=9)).result()
        ]
        assert sorted(reasons) == ["missing_field", "unknown_field"]
        redis.kill()
        wait_until(lambda: any("redis" in p for p in service.ready()[0]))
        redis.start()
        add(REDIS.stream, {"event": json.dumps(event("r1", 40))})
        wait_until(lambda: len(sample_ids(service)) == 11, timeout_s=20)  # a correction
        service.stop()
        for n in range(30):
            add(REDIS.stream, {"event": json.dumps(event(f"r{n % 10}", 40))})
        redis.client.xtrim(REDIS.stream, maxlen=4, approximate=False)
        service = start(**streams)
        wait_until(lambda: len(sample_ids(service)) == 15)
        meta = service.worker.call(service.joiner.meta).result(10)
        assert meta.gaps[f"redis:{REDIS.stream}"].startswith("26 events after ")
        assert meta.counters[f"lost.redis:{REDIS.stream}"] == 26
    finally:
        redis.close()


def replace(config, url):
    return type(config)(url, stream=config.stream, group=config.group, consumer=config.consumer)


def test_feedback_from_kafka(start, log) -> None:
    kafka = pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")
    producer = kafka.Producer({"test.mock.num.brokers": 1, "linger.ms": 0})
    brokers = ",".join(
        f"{b.host}:{b.port}" for b in producer.list_topics(KAFKA.topic, timeout=10).brokers.values()
    )
    SegmentWriter(log, file_bytes=1 << 20, keep_files=3).write([now_served("r1")])
    for changes in ({}, {}, {"ad_id": 40}, {"ad_id": 99}):
        producer.produce(KAFKA.topic, json.dumps(event("r1", **changes)), key="r1")
    assert producer.flush(10) == 0
    service = start(served=log, kafka=type(KAFKA)(brokers, topic=KAFKA.topic, group=KAFKA.group))
    known = lambda: service.worker.call(lambda: service.joiner.request("r1")).result(10)  # noqa: E731
    wait_until(lambda: (state := known()) is not None and len(state.fed) == 2, timeout_s=30)
    wait_until(lambda: service.worker.call(service.joiner.meta).result(10).rejected == 1)


def test_one_event_and_many_over_http(start, log) -> None:
    SegmentWriter(log, file_bytes=1 << 20, keep_files=3).write([now_served("r1"), now_served("r2")])
    client = client_of(service := start(served=log))
    wait_until(lambda: service.worker.call(lambda: service.joiner.request("r2")).result(10))
    answer = client.post("/feedback", json=event())
    assert (answer.status_code, answer.json()["result"]) == (200, "applied")
    again = client.post("/feedback", json=event(timestamp=5)).json()
    assert again["reason"] == "before_request"
    rows = [
        event("r1"),
        event("r2", behavior="conversion", value=2.5),
        event("r2", value=-1),
        event("r2", 99),
        event("later"),
        {"nonsense": 1},
    ]
    lines = "\n\n".join(map(json.dumps, rows))
    for body in (
        client.post("/feedback/bulk", json=rows),
        client.post("/feedback/bulk", content=lines, headers={"Content-Type": "application/x-ndjson"}),
    ):
        assert body.status_code == 200, body.text
        reasons = [row["reason"] for row in body.json()["rows"]]
        assert reasons[2:4] + reasons[5:] == ["out_of_range", "unknown_ad", "unknown_field"]
        assert body.json()["rejected"] == 3
    assert client.get("/requests", params={"request_id": "r2"}).json()["feedback"][0]["value"] == 2.5
    assert client.get("/requests", params={"request_id": "nothing"}).status_code == 404
    assert client.get("/users/7/history").json()[-1]["behavior"] in ("click", "conversion")
    assert len(client.get("/rejected").json()) == 7
    assert client.get("/readyz").json()["ready"]
    page = client.get("/metrics").text
    assert 'gr4ad_feedback_joined_total{what="unknown_ad"} 2.0' in page
    assert 'source="served"' in page
    assert client.get("/openapi.json").json()["components"]["schemas"]["FeedbackEvent"]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"value": -1}, 422),
        ({"behavior": "conversion"}, 422),
        ({"behavior": "conversion", "value": float("inf")}, 422),
        ({"timestamp": None}, 422),
        ({"ad_id": 99}, 409),
        ({"timestamp": 1}, 409),
        ({"timestamp": 1 << 39}, 409),
    ],
)
def test_what_is_wrong_with_feedback_is_said_by_status_and_word(start, log, changes, status) -> None:
    SegmentWriter(log, file_bytes=1 << 20, keep_files=3).write([now_served("r1")])
    client = client_of(service := start(served=log))
    wait_until(lambda: service.worker.call(lambda: service.joiner.request("r1")).result(10))
    body = json.dumps(event() | changes)
    answer = client.post("/feedback", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["result"] == "rejected"
    assert "expected" in answer.json()["message"]


def test_who_may_write(start) -> None:
    service = start()
    with pytest.raises(ValueError, match="expected a token .*GR4AD_FEEDBACK_TOKEN, got none"):
        Guard("0.0.0.0", variable=serve.TOKEN)
    client = client_of(service, token="a secret token", host="0.0.0.0")
    assert client.post("/feedback", json=event()).status_code == 401
    wrong = {"Authorization": "Bearer another token"}
    assert client.post("/feedback/bulk", json=[event()], headers=wrong).status_code == 401
    right = {"Authorization": "Bearer a secret token"}
    assert client.post("/feedback", json=event(), headers=right).json()["reason"] == "waiting"
    own = client_of(service)
    assert own.post("/feedback", content="x", headers={"Content-Type": "text/plain"}).status_code == 415
    assert own.post("/feedback", json=event(), headers={"Host": "evil.example"}).status_code == 421
    small = client_of(service, bulk_rows=2)
    assert small.post("/feedback/bulk", json=[event()] * 3).status_code == 413


def test_a_full_disk_refuses_and_loses_nothing(start, log) -> None:
    service = start(map_size=1 << 20)
    client = client_of(service)
    codes = set()
    for n in range(400):
        rows = [event(f"{n}-{i}" + "x" * 200) for i in range(20)]
        answer = client.post("/feedback/bulk", json=rows)
        codes.add(answer.status_code)
        if answer.status_code == 507:
            assert answer.json()["reason"] == "no_space"
            assert "Retry-After" in answer.headers
            break
    assert codes == {200, 507}
    wait_until(lambda: service.ready()[0])
    assert "not writable" in service.ready()[0][0]


def test_the_store_of_another_writer(start, tmp_path, capsys) -> None:
    start()
    assert serve.main(["--store", str(tmp_path / "store"), "--port", "0"]) == 1
    assert "another writer holds it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "expected a token"),
        (["--window-s", "100", "--correct-s", "5"], "correct_s: expected at least window_s = 100, got 5"),
        (["--served-stream", "s"], "expected --redis-url"),
        (["--redis-url", "http://x"], "Redis URL"),
        (["--kafka-brokers", "x", "--kafka-option", "y"], "expected NAME=VALUE"),
    ],
)
def test_options_that_cannot_be(tmp_path, capsys, monkeypatch, options, message) -> None:
    monkeypatch.delenv(serve.TOKEN, raising=False)
    with pytest.raises(SystemExit) as caught:
        serve.main(["--store", str(tmp_path / "store"), "--port", "0", *options])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_log_that_is_copied_back_is_known(start, log) -> None:
    """Restored from a copy, as after a move: offsets say what took effect, ids what was served."""
    SegmentWriter(log, file_bytes=1 << 20, keep_files=3).write([now_served("r1"), now_served("r2")])
    service = start(served=log)
    wait_until(lambda: len(sample_ids(service)) == 2)
    (file,) = log.iterdir()
    shutil.copy(file, log / "00000000000000000001-1.00000000.jsonl")
    wait_until(lambda: service.worker.call(service.joiner.meta).result(10).counters.get("repeated") == 2)
    assert len(sample_ids(service)) == 2
