"""One fault done to a deployment under observation, and the row that it makes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

from benchmarks.faults.deployment import Deployment
from benchmarks.faults.observer import judge

BEFORE_S = 1.5  # of requests before the fault
LONGEST_S = 20.0  # that a recovery is waited for
LEAST_S = 4.0  # watched after the end of the fault: some faults show late

Row = dict[str, Any]
Fault = Callable[[Deployment], AbstractContextManager[Any] | None]
"""Does it; where it returns a context manager, the fault lasts as long as that is open."""


def trial(deployment: Deployment, name: str, fault: Fault, *, lasts_s: float = 0.0) -> Row:
    """Do a fault and watch until the deployment has recovered.

    Args:
        deployment: running, and well.
        name: of the row.
        fault: what is done.
        lasts_s: how long it is left like that.

    Returns:
        `fault`, and what `Verdict` has.
    """
    with deployment.observer().watching() as seen:
        time.sleep(BEFORE_S)
        at = time.monotonic()
        with fault(deployment) or nullcontext():
            time.sleep(lasts_s)
        over = time.monotonic()
        while True:
            time.sleep(0.5)
            since, verdict = time.monotonic() - over, judge(seen, at=at, over=over)
            if since > LONGEST_S or (since > LEAST_S and verdict.recovery_s is not None):
                break
    return {"fault": name, **asdict(judge(seen, at=at, over=over))}
