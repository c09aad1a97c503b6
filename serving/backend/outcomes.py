"""How requests end: counted by the model in which they do, so that each counts once.

Triton's own counters do not tell: a request that an adapter answers with an error is a success of the model
and a failure of the ensemble, and one failure is counted by every ensemble step that it passes.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, get_args

from serving.backend.metrics import REQUESTS, Metrics
from serving.backend.request import RequestError
from serving.load.policy import OverloadError

TELL_EVERY_S = 0.2  # a metric is a message to the server: one a request would cost as much as a refusal

Outcome = Literal["answered", "refused", "rejected", "cancelled", "failed"]
"""Ads were given; the client's mistake; no time for it; the client has gone; ours."""


class ClientGoneError(Exception):
    """Whoever asked has cancelled the request."""

    def __init__(self) -> None:
        """Say so."""
        super().__init__("the client has cancelled the request")


def outcome_of(error: Exception) -> Outcome:
    """What an error makes of a request."""
    if isinstance(error, RequestError):
        return "refused"
    if isinstance(error, OverloadError):
        return "rejected"
    return "cancelled" if isinstance(error, ClientGoneError) else "failed"


class Outcomes:
    """Counts for one model."""

    def __init__(self, triton: Any, *, model: str, last: bool = False) -> None:
        """Register.

        Args:
            triton: the module `triton_python_backend_utils`.
            model: its name.
            last: it gives the answer; what others answer goes on to the next model and counts there.
        """
        self._metrics, self._last = Metrics(triton, REQUESTS, labels={"process": model}), last
        self._untold, self._told_at = Counter[Outcome](), -math.inf  # not in the metric yet
        for outcome in get_args(Outcome):
            self._metrics.show("gr4ad_requests_total", outcome=outcome)

    def close(self) -> None:
        """Tell what is not told yet, and see `Metrics.close`."""
        self._tell()
        self._metrics.close()

    def count(self, outcomes: Iterable[Outcome]) -> None:
        """Count the requests of a batch; the metric has them with the next batch after `TELL_EVERY_S`."""
        self._untold.update(outcome for outcome in outcomes if outcome != "answered" or self._last)
        now = time.monotonic()
        if self._untold and now - self._told_at >= TELL_EVERY_S:
            self._tell()
            self._told_at = now

    def _tell(self) -> None:
        for outcome, count in self._untold.items():
            self._metrics.add("gr4ad_requests_total", count, outcome=outcome)
        self._untold.clear()
