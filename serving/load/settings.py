"""Settings of load control."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ControlSettings:
    """Settings of `LoadController`.

    Attributes:
        slo_s: time within which a request must be answered, from its arrival at the server.
        instances: scheduler processes that share the queue.
        max_batch: largest batch.
        max_queue: more requests never wait: the server refuses them.
        margin: part of the SLO that the predicted 99th percentile may fill; the rest is for its error, and
            for what comes before and after a scheduler.
        wide_margin: the same on rungs above the base.
        aim: part of that which a wider rung may fill to be taken after the load has changed.
        rise: the same once the load has been the same for `settle_s`.
        settle_s: see there.
        memory_s: of the arrival rate.
        plan_every_s: pause between two choices of a rung.
        probe_s: where no request fits its deadline, one is searched that often, so that a wrong prediction
            is found out.
    """

    slo_s: float = 0.1
    instances: int = 1
    max_batch: int = 16
    max_queue: int = 1024
    margin: float = 0.75
    wide_margin: float = 0.68
    aim: float = 0.85
    rise: float = 0.7
    settle_s: float = 4.0
    memory_s: float = 1.0
    plan_every_s: float = 0.25
    probe_s: float = 1.0

    def __post_init__(self) -> None:
        """Reject settings that contradict each other."""
        finite = all(math.isfinite(v) and v > 0 for v in vars(self).values())
        if not finite or self.instances < 1 or self.max_batch < 1 or self.max_queue < 1:
            raise ValueError(f"load control: expected finite values > 0 and whole numbers >= 1, got {self}")
        if not (self.wide_margin <= self.margin <= 1 and self.rise <= self.aim <= 1):
            raise ValueError(
                f"load control: expected wide_margin <= margin <= 1 and rise <= aim <= 1, got {self}"
            )
