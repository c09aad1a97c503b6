"""The join against its rules written as loops; bad input; bounds."""

from __future__ import annotations

import json
import os
import random
from multiprocessing import get_context

import pytest

from feedback.events.event import FeedbackEvent
from feedback.events.parse import parse_feedback, parse_item
from feedback.join.joiner import Joiner
from feedback.join.rules import JoinConfig
from feedback.store.histories import Histories
from feedback.store.layout import FeedbackStoreError
from feedback.store.samples import JoinedSample, Samples, TrimmedError, decode_sample
from indexer.events.error import EventError
from indexer.sources.submission import Item
from indexer.store.incoming import Incoming, Outcome
from serving.keys import id_of
from serving.served_log.record import ServedRecord
from tests.served import served

CONFIG = JoinConfig(window_s=100, correct_s=1_000, wait_s=10, skew_s=5)
ANSWERED = 50_000.25  # `written` of `served()`, whose own time is 1,000


class Clock:
    """Seconds since the answer of `served()`."""

    def __init__(self) -> None:
        self.passed = 0.0

    def __call__(self) -> float:
        return ANSWERED + self.passed


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def joiner(tmp_path, clock):
    made = Joiner(tmp_path, CONFIG, now=clock, map_size=1 << 28)
    yield made
    made.close()


def event(delay: int = 1, *, request_id: str = "r1", ad_id: int | str = 30, **values) -> FeedbackEvent:
    given = {"behavior": "click"} | values
    return FeedbackEvent(request_id=request_id, ad_id=ad_id, timestamp=1_000 + delay, **given)


def apply(joiner: Joiner, *events: FeedbackEvent | ServedRecord | EventError) -> list[Outcome]:
    items = []
    for one in events:
        raw = one.encode() if isinstance(one, ServedRecord) else str(one).encode()
        items.append(Incoming(one, raw, "http"))
    return joiner.apply(items, offsets={})


def samples(joiner: Joiner) -> list[JoinedSample]:
    """All that were made, read by the writer's own handle: LMDB opens a store once a process."""
    with joiner.environment.begin() as txn, txn.cursor(db=joiner._tables["samples"]) as cursor:
        return [decode_sample(int.from_bytes(bytes(k), "big"), v) for k, v in cursor.iternext()]


def facts(sample: JoinedSample) -> list[tuple[int, int, int, float]]:
    return [(f.ad_id, f.behavior, f.timestamp, f.value) for f in sample.facts]


def events_of(joiner: Joiner, user: int) -> list[tuple[int, int, int]]:
    return joiner.history(user)[["timestamp", "ad_id", "behavior"]].tolist()


def run(joiner: Joiner) -> None:
    while joiner.close_due():
        pass


def test_what_came_within_the_window_is_one_sample(joiner, clock) -> None:
    clock.passed = 40
    outcomes = apply(
        joiner,
        served(),
        event(2, behavior="impression"),
        event(9),
        event(30, behavior="conversion", value=7.5),
    )
    assert [(o.result, o.reason) for o in outcomes] == [("applied", "")] * 4
    clock.passed = 99
    run(joiner)
    assert samples(joiner) == []
    clock.passed = 101
    run(joiner)
    (sample,) = samples(joiner)
    assert (sample.sequence, sample.revision, sample.record) == (1, 0, served())
    assert facts(sample) == [(30, 1, 1_002, 0.0), (30, 2, 1_009, 0.0), (30, 3, 1_030, 7.5)]
    assert sample.outcomes[30].value == 7.5
    assert [r["behavior"] for r in sample.rows()] == ["impression", "click", "conversion"]
    assert {(r["user_id"], r["request_id"], r["position"]) for r in sample.rows()} == {(7, "r1", 0)}
    run(joiner)
    assert len(samples(joiner)) == 1


