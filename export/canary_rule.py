"""Whether a canary is as good as the version beside it: value of its answers, calibration of its values.

Answers are drawn by a hash of the request id, so the two versions are compared as in an experiment. What
comes of answers is looked at again and again, so the intervals hold at all times at once, not at one time
chosen before: Robbins' normal mixture (Robbins 1970; Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform,
nonparametric, nonasymptotic confidence sequences", Annals of Statistics 2021, section 3.2), with variances
estimated on the way (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and
asymptotic confidence sequences", Annals of Statistics 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from feedback.store.samples import JoinedSample
from training.preset.publish import PublishConfig

LEAST_WITH_VALUE = 10
"""Answers with value that a canary must have, or would have had, were it like the other: below that a mean
is not near a normal one."""
_TIGHTEST_AT = 100  # answers of the canary; elsewhere the intervals are a little wider than they might be


@dataclass
class Arm:
    """Sums over the answers of one version whose outcome is known.

    Attributes:
        answers: how many.
        with_value: how many of them brought value.
        value: sum of their values, and `value2` of the squares.
        expected: sum, over answers with value, of what was expected of the ads that brought it; `expected2`
            of the squares, `both` of the products with what they brought.
    """

    answers: int = 0
    with_value: int = 0
    value: float = 0.0
    value2: float = 0.0
    expected: float = 0.0
    expected2: float = 0.0
    both: float = 0.0

    def add(self, sample: JoinedSample) -> None:
        """Count one answer; an ad that the answer does not have brings nothing."""
        expected_of = dict(zip(sample.record.ad_ids, sample.record.expected_value, strict=True))
        brought = {ad: fact.value for ad, fact in sample.outcomes.items() if fact.value and ad in expected_of}
        self.count(sum(brought.values()), expected=sum(expected_of[ad] for ad in brought))

    def count(self, value: float, *, expected: float) -> None:
        """Count one answer: the value it brought, and what was expected of the ads that brought it."""
        self.answers += 1
        self.with_value += value > 0
        self.value, self.value2 = self.value + value, self.value2 + value**2
        self.expected, self.expected2 = self.expected + expected, self.expected2 + expected**2
        self.both += value * expected

    @property
    def mean(self) -> float:
        """Value of an answer."""
        return self.value / max(self.answers, 1)

    @property
    def calibration(self) -> float | None:
        """Expected over observed values of the ads that brought value; None where it is no ratio."""
        found = self.expected / self.value if self.value > 0 else 0.0
        return found if found > 0 and math.isfinite(found) else None

    @property
    def log_calibration_variance(self) -> float:
        """Of the logarithm of `calibration`, a ratio of sums, by the delta method."""
        ratio = self.expected / self.value
        left = self.expected2 - 2 * ratio * self.both + ratio**2 * self.value2
        return max(left, 0.0) / self.expected**2


class Judgement(NamedTuple):
    """What is to be done with a canary.

    Attributes:
        do: with it; "wait" while neither is shown.
        reason: in words.
        figures: see `judge`.
    """

    do: Literal["promote", "roll back", "wait"]
    reason: str
    figures: dict[str, float | None]


def judge(canary: Arm, beside: Arm, config: PublishConfig) -> Judgement:
    """Compare what came of the answers of both; of those of the same time.

    Half of `config.canary_error` goes to the value, half to the calibration.

    Returns:
        With figures `answers`, `answers_beside`, `value`, `value_beside` (means of an answer), `value_low`
        and `value_high` (interval of their difference, relative to `value_beside`), `calibration` and
        `calibration_beside` (expected over observed), `calibration_low` and `calibration_high` (interval of
        their ratio); None where it is not known yet.
    """
    known: dict[str, float | None] = {
        "answers": canary.answers,
        "answers_beside": beside.answers,
        "value": canary.mean,
        "value_beside": beside.mean,
        "calibration": canary.calibration,
        "calibration_beside": beside.calibration,
    }
    known |= dict.fromkeys(("value_low", "value_high", "calibration_low", "calibration_high"))
    if not beside.with_value:
        return Judgement("wait", f"no value came of {beside.answers} answers of the version beside it", known)
    error, most = config.canary_error / 2, config.canary_max_calibration_change
    share = (canary.with_value + beside.with_value) / (canary.answers + beside.answers)
    if share * canary.answers < LEAST_WITH_VALUE:
        return Judgement("wait", f"{canary.answers} answers are too few to compare", known)
    low, high = _value_interval(canary, beside, error=error)
    known |= {"value_low": low, "value_high": high}
    if high < -config.canary_max_value_loss:
        return Judgement(
            "roll back",
            f"value of an answer {canary.mean:.4g}, {beside.mean:.4g} beside it: {low:+.1%} to {high:+.1%} "
            f"(publish.canary_max_value_loss {config.canary_max_value_loss:g})",
            known,
        )
    judged = beside.calibration is not None  # values of 0 are no expectation
    if judged and min(canary.with_value, beside.with_value) >= LEAST_WITH_VALUE:
        low, high = _calibration_interval(canary, beside, error=error)
        known |= {"calibration_low": low, "calibration_high": high}
        # Written so that a figure that is not a number is out of the band.
        if not (high >= 1 / most and low <= most):
            return Judgement(
                "roll back",
                f"expected over observed values {low:.3g} to {high:.3g} times those beside it "
                f"(publish.canary_max_calibration_change {most:g})",
                known,
            )
    if canary.answers < config.canary_requests:
        return Judgement(
            "wait", f"{canary.answers} of {config.canary_requests} answers, no harm shown", known
        )
    return Judgement("promote", f"no harm shown in {canary.answers} answers", known)


def _value_interval(canary: Arm, beside: Arm, *, error: float) -> tuple[float, float]:
    """Of the difference of the means, relative to that beside; one variance for both.

    A canary of which nothing came has none of its own to speak of.
    """
    answers = canary.answers + beside.answers
    within = sum(arm.value2 - arm.value**2 / arm.answers for arm in (canary, beside))
    variance = within / max(answers - 2, 1) * (1 / canary.answers + 1 / beside.answers)
    half = math.sqrt(max(variance, 0.0)) * widening(canary.answers, error=error)
    difference = canary.mean - beside.mean
    return (difference - half) / beside.mean, (difference + half) / beside.mean


def _calibration_interval(canary: Arm, beside: Arm, *, error: float) -> tuple[float, float]:
    """Of the ratio of the calibrations; not numbers where that of the canary is none."""
    if canary.calibration is None or beside.calibration is None:
        return math.nan, math.nan
    variance = sum(arm.log_calibration_variance for arm in (canary, beside))
    half = math.sqrt(variance) * widening(canary.with_value, error=error)
    ratio = math.log(canary.calibration / beside.calibration)
    return math.exp(ratio - half), math.exp(ratio + half)


def widening(count: int, *, error: float) -> float:
    """Standard errors to each side of a mean of `count`, for an interval that holds at all counts at once.

    sqrt((1 + r / n) (ln((n + r) / r) + 2 ln(1 / error))), r such that it is tightest at `_TIGHTEST_AT`.
    """
    twice = 2 * math.log(1 / error)
    r = _TIGHTEST_AT / (twice + math.log(twice + 1))
    return math.sqrt((1 + r / count) * (math.log((count + r) / r) + twice))
