"""Baseline for the simulator: a table from queue depth to a rung, as one writes it in an afternoon."""

from __future__ import annotations

from serving.load.arrivals import LoadView
from serving.load.cost_model import BatchCost
from serving.load.ladder import Ladder
from serving.load.policy import Decision


class ThresholdPolicy:
    """Half a batch an instance waiting: the base plan; every further batch: a rung less; none: the widest."""

    def __init__(self, ladder: Ladder, *, instances: int, max_batch: int) -> None:
        """Hold the table."""
        self._ladder, self._instances, self._max_batch = ladder, instances, max_batch

    def decide(self, now: float, load: LoadView) -> Decision:
        """See `Policy`."""
        # Without metrics all it knows is the batch.
        waiting = load.reading.pending if load.reading is not None else 0
        batches = (len(load.requests) + waiting) / (self._max_batch * self._instances)
        busy_rung = max(self._ladder.base + 1 - int(batches + 0.5), 0)
        rung = len(self._ladder) - 1 if batches < 0.25 else busy_rung
        return Decision(
            plan=self._ladder.plans[rung],
            above_base=rung - self._ladder.base,
            admit=len(load.requests),
            rejected=(),
            outlook=None,
            reason="table",
        )

    def observe(self, now: float, batch: BatchCost) -> None:
        """See `Policy`; a table learns nothing."""
