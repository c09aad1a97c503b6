"""Who goes first on the cores that they share.

Searches let go first what comes before and after them: a request that has been searched needs a millisecond
more; behind the next search on the same core it waits for half of that. And whoever works beside a server
takes what the server leaves. Without load, or with cores to spare, nothing changes.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SEARCH_NICE = 5
"""A third of the share of a process that does not yield."""
_LEAST_NICE = 19
_SESSION_NICE = 10
"""A tenth of the share of another session: on a machine that is never idle, work still goes on."""
_AUTOGROUP = Path("/proc/self/autogroup")


def yield_to_answers() -> None:
    """Lower the priority of this thread, and of those that it will start, among the server's processes."""
    os.setpriority(os.PRIO_PROCESS, 0, SEARCH_NICE)


def yield_to_servers() -> None:
    """Let this process, and what it will start, have what servers on the machine leave.

    Linux shares cores between sessions first, each as much as another, and a nice value counts inside a
    session only (sched(7), autogroup). So where this process leads a session, that of the session is lowered,
    too: whoever starts one beside a server gives it a session of its own (`setsid`).
    """
    os.setpriority(os.PRIO_PROCESS, 0, _LEAST_NICE)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # a kernel without such groups
            _AUTOGROUP.write_text(str(_SESSION_NICE))
