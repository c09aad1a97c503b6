"""The sidecar as the process that users start."""

from __future__ import annotations

import http.client
import json
import os
import signal
from pathlib import Path
from typing import Any

from launcher import indexer_process


class IndexerProcess(indexer_process.IndexerProcess):
    """Started at once; has its say over HTTP."""

    def __init__(self, folder: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        more = {"OMP_NUM_THREADS": "1"} | (environment or {})
        super().__init__(*options, log_file=folder / "indexer.log", environment=os.environ | more)
        self.start(ready=False)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

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

    def stop(self, number: int = signal.SIGTERM, *, timeout_s: float = 20.0) -> int | None:
        return super().stop(number, timeout_s=timeout_s)
