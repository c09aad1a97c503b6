"""The served log without a server: records, files, the queue, and a resolver that keeps one."""

from __future__ import annotations

import json
import os
import threading
import time

import numpy as np
import pytest

import serving.backend.served
from serving.backend.adapter import user_parameter
from serving.backend.model_settings import ModelSettings
from serving.backend.request import Features, RequestError
from serving.backend.served import context_length, make_served_log, pack_context
from serving.keys import id_of
from serving.served_log.record import RecordError, ServedRecord
from serving.served_log.segments import Segment, SegmentWriter, read_lines, segments
from serving.served_log.writer import ServedLogWriter, is_sampled
from tests.fake_triton import FakeTriton, Request, load_model
from tests.model_config import settings_of, with_settings
from tests.served import served, written_records
from tests.tiny import SPEC, random_slot_ads
from tests.waiting import wait_until


def test_a_record_is_one_line_and_comes_back() -> None:
    record = served(user_id="user \n 7")
    line = record.encode()
    assert b"\n" not in line
    assert ServedRecord.decode(line) == record
    assert json.loads(line)["sids"] == [[1, 2, 3], [1, 2, 4]]
    assert (record.user, served().user, served(user_id=None).user) == (id_of("user \n 7"), 7, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sids": [[1, 2, 3]]}, r"sids: expected 2 \(one for each of ad_ids\), got 1"),
        ({"slots": [[2, 1, 1]]}, r"slots: expected 2 \(one for each of slot_ads\), got 1"),
        ({"slots": [[2, 1], [0, 0]]}, "slots.0: .*at least 3"),
        ({"scores": [float("nan"), 0.0]}, "scores.0: .*number"),
        ({"ad_ids": [-1, 4]}, "ad_ids.0: .*greater than or equal to 0"),
        ({"user_id": True}, "user_id"),
        ({"timestamp": "1000"}, "timestamp: .*integer"),
        ({"request_id": ""}, "request_id: .*at least 1"),
        ({"more": 1}, "more: Extra inputs"),
    ],
)
def test_what_is_no_record_is_named(changes, message) -> None:
    line = json.dumps(served().model_dump() | changes).encode()
    with pytest.raises(RecordError, match=message):
        ServedRecord.decode(line)


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b" " * (2 << 20)])
def test_bytes_that_are_no_record(line) -> None:
    with pytest.raises(RecordError):
        ServedRecord.decode(line)


def test_files_are_of_bounded_size_and_number(tmp_path) -> None:
    writer = SegmentWriter(tmp_path / "log", file_bytes=10, keep_files=3)
    assert segments(tmp_path / "log") == {}
    for number in range(7):
        writer.write([b"%d" % number * 6, b"end"])  # 11 bytes: a file each
    writer.close()
    ((name, row),) = segments(tmp_path / "log").items()
    assert [segment.number for segment in row] == [4, 5, 6]
    assert read_lines(tmp_path / "log", Segment(name, 5), start=0, limit=100) == ([b"5" * 6, b"end"], 11)
    other = SegmentWriter(tmp_path / "log", file_bytes=10, keep_files=3)
    other.write([b"x"])  # the bound is of the folder, whoever wrote
    assert sum(map(len, segments(tmp_path / "log").values())) == 3


def test_a_torn_tail_is_read_up_to_the_last_whole_line(tmp_path) -> None:
    segment = Segment("00000000000000000001-1", 0)
    path = tmp_path / segment.name
    path.write_bytes(b"one\ntwo\nthr")
    assert read_lines(tmp_path, segment, start=0, limit=64) == ([b"one", b"two"], 8)
    assert read_lines(tmp_path, segment, start=8, limit=64) == ([], 8)
    with path.open("ab") as file:
        file.write(b"ee\n")
    assert read_lines(tmp_path, segment, start=8, limit=64) == ([b"three"], 14)
    assert read_lines(tmp_path, segment, start=0, limit=5) == ([b"one"], 4)
    with pytest.raises(ValueError, match="at 8: expected lines below 4 bytes"):
        read_lines(tmp_path, segment, start=8, limit=4)


def test_a_full_disk_leaves_no_half_of_a_line(tmp_path, monkeypatch) -> None:
    writer = SegmentWriter(tmp_path, file_bytes=1 << 20, keep_files=2)
    writer.write([b"first"])
    write = os.write

    def full(file, content):
        if len(content) > 4:
            return write(file, content[:4])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            writer.write([b"second"])
    writer.write([b"third"])
    writer.close()
    ((_, (segment,)),) = segments(tmp_path).items()
    assert (tmp_path / segment.name).read_bytes() == b"first\nthird\n"


