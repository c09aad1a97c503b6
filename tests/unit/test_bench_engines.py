"""What the benchmark compares with finds the same beams; and its figures come out as they should."""

import numpy as np
import pytest

from benchmarks.bench_report import met, table
from benchmarks.engines import FullVocabulary, KvPerBeam, Timed
from benchmarks.measure import Cell, best_gemm, interleave
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.tiny import LEVEL_SIZES, VALUE_TABLE, random_requests, tiny_model, tiny_snapshot
from training.rollout.executor import TorchExecutor


class NumpyCarry:
    """TorchExecutor with arrays in the carry, as ONNX Runtime hands them on."""

    def __init__(self):
        self.inner = TorchExecutor(tiny_model())

    def prefix(self, slots, profile):
        logprob, carry = self.inner.prefix(slots, profile)
        return logprob, {k: v.numpy() for k, v in carry.items()}

    def tail(self, level, carry, **feeds):
        import torch

        carry = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in carry.items()}
        logprob, carry = self.inner.tail(level, carry, **feeds)
        return logprob, {k: v.numpy() for k, v in carry.items()}


def search(executor):
    slots, profile = random_requests(3)
    return beam_search(
        executor,
        tiny_snapshot().trie,
        slots,
        profile,
        plan=WidthPlan((4, 8, 16), 5),
        num_results=np.full(3, 5),
        value_table=VALUE_TABLE,
    )


@pytest.mark.parametrize("wrap", [Timed, KvPerBeam, lambda e: FullVocabulary(e, LEVEL_SIZES)])
def test_same_beams_as_the_engine_itself(wrap):
    expected, found = search(NumpyCarry()), search(wrap(NumpyCarry()))
    np.testing.assert_array_equal(found.sids, expected.sids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.expected_value, expected.expected_value, rtol=1e-4)


def test_timed_counts_the_engine_only():
    timed = Timed(NumpyCarry())
    search(timed)
    assert timed.seconds > 0


def test_interleave_times_every_cell_and_counts_wrong_answers():
    seen = []
    good = Cell("good", "good", lambda rows: seen.append(len(rows)), batch=3)
    bad = Cell("bad", "bad", lambda rows: rows, lambda rows: (int(len(rows) == 3), 0), batch=3)
    slow = Cell("slow", "slow", lambda rows: rows, batch=1, every=2)
    gemm = best_gemm(seconds=0.004)
    interleave([good, bad, slow], rounds=4, requests=10, between=gemm)
    assert sorted(set(seen)) == [1, 3]
    assert len(good.seconds[1]) == len(good.seconds[3]) == 4  # the warm-up round is not counted
    assert len(slow.seconds[1]) == 2
    row = good.row()
    assert row["latency_ms"]["median"] <= row["latency_ms"]["p95"]
    assert "qps" not in bad.row()
    assert bad.row()["invalid"] == 9
    assert all(len(x) == 4 and min(x) > 0 for x in gemm.gflops.values())


def test_targets():
    assert met(2.4, ">= 2.3") == "met"
    assert met(2.2, ">= 2.3") == "MISSED"
    assert met(41.0, "<= 40") == "MISSED"
    assert met(None, "<= 40") == "not measured"
    text = table(
        {
            "rows": {"bad": {"label": "bad", "invalid": 3, "short": 0}},
            "ratios": {"a": 2.0, "b": None, "c": 1.0},
            "targets": {"a": ">= 3", "b": ">= 1"},
        }
    )
    assert "empty: 3 invalid" in text
    assert "MISSED" in text
    assert "not measured" in text
