"""Every request as a row of a CSV file, written by a listener of locust's request event."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

COLUMNS = (
    "worker",
    "intended_s",  # from the start of the test: when the request should have been sent
    "late_ms",  # the client sent it that much later
    "latency_ms",  # from the intended start to the answer, the error, or the end of the test (unanswered)
    "outcome",
    "repeat",
    "response_bytes",
    "beam_rows",
    "beam_widths",
    "model_version",
    "index_version",
    "degraded",
    "error",
)


class Recorder:
    """Listener for `environment.events.request`. The file has a row a request as soon as it is over."""

    def __init__(self, path: Path, *, worker: int) -> None:
        """Open the file; several processes each have their own."""
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, restval="")
        self._writer.writeheader()
        self._worker = worker
        self.rows = 0

    def on_request(
        self, *, response_time: float, response_length: int, record: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """A request is over; `record` are the columns that its user knows."""
        if record is None:  # of a user that is not ours
            return
        self._writer.writerow(
            {
                "worker": self._worker,
                "latency_ms": round(response_time, 3),
                "response_bytes": response_length,
                **record,
            }
        )
        self.rows += 1

    def flush(self) -> None:
        """What was recorded is on disk."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
