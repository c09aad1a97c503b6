"""How wide a batch is searched under the load there is: B_t = B_base * f(load, capacity).

GR4AD (arXiv 2602.22732) calls this traffic-aware adaptive beam search and leaves f open. Here f is a choice
of a rung on a ladder of plans, from what a search costs here and now: the widest rung on which the newest
waiting request is answered within its SLO and the server keeps up with what arrives. Pure: the caller passes
the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from serving.load.arrivals import ArrivalRate, LoadView, QueueLength, Waiting
from serving.load.cost_model import BatchCost, CostModel
from serving.load.ladder import Ladder
from serving.load.policy import Decision, QueueLimit

_WAIT_SHARE = 0.5  # of the SLO; a request that has waited for less is not turned away


@dataclass(frozen=True)
class ControlSettings:
    """Settings of `LoadController`.

    Attributes:
        slo_s: time within which a request must be answered, from its arrival.
        instances: scheduler processes that share the queue.
        max_batch: largest batch.
        max_queue: more requests never wait: the server refuses them.
        margin: part of the SLO that the prediction may fill; the rest is for its error.
        rise_margin: the same for the next wider rung, before it is taken.
        busy: utilisation at full batches above which a rung is left.
        rise_busy: utilisation below which the next wider rung, up to the base, is taken.
        spare: utilisation below which a rung above the base is taken; it is left a fifth above that.
        rise_every_s: pause between two steps up; a step that failed doubles it, up to eight times.
        memory_s: of the arrival rate.
        probe_s: where no request fits its deadline, one is searched that often, so that a wrong prediction
            is found out.
    """

    slo_s: float = 0.1
    instances: int = 1
    max_batch: int = 16
    max_queue: int = 1024
    margin: float = 0.75
    rise_margin: float = 0.6
    busy: float = 0.95
    rise_busy: float = 0.85
    spare: float = 0.5
    rise_every_s: float = 0.6
    memory_s: float = 1.0
    probe_s: float = 1.0

    def __post_init__(self) -> None:
        """Reject settings that contradict each other."""
        finite = all(math.isfinite(v) and v > 0 for v in vars(self).values())
        if not finite or self.instances < 1 or self.max_batch < 1 or self.max_queue < 1:
            raise ValueError(f"load control: expected finite values > 0 and whole numbers >= 1, got {self}")
        if not (self.rise_margin <= self.margin <= 1 and self.spare <= self.rise_busy <= self.busy):
            raise ValueError(
                "load control: expected rise_margin <= margin <= 1 and spare <= rise_busy <= busy, got "
                f"{self}"
            )


class LoadController:
    """The rung of every batch, and how many requests may wait.

    A rung is left at once when the prediction says so. Wider ones are taken with stricter bounds and a pause
    between two steps, above the base one at a time, so that noise does not make widths flap.
    """

    def __init__(self, ladder: Ladder, *, settings: ControlSettings | None = None) -> None:
        """Start on the base rung."""
        self.ladder, self.settings = ladder, settings or ControlSettings()
        s = self.settings
        self.cost = CostModel(base_rows=ladder.rows[ladder.base])
        self._rate = ArrivalRate(instances=s.instances, memory_s=s.memory_s)
        self._queue = QueueLength(max_batch=s.max_batch, most=s.max_queue)
        self._rung = ladder.base
        self._now = -math.inf
        self._changed_at = self._risen_at = self._measured_at = -math.inf
        self._patience = 1.0

    @property
    def above_base(self) -> int:
        """Rungs above the configured plan, negative below."""
        return self._rung - self.ladder.base

    @property
    def arrivals_qps(self) -> float:
        """Estimated arrival rate of all instances together."""
        return self._rate.value(self._now)

    def observe(self, now: float, batch: BatchCost) -> None:
        """See `Policy`; one call for every search."""
        if self.cost.observe(batch):
            self._measured_at = self._tick(now)

    def decide(self, now: float, load: LoadView) -> Decision:
        """See `Policy`."""
        now = self._tick(now)
        self._rate.update(now, load)
        rate = self._rate.value(now)
        queue = self._queue.update(now, load, rate=rate)
        reason = self._move(now, taken=len(load.requests), queue=queue, rate=rate)
        deadlines = [self._deadline(r) for r in load.requests]
        rung, rejected = self._rung, self._late(now, load, deadlines)
        admit = len(load.requests) - len(rejected)
        if admit and self.cost.known:
            # For this batch only: a client's tight deadline is no reason to narrow the batches after it.
            room = sorted(deadlines)[len(rejected)] - now
            while rung > 0 and self.cost.longest(admit, self.ladder.rows[rung]) > room:
                rung -= 1
            reason = reason if rung == self._rung else "deadline"
        return Decision(
            plan=self.ladder.plans[rung],
            above_base=rung - self.ladder.base,
            admit=admit,
            rejected=rejected,
            limit=self.limit(),
            reason=reason,
        )

    def limit(self) -> QueueLimit:
        """How many requests may wait so that the newest is answered within the SLO on the floor.

        At least one: who rejects everything learns nothing. As many as the queue holds while there is width
        left to give up: first widths shrink, with the next batch, then requests are turned away.
        """
        s = self.settings
        full = self._full(0)
        if full <= 0:
            return QueueLimit(s.max_queue, 0.0)
        drain = s.instances * s.max_batch / full
        if self._rung > 0:
            return QueueLimit(s.max_queue, drain)
        share = 1 + 1 / s.instances
        if self.cost.seconds(1, self.ladder.rows[0]) * share > s.margin * s.slo_s:
            # Too slow a machine for the SLO, whatever waits: then a batch may, so that it works at its best.
            return QueueLimit(min(s.max_batch, s.max_queue), drain)
        room = s.margin * s.slo_s - full * share
        if room >= 0:
            most = s.max_batch + room * drain
        else:  # not even a full batch fits: as many requests as do
            fixed = self.cost.seconds(0, self.ladder.rows[0])
            most = (s.margin * s.slo_s / share - fixed) * s.max_batch / max(full - fixed, 1e-9)
        return QueueLimit(int(min(max(most, 1), s.max_queue)), drain)

    def _tick(self, now: float) -> float:
        """The time; a clock that is set back passed no time, nonsense is no time."""
        if not math.isfinite(now):
            return self._now if math.isfinite(self._now) else 0.0
        if now < self._now:
            back = now - self._now
            self._changed_at, self._risen_at = self._changed_at + back, self._risen_at + back
            self._measured_at += back
            self._rate.shift(back)
        self._now = now
        return now

    def _move(self, now: float, *, taken: int, queue: float, rate: float) -> str:
        s = self.settings
        if self._changed_at == -math.inf:
            self._changed_at = now  # no step up before there is a rate
        if not self.cost.known:
            return "unknown"
        target = self._rung
        while target > 0 and not self._fits(target, taken, queue, rate, rising=False):
            target -= 1
        if target < self._rung:
            if now - self._risen_at < 2 * s.rise_every_s * self._patience:
                self._patience = min(2 * self._patience, 8.0)
            self._rung, self._changed_at = target, now
            return "load"
        if now - self._risen_at > 4 * s.rise_every_s * self._patience:
            self._patience = 1.0  # the last step held
        if now - self._changed_at >= s.rise_every_s * self._patience:
            target = self._risen(taken, queue, rate)
            if target > self._rung:
                self._rung, self._changed_at, self._risen_at = target, now, now
        return "load" if self._rung != self.ladder.base else "steady"

    def _risen(self, taken: int, queue: float, rate: float) -> int:
        """The widest rung up to the base that fits with room to spare; from the base on, the next one."""
        target = self._rung
        top = min(max(self.ladder.base, target + 1), len(self.ladder) - 1)
        while target < top and self._fits(target + 1, taken, queue, rate, rising=True):
            target += 1
        return target

    def _fits(self, rung: int, taken: int, queue: float, rate: float, *, rising: bool) -> bool:
        """Whether the newest waiting request is in time on a rung, and the rung keeps up with arrivals."""
        s, rows = self.settings, self.ladder.rows[rung]
        busy = s.rise_busy if rising else s.busy
        if rung > self.ladder.base:
            busy = min(busy, s.spare if rising else 1.2 * s.spare)
        full = self._full(rung)
        if rate * full > busy * s.instances * s.max_batch:
            return False
        # This batch; then full ones until the newest request's own, shared by the instances; then its own.
        time = self.cost.seconds(taken, rows)
        if queue > 0:
            ahead = max(queue - s.max_batch, 0.0) / s.max_batch * full
            own = self.cost.seconds(min(queue, s.max_batch), rows)
            time = max(time, (time + ahead) / s.instances + own)
        return time <= (s.rise_margin if rising else s.margin) * s.slo_s

    def _full(self, rung: int) -> float:
        return self.cost.seconds(self.settings.max_batch, self.ladder.rows[rung])

    def _deadline(self, request: Waiting) -> float:
        """When a request must be answered."""
        arrived, deadline = request
        if deadline is not None and math.isfinite(deadline):
            return deadline
        if arrived is not None and math.isfinite(arrived):
            return min(arrived, self._now) + self.settings.slo_s
        return math.inf

    def _late(self, now: float, load: LoadView, deadlines: list[float]) -> tuple[tuple[int, str], ...]:
        """Requests that the floor cannot answer in time; the tightest go first, the others gain by it."""
        if min(deadlines, default=math.inf) - now > self.cost.longest(len(deadlines), self.ladder.rows[0]):
            return ()
        rejected = []
        order = sorted(range(len(deadlines)), key=deadlines.__getitem__)
        for at, i in enumerate(order):
            room = deadlines[i] - now
            needed = self.cost.longest(len(order) - at, self.ladder.rows[0])
            if load.requests[i].deadline is None:
                # Who has not waited is not late: a machine too slow for the SLO answers as well as it can.
                needed = min(needed, _WAIT_SHARE * self.settings.slo_s)
            if room > 0 and needed <= room:
                break
            if room > 0 and not self._trusted(now) and at == len(order) - 1:
                break
            rejected.append((i, _message(load.requests[i].deadline is not None, room, needed)))
        return tuple(sorted(rejected))

    def _trusted(self, now: float) -> bool:
        """Whether a measurement is recent enough to turn the last request away for."""
        return now - self._measured_at < self.settings.probe_s


def _message(own: bool, room: float, needed: float) -> str:
    whose = "deadline" if own else "overloaded: the time a request may take"
    if room <= 0:
        return f"{whose} has passed {-1e3 * room:.0f} ms ago"
    return f"{whose} leaves {1e3 * room:.0f} ms, the narrowest search takes {1e3 * needed:.0f} ms"
