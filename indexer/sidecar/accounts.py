"""A chore: follows the file of known accounts."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from indexer.store.index_store import IndexStore

log = logging.getLogger("gr4ad.indexer")

_LOOK_S = 5.0


class AccountsFile:
    """Account ids that events may name, one a line; called in the writer's thread, or before it starts."""

    def __init__(self, path: Path, store: IndexStore) -> None:
        """Of an open store; nothing is read yet."""
        self._path, self._store = path, store
        self._seen_ns, self._look_at = 0, 0.0

    def __call__(self) -> None:
        """Hand the accounts to the store when the file has changed; looks every few seconds.

        Raises:
            OSError: it cannot be read; the accounts stay as they are.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        changed_ns = self._path.stat().st_mtime_ns
        if changed_ns != self._seen_ns:
            lines = self._path.read_text().splitlines()
            self._store.accounts = frozenset(line.strip() for line in lines if line.strip())
            self._seen_ns = changed_ns
            log.info("%d accounts read from %s", len(self._store.accounts), self._path)
