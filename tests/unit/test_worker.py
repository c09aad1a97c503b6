"""The writer thread: batches, answers after the commit, back-pressure, a failing store, chores, stopping."""

import errno
import threading
import time

import lmdb
import pytest

from indexer.sidecar import worker as worker_module
from indexer.sidecar.config import WorkerConfig
from indexer.sidecar.metrics import Metrics
from indexer.sidecar.outage import Outage
from indexer.sidecar.worker import Worker
from indexer.sources.submission import Item, UnavailableError
from serving.index.layout import IndexStoreError
from tests.recording_store import RecordingStore, event
from tests.waiting import wait_until


def http(*ads: int) -> list[Item]:
    return [Item(event(a), "http") for a in ads]


def stream(*ads: int) -> list[Item]:
    return [Item(event(a), "redis:s", str(a).encode()) for a in ads]


@pytest.fixture
def store():
    return RecordingStore()


@pytest.fixture
def make(store, tmp_path):
    workers = []

    def make(*, start=True, chores=None, **settings) -> Worker:
        worker = Worker(
            store,
            heartbeat=tmp_path / "heartbeat",
            metrics=Metrics(),
            config=WorkerConfig(**settings),
            chores=chores,
        )
        workers.append(worker)
        if start:
            worker.start()
        return worker

    yield make
    store.gate.set()
    for worker in workers:
        worker.stop(timeout_s=5)


def samples(worker: Worker) -> dict[str, float]:
    text = worker._metrics.render().decode()
    return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}


def test_events_that_wait_go_into_one_batch_in_order(make, store):
    worker = make(start=False)
    worker._thread.start()
    store.gate.clear()
    first = worker.submit(http(0))
    wait_until(lambda: worker.depth == 0)  # in the store's hands
    rest = [worker.submit(http(a)) for a in range(1, 8)]
    store.gate.set()
    assert [s.future.result(5)[0].result for s in [first, *rest]] == ["applied"] * 8
    assert store.batches == [1, 7]
    assert [a for a, _ in store.applied] == list(range(8))


def test_a_batch_is_no_larger_than_asked_for(make, store):
    worker = make(batch_events=100, queue_events=10_000)
    outcomes = worker.submit(http(*range(1050))).future.result(5)
    assert len(outcomes) == 1050
    assert store.batches == [100] * 10 + [50]


def test_the_second_event_waits_for_the_time_of_a_batch_only(make, store):
    worker = make(batch_ms=300)
    began = time.monotonic()
    submissions = [worker.submit(http(1))]
    time.sleep(0.1)
    submissions.append(worker.submit(http(2)))
    for s in submissions:
        s.future.result(5)
    assert store.batches == [2]
    assert 0.25 < time.monotonic() - began < 2


def test_nothing_is_answered_before_the_commit(make, store):
    worker = make()
    store.gate.clear()
    submission = worker.submit(http(1))
    time.sleep(0.1)
    assert not submission.future.done()
    assert store.applied == []
    store.gate.set()
    assert submission.future.result(5)[0].sequence == 1


def test_malformed_events_are_rejected_by_themselves(make, store):
    items = [Item(b"{", "http"), *http(1), Item(b"[1]", "http")]
    outcomes = make().submit(items).future.result(5)
    assert [o.reason for o in outcomes] == ["invalid_json", "", "wrong_type"]
    assert store.applied == [(1, 1)]


def test_a_full_queue_refuses_http_and_streams_leave_half_of_it(make, store):
    worker = make(queue_events=10, batch_events=1)
    store.gate.clear()
    worker.submit(stream(0), kept=True)
    wait_until(lambda: worker.depth == 0)
    for a in range(1, 6):
        assert worker.submit(stream(a), kept=True)
    stop, taken = threading.Event(), []
    blocked = threading.Thread(target=lambda: taken.append(worker.submit(stream(6), kept=True, stop=stop)))
    blocked.start()
    bulk = worker.submit(http(*range(100, 105)))  # HTTP still has room, and single events have a queue
    submissions = [bulk, *(worker.submit(http(a)) for a in range(200, 210))]
    with pytest.raises(UnavailableError, match="waiting") as refused:
        worker.submit(http(300))
    assert refused.value.status == 503
    with pytest.raises(UnavailableError, match="waiting"):
        worker.submit(http(300, 301))
    assert not taken
    store.gate.set()
    blocked.join(5)
    assert taken[0].future.result(5)[0].result == "applied"
    assert all(s.future.result(5) for s in submissions)
    assert [a for a, _ in store.applied] == [0, *range(200, 210), 1, 2, 3, 4, 5, *range(100, 105), 6]


