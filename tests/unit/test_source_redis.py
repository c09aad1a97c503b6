"""The Redis source against a real server: every event is applied exactly once, whatever dies in between."""

import logging
import threading
import time

import pytest
import redis
from redis._parsers.helpers import parse_xautoclaim

from indexer.sources.config import RedisConfig
from indexer.sources.redis_streams import RedisSource
from tests.recording_store import RecordingStore, event
from tests.redis_server import BINARY, RedisServer
from tests.redis_sidecar import GROUP, STREAM, add, pending, sidecars
from tests.source_sidecar import SourceSidecar
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(BINARY is None, reason="redis-server is not installed")


@pytest.fixture
def server(tmp_path):
    running = RedisServer(tmp_path)
    yield running
    running.close()


@pytest.fixture
def start(server, tmp_path):
    with sidecars(server, tmp_path) as start:
        yield start


@pytest.fixture
def store():
    return RecordingStore()


def ads(store) -> list[int]:
    return [a for a, _ in store.applied]


def test_all_events_apply_once_in_order_and_are_acknowledged(server, store, start):
    add(server, range(300))
    start(store)
    ids = add(server, range(300, 500))
    wait_until(lambda: len(store.applied) >= 500)
    wait_until(lambda: pending(server) == 0)
    assert ads(store) == list(range(500))
    assert store.offsets == {f"redis:{STREAM}": ids[-1] + b" 500"}
    assert store.gaps == []


def test_nothing_is_acknowledged_before_the_commit(server, store, start):
    start(store)
    wait_until(lambda: server.client.exists(STREAM))
    store.gate.clear()
    add(server, range(10))
    wait_until(lambda: pending(server) == 10)
    time.sleep(0.7)  # longer than a turn of the source
    assert pending(server) == 10
    store.gate.set()
    wait_until(lambda: pending(server) == 0)
    assert ads(store) == list(range(10))


def test_a_restarted_sidecar_goes_on_where_its_store_stands(server, store, start):
    add(server, range(100))
    first = start(store, batch_events=7)
    wait_until(lambda: len(store.applied) >= 30)
    first.crash()
    applied = len(store.applied)
    assert pending(server) > 0
    add(server, range(100, 130))
    second = start(store)
    wait_until(lambda: len(store.applied) >= 130)
    wait_until(lambda: pending(server) == 0)
    assert applied >= 30
    assert ads(store) == list(range(130))
    assert second.source.state.redelivered > 0  # committed, but not acknowledged before the crash


def test_events_pending_at_a_dead_consumer_are_taken_over_in_order(server, store, start):
    add(server, range(20))
    server.client.xgroup_create(STREAM, GROUP, id="0")
    server.client.xreadgroup(GROUP, "dead-1", {STREAM: ">"}, count=5)
    server.client.xreadgroup(GROUP, "dead-2", {STREAM: ">"}, count=5)
    server.client.xreadgroup(GROUP, "dead-1", {STREAM: ">"}, count=5)
    start(store)
    wait_until(lambda: len(store.applied) >= 20)
    wait_until(lambda: pending(server) == 0)
    assert ads(store) == list(range(20))


def test_entries_that_were_trimmed_while_pending_leave_the_list(server, store, start):
    ids = add(server, range(10))
    server.client.xgroup_create(STREAM, GROUP, id="0")
    server.client.xreadgroup(GROUP, "dead", {STREAM: ">"}, count=10)
    server.client.xtrim(STREAM, minid=ids[4], approximate=False)
    start(store)
    wait_until(lambda: len(store.applied) >= 6)
    wait_until(lambda: pending(server) == 0)
    assert ads(store) == [4, 5, 6, 7, 8, 9]


def test_redis_6_claims_entries_that_are_gone(server, store, start, monkeypatch):
    """Redis 6.2 keeps deleted entries pending, and its XAUTOCLAIM has a nil in the place of each."""
    ids = add(server, range(10))
    server.client.xgroup_create(STREAM, GROUP, id="0")
    server.client.xreadgroup(GROUP, "dead", {STREAM: ">"}, count=10)
    server.client.xdel(STREAM, *ids[:4])
    store.offsets[f"redis:{STREAM}"] = ids[4]

    def claim(client, name, groupname, consumername, min_idle_time, start_id, count):
        there = {i: [i, [n for pair in fields.items() for n in pair]] for i, fields in client.xrange(name)}
        return parse_xautoclaim([b"0-0", [there.get(i) for i in ids]])

    monkeypatch.setattr(redis.Redis, "xautoclaim", claim)
    sidecar = start(store)
    wait_until(lambda: len(store.applied) >= 5)
    wait_until(lambda: pending(server) == 0)
    assert ads(store) == [5, 6, 7, 8, 9]
    assert sidecar.source.state.failures == 0


