"""Which requests are sent, the check of answers, and the classes of failures."""

import itertools

import numpy as np
import polars as pl
import pytest
from tritonclient.utils import InferenceServerException

from loadtest import answers
from loadtest.mix import Mix, build_mix
from loadtest.outcomes import LoadError, classify
from tests.fake_inference import SPEC, right_answer, write_bundle


def _mix(users=40, history=6, **options):
    def one(user):
        return {
            "history_ad_ids": np.arange(history)[None] + 100 * user,
            "history_behaviors": np.ones((1, history), np.int32),
            "history_timestamps": np.arange(history)[None],
            "num_ads": np.array([[3]], np.int32),
        }

    return Mix([one(u) for u in range(users)], 100, "test", **options)


def test_the_share_of_repeats_and_their_window():
    mix = _mix(users=400, history=20, repeats=0.3, window_s=5.0)
    times = np.arange(4000) * 0.1
    seen: dict[tuple[int, int], float] = {}
    repeats = 0
    for time, key, repeat in mix.draw(times, seed=0):
        assert repeat == (key in seen)  # what is no repeat was never sent before
        if repeat:
            assert time - seen[key] <= 5.0
        seen[key] = time
        repeats += repeat
    assert repeats / 4000 == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 4000))


def test_without_repeats_every_request_is_new_until_histories_are_used_up():
    keys = [key for _, key, _ in _mix(users=5, history=2).draw(np.arange(15.0), seed=0)]
    assert sorted(keys) == [(user, dropped) for user in range(5) for dropped in range(3)]
    assert {dropped for _, dropped in keys[:5]} == {0}


def test_streams_share_the_users_out_and_are_seeded():
    mix = _mix()
    streams = [[k for _, k, _ in mix.draw(np.arange(10.0), seed=7, stream=s, streams=4)] for s in range(4)]
    assert len({key for keys in streams for key in keys}) == 40
    assert streams[1] == [k for _, k, _ in mix.draw(np.arange(10.0), seed=7, stream=1, streams=4)]
    more = mix.draw(itertools.repeat(0.0, 3), seed=7, stream=50, streams=60)  # more streams than users
    assert len(list(more)) == 3


def test_a_dropped_event_is_the_newest():
    tensors = _mix().tensors((2, 2))
    assert tensors["history_ad_ids"].tolist() == [[200, 201, 202, 203]]
    assert tensors["history_behaviors"].shape == tensors["history_timestamps"].shape == (1, 4)
    assert tensors["num_ads"].tolist() == [[3]]
    assert _mix().tensors((2, 6))["history_ad_ids"].shape == (1, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"users": 0}, "at least one user"),
        ({"repeats": 1.0}, "expected a share"),
        ({"repeats": 0.1, "window_s": 0.0}, "expected seconds above 0"),
    ],
)
def test_a_mix_that_cannot_be_drawn_from_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _mix(**options)


def test_made_up_users(tmp_path):
    mix = build_mix(
        write_bundle(tmp_path), users=30, num_ads=7, repeats=0, window_s=1, seed=4, synthetic_ads=50
    )
    assert (len(mix.users), mix.live_ads) == (30, 50)
    for tensors in mix.users:
        ads, times = tensors["history_ad_ids"], tensors["history_timestamps"]
        assert 0 < ads.shape[1] <= SPEC.max_history
        assert ads.min() >= 1
        assert ads.max() <= 50
        assert (np.diff(times[0]) >= 0).all()  # the newest comes last, as `Mix.tensors` expects
        assert times.max() <= tensors["timestamp"][0, 0]
        assert (tensors["profile"] < SPEC.profile_sizes).all()
        assert tensors["num_ads"].tolist() == [[7]]


