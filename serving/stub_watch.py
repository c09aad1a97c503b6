"""Brings back a Python model whose process died: Triton never restarts one, and its health stays green."""

from __future__ import annotations

import http.client
import logging
import threading
from pathlib import Path

from serving.server_process import stub_models

logger = logging.getLogger(__name__)

INTERVAL_S = 0.5
_RELOAD_TIMEOUT_S = 60.0


class StubWatch:
    """A thread that compares the stubs of a server with those it had and loads a model whose stub is gone.

    A model that is being reloaded has its new stub before the old one ends. One that somebody unloaded is not
    ready any more and is forgotten.
    """

    def __init__(self, shm_prefix: str, *, host: str, http_port: int) -> None:
        """Watch the stubs with this prefix; `start` begins."""
        self._prefix, self._host, self._port = shm_prefix, host, http_port
        self._known: dict[Path, str] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stub-watch", daemon=True)

    def start(self) -> None:
        """Remember the stubs there are and begin."""
        self._known = stub_models(self._prefix)
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
            self._known |= found
            gone = set(self._known) - set(found)
            for path in gone & missing:  # twice in a row: no moment between two processes
                model = self._known.pop(path)
                if self._post(f"/v2/models/{model}/ready", method="GET") != 200:
                    continue  # unloaded by somebody
                logger.error("the process of model %s died; loading it again", model)
                # A load alone does nothing where the model's files are unchanged.
                self._post(f"/v2/repository/models/{model}/unload")
                status = self._post(f"/v2/repository/models/{model}/load")
                if status != 200:
                    self._known[path] = model
                    logger.error("model %s could not be loaded again: HTTP %s", model, status)
            missing = gone

    def _post(self, url: str, *, method: str = "POST") -> int | None:
        host = "127.0.0.1" if self._host == "0.0.0.0" else self._host
        connection = http.client.HTTPConnection(host, self._port, timeout=_RELOAD_TIMEOUT_S)
        try:
            connection.request(method, url)
            response = connection.getresponse()
            response.read()
            return response.status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