def test_a_batch_ends_with_its_bytes(make, store):
    worker = make(batch_bytes=1000, start=False)
    raw = event(1, text="x" * 400)  # refused: a pause has no text
    submission = worker.submit([Item(raw, "http")] * 7)
    worker.start()
    submission.future.result(5)
    assert store.batches == [3, 3, 1]


def test_the_queue_is_bounded_by_bytes_too(make, store):
    worker = make(queue_bytes=1000)
    store.gate.clear()
    worker.submit(http(0))
    wait_until(lambda: worker.depth == 0)
    worker.submit([Item(b"x" * 1000, "http")])
    with pytest.raises(UnavailableError):
        worker.submit(http(1))


def test_a_blocked_stream_gives_up_when_it_stops(make, store):
    worker = make(queue_events=2)
    store.gate.clear()
    worker.submit(stream(0), kept=True)
    wait_until(lambda: worker.depth == 0)
    worker.submit(stream(1), kept=True)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    assert worker.submit(stream(2), kept=True, stop=stop) is None


def test_what_clients_are_told_of_a_store_that_fails():
    for error, status in (
        (OSError(errno.ENOSPC, "No space left on device"), 507),
        (lmdb.MapFullError("full"), 507),
        (lmdb.DiskError("mdb_txn_commit: No space left on device"), 507),
        (lmdb.Error("mdb_txn_commit: Input/output error"), 503),
        (PermissionError(13, "denied"), 503),
    ):
        outage = Outage(max_retry_s=30)
        outage.check()
        assert outage.failed(error).status == status
        first = outage.pause_s
        outage.failed(error)
        assert 0 < first < outage.pause_s < 30
        with pytest.raises(UnavailableError, match="the store is not writable") as refused:
            outage.check()
        assert refused.value.status == status
        outage.over()
        outage.check()
        assert outage.pause_s == 0


def test_a_store_that_fails_answers_http_and_keeps_stream_events(make, store):
    worker = make(max_retry_s=0.3)
    store.fail = lmdb.MapFullError("full")
    kept = worker.submit(stream(1, 2), kept=True)
    wait_until(lambda: worker.outage.failure)
    assert any("not writable" in p for p in worker.problems())
    with pytest.raises(UnavailableError) as refused:
        worker.submit(http(9))
    assert refused.value.status == 507
    more = worker.submit(stream(3), kept=True)
    time.sleep(0.5)
    assert not kept.future.done()
    assert store.offsets == {}
    store.fail = None
    assert [o.result for o in kept.future.result(5)] == ["applied", "applied"]
    more.future.result(5)
    assert store.applied == [(1, 1), (2, 1), (3, 1)]  # each once, in order
    assert store.offsets == {"redis:s": b"3"}
    assert worker.problems() == []
    assert worker.submit(http(9)).future.result(5)


def test_an_event_of_http_that_met_a_failing_store_is_answered_at_once(make, store):
    worker = make(batch_events=2)
    store.gate.clear()
    bulk = worker.submit(http(1, 2, 3, 4, 5))
    wait_until(lambda: worker.depth == 3)
    waiting = worker.submit(http(6))
    worker.outage.tries = 6  # so that the next try is far away
    store.fail = OSError(errno.ENOSPC, "No space left on device")
    store.gate.set()
    for submission in (bulk, waiting):
        with pytest.raises(UnavailableError, match="No space left"):
            submission.future.result(5)
    assert worker.depth == 0


def test_without_events_a_probe_finds_out_that_the_store_is_back(make, store):
    worker = make(max_retry_s=0.2)
    store.fail = OSError(errno.EIO, "Input/output error")
    with pytest.raises(UnavailableError):
        worker.submit(http(1)).future.result(5)
    store.fail = None
    wait_until(lambda: not worker.problems())
    assert store.applied == []