def test_a_request_that_nothing_came_of_is_a_sample_without_facts(joiner, clock) -> None:
    apply(joiner, served())
    clock.passed = 101
    run(joiner)
    assert [facts(s) for s in samples(joiner)] == [[]]


def test_late_feedback_makes_a_correction_with_all_that_is_known(joiner, clock) -> None:
    apply(joiner, served(), event(5, behavior="impression"))
    clock.passed = 101
    run(joiner)
    clock.passed = 400
    apply(joiner, event(50), event(300, behavior="conversion", value=2.0), event(350, ad_id=40))
    apply(joiner, event(50), event(300, behavior="conversion", value=2.0))  # twice: nothing new
    found = samples(joiner)
    assert [(s.sequence, s.revision) for s in found] == [(1, 0), (2, 1)]
    assert facts(found[1]) == [
        (30, 1, 1_005, 0.0),
        (30, 2, 1_050, 0.0),
        (30, 3, 1_300, 2.0),
        (40, 2, 1_350, 0.0),
    ]
    clock.passed = 1_002  # forgotten by now
    run(joiner)
    assert joiner.request("r1") is None
    (outcome,) = apply(joiner, event(60, ad_id=40, behavior="impression"))
    assert (outcome.result, outcome.reason) == ("applied", "waiting")
    clock.passed = 1_100
    run(joiner)
    assert joiner.rejected(limit=9)[0]["reason"] == "unknown_request"
    assert len(samples(joiner)) == 2


def test_what_was_done_after_the_window_is_no_part_of_the_first_sample(joiner, clock) -> None:
    """Although it is known when the window is closed, as after an outage of the join."""
    apply(joiner, served())
    clock.passed = 500
    apply(joiner, event(10), event(101, ad_id=40))
    run(joiner)
    first, second = samples(joiner)
    assert (first.revision, facts(first)) == (0, [(30, 2, 1_010, 0.0)])
    assert (second.revision, facts(second)) == (1, [(30, 2, 1_010, 0.0), (40, 2, 1_101, 0.0)])


def test_feedback_that_comes_before_its_record_waits_for_it(joiner, clock) -> None:
    (first, unknown) = apply(joiner, event(3), event(3, request_id="never"))
    assert (first.result, first.reason) == (unknown.result, unknown.reason) == ("applied", "waiting")
    assert joiner.meta().waiting == 2
    clock.passed = 4
    apply(joiner, served())
    assert joiner.meta().waiting == 1
    assert joiner.request("r1").fed == {(30, 2): (1_003, 0.0)}
    clock.passed = 11
    run(joiner)
    assert joiner.meta().waiting == 0
    assert [r["reason"] for r in joiner.rejected(limit=9)] == ["unknown_request"]
    clock.passed = 101
    run(joiner)
    assert [facts(s) for s in samples(joiner)] == [[(30, 2, 1_003, 0.0)]]


def test_what_waits_is_held_against_the_record_when_it_comes(joiner) -> None:
    apply(
        joiner,
        event(3, ad_id=99),
        event(3_000),
        event(-50, ad_id=40),
        event(2, ad_id=40, behavior="impression"),
    )
    apply(joiner, served())
    assert sorted(r["reason"] for r in joiner.rejected(limit=9)) == [
        "before_request",
        "from_the_future",
        "unknown_ad",
    ]
    assert joiner.request("r1").fed == {(40, 1): (1_002, 0.0)}


@pytest.mark.parametrize(
    ("delay", "passed", "reason"),
    [
        (-6, 50, "before_request"),
        (-5, 50, ""),
        (55, 50, ""),
        (56, 50, "from_the_future"),
        (1_000, 5_000, ""),
        (1_001, 5_000, "too_late"),
    ],
)
def test_clocks_may_differ_a_little(joiner, clock, delay, passed, reason) -> None:
    apply(joiner, served())
    clock.passed = passed
    (outcome,) = apply(joiner, event(delay))
    assert outcome.reason == reason
    assert outcome.result == ("rejected" if reason else "applied")
    assert ("timestamp: expected at " in outcome.message) == bool(reason)
    if not reason:  # nothing is known before the request itself
        assert joiner.request("r1").fed == {(30, 2): (max(1_000 + delay, 1_000), 0.0)}


