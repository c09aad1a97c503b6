"""The rule that judges a canary: how often it is wrong, how soon it is right, on simulated streams."""

import math

import numpy as np
import pytest

from export.canary_rule import Arm, judge, widening
from training.preset.publish import PublishConfig

CONFIG = PublishConfig(canary_share=0.1, canary_requests=2_000)


def run(random, *, share=0.1, effect=1.0, calibration=1.0, config=CONFIG, answers=20_000, every=50):
    """What is done with a canary, and after how many of its answers; looked at all the time.

    One answer in twelve brings a value, log-normal, which is known to a factor.
    """
    canary, beside = Arm(), Arm()
    drawn = random.random((answers, 2))
    values = random.lognormal(1.0, 1.0, answers)
    noise = random.lognormal(0.0, 0.3, answers)
    for i in range(answers):
        mine = drawn[i, 0] < share
        value = values[i] * (drawn[i, 1] < (effect if mine else 1.0) / 12)
        expected = value * noise[i] * (calibration if mine else 1.0)
        (canary if mine else beside).count(value, expected=expected)
        if i % every == 0 and canary.answers:
            found = judge(canary, beside, config)
            if found.do != "wait":
                return found, canary.answers
    return found, canary.answers


def test_a_canary_that_is_as_good_is_seldom_rolled_back():
    """Of 80, each looked at a hundred times: the interval of a single look would do it far more often."""
    random = np.random.default_rng(0)
    ends = [run(random, answers=24_000, every=200)[0].do for _ in range(80)]
    assert ends.count("roll back") <= 4  # canary_error .05
    assert ends.count("promote") == 80 - ends.count("roll back")


def test_a_canary_that_earns_less_is_rolled_back_before_it_is_promoted():
    random = np.random.default_rng(1)
    found = [run(random, effect=0.2, answers=40_000) for _ in range(20)]
    assert [judged.do for judged, _ in found] == ["roll back"] * 20
    assert np.median([answers for _, answers in found]) < 700
    half = [run(random, effect=0.5, answers=40_000)[0].do for _ in range(20)]
    assert half.count("roll back") >= 10


def test_a_canary_of_which_nothing_comes():
    canary, beside = Arm(), Arm()
    for i in range(3_000):
        beside.count(2.0 * (i % 10 == 0), expected=2.0 * (i % 10 == 0))
        if i % 10 == 0:
            canary.count(0.0, expected=0.0)
        found = judge(canary, beside, CONFIG) if canary.answers else None
    assert found.do == "roll back"
    assert "value of an answer 0, 0.2 beside it" in found.reason


@pytest.mark.parametrize("calibration", [0.4, 2.5])
def test_values_that_are_off_by_a_factor(calibration):
    random = np.random.default_rng(2)
    found, answers = run(random, calibration=calibration, answers=60_000)
    assert found.do == "roll back"
    assert "expected over observed values" in found.reason
    assert answers < CONFIG.canary_requests
    assert found.figures["calibration"] == pytest.approx(
        calibration * found.figures["calibration_beside"], rel=0.4
    )
    assert run(random, calibration=1.1, answers=30_000)[0].do == "promote"


def test_a_loss_that_is_allowed():
    random = np.random.default_rng(3)
    config = CONFIG.model_copy(update={"canary_max_value_loss": 0.9})
    assert run(random, effect=0.5, config=config, answers=30_000)[0].do == "promote"


def test_waits_where_nothing_is_known():
    canary, beside = Arm(), Arm()
    for _ in range(5_000):
        canary.count(0.0, expected=0.0)
        beside.count(0.0, expected=0.0)
    found = judge(canary, beside, CONFIG)
    assert (found.do, found.reason) == ("wait", "no value came of 5000 answers of the version beside it")
    beside.count(1.0, expected=1.0)
    assert "too few to compare" in judge(canary, beside, CONFIG).reason
    assert judge(canary, beside, CONFIG).figures["value_high"] is None


def test_expected_values_that_are_no_numbers():
    canary, beside = Arm(), Arm()
    for _ in range(200):
        canary.count(1.0, expected=math.nan)
        beside.count(1.0, expected=1.0)
    assert judge(canary, beside, CONFIG).do == "roll back"
    assert judge(beside, canary, CONFIG).do == "wait"  # nothing to hold it against


def test_the_interval_holds_at_all_counts():
    """Against brute force: walks of 5,000 normal steps, looked at after each; .05 may leave it, ever."""
    random = np.random.default_rng(4)
    counts = np.arange(10, 5_001)
    widths = np.array([widening(int(n), error=0.05) for n in counts])
    means = np.cumsum(random.standard_normal((1_000, 5_000)), axis=1)[:, 9:] / counts
    outside = (np.abs(means) > widths / np.sqrt(counts)).any(axis=1).mean()
    assert 0.005 < outside <= 0.05
    single = (np.abs(means) > 1.96 / np.sqrt(counts)).any(axis=1).mean()
    assert single > 0.3  # what the interval of one look would do
