"""Events that a Redis stream lost before they were applied: each is counted, none is left out in silence."""

import functools
import random
import time

import pytest

from indexer.sources.config import RedisConfig
from indexer.sources.redis_position import Position, StreamInfo, added_before_next, entry_id, find_gap
from indexer.sources.redis_streams import RedisSource
from indexer.store.gaps import Gap
from tests.recording_store import RecordingStore, event
from tests.redis_server import BINARY, RedisServer
from tests.redis_sidecar import GROUP, STREAM, add, sidecars
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(BINARY is None, reason="redis-server is not installed")


@pytest.fixture
def server(tmp_path):
    running = RedisServer(tmp_path)
    yield running
    running.close()


@pytest.fixture
def store():
    return RecordingStore()


@pytest.fixture
def start(server, store, tmp_path):
    with sidecars(server, tmp_path) as start:
        yield functools.partial(start, store)


def lost(store) -> int:
    """Events in all gaps; one after the same position is the same gap, which may have grown."""
    return sum({gap.after: gap.lost for _, gap in store.gaps}.values())


def trim(server, keep: int) -> None:
    server.client.xtrim(STREAM, maxlen=keep, approximate=False)


@pytest.mark.parametrize("group", ["kept", "lost"])
@pytest.mark.parametrize("left", [5, 0])
def test_trimmed_while_the_sidecar_is_away(server, store, start, left, group):
    ids = add(server, range(10))
    first = start()
    wait_until(lambda: len(store.applied) == 10)
    first.stop()
    later = add(server, range(10, 1000))
    trim(server, left)
    if group == "lost":
        server.client.xgroup_destroy(STREAM, GROUP)
    start()
    wait_until(lambda: store.gaps)
    resumes = later[-5].decode() if left else "the next event"
    assert store.gaps == [(f"redis:{STREAM}", Gap(ids[-1].decode(), resumes, lost=990 - left))]
    add(server, [1000])
    wait_until(lambda: len(store.applied) == 10 + left + 1)
    assert store.offset(f"redis:{STREAM}").endswith(b" 1001")
    time.sleep(0.5)
    assert len(store.gaps) == 1


def test_what_was_applied_may_be_trimmed(server, store, start, monkeypatch):
    monkeypatch.setattr("indexer.sources.redis_streams._MEASURE_S", 0.05)
    add(server, range(100))
    first = start()
    wait_until(lambda: len(store.applied) == 100)
    trim(server, 0)
    add(server, range(100, 150))
    wait_until(lambda: len(store.applied) == 150)
    trim(server, 10)
    time.sleep(0.3)
    first.stop()
    add(server, range(150, 160))
    trim(server, 10)
    start()
    wait_until(lambda: len(store.applied) == 160)
    time.sleep(0.3)
    assert store.gaps == []


def test_a_new_index_misses_nothing(server, store, start):
    add(server, range(100))
    trim(server, 10)
    start()
    wait_until(lambda: len(store.applied) == 10)
    assert store.gaps == []
    assert store.offset(f"redis:{STREAM}").endswith(b" 100")


def test_trimming_that_overtakes_a_sidecar_that_is_behind(server, store, start, monkeypatch):
    monkeypatch.setattr("indexer.sources.redis_streams._MEASURE_S", 0.05)
    start(queue_events=100)
    wait_until(lambda: server.client.exists(STREAM))
    store.gate.clear()
    add(server, range(2000))
    time.sleep(0.5)
    trim(server, 20)
    store.gate.set()
    wait_until(lambda: store.applied and store.applied[-1] == (1999, 1))
    wait_until(lambda: lost(store) == 2000 - len(store.applied))
    assert lost(store) > 1500


def test_a_gap_that_grows_while_nothing_is_left_to_read_counts_all_of_it(server, store, start, monkeypatch):
    """Its position stays: what is lost in two steps behind one entry is one gap of both."""
    monkeypatch.setattr("indexer.sources.redis_streams._MEASURE_S", 0.05)
    sidecar = start(queue_events=100)
    add(server, range(10))
    wait_until(lambda: len(store.applied) == 10)
    at = sidecar.source._handed  # as if two were trimmed between a look at the stream and the next read
    sidecar.source._handed = Position(at.entry, at.added - 2)
    wait_until(lambda: lost(store) == 2)
    unread = server.client.pipeline(transaction=True)
    for _ in range(5):
        unread.xadd(STREAM, {"event": event(0)})
    unread.xtrim(STREAM, maxlen=0).execute()
    wait_until(lambda: lost(store) == 7)


