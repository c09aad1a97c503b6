"""Bulks and pages: rows are cut as JSON has them, work and answers are bounded whatever comes."""

import json
import random
import time

import pytest

from benchmarks.faults.sidecar import BIG, NESTED
from indexer.events.error import EventError
from indexer.events.parse import parse_event
from indexer.http.body import split_list
from indexer.sidecar.metrics import Metrics
from indexer.sidecar.worker import Worker
from indexer.sources.submission import Item
from indexer.store.incoming import Incoming
from tests.index_store import empty_store, sound
from tests.indexing import sidecar_client, write_manifest
from tests.recording_store import RecordingStore, event
from web.errors import HttpError


def value(generator: random.Random, depth: int = 2) -> object:
    kind = generator.randrange(8 if depth else 6)
    texts = ['"', "\\", "[", "]", "{", "}", ",", "é", "\n", "\U0001f600", "x", " "]
    if kind < 3:
        return {"".join(generator.choices(texts, k=3)): "".join(generator.choices(texts, k=9)), "n": -1.5e3}
    if kind < 6:
        return ["".join(generator.choices(texts, k=5)), generator.randrange(10**30), None][kind - 3]
    if kind == 6:
        return [value(generator, depth - 1) for _ in range(generator.randrange(3))]
    return {"x": value(generator, depth - 1), "y": value(generator, depth - 1)}


@pytest.mark.parametrize("ascii_only", [True, False])
def test_rows_are_the_elements_of_the_list(ascii_only):
    generator = random.Random(0)
    for _ in range(300):
        wanted = [value(generator) for _ in range(generator.randrange(8))]
        separators = generator.choice([(",", ":"), (" , ", " : "), ("\n,\t", ":\r\n")])
        body = " " + json.dumps(wanted, ensure_ascii=ascii_only, separators=separators) + "\n"
        rows = split_list(body.encode(), limit=10)
        assert [i for i, _ in rows] == list(range(len(wanted)))
        assert [json.loads(raw) for _, raw in rows] == wanted


def test_rows_with_long_embeddings_are_rows():
    given = {"embedding": [0.5, -1e-3] * 4000, "numbers": {'"}': 1, "price": 2}, "sid": [], "text": "]"}
    wanted = [{"ad_id": i} | given for i in range(3)]
    rows = split_list(json.dumps(wanted, indent=1).encode(), limit=10)
    assert [json.loads(raw) for _, raw in rows] == wanted


def test_a_text_longer_than_an_event_ends_where_its_quote_is(monkeypatch):
    for size in range(3, 9):  # escapes that a piece's end cuts in two
        monkeypatch.setattr("indexer.http.body.MAX_EVENT_BYTES", size)
        rows = split_list(rb'["\\\\\"\\", {"a": "x\\"}, "]\"["]', limit=10)
        assert [raw for _, raw in rows] == [rb'"\\\\\"\\"', rb'{"a": "x\\"}', rb'"]\"["']
    with pytest.raises(HttpError, match="a string without an end"):
        split_list(b'["' + b'\\"' * 1_000_000, limit=10)


@pytest.mark.parametrize("row", [*NESTED, b'{"a":1,' * 100_000, b'{"kind":{"a":[]}}'])
def test_an_event_that_nests_is_refused_before_it_is_built(row):
    took = []
    for _ in range(50):
        began = time.process_time()
        with pytest.raises(EventError, match="nested too deeply|got list|got dict"):
            parse_event(row)
        took.append(time.process_time() - began)
    assert min(took) < 50e-9 * len(row) + 20e-6
    flat = {"kind": "create", "ad_id": 1, "version": 1}
    flat |= {"account_id": "[" * 9, "conversion_type": '"[{', "text": "t"}
    assert parse_event(json.dumps(flat).encode()).fields() == flat


def test_a_row_far_from_any_event_refuses_the_bulk():
    with pytest.raises(HttpError, match="row 1: expected a flat object, got one of more than 200 parts"):
        split_list(b"[1, [" + b"[]," * 1000 + b"1]]", limit=10)


def test_pages_of_dead_letters_are_bounded_by_bytes_and_leave_none_out(tmp_path):
    write_manifest(tmp_path / "bundles", 1, "tok-a")
    with sidecar_client(tmp_path) as client:
        lines = {"content-type": "application/x-ndjson"}
        assert client.post("/events/bulk", content=b"\n".join([BIG] * 40), headers=lines).status_code == 200
        seen, after = [], -1
        while after is not None:
            raw = client.get(f"/dead-letters?limit=1000&after={after}").content
            assert len(raw) < 1_500_000
            page = json.loads(raw)
            seen += page["dead_letters"]
            after = page["next"]
        assert [x["number"] for x in seen] == list(range(40))
        assert {x["raw"] for x in seen} == {'{"' + "\\xff" * ((64 << 10) - 2)}
        assert client.get("/dead-letters?limit=1&after=38").json()["next"] is None


def test_dead_letters_are_bounded_by_bytes_too(tmp_path, monkeypatch):
    """100,000 of them could have 39 GB."""
    monkeypatch.setattr("indexer.store.dead_letters.MAX_BYTES", 4 << 20)
    with empty_store(tmp_path) as store:
        refused = EventError("invalid_json", "no event")
        for _ in range(6):
            store.apply([Incoming(refused, BIG, "test") for _ in range(10)])
        assert (tmp_path / "store" / "data.mdb").stat().st_size < 24 << 20  # 60 would have 24 MB
        numbers = [letter.number for letter in store.dead_letters()]
        assert numbers == list(range(60 - len(numbers), 60))
        assert 5 < len(numbers) < 12
        assert store.file.counters["dead_letters_forgotten"] == 60 - len(numbers)
        assert sound(store)


def test_calls_that_keep_coming_do_not_hold_events_up(tmp_path):
    store = RecordingStore()
    worker = Worker(store, heartbeat=tmp_path / "beat", metrics=Metrics())

    def again() -> None:
        if not store.applied:
            worker.call(again)

    worker.call(again)
    worker.start()
    try:
        submission = worker.submit([Item(event(1), "http")])
        assert submission.future.result(5)[0].result == "applied"
    finally:
        worker.stop()
