"""What a policy of load control answers, and the policy that does nothing.

`serving.load.controller` holds the other one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from serving.load.arrivals import LoadView
from serving.load.cost_model import BatchCost
from serving.load.outlook import Outlook
from serving.search.widths import WidthPlan


class OverloadError(RuntimeError):
    """The server has no time for a request; the client may try again, elsewhere or later."""


@dataclass(frozen=True)
class Decision:
    """What to do with a batch.

    Attributes:
        plan: widths for it.
        above_base: rungs above (> 0) or below (< 0) the configured plan.
        admit: requests of the batch to search.
        rejected: position in the batch and message for the client, of the others.
        outlook: for the entry; None where nothing can be predicted.
        reason: of the rung: "unknown" cost, "steady", "load", "queue" or "deadline" of this batch, "fixed".
    """

    plan: WidthPlan
    above_base: int
    admit: int
    rejected: tuple[tuple[int, str], ...]
    outlook: Outlook | None
    reason: str

    @property
    def degraded(self) -> bool:
        """Whether the plan is below the configured one."""
        return self.above_base < 0

    def plan_for(self, wanted: WidthPlan | None = None, *, width_cap: int | None = None) -> WidthPlan:
        """Plan of one request.

        Its own one counts, where it brought one within `max_plan`, but not beyond the rung while that is
        below the configured plan. Never above its cap.
        """
        plan = self.plan
        if wanted is not None:
            plan = wanted.within(self.plan) if self.degraded else wanted
        return plan if width_cap is None else plan.capped(width_cap)


class Policy(Protocol):
    """Decides on widths and admission. Not thread-safe: one a scheduler process."""

    def decide(self, now: float, load: LoadView) -> Decision:
        """Plan for a batch that was just taken; `now` in seconds of a monotonic clock."""
        ...

    def observe(self, now: float, batch: BatchCost) -> None:
        """Learn what a search cost."""
        ...


class FixedPolicy:
    """Always the configured plan; only what is past its deadline is refused."""

    def __init__(self, plan: WidthPlan) -> None:
        """Hold a plan."""
        self._plan = plan

    def decide(self, now: float, load: LoadView) -> Decision:
        """See `Policy`."""
        late = tuple(
            (i, "deadline: it has passed")
            for i, r in enumerate(load.requests)
            if r.deadline is not None and r.deadline <= now
        )
        return Decision(
            plan=self._plan,
            above_base=0,
            admit=len(load.requests) - len(late),
            rejected=late,
            outlook=None,
            reason="fixed",
        )

    def observe(self, now: float, batch: BatchCost) -> None:
        """See `Policy`; nothing to learn."""
