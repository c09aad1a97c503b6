"""Waiting in tests."""

import time
from collections.abc import Callable


def wait_until(
    done: Callable[[], object], *, timeout_s: float = 15.0, every_s: float = 0.01, what: str = ""
) -> None:
    """Until `done()`, asked every so often, is true; fails with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what or done}"
        time.sleep(every_s)