def test_an_ad_that_was_not_in_the_answer(joiner) -> None:
    (_, outcome) = apply(joiner, served(), event(1, ad_id=31))
    assert (outcome.result, outcome.reason) == ("rejected", "unknown_ad")
    assert outcome.message == "expected one of the 2 ads of the answer, got 31"
    (kept,) = joiner.rejected(limit=9)
    assert (kept["source"], kept["reason"]) == ("http", "unknown_ad")


def test_records_of_one_id_and_of_none(joiner, clock) -> None:
    outcomes = apply(joiner, served(), served(ad_ids=[50, 60]), served(None), served(None))
    assert [(o.result, o.reason) for o in outcomes] == [
        ("applied", ""),
        ("stale", "repeated"),
        *[("applied", "unnamed")] * 2,
    ]
    clock.passed = 200
    run(joiner)
    assert [s.record.ad_ids for s in samples(joiner)] == [[30, 40]]
    counters = joiner.meta().counters
    assert (counters["served"], counters["repeated"], counters["unnamed"]) == (1, 1, 2)


def test_a_server_whose_clock_is_far_ahead_holds_nothing_open(joiner, clock) -> None:
    apply(joiner, served(written=ANSWERED + 1e6))
    clock.passed = 106
    run(joiner)
    assert len(samples(joiner)) == 1


def test_the_clock_of_the_requests_themselves(tmp_path) -> None:
    """A log that is played again: windows go by the requests' own time."""
    joiner = Joiner(tmp_path, JoinConfig(window_s=100, correct_s=1_000, clock="served"), map_size=1 << 28)
    outcomes = apply(joiner, served(), event(4), event(90, ad_id=40))  # no request came since
    assert [o.reason for o in outcomes] == [""] * 3
    run(joiner)
    assert samples(joiner) == []
    apply(joiner, served("r2", timestamp=1_101))
    run(joiner)
    assert [facts(s) for s in samples(joiner)] == [[(30, 2, 1_004, 0.0), (40, 2, 1_090, 0.0)]]
    joiner.close()


def test_a_million_duplicates_take_no_room(joiner, clock) -> None:
    apply(joiner, served())
    one = Incoming(event(5), b"x", "redis:f")
    joiner.apply([one], offsets={})
    for _ in range(100):  # 10,000 a transaction
        outcomes = joiner.apply([one] * 10_000, offsets={"redis:f": b"1"})
        assert {(o.result, o.reason) for o in outcomes} == {("stale", "duplicate")}
    assert joiner.request("r1").fed == {(30, 2): (1_005, 0.0)}
    assert joiner.meta().rejected == 0
    assert len(joiner.history(7)) == 1
    assert (joiner.folder / "store" / "data.mdb").stat().st_blocks * 512 < 1 << 20


def test_floods_of_unknown_requests_are_bounded(tmp_path, clock) -> None:
    config = JoinConfig(window_s=100, correct_s=1_000, wait_s=10, max_waiting=50, keep_rejected=20)
    joiner = Joiner(tmp_path, config, now=clock, map_size=1 << 28)
    outcomes = apply(joiner, *(event(request_id=f"x{n}") for n in range(80)))
    assert [o.reason for o in outcomes] == ["waiting"] * 50 + ["unknown_request"] * 30
    assert len(joiner.rejected(limit=99)) == 20
    many = apply(joiner, *(event(request_id="x0", ad_id=n) for n in range(2_000)))
    assert sum(o.reason == "waiting" for o in many) == 1_023  # and ad 30, which was there
    clock.passed = 11
    run(joiner)
    meta = joiner.meta()
    assert (meta.waiting, meta.rejected) == (0, 30 + 976 + 49 + 1_024)
    with joiner.environment.begin() as txn:
        assert txn.stat(joiner._tables["requests"])["entries"] == 0
        assert txn.stat(joiner._tables["due"])["entries"] == 0
    joiner.close()


