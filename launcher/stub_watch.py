"""Brings back a Python model whose process died: Triton never restarts one, and its health stays green."""

from __future__ import annotations

import http.client
import json
import logging
import threading
from pathlib import Path
from typing import Any

from launcher.server_process import instances_of, model_of, stub_models

logger = logging.getLogger(__name__)

INTERVAL_S = 0.5
_RELOAD_TIMEOUT_S = 60.0


class StubWatch:
    """A thread that compares a server's stubs with those it should have, and loads a model that lost one.

    Every instance of a Python model has a stub. A model that is being reloaded has its new stubs before the
    old ones end. One that somebody unloaded is not ready any more and is forgotten.
    """

    def __init__(self, shm_prefix: str, *, host: str, http_port: int) -> None:
        """Watch the stubs with this prefix; `start` begins."""
        self._prefix, self._host, self._port = shm_prefix, host, http_port
        self._expected: dict[Path, int] = {}  # file of a model -> stubs
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stub-watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._expected = {path: self._instances(path) for path in stub_models(self._prefix)}
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a reload in hand is waited for."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(_RELOAD_TIMEOUT_S)

    def _run(self) -> None:
        missing: set[Path] = set()
        while not self._end.wait(INTERVAL_S):
            found = stub_models(self._prefix)
            self._expected |= {p: self._instances(p) for p in found if p not in self._expected}
            short = {path for path, count in self._expected.items() if found[path] < count}
            for path in short & missing:  # twice in a row: no moment between two processes
                model, count = model_of(path), self._expected.pop(path)
                if self._ask(f"/v2/models/{model}/ready")[0] != 200:
                    continue  # unloaded by somebody
                logger.error(
                    "%d of %d processes of model %s live; loading it again", found[path], count, model
                )
                # A load alone does nothing where the model's files are unchanged.
                self._ask(f"/v2/repository/models/{model}/unload", method="POST")
                status, _ = self._ask(f"/v2/repository/models/{model}/load", method="POST")
                if status != 200:
                    self._expected[path] = count
                    logger.error("model %s could not be loaded again: HTTP %s", model, status)
            missing = short

    def _instances(self, path: Path) -> int:
        status, content = self._ask(f"/v2/models/{model_of(path)}/config")
        return instances_of(content) if status == 200 else 1

    def _ask(self, url: str, *, method: str = "GET") -> tuple[int | None, dict[str, Any]]:
        """Status and JSON of an answer; None without an answer."""
        host = "127.0.0.1" if self._host == "0.0.0.0" else self._host
        connection = http.client.HTTPConnection(host, self._port, timeout=_RELOAD_TIMEOUT_S)
        try:
            connection.request(method, url)
            response = connection.getresponse()
            content = response.read()
            return response.status, json.loads(content) if response.status == 200 and content else {}
        except (OSError, ValueError, http.client.HTTPException):
            return None, {}
        finally:
            connection.close()
