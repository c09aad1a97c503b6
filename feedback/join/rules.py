"""What counts, and until when.

A request is answered at `clock`. For `window_s` it is open; then what came of it becomes a sample. What comes
later, up to `correct_s`, makes a further sample of it, its correction. Then it is forgotten.

When a thing was done is told by its sender's clock, relative to the request's own time: delay = timestamp -
request's timestamp. It cannot be below 0 nor above the time that has passed since the answer, but for
`skew_s`, by which clocks may differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from feedback.store.requests import Fed, RequestState

Clock = Literal["wall", "served"]
Refusal = tuple[str, str]
"""A word for programs, and what was expected and what came."""


@dataclass(frozen=True)
class JoinConfig:
    """Times and bounds.

    Attributes:
        window_s: seconds after an answer in which what came of it belongs to its first sample.
        correct_s: seconds after an answer until which later feedback corrects; then it is forgotten.
        wait_s: seconds that feedback waits for the record of its request.
        skew_s: seconds that clocks may differ.
        clock: "wall", this machine's, beside the time at which a server wrote its record; or "served", the
            newest request's own time, for logs that are played again and simulations. It stands still between
            two requests, so nothing is then called too early.
        max_waiting: requests without a record that feedback may wait for.
        max_history: events of a user that are kept.
        keep_samples: the newest samples; who reads later than that is told so.
        keep_rejected: the newest events that were not taken.
    """

    window_s: float = 1800.0
    correct_s: float = 7 * 86_400.0
    wait_s: float = 60.0
    skew_s: float = 5.0
    clock: Clock = "wall"
    max_waiting: int = 100_000
    max_history: int = 1024
    keep_samples: int = 1_000_000
    keep_rejected: int = 10_000

    def __post_init__(self) -> None:
        """Refuse times that do not follow each other, and bounds that allow nothing."""
        for name in ("window_s", "correct_s", "wait_s", "skew_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected seconds >= 0, got {value}")
        if self.correct_s < self.window_s:
            raise ValueError(
                f"correct_s: expected at least window_s = {self.window_s:g}, got {self.correct_s:g}"
            )
        for name in ("max_waiting", "max_history", "keep_samples", "keep_rejected"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number >= 1, got {getattr(self, name)}")


def refusal(
    state: RequestState, *, ad_id: int, timestamp: int, now: float, config: JoinConfig
) -> Refusal | None:
    """Why feedback on a served request does not count; None where it does."""
    if ad_id not in state.ad_ids:
        return "unknown_ad", f"expected one of the {len(state.ad_ids)} ads of the answer, got {ad_id}"
    delay, passed = timestamp - state.timestamp, max(now - state.clock, 0.0)
    if delay < -config.skew_s:
        return (
            "before_request",
            f"timestamp: expected at least that of the request, {state.timestamp}, less {config.skew_s:g} s "
            f"between clocks, got {timestamp}",
        )
    if config.clock == "wall" and delay > passed + config.skew_s:
        return (
            "from_the_future",
            f"timestamp: expected at most {passed + config.skew_s:.0f} s after the request's "
            f"{state.timestamp}, since no more have passed, got {timestamp}",
        )
    if delay > config.correct_s:
        return (
            "too_late",
            f"timestamp: expected at most {config.correct_s:g} s after the request's {state.timestamp}, got "
            f"{timestamp}",
        )
    return None


def takes_effect(fed: Fed, key: tuple[int, int], fact: tuple[int, float]) -> bool:
    """Whether a fact is news: of one ad and behavior the latest counts, of one second the largest value.

    So the end is the same in whatever order and however often they come.
    """
    return key not in fed or fact > fed[key]


def facts_of(state: RequestState, *, within_s: float = math.inf) -> list[tuple[int, int, int, float]]:
    """Ad, behavior, time and value of what came so soon after the request, in the order of time."""
    found = [
        (ad, behavior, when, value)
        for (ad, behavior), (when, value) in state.fed.items()
        if when - state.timestamp <= within_s
    ]
    return sorted(found, key=lambda fact: (fact[2], fact[1], fact[0]))
