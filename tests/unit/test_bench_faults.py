"""What the bench of faults makes of what it saw."""

import threading
import time

import numpy as np
import pytest

from benchmarks.faults.observer import Asked, Observer, Seen, differs, judge


def seen(*, bad=(), untrue=(), until=10.0, kind="failed"):
    """Ten requests and looks a second from -2 s on; those in the spans are bad."""
    times = np.arange(-2, until, 0.1)
    inside = lambda t, spans: any(a <= t < b for a, b in spans)  # noqa: E731
    return Seen(
        [Asked(t - 0.05, t, kind if inside(t, bad) else "ok", "no") for t in times],
        [(t, not inside(t, untrue)) for t in times],
    )


def test_nothing_seen_is_a_recovery_at_once():
    verdict = judge(seen(), at=0.0)
    assert (verdict.failed, verdict.wrong, verdict.recovery_s, verdict.false_health) == (0, 0, 0.0, 0)
    assert verdict.requests == 100


def test_recovery_counts_from_the_fault_to_the_first_answer_that_is_not_interrupted_again():
    verdict = judge(seen(bad=[(0.5, 1.0), (2.0, 3.0)], untrue=[(2.0, 3.4)]), at=0.0)
    assert verdict.failed == 15
    assert verdict.recovery_s == pytest.approx(3.5, abs=0.11)


def test_a_deployment_that_fails_at_the_end_has_not_recovered():
    assert judge(seen(bad=[(9.0, 10.0)]), at=0.0).recovery_s is None
    assert judge(seen(bad=[(3.0, 9.0)]), at=0.0).recovery_s is None  # a second of quiet is not enough
    assert judge(seen(untrue=[(3.0, 10.0)]), at=0.0).recovery_s is None


def test_health_may_lag_two_seconds_and_no_more():
    assert judge(seen(bad=[(1.0, 2.9)]), at=0.0).false_health == 0
    late = judge(seen(bad=[(1.0, 6.0)], untrue=[(5.0, 6.0)]), at=0.0)
    assert late.false_health == pytest.approx(20, abs=3)  # true from the third to the fifth second
    timid = judge(seen(untrue=[(1.0, 4.0)]), at=0.0)
    assert timid.false_health == pytest.approx(30, abs=3)
    # It stood still for two seconds and answered all that had waited: health was right to say nothing.
    stood = seen(untrue=[(1.0, 3.0)])
    stood.asked = [
        Asked(a.began, max(a.ended, 3.05) if 1.0 <= a.began < 3.0 else a.ended, "ok") for a in stood.asked
    ]
    assert judge(stood, at=0.0).false_health <= 2


def test_other_answers_are_wrong():
    assert judge(seen(bad=[(1.0, 2.0)], kind="wrong"), at=0.0).wrong == 10
    expected = {"ad_ids": np.array([[3, 5]]), "scores": np.array([[-1.0, -2.0]], np.float32)}
    assert not differs(expected | {"scores": expected["scores"] + 1e-5, "more": np.ones(1)}, expected)
    assert differs(expected | {"ad_ids": np.array([[3, 6]])}, expected) == "ad_ids[1]: expected 5, got 6"
    assert "expected -1.0, got -1.5" in differs(expected | {"scores": expected["scores"] - 0.5}, expected)
    assert "expected shape (1, 2), got (1, 1)" in differs(expected | {"ad_ids": np.array([[3]])}, expected)


def test_requests_go_on_while_others_are_not_answered():
    broken = threading.Event()

    def ask(number):
        if broken.is_set():
            time.sleep(0.5)
            raise TimeoutError("no answer")
        return {"ad_ids": np.array([number % 2])}

    expected = [{"ad_ids": np.array([0])}, {"ad_ids": np.array([1])}]
    observer = Observer(ask, lambda: not broken.is_set(), expected=expected, every_s=0.02)
    with observer.watching() as found:
        time.sleep(0.3)
        broken.set()
        at = time.monotonic()
        time.sleep(0.6)
        broken.clear()
        time.sleep(3.0)
    verdict = judge(found, at=at)
    assert verdict.failed > 15
    assert verdict.wrong == 0
    assert verdict.texts == ("no answer",)
    assert 0.5 < verdict.recovery_s < 1.6