def test_a_gap_that_waits_for_a_commit_is_not_forgotten_when_more_events_come_first(server, store):
    ids = add(server, range(10))
    source = RedisSource(RedisConfig(server.url), None, offset_of=store.offset, on_gap=store.record_gap)
    source._handed, source._added = Position(entry_id(ids[-1]), 7), 7  # three vanished before it
    source._committed = entry_id(ids[-2])
    source._look_for_gap()
    assert source._waits
    add(server, [10])
    source._look_for_gap()
    assert not source._waits  # what comes next may be read
    assert source._added == 7
    assert store.gaps == []


def test_events_that_come_behind_a_gap_do_not_make_it_another(server, store, start, monkeypatch):
    monkeypatch.setattr("indexer.sources.redis_streams._MEASURE_S", 0.01)
    add(server, range(10))
    first = start()
    wait_until(lambda: len(store.applied) == 10)
    first.stop()
    add(server, range(10, 20))
    trim(server, 0)
    second = start()
    wait_until(lambda: store.gaps)
    second.source._look_for_gap()
    add(server, [20])
    second.source._look_for_gap()
    wait_until(lambda: len(store.applied) == 11)
    assert len(store.gaps) == 1


def test_a_crash_before_the_next_event_finds_the_same_gap_again(server, store, start):
    add(server, range(10))
    first = start()
    wait_until(lambda: len(store.applied) == 10)
    first.stop()
    add(server, range(10, 100))
    trim(server, 0)
    for _ in range(2):
        count = len(store.gaps)
        sidecar = start()
        wait_until(lambda count=count: len(store.gaps) > count)
        sidecar.crash()
    assert len({gap for _, gap in store.gaps}) == 1


def test_a_stream_that_was_made_anew_is_told(server, store, start):
    first = start()
    add(server, range(20))
    wait_until(lambda: len(store.applied) == 20)
    first.stop()
    server.client.flushall()
    add(server, range(20, 30))  # their ids are later ones: only the count shows it
    start()
    wait_until(lambda: len(store.applied) == 30)
    assert [gap.lost for _, gap in store.gaps] == [None]
    assert store.offset(f"redis:{STREAM}").endswith(b" 10")


def test_every_event_is_applied_or_counted_whatever_happens(server, store, start, monkeypatch):
    monkeypatch.setattr("indexer.sources.redis_streams._MEASURE_S", 0.02)
    generator, total = random.Random(3), 1
    sidecar = start(queue_events=60)
    add(server, [0])
    wait_until(lambda: store.applied)  # what was trimmed before the first read is history
    for turn in range(40):
        step = generator.random()
        count = generator.randrange(1, 120)
        add(server, range(total, total + count))
        total += count
        if step < 0.4:
            trim(server, generator.randrange(60))
        elif step < 0.6:
            sidecar.stop() if step < 0.5 else sidecar.crash()
            more = generator.randrange(1, 100)
            add(server, range(total, total + more))
            total += more
            trim(server, generator.randrange(150))
            sidecar = start(queue_events=60)
        time.sleep(generator.random() * 0.1)
        if turn % 8 == 7:
            add(server, [total])
            total += 1
            wait_until(lambda last=total - 1: store.applied and store.applied[-1][0] == last)
            wait_until(lambda all=total: all - len(store.applied) == lost(store), what="all counted")
    assert len(store.gaps) > 5
    assert len({a for a, _ in store.applied}) == len(store.applied)


def info(first, last, length=3, added=None) -> StreamInfo:
    return StreamInfo(first, last, length, added)


def test_before_redis_7_nobody_counts_what_was_added():
    """As Redis 6.2 answers: what is directly behind the position misses nothing, else nobody knows."""
    at = Position.decode(b"5-1")
    assert find_gap(info((5, 2), (9, 0)), at) is None
    assert find_gap(info((4, 0), (9, 0)), at) is None
    assert find_gap(info((5, 1), (5, 1)), at) is None
    assert find_gap(info(None, (5, 1), 0), at) is None
    assert find_gap(info((6, 0), (9, 0)), at) == Gap("5-1", "6-0", lost=None)
    assert find_gap(info(None, (9, 0), 0), at) == Gap("5-1", "the next event", lost=None)
    assert find_gap(info((1, 0), (2, 0)), at) == Gap("5-1", "1-0", lost=None)
    assert find_gap(info((6, 0), (9, 0)), Position.decode(None)) is None
    assert added_before_next(info((6, 0), (9, 0)), at) is None
    answer = {"first-entry": (b"6-0", {}), "last-generated-id": b"9-0", "length": 3}
    assert StreamInfo.decode(answer) == info((6, 0), (9, 0))