def test_users_of_the_logs(tmp_path):
    run = write_bundle(tmp_path)
    (run / "data").mkdir()
    (run / "tokenizer").mkdir()
    ads = {"ad_id": [10, 20, 30], "text": ["a", "b", "c"], "status": ["active", "paused", "active"]}
    pl.DataFrame(ads).write_parquet(run / "data" / "ads.parquet")
    users = {"user_id": [7, 8], "a": ["y", None], "b": ["x", "z"]}
    pl.DataFrame(users).write_parquet(run / "data" / "users.parquet")
    events = {
        "user_id": [7, 7, 8],
        "ad_id": [20, 10, 30],
        "timestamp": [50, 40, 60],
        "behavior": ["conversion", "click", "impression"],
        "value": [0.5, 8.0, 2.0],
    }
    pl.DataFrame(events).write_parquet(run / "data" / "events.parquet")
    pl.DataFrame({"ad_id": [10]}).write_parquet(run / "tokenizer" / "sids.parquet")
    mix = build_mix(run, users=500, num_ads=2, repeats=0.2, window_s=9)
    assert mix.live_ads == 2
    histories = {tuple(t["history_ad_ids"][0].tolist()) for t in mix.users}
    assert histories == {(10, 20), (30,)}
    assert len(build_mix(run, users=1, num_ads=2, repeats=0, window_s=9).users) == 1
    assert "made-up" in build_mix(run, users=1, num_ads=2, repeats=0, window_s=9, synthetic_ads=9).source


def _change(name, value):
    def change(answer):
        answer[name] = np.asarray(value)

    return change


WRONG = {
    "fewer": (_change("ad_ids", [[1, 2, -1]]), "expected 3 ads, got 2"),
    "padding first": (_change("ad_ids", [[-1, 1, 2]]), "padding stands before an ad"),
    "twice": (_change("ad_ids", [[1, 2, 2]]), "an ad comes twice"),
    "more": (_change("ad_ids", [[1, 2, 3, 4]]), "expected 3 ads, got 4"),
    "rising": (_change("scores", [[-1.0, -2.0, -1.5]]), "falling order"),
    "NaN": (_change("scores", [[-1.0, np.nan, -3.0]]), "falling order"),
    "positive": (_change("scores", [[0.5, -2.0, -3.0]]), "falling order"),
    "no model": (_change("model_version", [[0]]), "model_version: expected a version >= 1, got 0"),
    "no index": (_change("index_version", [[-1]]), "index_version: expected a version >= 1, got -1"),
    "no beams": (_change("beam_widths", [[0, 128, 256, 64]]), "beam_widths: expected numbers above 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_kind_of_wrong_answer_is_seen(name):
    change, message = WRONG[name]
    answer = right_answer(3)
    assert answers.problems(answer, num_ads=3, live_ads=100) == []
    change(answer)
    assert any(message in text for text in answers.problems(answer, num_ads=3, live_ads=100))


def test_fewer_ads_are_right_where_there_are_no_more():
    answer = right_answer(3)
    answer["ad_ids"] = np.array([[1, 2, -1]])
    assert answers.problems(answer, num_ads=3, live_ads=2) == []
    assert answers.facts(answer) == {
        "beam_rows": 256,
        "beam_widths": "64-128-256:64",
        "model_version": 3,
        "index_version": 17,
        "degraded": 0,
    }


@pytest.mark.parametrize(
    ("status", "text", "outcome"),
    [
        ("StatusCode.UNAVAILABLE", "Exceeds maximum queue size", "rejected"),
        ("StatusCode.RESOURCE_EXHAUSTED", "too much", "rejected"),
        ("503", "Exceeds maximum queue size", "rejected"),
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses; last error: ..", "connection"),
        ("StatusCode.UNAVAILABLE", "Socket closed", "connection"),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", "deadline"),
        ("StatusCode.INVALID_ARGUMENT", "num_ads: expected 1 .. 512", "refused"),
        ("400", "num_ads", "refused"),
        ("500", "boom", "server_error"),
        ("StatusCode.INTERNAL", "boom", "server_error"),
        (None, "boom", "server_error"),
    ],
)
def test_classes_of_errors_of_the_client_library(status, text, outcome):
    assert classify(InferenceServerException(text, status=status)) == outcome


def test_classes_of_other_errors():
    assert classify(ConnectionRefusedError(111, "refused")) == "connection"
    assert classify(TimeoutError("timed out")) == "deadline"
    assert classify(LoadError("client_saturated", "")) == "client_saturated"
    assert classify(ZeroDivisionError()) == "client_error"
