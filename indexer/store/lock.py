"""The writer's lock: one writer an index, whichever process it is in."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from serving.index.layout import LOCK, IndexStoreError


class WriterLock:
    """Held from construction to `close`, or to the end of the process."""

    def __init__(self, path: Path) -> None:
        """Take the lock of the index at `path`; the folder is made where it is missing.

        Raises:
            IndexStoreError: somebody holds it (its process id is in the message where known), or the folder
                cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._file = (path / LOCK).open("a+")  # not "w", which would empty the holder's file
        except OSError as error:
            raise IndexStoreError(f"index {path}: cannot be written: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read(32).strip()
            self._file.close()
            raise IndexStoreError(
                f"index {path}: another writer holds it"
                + (f" (process {holder})" if holder.isdigit() else "")
                + "; stop it first, or ask the sidecar to do it"
            ) from error
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def close(self) -> None:
        """Let go."""
        self._file.close()
