"""When a search is pruned, and how many rows it then takes: learnt from the searches that ran.

Pruning (`serving.search.bound`) gives the same answers for fewer rows and more calls. Rows depend on how many
beams an answer is made of (its pool) and hardly on the width: what lies below the bound is left out, however
much of it there would be. Where an answer takes most of the beams anyway, a narrow search before the wide one
is one too many.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple

from serving.load.ladder import plan_rows
from serving.search.widths import WidthPlan

_GAIN = 0.03  # of the time of its rows that a pruned search must spare to be worth it
_GUESS = (60.0, 5.0)  # rows, and rows a beam of the pool, before anything is known: of the demo's model
_UNTIMED = 0.8  # of the plan's rows that may be needed before it is known what a call costs
_FORGET = 0.95  # weight of the past after one more search
_CALL_IN_ROWS = 32.0
_TIMED = 40  # calls after which their cost is known
_PROBE = 256  # one of so many searches that do not pay is pruned all the same: it may have changed
_TRAFFIC = 256  # last requests that a load is planned with


class CallCost:
    """seconds(a call of a tail with r rows in all) = call + r * row, learnt with forgetting.

    Least squares, in errors that are about relative ones: a call is as dear as some rows.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._sums = [0.0] * 5  # of 1, r, r * r, seconds, r * seconds
        self._calls = 0

    @property
    def known(self) -> bool:
        """Whether enough calls have been seen."""
        return self._calls >= _TIMED

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a call; `rows` of all its requests."""
        self._calls += 1
        weight = 1.0 / (_CALL_IN_ROWS + rows) ** 2
        terms = (1.0, rows, rows * rows, seconds, rows * seconds)
        self._sums = [0.995 * s + weight * t for s, t in zip(self._sums, terms, strict=True)]

    @property
    def coefficients(self) -> tuple[float, float]:
        """Seconds a call and a row, both >= 0."""
        weight, rows, squares, seconds, products = self._sums
        if not weight or not rows:
            return 0.0, 0.0
        spread = squares - rows * rows / weight
        row = (products - rows * seconds / weight) / spread if spread > 1e-9 * squares else 0.0
        row = min(max(row, 0.0), seconds / rows)
        return (seconds - row * rows) / weight, row


class Asked(NamedTuple):
    """What a request's answer is made of.

    Attributes:
        num_ads: ads.
        ranked_among: see `WidthPlan.pool`.
        by_value: whether it is the `num_ads` of the pool that are worth most.
    """

    num_ads: int
    ranked_among: int = 0
    by_value: bool = False

    def pool(self, plan: WidthPlan) -> int:
        """Beams that the answer is made of."""
        return plan.pool(self.num_ads, ranked_among=self.ranked_among)

    def kind(self, plan: WidthPlan) -> tuple[int, int]:
        """Answers that are taken for alike: those of one step, 1.4 times apart."""
        return _step(self.pool(plan)), _step(self.num_ads) if self.by_value else -1


class Pruning:
    """Which searches are pruned, and what requests like those of late need. One a scheduler process."""

    def __init__(self, *, levels: int) -> None:
        """Of searches of so many SID levels."""
        self._more_calls = levels - 1
        self.calls = CallCost()
        self._rows: dict[tuple[int, int], dict[WidthPlan, float]] = {}  # by kind of answer and plan
        self._refused: Counter[tuple[tuple[int, int], WidthPlan]] = Counter()
        self._traffic: deque[Asked] = deque()
        self._mix: Counter[Asked] = Counter()  # of them

    def pays(self, plan: WidthPlan, asked: Asked, *, requests: int) -> bool:
        """Whether the search for an answer is to be pruned, with so many requests in a batch."""
        if self._pays(plan, asked, requests):
            return True
        refused = (asked.kind(plan), plan)
        self._refused[refused] += 1
        return self._refused[refused] % _PROBE == 0

    def _pays(self, plan: WidthPlan, asked: Asked, requests: int) -> bool:
        plain, needed = _plain_rows(plan, asked.pool(plan)), self.needed(plan, asked)
        if not self.calls.known:
            return needed < _UNTIMED * plain
        call, row = self.calls.coefficients
        spared = requests * (plain - needed) * row - self._more_calls * call
        return spared > _GAIN * requests * plain * row

    def needed(self, plan: WidthPlan, asked: Asked) -> float:
        """Rows of a request that is pruned: as seen, else those of the plan next to it that was."""
        seen, pool = self._rows.get(asked.kind(plan), {}), asked.pool(plan)
        if plan in seen:
            return seen[plan]
        plain = _plain_rows(plan, pool)
        if not seen:
            return min(_GUESS[0] + _GUESS[1] * pool, plain)
        next_to_it = min(seen, key=lambda other: abs(math.log(plan_rows(other) / plan_rows(plan))))
        return min(seen[next_to_it], plain)

    def observe(self, plan: WidthPlan, asked: Iterable[Asked], *, rows: int) -> None:
        """Learn from a pruned search for these answers, whose tails saw `rows` for each."""
        for kind in {a.kind(plan) for a in asked}:
            seen = self._rows.setdefault(kind, {})
            seen[plan] = _FORGET * seen[plan] + (1 - _FORGET) * rows if plan in seen else float(rows)

    def came(self, asked: Asked) -> None:
        """A request is searched."""
        self._traffic.append(asked)
        self._mix[asked] += 1
        if len(self._traffic) > _TRAFFIC:
            oldest = self._traffic.popleft()
            self._mix[oldest] -= 1
            if not self._mix[oldest]:
                del self._mix[oldest]

    def rows(self, plan: WidthPlan) -> float:
        """Rows of a request like those of late on a plan; the plan's own before any came."""
        if not self._traffic:
            return plan_rows(plan)
        total = 0.0
        for asked, count in self._mix.items():
            pruned = self._pays(plan, asked, 1)
            rows = self.needed(plan, asked) if pruned else _plain_rows(plan, asked.pool(plan))
            total += count * rows
        return total / len(self._traffic)


def _step(count: int) -> int:
    return round(2 * math.log2(count))


def _plain_rows(plan: WidthPlan, pool: int) -> int:
    return plan_rows(WidthPlan(plan.sid, max(plan.value, pool)))
