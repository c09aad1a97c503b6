"""The feedback service and a trainer, killed twenty times: nothing is lost, nothing learnt twice."""

from __future__ import annotations

import pytest

from benchmarks.feedback_kills import measure


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_learnt_twice(tmp_path) -> None:
    found = measure(tmp_path / "run", kills=20, seed=1)
    assert (found["lost"], found["learnt_twice"]) == (0, 0), found
    assert found["kills"] == 20
    assert found["trainer_kills"] > 3
    assert found["requests"] > 100
    assert found["samples"] > found["requests"]  # late feedback corrected some
