"""Feedback over HTTP, as a client sends it."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

_TIMEOUT_S = 20.0


def send_feedback(url: str, events: list[dict[str, Any]]) -> dict[str, Any]:
    """What the service says of events, `feedback.http.schema`.

    Args:
        url: of the service.
        events: fields as in docs/feedback.md.

    Raises:
        OSError: it is not there, or answers that they are not taken.
        ValueError: its answer is cut off.
    """
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/feedback/bulk", json.dumps(events).encode(), headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        return json.loads(answer.read())


def send_until_taken(url: Callable[[], str], events: list[dict[str, Any]]) -> None:
    """Again and again: after a kill nobody knows whether they were taken.

    Args:
        url: of the service as of now.
        events: as for `send_feedback`.

    Raises:
        AssertionError: the service refuses them.
    """
    while True:
        try:
            outcome = send_feedback(url(), events)
        except (OSError, ValueError):  # killed, or not started again yet
            time.sleep(0.05)
            continue
        if outcome["rejected"]:
            raise AssertionError(f"not taken: {outcome}")
        return
