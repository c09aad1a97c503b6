"""On the cores that they share, searches let go first what comes before and after them.

A request that has been searched needs a millisecond more; behind the next search on the same core it waits
for half of that. Without load, or with cores to spare, nothing changes.
"""

from __future__ import annotations

import os

SEARCH_NICE = 5
"""A third of the share of a process that does not yield."""


def yield_to_answers() -> None:
    """Lower the priority of this thread, and of those that it will start, among the server's processes."""
    os.setpriority(os.PRIO_PROCESS, 0, SEARCH_NICE)
