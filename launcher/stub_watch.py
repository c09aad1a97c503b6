"""Brings back a Python model whose process died: Triton never restarts one, and its health stays green."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from launcher.restarts import Restarts
from launcher.server_files import ServerError
from launcher.stubs import Stub, free_region, stubs
from launcher.triton_admin import Admin
from launcher.watch import Watch

logger = logging.getLogger(__name__)

INTERVAL_S = 0.25
_LEFT_OVER_S = 10.0  # a model that was swapped out has answered everything by then


@dataclass
class _Repair:
    """A model that lost a process, until every version has all of its processes again.

    Attributes:
        before: Its processes, dead ones included, before the last load that went well.
    """

    restarts: Restarts = field(default_factory=lambda: Restarts(first_s=0.5, most_s=5.0))
    due: float = 0.0
    before: list[Stub] = field(default_factory=list)


class StubWatch(Watch):
    """A thread that compares a server's stubs with those it should have, and reloads a model that lost one.

    Every instance of every version of a Python model has a stub. Only versions count that Triton calls READY:
    one that is loading has its stubs soon, one that is being retired loses them. The stubs are read before
    the states, and twice, so that nothing that happens in between looks like a death.
    """

    def __init__(self, admin: Admin, *, shm_prefix: str) -> None:
        """Watch the stubs with this prefix; `start` begins."""
        self._admin, self._prefix = admin, shm_prefix
        self._seen: dict[int, Stub] = {}
        self._instances: dict[str, int] = {}  # stubs of each version of a model
        self._short: set[tuple[str, str]] = set()  # versions that lacked a stub at the last look
        self._repairs: dict[str, _Repair] = {}
        self._left_over: list[tuple[float, Stub]] = []
        super().__init__("stub-watch")

    def start(self) -> None:
        """Begin."""
        self._seen = {stub.pid: stub for stub in stubs(self._prefix)}
        super().start()

    def _run(self) -> None:
        while not self._end.wait(INTERVAL_S):
            try:
                self.look()
            except ServerError as error:  # it is busy; or it died, which is for its owner to see
                logger.warning("stub watch: %s", error)
                self._end.wait(1.0)

    def look(self) -> None:
        """Compares once, and does what is due."""
        living = stubs(self._prefix)
        versions = self._admin.versions()
        found = Counter((stub.model, stub.version) for stub in living)
        moving = {v.model for v in versions if v.state in ("LOADING", "UNLOADING")}
        short = {
            (v.model, v.version)
            for v in versions
            if v.state == "READY" and found[v.model, v.version] < self._wanted(v.model)
        }
        for model in {model for model, _ in short & self._short} - set(self._repairs):
            self._instances.pop(model)  # its config may be another by now
            if any(found[m, v] < self._wanted(m) for m, v in short if m == model):
                logger.error("model %s has lost a process; loading it again", model)
                self._repairs[model] = _Repair()
        self._short = short
        kept = {model for model, _ in short} | set(self._repairs)
        self._seen = {pid: stub for pid, stub in self._seen.items() if stub.model in kept}
        self._seen |= {stub.pid: stub for stub in living}
        ready = {v.model for v in versions if v.state == "READY"}
        for model in [model for model in self._repairs if model not in moving]:
            self._repair(model, is_ready=model in ready, is_whole=all(model != m for m, _ in short))
        self._end_left_over()

    def _wanted(self, model: str) -> int:
        if model not in self._instances:
            self._instances[model] = instances(self._admin.config(model))
        return self._instances[model]

    def _repair(self, model: str, *, is_ready: bool, is_whole: bool) -> None:
        repair = self._repairs[model]
        if is_whole or not is_ready:  # not ready: somebody has unloaded it
            logger.warning(
                "model %s has %s", model, "all of its processes again" if is_ready else "been unloaded"
            )
            self._left_over += [(time.monotonic() + _LEFT_OVER_S, stub) for stub in repair.before]
            del self._repairs[model]
            return
        if time.monotonic() < repair.due:
            return
        before = [stub for stub in self._seen.values() if stub.model == model]
        try:
            # Never unloaded first: where a request met the dead process, Triton unloads for ever, and takes
            # the ensemble along.
            self._admin.reload(model)
            repair.before = before
        except ServerError as error:
            pause = repair.restarts.next_pause() or 0.0
            repair.due = time.monotonic() + pause
            logger.error("model %s could not be loaded, next try in %.1f s: %s", model, pause, error)

    def _end_left_over(self) -> None:
        """Ends processes of models that were swapped out, and frees the memory of all that they had.

        Triton lets go of a model that lost a process only where no request met the dead one.
        """
        now = time.monotonic()
        due = [stub for at, stub in self._left_over if at <= now]
        self._left_over = [(at, stub) for at, stub in self._left_over if at > now]
        living = set(stubs(self._prefix)) if due else set()
        for stub in due:
            if stub in living:
                logger.warning("process %d is left over of model %s; ending it", stub.pid, stub.model)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(stub.pid, signal.SIGKILL)
            free_region(stub.region)


def instances(config: dict[str, Any]) -> int:
    """Processes of each version of a model, from its config as Triton gives it; 0 for other backends."""
    if config.get("backend") != "python":
        return 0
    return sum(int(group.get("count", 1)) for group in config.get("instance_group", [])) or 1
