"""How wide a batch is searched under the load there is: B_t = B_base * f(load, capacity).

GR4AD (arXiv 2602.22732) calls this traffic-aware adaptive beam search and leaves f open. Here f is a choice
of a rung on a ladder of plans, from what a search costs here and now: the widest rung whose predicted tail is
inside the SLO (`serving.load.planner`), narrower for a batch that would keep those waiting too long. Pure:
the caller passes the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from serving.load.arrival_rate import ArrivalRate
from serving.load.arrivals import LoadView, QueueLength, Waiting, newest
from serving.load.cost_model import BatchCost, CostModel
from serving.load.ladder import Ladder, plan_rows
from serving.load.outlook import Outlook
from serving.load.planner import RungPlanner
from serving.load.policy import Decision
from serving.load.settings import ControlSettings
from serving.search.widths import WidthPlan

_WAIT_SHARE = 0.5  # of the SLO; a request that has waited for less is not turned away
_LEAST_SHARE = 0.5  # of the SLO, for waiting and the search, however long the rest takes


class LoadController:
    """The rung of every batch, who of it is too late, and what the entry must know."""

    def __init__(
        self,
        ladder: Ladder,
        *,
        settings: ControlSettings | None = None,
        rows: Callable[[WidthPlan], float] = plan_rows,
    ) -> None:
        """Start on the base rung.

        Args:
            ladder: plans that may be taken.
            settings: None for the defaults.
            rows: beams that the tails see for a request like those of late, on a plan.
        """
        self.ladder, self.settings = ladder, settings or ControlSettings()
        s = self.settings
        self.cost = CostModel(base_rows=ladder.rows[ladder.base])
        self._rate = ArrivalRate(instances=s.instances, shortest_s=s.memory_s)
        self._queue = QueueLength(max_batch=s.max_batch, most=s.max_queue)
        self._rows_of = rows
        self._planner = RungPlanner(ladder, settings=s, cost=self.cost, rows=self._rows)
        self._now = self._measured_at = self._taken = -math.inf
        self._outside_s = 0.0  # of a request, before and after the scheduler

    @property
    def above_base(self) -> int:
        """Rungs above the configured plan, negative below, that the load allows."""
        return self._planner.rung - self.ladder.base

    @property
    def arrivals_qps(self) -> float:
        """Estimated arrival rate of all instances together."""
        return self._rate.value(self._now)

    @property
    def budget_s(self) -> float:
        """What of the SLO is left for waiting and for the search; at least half."""
        return max(self.settings.slo_s - self._outside_s, _LEAST_SHARE * self.settings.slo_s)

    def observe(self, now: float, batch: BatchCost) -> None:
        """See `Policy`; one call for every search."""
        if self.cost.observe(batch):
            self._measured_at = self._tick(now)

    def decide(self, now: float, load: LoadView) -> Decision:
        """See `Policy`."""
        now = self._tick(now)
        self._rate.update(now, load)
        outside_s = None if load.reading is None else load.reading.outside_s
        if outside_s is not None and math.isfinite(outside_s) and outside_s >= 0:
            self._outside_s = outside_s
        rate = self._rate.value(now)
        queue = self._queue.update(now, load, rate=rate)
        self._planner.update(now, self._rate, slo_s=self.budget_s)
        rung, reason = self._planner.rung, self._reason()
        crowded = self._narrow(rung, len(load.requests), queue)
        if crowded < rung:
            rung, reason = crowded, "queue"
        deadlines = [self._deadline(r) for r in load.requests]
        overloaded = rung == 0 and self._overloaded(len(load.requests), queue)
        rejected = self._late(now, load, deadlines, overloaded=overloaded)
        admit = len(load.requests) - len(rejected)
        if admit and self.cost.known:
            # For this batch only: a client's tight deadline is no reason to narrow the batches after it.
            room = sorted(deadlines)[len(rejected)] - now
            while rung > 0 and self.cost.longest(admit, self._rows(rung)) > room:
                rung, reason = rung - 1, "deadline"
        return Decision(
            plan=self.ladder.plans[rung],
            above_base=rung - self.ladder.base,
            admit=admit,
            rejected=rejected,
            outlook=self._outlook(now, load, rung=rung, admit=admit, overloaded=overloaded),
            reason=reason,
        )

    def _tick(self, now: float) -> float:
        """The time; a clock that is set back passed no time, nonsense is no time."""
        if not math.isfinite(now):
            return self._now if math.isfinite(self._now) else 0.0
        if now < self._now:
            back = now - self._now
            self._measured_at, self._taken = self._measured_at + back, self._taken + back
            self._rate.shift(back)
            self._planner.shift(back)
        self._now = now
        return now

    def _rows(self, rung: int) -> float:
        """Beams that the tails see for a request on a rung."""
        return self._rows_of(self.ladder.plans[rung])

    def _reason(self) -> str:
        if not self.cost.known:
            return "unknown"
        return "steady" if self.above_base == 0 else "load"

    def _narrow(self, rung: int, taken: int, queue: float) -> int:
        """The widest rung up to `rung` on which the newest waiting request is in time."""
        while rung > 0 and self._newest_takes(rung, taken, queue) > self.settings.margin * self.budget_s:
            rung -= 1
        return rung

    def _newest_takes(self, rung: int, taken: int, queue: float) -> float:
        """Seconds until the newest waiting request is answered."""
        s, rows = self.settings, self._rows(rung)
        time = self.cost.seconds(taken, rows)
        if queue <= 0:
            return time
        # This batch; then full ones until the newest request's own, shared by the instances; then its own.
        ahead = max(queue - s.max_batch, 0.0) / s.max_batch * self.cost.seconds(s.max_batch, rows)
        return max(time, (time + ahead) / s.instances + self.cost.seconds(min(queue, s.max_batch), rows))

    def _overloaded(self, taken: int, queue: float) -> bool:
        """Whether more comes, or waits already, than even the floor answers in time."""
        return self._planner.overloaded or self._newest_takes(0, taken, queue) > self.budget_s

    def _outlook(
        self, now: float, load: LoadView, *, rung: int, admit: int, overloaded: bool
    ) -> Outlook | None:
        """For the entry; None before any cost is known."""
        if not self.cost.known:
            return None
        stamp = newest(load, now)
        if stamp is None and len(load.requests) < self.settings.max_batch:
            stamp = now  # no stamps, but nothing was left behind
        self._taken = max(self._taken, -math.inf if stamp is None else stamp)
        batch, request, row = self.cost.coefficients
        return Outlook(
            taken=max(self._taken, 0.0),
            began=now,
            search_s=self.cost.seconds(admit, self._rows(rung)) if admit else 0.0,
            batch_s=batch,
            request_s=request + self._rows(0) * row,
            spread=self.cost.spread,
            slo_s=self.budget_s,
            max_batch=self.settings.max_batch,
            overloaded=overloaded,
        )

    def _deadline(self, request: Waiting) -> float:
        """When a request must be searched, to be answered in time."""
        arrived, deadline = request
        if deadline is not None and math.isfinite(deadline):
            return deadline - (self.settings.slo_s - self.budget_s)
        if arrived is not None and math.isfinite(arrived):
            return min(arrived, self._now) + self.budget_s
        return math.inf

    def _late(
        self, now: float, load: LoadView, deadlines: list[float], *, overloaded: bool
    ) -> tuple[tuple[int, str], ...]:
        """Requests that the floor cannot answer in time; the tightest go first, the others gain by it.

        Without overload only deadlines that clients brought count: nobody gains by the refusal of a request
        that a stall has made late.
        """
        if min(deadlines, default=math.inf) - now > self.cost.longest(len(deadlines), self._rows(0)):
            return ()
        rejected = []
        order = sorted(range(len(deadlines)), key=deadlines.__getitem__)
        left = len(order)
        for i in order:
            own = load.requests[i].deadline is not None
            if not own and not overloaded:
                continue
            room = deadlines[i] - now
            needed = self.cost.longest(left, self._rows(0))
            if not own:
                # Who has not waited is not late: a machine too slow for the SLO answers as well as it can.
                needed = min(needed, _WAIT_SHARE * self.budget_s)
            if room > 0 and (needed <= room or (left == 1 and not self._trusted(now))):
                continue
            left -= 1
            rejected.append((i, _message(own, room, needed)))
        return tuple(sorted(rejected))

    def _trusted(self, now: float) -> bool:
        """Whether a measurement is recent enough to turn the last request away for."""
        return now - self._measured_at < self.settings.probe_s


def _message(own: bool, room: float, needed: float) -> str:
    whose = "deadline" if own else "overloaded: the time a request may take"
    if room <= 0:
        return f"{whose} has passed {-1e3 * room:.0f} ms ago"
    return f"{whose} leaves {1e3 * room:.0f} ms, the narrowest search takes {1e3 * needed:.0f} ms"