def test_the_history_of_a_user_follows_at_once(joiner, clock) -> None:
    clock.passed = 60
    apply(joiner, served(), served("r2", user_id="key", timestamp=1_010), served("r3", user_id=None))
    apply(
        joiner,
        event(9),
        event(2, behavior="impression"),
        event(20, request_id="r2"),
        event(5, request_id="r3"),
        event(9),
    )
    assert events_of(joiner, 7) == [(1_002, 30, 1), (1_009, 30, 2)]
    assert events_of(joiner, id_of("key")) == [(1_020, 30, 2)]
    apply(joiner, event(40))  # the click was later than it was said to be
    assert events_of(joiner, 7) == [(1_002, 30, 1), (1_040, 30, 2)]


def test_only_the_newest_events_of_a_user_are_kept(tmp_path, clock) -> None:
    joiner = Joiner(tmp_path, JoinConfig(max_history=3), now=clock, map_size=1 << 28)
    clock.passed = 100
    order = [4, 1, 3, 0, 2, 5]
    apply(joiner, *(served(f"r{n}") for n in order))
    apply(joiner, *(event(n, request_id=f"r{n}") for n in order))
    assert joiner.history(7)["timestamp"].tolist() == [1_003, 1_004, 1_005]
    joiner.close()


def test_samples_and_histories_beside_the_writer(tmp_path, clock) -> None:
    joiner = Joiner(
        tmp_path, JoinConfig(window_s=1, correct_s=9, keep_samples=4), now=clock, map_size=1 << 28
    )
    apply(joiner, *(served(f"r{n}") for n in range(6)), event(request_id="r0"))
    clock.passed = 2
    run(joiner)
    joiner.close()
    with Samples(tmp_path) as reader:
        assert reader.newest == 6
        assert [s.sequence for s in reader.read(after=2)] == [3, 4, 5, 6]
        assert [s.sequence for s in reader.read(after=4, limit=1)] == [5]
        assert reader.read(after=6) == []
        with pytest.raises(TrimmedError, match=r"samples 2 .. 2 are gone, read after 2"):
            reader.read(after=1)
        with pytest.raises(FeedbackStoreError, match="offset of at most 6, got 7: of another store"):
            reader.read(after=7)
    with Histories(tmp_path) as histories:
        assert histories.of(7)[["timestamp", "ad_id", "behavior"]].tolist() == [(1_001, 30, 2)]
        assert histories.of(8).tolist() == []


def test_a_store_that_is_none(tmp_path) -> None:
    for reader in (Samples, Histories):
        with pytest.raises(FeedbackStoreError, match="expected a feedback store, found none"):
            reader(tmp_path)
    joiner = Joiner(tmp_path, map_size=1 << 28)
    with pytest.raises(FeedbackStoreError, match="another writer holds it"):
        Joiner(tmp_path)
    joiner.close()


def expected_samples(
    records: list[ServedRecord], log: list[tuple[float, FeedbackEvent]], *, end: float
) -> dict[str, list[tuple[int, int, int, float]]]:
    """What is known of each request in the end, by the rules as they are written down."""
    found = {}
    for record in records:
        best: dict[tuple[int, int], tuple[int, float]] = {}
        for when, one in log:
            if one.request_id != record.request_id or one.ad_id not in record.ad_ids or when > end:
                continue
            delay, passed = one.timestamp - record.timestamp, max(when - record.written, 0.0)
            if -CONFIG.skew_s <= delay <= passed + CONFIG.skew_s and delay <= CONFIG.correct_s:
                code = {"impression": 1, "click": 2, "conversion": 3}[one.behavior]
                fact = (max(one.timestamp, record.timestamp), one.value or 0.0)
                key = (one.ad_id, code)
                best[key] = max(best.get(key, fact), fact)
        found[record.request_id] = sorted(
            ((ad, code, *fact) for (ad, code), fact in best.items()), key=lambda f: (f[2], f[1], f[0])
        )
    return found


