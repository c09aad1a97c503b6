"""Where requests come in: turned away at once while the queue is longer than can be answered in time.

`serving.load.admission` has the rule; here it meets the processes of one server: schedulers write what they
have taken and when they are free into a file in memory, the entry reads it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from serving.backend.metrics import ENTRY, Metrics
from serving.backend.shared_files import shared_file
from serving.load.admission import Admission
from serving.load.outlook import OutlookFile
from serving.load.policy import OverloadError

TELL_EVERY_S = 0.2  # a metric is a message to the server: one a refusal would cost as much as the refusal


def outlook_path() -> Path:
    """File of the processes that one server started."""
    return shared_file("outlook")


class Entry:
    """Refuses what cannot be answered in time, before anything is done for it."""

    def __init__(self, triton: Any, *, max_queue: int) -> None:
        """Begin to watch the schedulers.

        Args:
            triton: the module `triton_python_backend_utils`.
            max_queue: searches that may wait.
        """
        self._metrics = Metrics(triton, ENTRY, labels={"process": "request_features"})
        self._admission, self._outlooks = Admission(max_queue=max_queue), OutlookFile(outlook_path())
        self._refused, self._told_at = 0, -math.inf  # not in the metric yet, and when it was last told

    def close(self) -> None:
        """Stop watching, and leave nothing behind."""
        self._metrics.close()
        self._outlooks.close()
        outlook_path().unlink(missing_ok=True)

    def check(self, now: float, *, rows: int) -> None:
        """Let a request of so many rows in.

        Raises:
            OverloadError: it would be answered too late, or as many wait as may.
        """
        reason = self._admission.admit(now, self._outlooks.read(now), rows=rows)
        self._refused += reason is not None
        if self._refused and now - self._told_at >= TELL_EVERY_S:
            self._metrics.add("gr4ad_rejected_total", self._refused, reason="queue")
            self._refused, self._told_at = 0, now
        if reason is not None:
            raise OverloadError(reason)
