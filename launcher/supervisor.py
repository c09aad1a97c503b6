"""Keeps a server running: what died or hangs is started again, until that happens too often."""

from __future__ import annotations

import logging
import time

from launcher.restarts import Restarts
from launcher.server_files import ServerError
from launcher.triton_server import TritonServer

logger = logging.getLogger(__name__)

RESTART_LIMIT = 5
"""Ends within a minute that are put up with."""

_GIVEN_UP = f"given up after {RESTART_LIMIT} new starts within a minute"
_EVERY_S = 0.1
_ASK_EVERY_S = 1.0
_HANGS_AFTER = 5  # asked in vain, each for a second


class Supervisor:
    """Watches a started server; `run` does the work and ends with an exception only."""

    def __init__(self, server: TritonServer) -> None:
        """Of a server that was started."""
        self._server = server
        self._restarts, self._gateways = (Restarts(most_s=10.0, limit=RESTART_LIMIT) for _ in range(2))
        self._asked, self._unanswered = time.monotonic(), 0

    def run(self) -> None:
        """Until something else ends it, as a signal.

        Raises:
            ServerError: it gave up.
        """
        while True:
            if (problem := self.problem()) is not None:
                self._restart(problem)
            time.sleep(_EVERY_S)

    def problem(self) -> str | None:
        """What is wrong with the server as a whole, None for nothing."""
        if (status := self._server.gateway.poll()) is not None:
            self._restart_gateway(status)
        if (status := self._server.poll()) is not None:
            return f"Triton ended with status {status}"
        now = time.monotonic()
        if now - self._asked >= _ASK_EVERY_S:
            self._asked = now
            self._unanswered = 0 if self._server.admin.is_ready(_ASK_EVERY_S) else self._unanswered + 1
        return (
            f"Triton does not answer, asked {_HANGS_AFTER} times"
            if self._unanswered >= _HANGS_AFTER
            else None
        )

    def _restart_gateway(self, status: int) -> None:
        pause = self._gateways.next_pause()
        if pause is None:
            raise ServerError(f"the gateway ended with status {status}; {_GIVEN_UP}")
        logger.error("the gateway ended with status %d; starting it again in %.1f s", status, pause)
        time.sleep(pause)
        self._server.gateway.restart()

    def _restart(self, problem: str) -> None:
        while True:
            pause = self._restarts.next_pause()
            if pause is None:
                raise ServerError(f"{problem}; {_GIVEN_UP}")
            logger.error("%s; starting it again in %.1f s", problem, pause)
            time.sleep(pause)
            try:
                self._server.restart()
            except ServerError as error:
                problem = str(error).partition("\n")[0]
                continue
            self._unanswered = 0
            logger.warning("Triton serves again, pid %d", self._server.pid)
            return