@pytest.mark.parametrize("seed", range(5))
def test_any_order_gives_what_the_rules_say(tmp_path, clock, seed) -> None:
    """Requests and feedback in a random order, late, twice, wrong; the last sample of each is complete."""
    draw = random.Random(seed)
    joiner = Joiner(tmp_path, CONFIG, now=clock, map_size=1 << 28)
    records = [served(f"r{n}", written=ANSWERED + n, timestamp=1_000 + n) for n in range(20)]
    log: list[tuple[float, FeedbackEvent]] = []
    coming: list[tuple[float, FeedbackEvent | ServedRecord]] = [(r.written, r) for r in records]
    for _ in range(300):
        about = draw.randrange(20)
        delay = draw.choice([-20, -3, 0, 5, 40, 99, 101, 150, 400])
        comes = ANSWERED + about + max(delay, 0) + draw.choice([0, 0, 1, 30, 120])
        one = event(
            about + delay,
            request_id=f"r{about}",
            ad_id=draw.choice([30, 30, 40, 77]),
            behavior=draw.choice(["impression", "click", "conversion"]),
            value=float(draw.randrange(1, 4)),
        )
        coming += [(comes, one)] * draw.choice([1, 1, 2])
    coming.sort(key=lambda pair: pair[0])
    for when, one in coming:
        clock.passed = when - ANSWERED
        if isinstance(one, FeedbackEvent):
            log.append((when, one))
        apply(joiner, one)
        if draw.random() < 0.2:
            run(joiner)
    clock.passed += 90
    run(joiner)
    made: dict[str, list[JoinedSample]] = {}
    for sample in samples(joiner):
        made.setdefault(sample.record.request_id, []).append(sample)
    expected = expected_samples(records, log, end=1e9)
    assert made.keys() == expected.keys()
    assert sum(len(one) for one in made.values()) > 25  # some were corrected
    for name, revisions in made.items():
        assert [s.revision for s in revisions] == list(range(len(revisions)))
        assert facts(revisions[-1]) == expected[name], name
        first = [f for f in facts(revisions[0]) if f[2] - revisions[0].record.timestamp > CONFIG.window_s]
        assert not first
    history = sorted((f[2], f[0], f[1]) for one in expected.values() for f in one)
    assert sorted(events_of(joiner, 7)) == history
    assert (joiner.history(7)["timestamp"][1:] >= joiner.history(7)["timestamp"][:-1]).all()
    joiner.close()


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"value": -1}, "out_of_range", "value: expected a finite number >= 0, in float32, got -1"),
        ({"value": 1e39}, "out_of_range", r"value: expected a finite number >= 0.*got 1e\+39"),
        ({"value": "7"}, "wrong_type", "value: expected a finite number"),
        ({"value": None}, "missing_field", "conversion: expected a value, got none"),
        ({"timestamp": 1.5}, "wrong_type", "timestamp: expected whole unix seconds"),
        ({"timestamp": -1}, "out_of_range", "timestamp: expected whole unix seconds.*got -1"),
        (
            {"behavior": "like"},
            "out_of_range",
            r"behavior: expected impression \| click \| conversion, got 'like'",
        ),
        ({"request_id": ""}, "out_of_range", "request_id: expected a text of 1 to 268 characters"),
        ({"request_id": "x" * 300}, "too_long", "request_id"),
        ({"request_id": 5}, "wrong_type", "request_id"),
        ({"ad_id": -1}, "out_of_range", "ad_id"),
        ({"ad_id": True}, "wrong_type", "ad_id"),
        ({"more": 1}, "unknown_field", "expected the fields request_id, ad_id, .* got 'more'"),
    ],
)
def test_feedback_that_is_none_is_explained(changes, reason, message) -> None:
    good = {"request_id": "r", "ad_id": 3, "behavior": "conversion", "timestamp": 5, "value": 2.0}
    with pytest.raises(EventError, match=message) as caught:
        parse_feedback(json.dumps(good | changes).encode())
    assert caught.value.reason == reason


