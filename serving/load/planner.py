"""The rung that a load can live with: the widest one whose predicted tail is inside the SLO.

Utilisation alone says nothing of that: at 20 % load a machine whose lone search takes a sixth of the SLO
fills it with beams of 1.6 times the width, and one with four instances at 80 % does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from serving.load.arrival_rate import ArrivalRate
from serving.load.cost_model import CostModel
from serving.load.ladder import Ladder
from serving.load.lookahead import tail_seconds
from serving.load.settings import ControlSettings

_NONE_QPS = 1e-6  # a request in eleven days is no load to plan for


class RungPlanner:
    """Chooses a rung from arrival rate, cost of a search and its spread, some times a second."""

    def __init__(
        self, ladder: Ladder, *, settings: ControlSettings, cost: CostModel, rows: Callable[[int], float]
    ) -> None:
        """Start on the base rung; `rows` of a request on a rung, as `cost` knows them."""
        self._ladder, self._settings, self._cost, self._rows = ladder, settings, cost, rows
        self.rung = ladder.base
        self.overloaded = False
        """Whether not even the floor answers in time all that comes."""
        self._planned_at = -math.inf

    def shift(self, seconds: float) -> None:
        """The clock was set by that much."""
        self._planned_at += seconds

    def update(self, now: float, arrivals: ArrivalRate, *, slo_s: float) -> None:
        """Plan for what arrives, unless that was done a moment ago.

        `slo_s` is the time from arrival to the end of the search.

        For `settle_s` after the load has changed the rung is the widest that fits with some room (`aim`).
        From then on it stays while it fits, and a wider one is taken when that has much room (`rise`): an
        estimate that scatters does not make widths flap.
        """
        s = self._settings
        rate = arrivals.value(now)
        if not self._cost.known or rate < _NONE_QPS or 0 <= now - self._planned_at < s.plan_every_s:
            return
        self._planned_at = now
        tail = partial(self._tail, rate=rate, burst=arrivals.burst)
        rung = self.rung
        while rung > 0 and tail(rung) > self._bound(rung, slo_s):
            rung -= 1
        if rung == self.rung:
            room = s.aim if arrivals.age < s.settle_s else s.rise
            while rung + 1 < len(self._ladder) and tail(rung + 1) <= room * self._bound(rung + 1, slo_s):
                rung += 1
        self.rung = rung
        self.overloaded = rung == 0 and tail(0) > slo_s

    def _bound(self, rung: int, slo_s: float) -> float:
        """Seconds that the tail may take on a rung."""
        s = self._settings
        return slo_s * (s.wide_margin if rung > self._ladder.base else s.margin)

    def _tail(self, rung: int, *, rate: float, burst: float) -> float:
        """99th percentile of the time from arrival to answer, seconds; endless where the queue only grows."""
        s, rows = self._settings, self._rows(rung)
        if rate * self._cost.seconds(s.max_batch, rows) >= s.instances * s.max_batch:
            return math.inf
        return tail_seconds(
            lambda requests: self._cost.seconds(requests, rows),
            rate=rate,
            instances=s.instances,
            max_batch=s.max_batch,
            factors=self._cost.factors,
            burst=burst,
        )