def test_redis_killed_and_started_again_in_the_middle(server, store, start, caplog):
    add(server, range(200))
    sidecar = start(store, batch_events=5)
    wait_until(lambda: len(store.applied) >= 50)
    store.gate.clear()  # some are in the worker's hands, some are committed but not acknowledged
    server.kill()
    wait_until(lambda: not sidecar.source.state.connected)
    time.sleep(1.0)
    assert sidecar.source.state.failures > 2
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1  # not one a try
    server.start()
    wait_until(lambda: sidecar.source.state.connected)
    time.sleep(0.5)  # what the worker has in hand could be delivered again now
    store.gate.set()
    add(server, range(200, 250))
    wait_until(lambda: len(store.applied) >= 250)
    wait_until(lambda: pending(server) == 0)
    assert ads(store) == list(range(250))
    assert sidecar.source.state.connected
    assert sidecar.source.state.error == ""
    assert store.gaps == []


def test_both_killed_in_turn_while_events_come_in(server, store, start):
    accepted, done = [], threading.Event()

    def produce() -> None:
        ad = 0
        while not done.is_set():
            try:
                add(server, [ad])
            except redis.RedisError:  # may be in the stream or not: known by looking
                time.sleep(0.02)
                continue
            ad += 1

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        for _ in range(3):
            sidecar = start(store, batch_events=3, batch_ms=1)
            before = len(store.applied)
            wait_until(lambda before=before: len(store.applied) > before + 30)
            server.kill()
            time.sleep(0.2)
            server.start()
            wait_until(lambda s=sidecar.source.state: s.connected)
            time.sleep(0.2)
            sidecar.crash()
    finally:
        done.set()
        producer.join()
    accepted = [fields[b"event"] for _, fields in server.client.xrange(STREAM)]
    start(store)
    wait_until(lambda: len(store.applied) >= len(accepted))
    wait_until(lambda: pending(server) == 0)
    assert [event(a) for a in ads(store)] == accepted
    assert store.gaps == []


def test_a_lost_group_is_made_anew_from_the_committed_offset(server, store, start, caplog):
    sidecar = start(store)
    add(server, range(50))
    wait_until(lambda: len(store.applied) == 50)
    server.client.xgroup_destroy(STREAM, GROUP)
    add(server, range(50, 60))
    wait_until(lambda: len(store.applied) >= 60)
    wait_until(lambda: pending(server) == 0)
    assert ads(store) == list(range(60))
    assert any("made anew" in r.message for r in caplog.records)
    assert sidecar.source.state.failures == 0


def test_a_group_lost_while_the_sidecar_was_down(server, store, start):
    first = start(store)
    add(server, range(50))
    wait_until(lambda: len(store.applied) == 50)
    first.stop()
    server.client.xgroup_destroy(STREAM, GROUP)
    add(server, range(50, 60))
    start(store)
    wait_until(lambda: len(store.applied) >= 60)
    assert ads(store) == list(range(60))


@pytest.mark.parametrize("new_id", ["*", "1-{}"])
def test_a_flushed_stream_goes_on(server, store, start, new_id):
    start(store)
    add(server, range(20))
    wait_until(lambda: len(store.applied) == 20)
    server.client.flushall()
    time.sleep(0.5)
    for ad in range(20, 30):  # ids may begin anew, below the committed offset
        server.client.xadd(STREAM, {"event": event(ad)}, id=new_id.format(ad))
    wait_until(lambda: len(store.applied) >= 30)
    wait_until(lambda: pending(server) == 0)
    assert ads(store) == list(range(30))


def test_a_group_ahead_of_the_store_is_set_back(server, store, start):
    add(server, range(10))
    server.client.xgroup_create(STREAM, GROUP, id="$")
    start(store)
    wait_until(lambda: len(store.applied) >= 10)
    assert ads(store) == list(range(10))


def test_events_delivered_twice_by_the_group_apply_once(server, store, start):
    sidecar = start(store)
    ids = add(server, range(10))
    wait_until(lambda: len(store.applied) == 10)
    server.client.xgroup_setid(STREAM, GROUP, "0")  # somebody winds it back by hand
    add(server, [10])
    wait_until(lambda: len(store.applied) >= 11)
    wait_until(lambda: pending(server) == 0)
    assert ads(store) == list(range(11))
    assert sidecar.source.state.redelivered >= len(ids)


def test_poison_goes_to_the_dead_letters_and_does_not_block(server, store, start):
    start(store)
    add(server, [1])
    for fields in ({"event": "{"}, {"other": "x"}, {"event": b"\xff\x00"}, {"event": "[" * 100_000}):
        server.client.xadd(STREAM, fields)
    add(server, [2])
    wait_until(lambda: len(store.applied) >= 2)
    wait_until(lambda: pending(server) == 0)
    assert [r for r, _ in store.rejected] == ["invalid_json", "missing_field", "invalid_json", "invalid_json"]
    assert store.rejected[1][1] == b'{"other": "x"}'


def test_a_full_queue_holds_the_stream_back(server, store, start):
    sidecar = start(store, queue_events=100)
    wait_until(lambda: server.client.exists(STREAM))
    store.gate.clear()
    add(server, range(2000))
    time.sleep(1.0)
    assert pending(server) <= 500
    assert sidecar.worker.depth <= 150
    store.gate.set()
    wait_until(lambda: len(store.applied) >= 2000)
    assert ads(store) == list(range(2000))


