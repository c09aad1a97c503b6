"""How long requests took, from the entry to the scheduler's answer: what the SLO of load control is about.

A histogram of Triton takes one message to the server for each request, which costs as much as a refusal. So
they are counted here, and told as counters, a few messages every `TELL_EVERY_S`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import numpy as np

from serving.backend.metrics import SECONDS, Metrics
from serving.backend.outcomes import TELL_EVERY_S

_BOUNDS = np.array([*SECONDS, math.inf])
_LABELS = (*(f"{bound:g}" for bound in SECONDS), "+Inf")


class AnswerTimes:
    """Counts of one scheduler process."""

    def __init__(self, metrics: Metrics) -> None:
        """Show every bound at 0."""
        self._metrics, self._told_at = metrics, -math.inf
        self._untold = np.zeros(len(_BOUNDS), np.int64)
        for label in _LABELS:
            metrics.show("gr4ad_answered_within_total", le=label)

    def count(self, seconds: Iterable[float]) -> None:
        """Count answers; the metric has them with the next batch after `TELL_EVERY_S`."""
        for taken in seconds:
            self._untold += taken <= _BOUNDS
        now = time.monotonic()
        if self._untold[-1] and now - self._told_at >= TELL_EVERY_S:
            self.tell()
            self._told_at = now

    def tell(self) -> None:
        """Add what is not in the metric yet."""
        for label, count in zip(_LABELS, self._untold.tolist(), strict=True):
            self._metrics.add("gr4ad_answered_within_total", count, le=label)
        self._untold[:] = 0
