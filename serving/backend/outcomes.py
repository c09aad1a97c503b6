"""How requests end: counted by the model in which they do, so that each counts once.

Triton's own counters do not tell: a request that an adapter answers with an error is a success of the model
and a failure of the ensemble, and one failure is counted by every ensemble step that it passes.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from serving.backend.metrics import REQUESTS, Metrics
from serving.backend.request import RequestError
from serving.load.policy import OverloadError

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
        for outcome in get_args(Outcome):
            self._metrics.show("gr4ad_requests_total", outcome=outcome)

    def close(self) -> None:
        """See `Metrics.close`."""
        self._metrics.close()

    def count(self, outcome: Outcome) -> None:
        """Count one request."""
        if outcome != "answered" or self._last:
            self._metrics.add("gr4ad_requests_total", outcome=outcome)
