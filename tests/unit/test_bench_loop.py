"""What the bench of publishes makes of what it saw."""

import time

import numpy as np

from benchmarks.loop.__main__ import TARGETS, summary
from benchmarks.loop.publishing import steady


def test_a_figure_that_is_missing_or_too_large_is_a_target_missed():
    good = {"failed_requests": 0, "mixed_versions": 0, "p99_with_publishes_ratio": 1.15, "publish_p50_s": 4.9}
    swaps = {"memory_growth": 1.03, "fds_growth": 0.0, "request_creation_ratio": 1.0, "seconds": 3}
    canary = {"rollback_s": 30.0, "touched_outside_canary": 0}
    learning = {"feedback_to_weights_p50_s": 20, "feedback_to_weights_p99_s": None, "not_learnt": 0}
    kills = {"lost": 0, "learnt_twice": 1, "half_published": 0}
    parts = {"publishes": good, "swaps": swaps, "canary": canary, "learning": learning, "kills": kills}
    assert summary(parts)["missed"] == ["memory_growth", "feedback_to_weights_p99_s", "learnt_twice"]
    held = canary | {"rollback_s": None}  # it was not rolled back
    assert "rollback_s" in summary(parts | {"canary": held})["missed"]
    assert summary({"swaps": swaps})["missed"] == [
        name for name in TARGETS if name not in swaps or name == "memory_growth"
    ]
    assert "seconds" not in summary({"swaps": swaps})


def test_requests_come_at_their_rate_whatever_becomes_of_them():
    """One that stands still holds no other up, and the time it waited counts from when it was due."""

    def ask(number):
        if number == 3:
            time.sleep(0.3)
        if number == 5:
            raise ConnectionError("gone")
        return {"model_version": np.array([[number]])}

    with steady(ask, qps=50) as seen:
        time.sleep(0.5)
    found = {asked.number: asked for asked in seen}
    assert len(found) == len(seen) > 8
    assert found[3].ended - found[3].due > 0.29
    assert found[4].ended < found[3].ended
    assert (found[5].failure, found[5].answer, found[5].version) == ("gone", None, 0)
    assert [found[n].version for n in (1, 2, 4, 7)] == [1, 2, 4, 7]
    gaps = np.diff([found[n].due for n in sorted(found)])
    np.testing.assert_allclose(gaps, 0.02, atol=1e-6)
