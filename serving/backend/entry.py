"""Where requests come in: turned away at once while the queue is longer than can be answered in time.

`serving.load.admission` has the rule; here it meets the processes of one server: the scheduler writes how
many may wait into a file in memory, the entry reads it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from serving.backend.metrics import ENTRY, Metrics
from serving.backend.shared_files import shared_file
from serving.load.admission import Admission, LimitFile
from serving.load.policy import OverloadError
from serving.load.queue_depth import QueueDepth

METRICS_URL = os.environ.get("GR4AD_METRICS_URL", "http://127.0.0.1:8002/metrics")
"""Metrics page of this server; the launcher sets it."""


def limit_path() -> Path:
    """File of the processes that one server started."""
    return shared_file("queue_limit")


class Entry:
    """Refuses what cannot be answered in time, before anything is done for it."""

    def __init__(self, triton: Any) -> None:
        """Begin to watch the queue; `triton` is the module `triton_python_backend_utils`."""
        self._metrics = Metrics(triton, ENTRY, labels={"process": "request_features"})
        self._admission, self._queue = Admission(), QueueDepth(METRICS_URL)
        self._limit = LimitFile(limit_path())

    def close(self) -> None:
        """Stop watching, and leave nothing behind."""
        self._metrics.close()
        self._queue.close()
        self._limit.close()
        limit_path().unlink(missing_ok=True)

    def check(self, now: float) -> None:
        """Let a request in.

        Raises:
            OverloadError: too many wait already.
        """
        reason = self._admission.admit(now, reading=self._queue.read(), limit=self._limit.read(now))
        if reason is not None:
            self._metrics.add("gr4ad_rejected_total", reason="queue")
            raise OverloadError(reason)