def test_a_store_that_fails_for_a_while_loses_nothing(server, store, start):
    start(store, max_retry_s=0.2)
    add(server, range(10))
    wait_until(lambda: len(store.applied) == 10)
    store.fail = OSError(28, "No space left on device")
    add(server, range(10, 30))
    time.sleep(1.0)
    assert pending(server) == 20
    store.fail = None
    wait_until(lambda: pending(server) == 0)
    assert ads(store) == list(range(30))


def test_lag_is_measured_also_after_a_crash(server, store, start, monkeypatch):
    monkeypatch.setattr("indexer.sources.redis_streams._MEASURE_S", 0.1)
    add(server, range(40))
    first = start(store, batch_events=10)
    wait_until(lambda: len(store.applied) == 40)
    wait_until(lambda: first.source.state.lag_events == 0)
    assert first.source.state.lag_seconds == 0
    store.gate.clear()
    add(server, range(40, 100))
    wait_until(lambda: (first.source.state.lag_events or 0) >= 50)
    wait_until(lambda: (first.source.state.lag_seconds or 0) > 0.3)
    store.gate.set()
    first.crash()
    add(server, range(100, 140))
    behind = 140 - len(store.applied)
    # Connects and measures, hands nothing over.
    held = RedisSource(RedisConfig(server.url), None, offset_of=store.offset, on_gap=store.record_gap)
    held._open()
    held._measure()
    assert held.state.lag_events == pytest.approx(behind, abs=held._group()["pending"])
    held._close()


def test_a_wrong_count_of_redis_is_no_lag(server, store, start):
    """After a crash Redis may miscount what a group has read; nothing after the committed entry is no lag."""
    sidecar = start(store)
    last = add(server, range(20))[-1]
    wait_until(lambda: len(store.applied) == 20)
    server.client.execute_command("XGROUP", "SETID", STREAM, GROUP, last, "ENTRIESREAD", 5)
    assert sidecar.source._group()["lag"] == 15
    sidecar.source._measure()
    assert (sidecar.source.state.lag_events, sidecar.source.state.lag_seconds) == (0, 0.0)


def test_the_password_is_not_logged_and_a_wrong_one_is_a_problem(server, store, start, caplog):
    server.client.config_set("requirepass", "secret-one")
    sidecar = start(store)
    wait_until(lambda: sidecar.source.state.failures)
    assert "Authentication" in sidecar.source.state.error
    assert "secret" not in caplog.text


def test_a_key_of_another_type_is_a_problem_and_not_the_end(server, store, start):
    server.client.set(STREAM, "x")
    sidecar = start(store)
    wait_until(lambda: "WRONGTYPE" in sidecar.source.state.error)
    server.client.delete(STREAM)
    add(server, [1])
    wait_until(lambda: ads(store) == [1])


def test_stop_is_quick_and_acknowledges_what_was_committed(server, store, start):
    sidecar = start(store)
    add(server, range(10))
    wait_until(lambda: len(store.applied) == 10)
    began = time.monotonic()
    sidecar.stop()
    assert time.monotonic() - began < 2
    assert pending(server) == 0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1", "scheme"),
        ("redis://127.0.0.1?nonsense=1", "expected the options .* for redis://, got nonsense"),
        ("redis://127.0.0.1?nonsense", "got nonsense"),
        ("redis://127.0.0.1?host=other", "got host"),
        ("redis://127.0.0.1?ssl_cert_reqs=none", "for redis://, got ssl_cert_reqs"),
        ("rediss://127.0.0.1?ssl_cert_reqs=perhaps", "Invalid SSL Certificate Requirements Flag: perhaps"),
        ("rediss://127.0.0.1?ssl_ca_certs=/nowhere/ca.pem", "ssl_ca_certs: .* nothing at /nowhere/ca.pem"),
        ("redis://127.0.0.1?health_check_interval=often", "health_check_interval"),
        ("redis://127.0.0.1/ads", "number of a database as path, got '/ads'"),
        ("redis://127.0.0.1:99999", "Port out of range"),
    ],
)
def test_a_url_that_can_never_work_is_refused_at_the_start(store, url, message):
    with pytest.raises(ValueError, match=message):
        RedisSource(RedisConfig(url), None, offset_of=store.offset, on_gap=store.record_gap)


def test_options_of_the_url_do_not_change_what_the_source_stands_on(server, store, tmp_path):
    url = f"{server.url}?decode_responses=True&protocol=3&socket_timeout=0.01&client_name=x&encoding=utf-16"
    config = RedisConfig(url)
    sidecar = SourceSidecar(
        store,
        tmp_path,
        lambda worker: RedisSource(config, worker, offset_of=store.offset, on_gap=store.record_gap),
    )
    try:
        add(server, range(5))
        wait_until(lambda: ads(store) == [0, 1, 2, 3, 4])
        wait_until(lambda: pending(server) == 0)
        assert sidecar.source.state.failures == 0
    finally:
        sidecar.stop()
