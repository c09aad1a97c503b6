"""What the writer's thread does between two batches, a little at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from indexer.sidecar.metrics import WriterMetrics

log = logging.getLogger("gr4ad.indexer")

Chore = Callable[[], bool | None]
"""Does a little; True where more is to be done at once."""


@dataclass
class _State:
    run: Chore
    name: str
    failures: int = 0
    not_before: float = 0.0


class Chores:
    """All of them; one that fails is left alone for a while, and stops neither events nor the others."""

    def __init__(self, chores: Mapping[str, Chore], *, metrics: WriterMetrics) -> None:
        """By name; `metrics` counts what fails."""
        self._states = [_State(run, name) for name, run in chores.items()]
        self._metrics = metrics

    def run(self) -> bool:
        """Give each its turn; whether one has more to do at once."""
        return any([self._run(state) for state in self._states])  # a list: all get their turn

    def _run(self, state: _State) -> bool:
        if time.monotonic() < state.not_before:
            return False
        try:
            more = state.run()
            state.failures = 0
            return bool(more)
        except Exception as error:
            state.failures += 1
            state.not_before = time.monotonic() + min(2.0**state.failures, 60.0)
            self._metrics.chore_failures.labels(state.name).inc()
            if state.failures == 1:  # and not every minute while the cause lasts
                log.error("%s failed, tried again later: %s: %s", state.name, type(error).__name__, error)
            return False
