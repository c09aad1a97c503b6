"""Bad requests over gRPC: the message says what was expected and came; the next good request succeeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.serving.ask import ACTIVE, AD_IDS, LIVE, NOW, Reference, assert_same, infer, request
from tests.tiny import SPEC

Typed = dict[str, tuple[str, np.ndarray]]
_DTYPES = {"int32": "INT32", "int64": "INT64", "float32": "FP32", "uint64": "UINT64"}


@pytest.fixture(scope="module")
def reference(pipeline):
    return Reference.of(pipeline)


@pytest.fixture(autouse=True)
def _the_next_good_request_succeeds(server, reference):
    yield
    good = request(num_ads=6, seed=7)
    assert_same(infer(server.grpc_url, _typed(good)), reference.answer(good))


def _typed(tensors: dict[str, np.ndarray]) -> Typed:
    return {name: (_DTYPES[values.dtype.name], values) for name, values in tensors.items()}


def _with(name: str, values: Any, dtype: type = np.int64) -> Callable[[], Typed]:
    """A good request with one tensor replaced."""
    return lambda: _typed(request(exclude=[int(LIVE[0])]) | {name: np.array(values, dtype)})


def _changed(name: str, at: int, value: int) -> Callable[[], Typed]:
    """A good request with one value of one tensor replaced."""

    def make() -> Typed:
        tensors = request()
        tensors[name][0, at] = value
        return _typed(tensors)

    return make


def _without(name: str) -> Callable[[], Typed]:
    return lambda: _typed({n: v for n, v in request().items() if n != name})


def _rows_differ() -> Typed:
    return _typed(request(rows=2) | {"num_ads": np.array([[5]], np.int32)})


# What is wrong, the request, fragments of the message: the input, what was expected, what came.
BAD = {
    "dtype of ids": (_with("history_ad_ids", [[1] * 6], np.int32), ["history_ad_ids", "INT64", "INT32"]),
    "dtype of behaviors": (_with("history_behaviors", [[1] * 6]), ["history_behaviors", "INT32", "INT64"]),
    "dtype of num_ads": (_with("num_ads", [[5.0]], np.float32), ["num_ads", "INT32", "FP32"]),
    "dtype of exclude": (_with("exclude_ad_ids", [[5]], np.uint64), ["exclude_ad_ids", "INT64", "UINT64"]),
    "no batch dimension": (_with("num_ads", [5], np.int32), ["num_ads", "Expected [-1,1]", "got [1]"]),
    "one dimension too many": (
        _with("history_ad_ids", [[[1] * 6]]),
        ["history_ad_ids", "[-1,-1]", "[1,1,6]"],
    ),
    "missing profile": (_without("profile"), ["expected the inputs", "missing: profile"]),
    "missing history": (_without("history_ad_ids"), ["expected the inputs", "missing: history_ad_ids"]),
    "missing num_ads": (_without("num_ads"), ["expected the inputs", "missing: num_ads"]),
    "unknown input": (_with("history_ids", [[1]]), ["history_ids", "gr4ad"]),
    "fewer behaviors": (
        _with("history_behaviors", [[1] * 5], np.int32),
        ["history_behaviors: expected 6 values", "got 5"],
    ),
    "more timestamps": (
        _with("history_timestamps", [[NOW] * 7]),
        ["history_timestamps: expected 6 values", "got 7"],
    ),
    "numbers of rows differ": (_rows_differ, ["batch size does not match"]),
    "more rows than a batch": (lambda: _typed(request(rows=9)), ["batch-size must be <= 8"]),
    "negative ad": (
        _changed("history_ad_ids", 2, -5),
        ["history_ad_ids[2]: expected an ad id >= 0", "got -5"],
    ),
    "behavior 0": (
        _changed("history_behaviors", 1, 0),
        ["history_behaviors: expected 1..3", "1 impression", "got 0 at position 1"],
    ),
    "behavior 4": (_changed("history_behaviors", 0, 4), ["history_behaviors: expected 1..3", "got 4"]),
    "negative timestamp": (
        _changed("history_timestamps", 3, -1),
        ["history_timestamps: expected 0..", "unix seconds", "got -1 at position 3"],
    ),
    "milliseconds": (_changed("history_timestamps", 0, NOW * 1000), ["history_timestamps", f"got {NOW}000"]),
    "negative time of the request": (_with("timestamp", [[-7]]), ["timestamp: expected 0..", "got -7"]),
    "profile too large": (_changed("profile", 1, 4), ["profile[1]: expected 0..3", "got 4"]),
    "profile negative": (_changed("profile", 0, -1), ["profile[0]: expected 0..2", "got -1"]),
    "profile too long": (
        _with("profile", [[0, 0, 0]], np.int32),
        ["profile", "Expected [-1,2]", "got [1,3]"],
    ),
    "num_ads 0": (_changed("num_ads", 0, 0), ["num_ads: expected 1..40", "got 0"]),
    "num_ads -1": (_changed("num_ads", 0, -1), ["num_ads: expected 1..40", "got -1"]),
    "num_ads 41": (_changed("num_ads", 0, 41), ["num_ads: expected 1..40", "got 41"]),
    "num_ads 100,000": (_changed("num_ads", 0, 100_000), ["num_ads: expected 1..40", "got 100000"]),
    "too many exclusions": (
        _with("exclude_ad_ids", [list(range(51))]),
        ["exclude_ad_ids: expected at most 50", "got 51"],
    ),
    "negative exclusion": (
        _with("exclude_ad_ids", [[3, -2]]),
        ["exclude_ad_ids[1]: expected an ad id >= 0", "got -2"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_is_refused_with_expected_and_actual(server, name):
    make, fragments = BAD[name]
    with pytest.raises(InferenceServerException) as caught:
        infer(server.grpc_url, make())
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    for fragment in fragments:
        assert fragment in caught.value.message()


def test_an_unknown_model_is_named(server):
    with pytest.raises(InferenceServerException, match="unknown model: 'gr5ad'") as caught:
        infer(server.grpc_url, _typed(request()), model="gr5ad")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_one_wrong_row_is_named_and_takes_only_its_own_request(server):
    tensors = request(rows=3)
    tensors["history_behaviors"][1, 2] = 9
    with pytest.raises(InferenceServerException, match="history_behaviors: .* got 9 at position 2"):
        infer(server.grpc_url, _typed(tensors))


# What the contract tolerates, and counts.


def _tolerated(server, reference, tensors, *, ignored):
    answer = infer(server.grpc_url, _typed(tensors))
    assert answer["ignored_history"].tolist() == [[ignored]]
    assert (answer["ad_ids"] >= 0).all()
    assert_same(answer, reference.answer(tensors))
    return answer


def _same_beams(a, b):
    np.testing.assert_array_equal(a["ad_ids"], b["ad_ids"])
    np.testing.assert_allclose(a["scores"], b["scores"], atol=1e-5)


def test_unknown_ads_are_ignored_and_counted(server, reference):
    tensors = request(history=8)
    tensors["history_ad_ids"][0, [0, 3, 7]] = [20_000, 2**62, 10_000]
    answer = _tolerated(server, reference, tensors, ignored=3)
    kept = [1, 2, 4, 5, 6]
    shorter = {n: v[:, kept] if n.startswith("history") else v for n, v in tensors.items()}
    _same_beams(answer, _tolerated(server, reference, shorter, ignored=0))


def test_paused_ads_of_a_history_are_known(server, reference):
    tensors = request(history=5)
    tensors["history_ad_ids"][0] = AD_IDS[~ACTIVE]
    _tolerated(server, reference, tensors, ignored=0)


def test_a_history_of_10_000_is_trimmed_to_the_newest(server, reference):
    tensors = request(history=10_000)
    tensors["history_timestamps"] = NOW - np.arange(10_000)[None]  # newest first
    answer = _tolerated(server, reference, tensors, ignored=10_000 - SPEC.max_history)
    newest = {n: v[:, : SPEC.max_history] if n.startswith("history") else v for n, v in tensors.items()}
    _same_beams(answer, _tolerated(server, reference, newest, ignored=0))


def test_events_of_the_future_are_dropped_and_counted(server, reference):
    tensors = request(history=6)
    tensors["history_timestamps"][0, [1, 4]] = [NOW + 1, 1 << 40]
    answer = _tolerated(server, reference, tensors, ignored=2)
    kept = {n: v[:, [0, 2, 3, 5]] if n.startswith("history") else v for n, v in tensors.items()}
    _same_beams(answer, _tolerated(server, reference, kept, ignored=0))


def test_padding_stands_for_nothing(server, reference):
    tensors = request(history=6, exclude=[int(LIVE[0])])
    alone = _tolerated(server, reference, tensors, ignored=0)
    # What stands beside a padding id does not matter either.
    padded = {
        n: np.pad(v, ((0, 0), (2, 3)), constant_values=-1) if n[:7] in ("history", "exclude") else v
        for n, v in tensors.items()
    }
    _same_beams(alone, _tolerated(server, reference, padded, ignored=0))


def test_an_empty_history_is_a_cold_start(server, reference):
    tensors = request(history=0)
    answer = _tolerated(server, reference, tensors, ignored=0)
    only_padding = request(history=4) | {"profile": tensors["profile"]}
    only_padding["history_ad_ids"][:] = -1
    _same_beams(answer, _tolerated(server, reference, only_padding, ignored=0))


def test_exclusions_of_unknown_and_repeated_ads_do_not_count(server, reference):
    tensors = request(exclude=[30_000, *[int(LIVE[0])] * 200])
    answer = _tolerated(server, reference, tensors, ignored=0)
    assert LIVE[0] not in answer["ad_ids"]


def test_without_a_time_the_server_takes_its_own(server):
    tensors = request(history=3)
    del tensors["timestamp"]
    tensors["history_timestamps"][0, 0] = 1 << 40  # the year 36,812
    assert infer(server.grpc_url, _typed(tensors))["ignored_history"].tolist() == [[1]]