class Gate:
    """A sink that can be slow or gone."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.open, self.failing, self.closed = threading.Event(), False, False
        self.open.set()

    def write(self, lines):
        self.open.wait()
        if self.failing:
            raise OSError("gone")
        self.lines += lines

    def close(self) -> None:
        self.closed = True


def test_a_sink_that_hangs_costs_the_caller_nothing_and_the_queue_is_bounded() -> None:
    sink = Gate()
    sink.open.clear()
    writer = ServedLogWriter(sink, queue=10)
    began = time.perf_counter()
    for number in range(1_000):
        writer.add(lambda number=number: served(str(number)))
    assert time.perf_counter() - began < 0.5
    assert writer.counts["dropped"] >= 1_000 - 10 - 256  # what the thread took, and what waits
    sink.open.set()
    wait_until(lambda: writer.counts["written"] + writer.counts["dropped"] == 1_000)
    writer.close()
    kept = [ServedRecord.decode(line).request_id for line in sink.lines]
    assert kept == [str(number) for number in range(len(kept))]
    assert len(kept) == writer.counts["written"]
    assert sink.closed


def test_a_sink_that_comes_back_gets_what_waited_once_and_in_order(caplog) -> None:
    sink = Gate()
    sink.failing = True
    writer = ServedLogWriter(sink, queue=100)
    for number in range(5):
        writer.add(lambda number=number: served(str(number)))
    wait_until(lambda: "not written, tried again" in caplog.text)
    sink.failing = False
    wait_until(lambda: writer.counts["written"] == 5)
    writer.close()
    assert [ServedRecord.decode(line).request_id for line in sink.lines] == list("01234")
    assert caplog.text.count("tried again") == 1


def test_a_record_that_cannot_be_made_is_counted_and_stops_nothing() -> None:
    sink = Gate()
    writer = ServedLogWriter(sink, queue=100)
    writer.add(lambda: {}["gone"])
    writer.add(served)
    wait_until(lambda: writer.counts["written"] == 1)
    writer.close()
    assert writer.counts == {"failed": 1, "written": 1}
    writer.add(served)  # too late
    assert writer.counts["dropped"] == 1


def test_the_end_does_not_wait_for_a_sink_that_hangs() -> None:
    sink = Gate()
    sink.open.clear()
    writer = ServedLogWriter(sink, queue=100)
    for _ in range(7):
        writer.add(served)
    began = time.monotonic()
    writer.close(timeout_s=0.2)
    assert time.monotonic() - began < 2
    assert writer.counts["dropped"] == 7
    sink.open.set()


def test_a_share_of_the_requests_by_their_ids() -> None:
    ids = [f"request-{i}" for i in range(4_000)]
    drawn = [is_sampled(one, share=0.25) for one in ids]
    assert 0.22 < np.mean(drawn) < 0.28
    assert drawn == [is_sampled(one, share=0.25) for one in ids]
    assert all(is_sampled(one, share=0.5) for one, here in zip(ids, drawn, strict=True) if here)
    assert all(is_sampled(one, share=1.0) for one in (*ids[:5], None))
    assert 0.2 < np.mean([is_sampled(None, share=0.5) for _ in range(2_000)]) < 0.8


@pytest.mark.parametrize("value", [-1, 1 << 63, True, 1.5, "", "x" * 257, [], {}])
def test_a_user_id_that_is_none(value) -> None:
    with pytest.raises(RequestError, match=r"user_id: expected a number 0 .. 2\*\*63 - 1 or a text"):
        user_parameter(Request({}, json.dumps({"user_id": value})), rows=1)


def test_a_user_id_is_of_one_row() -> None:
    assert user_parameter(Request({}, '{"user_id": 17}'), rows=1) == 17
    assert user_parameter(Request({}, '{"user_id": "17"}'), rows=1) == "17"
    assert user_parameter(Request({}), rows=3) is None
    with pytest.raises(RequestError, match="expected a request of one row, got 2"):
        user_parameter(Request({}, '{"user_id": 17}'), rows=2)


@pytest.fixture
def resolver(pipeline, tmp_path):
    """An ad_resolver that keeps a served log in `tmp_path / "log"`; of other keys as given."""
    triton, opened = FakeTriton(), []

    def load(**keys):
        config = with_settings(
            pipeline.repository / "ad_resolver" / "config.pbtxt",
            tmp_path / "config.pbtxt",
            serving={
                "served_log": {
                    "sink": "file",
                    "share": 1.0,
                    "queue": 100,
                    "folder": str(tmp_path / "log"),
                    "file_mb": 1,
                    "keep_files": 4,
                    "url": "redis://127.0.0.1:1/0",
                    "stream": "served",
                    "max_length": 100,
                }
                | keys
            },
        )
        path = pipeline.repository / "ad_resolver" / "1" / "model.py"
        opened.append(load_model(path, triton, config=config))
        return opened[-1], triton

    yield load
    for model in opened:
        model.reader.close()
        model.served.close()


def context() -> Features:
    slot_ads, slots, profile, _ = random_slot_ads(2)
    none = np.zeros(0, np.int64)
    return Features(slot_ads[1], slots[1], profile[1], 0, past_ads=none, past_behaviors=none, past_times=none)


def beams(snapshot, *, rows=1, num_ads=3):
    """Inputs of a resolver: beams of live SIDs, and what the served log needs."""
    live = np.unique(snapshot.sids_of(snapshot.leaf_ad_ids)[0], axis=0)[:4]
    return {
        "beam_sids": np.tile(live, (rows, 1, 1)),
        "beam_scores": np.tile(np.array([-1, -2, -3, -4], np.float32), (rows, 1)),
        "beam_values": np.tile(np.array([4, 3, 2, np.nan], np.float32), (rows, 1)),
        "searched_model": np.ones((rows, 1), np.int64),
        "searched_version": np.ones((rows, 1), np.int64),
        "num_ads": np.full((rows, 1), num_ads, np.int32),
        "exclude": np.full((rows, 1), -1, np.int64),
        "served_context": pack_context([context()] * rows, np.full((rows, 1), 1_234)),
        "served_plan": np.tile(np.array([4, 8, 16, 6, 1], np.int32), (rows, 1)),
    }


def test_a_record_says_what_the_answer_says(resolver, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(serving.backend.served, "TELL_EVERY_S", 0.0)
    model, triton = resolver()
    inputs = beams(model.reader.snapshot)
    asked = json.dumps({"user_id": 17, "rank_by": "value"})
    before = time.time()
    answers = model.execute(
        [
            Request(inputs, asked, identity="r-1"),
            Request(beams(model.reader.snapshot, rows=2, num_ads=40), identity="two"),
            Request(inputs),
            Request(inputs, identity="x" * 257),  # too long for a record: as if it had none
            Request(inputs | {"num_ads": np.array([[99]], np.int32)}, identity="bad"),
            Request(inputs, '{"served_log": "off"}', identity="a probe"),
        ]
    )
    assert [a.has_error() for a in answers] == [False, False, False, False, True, False]
    out = answers[0].arrays()
    wait_until(lambda: model.served._writer.counts["written"] == 5)
    first, row_0, row_1, unnamed, long = written_records(tmp_path / "log")
    assert (first.request_id, first.user_id, first.timestamp) == ("r-1", 17, 1_234)
    assert (row_0.request_id, row_1.request_id) == ("two#0", "two#1")
    assert unnamed.request_id is None
    assert long.request_id is None
    assert before <= first.written <= time.time()
    for name in ("ad_ids", "sids", "expected_value", "scores"):
        np.testing.assert_array_equal(getattr(first, name), out[name][0])
    assert (first.model_version, first.index_version) == (1, out["index_version"][0, 0])
    expected = context()
    assert first.slot_ads == expected.slot_ads.tolist()
    assert first.slots == expected.slots.tolist()
    assert first.profile == expected.profile.tolist()
    assert len(pack_context([expected], np.zeros((1, 1)))[0]) == context_length(SPEC)
    assert (first.beam_widths, first.degraded, first.num_ads) == ([4, 8, 16, 6], True, 3)
    assert (first.rank_by, first.reranked) == ("value", False)
    assert all(ad >= 0 for ad in row_0.ad_ids)  # padding of the answer is no ad
    model.execute([])
    shown = triton.MetricFamily.shown["gr4ad_served_records_total"].values
    assert shown[(("result", "written"),)][-1] == 5
    assert not shown[(("result", "dropped"),)]


@pytest.mark.parametrize("keys", [{"folder": "/proc/nowhere"}, {"sink": "redis"}])
def test_without_a_sink_answers_are_the_same(resolver, keys, monkeypatch) -> None:
    monkeypatch.setattr(serving.backend.served, "TELL_EVERY_S", 0.0)
    model, triton = resolver(queue=2, **keys)
    inputs = beams(model.reader.snapshot)
    for number in range(20):
        (answer,) = model.execute([Request(inputs, identity=str(number))])
        assert answer.arrays()["ad_ids"].shape == (1, 3)
    assert 0 < model.served._writer.counts["dropped"] <= 20
    model.execute([])
    shown = triton.MetricFamily.shown["gr4ad_served_records_total"].values
    assert shown[(("result", "dropped"),)][-1] == model.served._writer.counts["dropped"]
    assert not shown[(("result", "written"),)]


def test_a_fault_of_the_log_is_none_of_the_request(resolver, monkeypatch, caplog) -> None:
    model, _ = resolver()
    inputs = beams(model.reader.snapshot)
    del inputs["served_plan"]  # as a repository rendered without the log would leave it
    answers = model.execute([Request(inputs, identity=str(n)) for n in range(3)])
    assert not any(answer.has_error() for answer in answers)
    assert model.served._writer.counts["failed"] == 3
    assert caplog.text.count("a request left no record") == 1


def test_a_url_that_is_none_is_refused_at_the_start(pipeline) -> None:
    settings = settings_of(pipeline.repository / "ad_resolver" / "config.pbtxt")
    settings["serving"]["served_log"] |= {"sink": "redis", "url": "http://127.0.0.1/0"}
    read = ModelSettings.model_validate_json(json.dumps(settings), strict=True)
    with pytest.raises(ValueError, match="Redis URL"):
        make_served_log(read, tell=print)
