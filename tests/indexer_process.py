"""The sidecar as the process that users start."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent


class IndexerProcess:
    """`python -m indexer` on a free port."""

    def __init__(self, folder: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self._log = folder / "indexer.log"
        before = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "indexer", "--port", "0", *options],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
                stdout=log,
                stderr=log,
            )
        self._from = before
        self.port = 0
        wait_until(self._is_up, timeout_s=60, what="the indexer")

    @property
    def log(self) -> str:
        """What it has printed since this start."""
        return self._log.read_bytes()[self._from :].decode()

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self.log
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.log)
        self.port = int(found[1]) if found else 0
        return bool(found) and self.ask("GET", "/healthz")[0] == 200

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of one request; an `OSError` or `HTTPException` where the process is gone."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(
                method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            raw = answer.read()
            kind = answer.headers.get("content-type", "")
            return answer.status, json.loads(raw) if kind == "application/json" else raw.decode()
        finally:
            connection.close()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; exit code."""
        self.process.send_signal(number)
        return self.process.wait(20)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
