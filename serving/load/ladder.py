"""Rungs of width plans that load control climbs: from a floor over the configured plan to wider ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from serving.search.widths import WidthPlan


def plan_rows(plan: WidthPlan) -> int:
    """Beams that the tails see for one request: every level's but the last one's, and the value level's.

    The last width costs a selection on the host and no graph.
    """
    return sum(plan.sid[:-1]) + plan.value


def searched_rows(widths: Sequence[int]) -> int:
    """The same of a finished search that was not pruned, from its `beam_widths` [T + 1]."""
    return int(sum(widths[:-2]) + widths[-1])


@dataclass(frozen=True)
class Ladder:
    """Plans, narrowest first.

    Attributes:
        plans: rungs; no width of a rung is above that of the next one.
        base: rung of the configured plan.
        rows: `plan_rows` of each rung, strictly rising.
    """

    plans: tuple[WidthPlan, ...]
    base: int
    rows: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Reject rungs out of order."""
        if not 0 <= self.base < len(self.plans):
            raise ValueError(f"ladder: expected a base within {len(self.plans)} rungs, got {self.base}")
        for low, high in pairwise(self.plans):
            if low == high:
                raise ValueError(f"ladder: expected rungs that differ, got {low} twice")
            if len(low.sid) != len(high.sid) or low.narrower(high) is False or high.narrower(low):
                raise ValueError(f"ladder: expected {low} to be narrower than {high} at every level")
            if plan_rows(low) >= plan_rows(high):
                raise ValueError(
                    f"ladder: expected fewer rows in {low} than in {high}, got {plan_rows(low)} and "
                    f"{plan_rows(high)}: rungs of equal cost"
                )
        object.__setattr__(self, "rows", tuple(map(plan_rows, self.plans)))

    @classmethod
    def around(cls, base: WidthPlan, *, up: float = 1.6, floor: float = 0.25, steps: int = 7) -> Ladder:
        """Rungs in equal ratios, through the base plan, the value width with the others.

        Args:
            base: configured plan.
            up: widest rung's widths over the base's, >= 1.
            floor: narrowest rung's widths over the base's, in (0, 1].
            steps: rungs, fewer where rounding makes two of them equal.

        Raises:
            ValueError: a factor or the number of rungs is out of range.
        """
        if not (math.isfinite(up) and up >= 1 and 0 < floor <= 1 and steps >= 1):
            raise ValueError(
                f"ladder: expected up >= 1, floor in (0, 1] and steps >= 1, got {up}, {floor}, {steps}"
            )
        gaps = max(steps - 1, (up > 1) + (floor < 1))
        span = math.log(up) - math.log(floor)
        above = 0 if up == 1 else gaps if floor == 1 else round(gaps * math.log(up) / span)
        above = min(max(above, int(up > 1)), gaps - int(floor < 1))
        factors = [floor ** (i / (gaps - above)) for i in range(gaps - above, 0, -1)]
        factors += [1.0, *(up ** (i / above) for i in range(1, above + 1))]
        plans: list[WidthPlan] = []
        for factor in factors:
            plan = _scaled(base, factor)
            # Small plans: two factors may round to one plan, or differ in the free last width only. The base
            # is the one that stays.
            if plans and plan_rows(plans[-1]) >= plan_rows(plan):
                if factor != 1.0:
                    continue
                plans.pop()
            plans.append(plan)
        return cls(tuple(plans), plans.index(base))

    @classmethod
    def parse(cls, text: str, *, base: WidthPlan) -> Ladder:
        """Read "205-410-819:64,128-256-512:64,64-128-256:64": widest first, the base plan among them.

        Raises:
            ValueError: a rung is malformed, out of order or there twice, or the base is missing.
        """
        plans = [WidthPlan.parse(part.strip(), levels=len(base.sid)) for part in text.split(",")]
        if base not in plans:
            raise ValueError(f"ladder: expected the configured plan {base} among the rungs, got {text!r}")
        try:
            return cls(tuple(reversed(plans)), len(plans) - 1 - plans.index(base))
        except ValueError as error:
            raise ValueError(f"{error} (rungs are listed widest first: {text!r})") from None

    def within(self, most: WidthPlan) -> Ladder:
        """The ladder with no width above that of `most`; rungs that fall together become one.

        Raises:
            ValueError: `most` is narrower than the base plan.
        """
        base = self.plans[self.base]
        if most.narrower(base):
            raise ValueError(f"ladder: expected a widest plan of at least the base plan {base}, got {most}")
        plans = list(self.plans[: self.base + 1])
        for plan in self.plans[self.base + 1 :]:
            capped = plan.within(most)
            if plan_rows(capped) > plan_rows(plans[-1]):
                plans.append(capped)
        return Ladder(tuple(plans), self.base)

    def __len__(self) -> int:
        """Number of rungs."""
        return len(self.plans)

    def __str__(self) -> str:
        """The form `parse` reads."""
        return ",".join(map(str, reversed(self.plans)))


def _scaled(base: WidthPlan, factor: float) -> WidthPlan:
    sid = tuple(max(1, round(w * factor)) for w in base.sid)
    return WidthPlan(sid, max(1, round(base.value * factor)))