@pytest.mark.parametrize("raw", [b'{"value": NaN}', b"[]", b"{", b"\xff", b'{"request_id": "r"}', b"null"])
def test_bytes_that_are_no_feedback(raw) -> None:
    with pytest.raises(EventError):
        parse_feedback(raw)


def test_a_client_cannot_say_what_was_served() -> None:
    raw, streams = served().encode(), ["redis:gr4ad:served"]
    assert parse_item(Item(raw, "served:w", b"0 9")) == served()
    assert parse_item(Item(raw, "redis:gr4ad:served", b"1-0"), served_streams=streams) == served()
    for source in ("http", "redis:gr4ad:feedback"):
        with pytest.raises(EventError):
            parse_item(Item(raw, source), served_streams=streams)
    with pytest.raises(EventError, match="served record: request_id"):
        parse_item(Item(b"{}", "served:w", b"0 9"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_s": -1.0}, "window_s: expected seconds >= 0, got -1"),
        ({"window_s": float("nan")}, "window_s"),
        ({"correct_s": 5.0}, "correct_s: expected at least window_s = 1800, got 5"),
        ({"max_history": 0}, "max_history: expected a number >= 1, got 0"),
    ],
)
def test_times_that_cannot_be(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        JoinConfig(**changes)


def test_offsets_and_gaps_survive(tmp_path, clock) -> None:
    joiner = Joiner(tmp_path, CONFIG, now=clock, map_size=1 << 28)
    joiner.apply([], offsets={"served:w": b"3 99", "redis:f": b"1-0"})
    joiner.record_gap("served:w", "files 0 .. 2 are gone", lost=3)
    joiner.record_gap("served:w", "files 0 .. 2 are gone", lost=3)
    joiner.close()
    joiner = Joiner(tmp_path, CONFIG, now=clock, map_size=1 << 28)
    assert joiner.offsets() == {"served:w": b"3 99", "redis:f": b"1-0"}
    assert joiner.offset("nothing") is None
    assert joiner.meta().gaps == {"served:w": "files 0 .. 2 are gone"}
    assert joiner.meta().counters["lost.served:w"] == 3
    joiner.close()


def test_a_fault_within_a_batch_changes_nothing(joiner, monkeypatch) -> None:
    apply(joiner, served())
    before = joiner.meta()
    monkeypatch.setattr("feedback.join.work.with_event", lambda *_, **__: {}["gone"])
    with pytest.raises(KeyError):
        joiner.apply([Incoming(event(), b"x", "f")], offsets={"f": b"9"})
    assert joiner.meta() == before
    assert joiner.offset("f") is None
    assert joiner.request("r1").fed == {}


def test_readers_that_were_killed_take_no_places(tmp_path) -> None:
    """The table of readers has 126; it is not made anew as long as anybody has the store open."""
    Joiner(tmp_path, JoinConfig(), map_size=1 << 24).close()
    context = get_context("fork")
    is_open, is_over = context.Event(), context.Event()

    def stay() -> None:
        with Samples(tmp_path) as samples:
            samples.read(after=0)
            is_open.set()
            is_over.wait(60)

    def die() -> None:
        samples = Samples(tmp_path)
        with samples._environment.begin():
            os._exit(0)

    staying, dying = context.Process(target=stay), context.Process(target=die)
    staying.start()
    assert is_open.wait(60)
    dying.start()
    dying.join()
    try:
        with Samples(tmp_path) as samples:
            assert f"{dying.pid} " not in samples._environment.readers()
    finally:
        is_over.set()
        staying.join()
