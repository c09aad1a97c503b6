"""The sidecar as the process that users start."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from indexer.store.index_store import IndexStore
from launcher import indexer_process
from tests.indexing import LEVEL_SIZES, write_manifest


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


def indexed(folder: Path, *, ads: int) -> Path:
    """Fill a folder with bundles and an index, all of whose ads are active; returns it."""
    write_manifest(folder / "bundles", 1, "tok-a")
    random = np.random.default_rng(0)
    sids = np.stack([random.integers(0, v, ads) for v in LEVEL_SIZES], axis=1).astype(np.int32)
    with IndexStore(folder / "index") as store:
        store.build("tok-a", LEVEL_SIZES, ad_ids=np.arange(ads), sids=sids, statuses=np.full(ads, "active"))
    return folder


@contextmanager
def sidecars(folder: Path) -> Iterator[Callable[..., IndexerProcess]]:
    """Starts sidecars of an `indexed` folder; those that still run at the end are killed."""
    running: list[IndexerProcess] = []

    def start(*options: str, **settings: Any) -> IndexerProcess:
        paths = ["--index", str(folder / "index"), "--bundles", str(folder / "bundles")]
        running.append(IndexerProcess(folder, *paths, *options, **settings))
        return running[-1]

    yield start
    for process in running:
        process.kill()