@pytest.mark.parametrize("fault", [RuntimeError("a fault"), IndexStoreError("encoder t: failed on 1 ads")])
def test_an_event_that_brings_out_a_fault_becomes_a_dead_letter_and_the_others_apply(make, store, fault):
    store.poison, store.fault = 2, fault
    worker = make()
    kept = worker.submit(stream(1, 2, 3), kept=True)
    assert [o.reason for o in kept.future.result(5)] == ["", "internal", ""]
    assert store.applied == [(1, 1), (3, 1)]
    assert store.rejected == [("internal", event(2))]
    assert store.offsets == {"redis:s": b"3"}
    assert worker.problems() == []


def test_chores_run_between_batches_and_a_failing_one_does_not_stop_events(make, store):
    runs, steps = [], iter(range(1000))

    def compaction() -> bool:
        runs.append(1)
        raise OSError("no")

    def fill() -> bool:
        return next(steps, None) is not None

    worker = make(chores={"compaction": compaction, "fill": fill})
    wait_until(lambda: next(steps, None) is None, what="all steps of the chore that has more to do")
    assert worker.submit(http(1)).future.result(5)
    assert len(runs) < 5  # with pauses
    assert samples(worker)['gr4ad_indexer_chore_failures_total{chore="compaction"}'] == len(runs)


def test_calls_run_in_the_writers_thread_and_hand_back_errors(make):
    worker = make()
    assert worker.call(threading.get_ident).result(5) == worker._thread.ident
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0).result(5)
    assert worker.problems() == []


def test_the_heartbeat_is_touched_every_second(make, tmp_path):
    make()
    file = tmp_path / "heartbeat"
    wait_until(file.exists)
    before = file.stat().st_mtime
    wait_until(lambda: file.stat().st_mtime > before, timeout_s=3)


def test_stop_applies_what_was_taken_and_refuses_the_rest(make, store):
    worker = make(batch_events=10, queue_events=1000)
    store.gate.clear()
    submission = worker.submit(http(*range(95)))
    threading.Timer(0.2, store.gate.set).start()
    assert worker.stop(timeout_s=5)
    assert len(submission.future.result(0)) == 95
    with pytest.raises(UnavailableError, match="stopping"):
        worker.submit(http(1))


def test_stop_leaves_the_events_of_a_store_that_fails(make, store):
    worker = make()
    store.fail = OSError(errno.ENOSPC, "No space left on device")
    kept = worker.submit(stream(1), kept=True)
    wait_until(lambda: worker.outage.failure)
    assert worker.stop(timeout_s=5)
    assert isinstance(kept.future.exception(0), UnavailableError)
    assert store.offsets == {}


def test_a_stuck_writer_and_a_dead_one_are_problems(make, store, monkeypatch):
    worker = make(stuck_s=0.2)
    assert worker.problems() == []
    store.gate.clear()
    worker.submit(http(1))
    wait_until(lambda: worker.problems())
    assert "has been at one batch" in worker.problems()[0]
    store.gate.set()
    wait_until(lambda: not worker.problems())
    refused = []

    def say(*_):
        """What it logs on its way out: nothing is taken any more by then."""
        with pytest.raises(UnavailableError):
            worker.submit(http(2))
        refused.append(True)

    monkeypatch.setattr(worker_module.log, "exception", say)
    monkeypatch.setattr(worker, "_run_calls", lambda: 1 // 0)
    wait_until(lambda: worker.problems())
    assert "ended" in worker.problems()[0]
    with pytest.raises(UnavailableError):
        worker.submit(http(2))
    wait_until(lambda: refused)


def test_metrics_count_batches_and_events(make):
    worker = make()
    worker.submit([*http(1, 2), Item(b"x", "http")]).future.result(5)
    values = samples(worker)
    name = "gr4ad_indexer_events_total"
    assert values[f'{name}{{kind="pause",reason="",result="applied",source="http"}}'] == 2
    assert values[f'{name}{{kind="unreadable",reason="invalid_json",result="rejected",source="http"}}'] == 1
    assert values["gr4ad_indexer_batch_events_sum"] == 3
    assert values["gr4ad_indexer_commit_seconds_count"] == 1


@pytest.mark.parametrize(
    "settings", [{"batch_events": 0}, {"batch_ms": -1}, {"queue_events": 0}, {"stuck_s": 0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        WorkerConfig(**settings)
