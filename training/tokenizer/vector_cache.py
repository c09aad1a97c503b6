"""Vectors that cost time, kept by the content they were made of.

One SQLite file. It is written every few hundred texts, so a run that was killed goes on where it was; a row
that was damaged is computed again, and a file that is no cache any more is made anew.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np
from tqdm import tqdm

logger = logging.getLogger(__name__)

_BATCH = 256  # texts that a kill may cost
_SCHEMA = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"


def beside(folder: Path) -> Path:
    """The file of the tokenizer in a folder: beside it, so that a tokenizer made anew finds it."""
    return folder.parent / "vectors.sqlite"


class VectorCache:
    """int16 vectors of one model's texts."""

    def __init__(self, path: Path | None, *, model: str) -> None:
        """Open nothing yet.

        Args:
            path: file, made where there is none; None keeps nothing.
            model: what names the model and its version; vectors of another one are not found.
        """
        self._path, self._model = path, model

    def vectors(
        self, texts: Sequence[str], make: Callable[[str], np.ndarray], *, workers: int = 1
    ) -> list[np.ndarray]:
        """Vectors of texts, those that are not known made and kept, with progress.

        Args:
            texts: each once.
            make: int16 vector of a text; called by `workers` threads at once.
            workers: threads.

        Raises:
            OSError: the file cannot be made or written.
        """
        try:
            return self._vectors(texts, make, workers=workers)
        except sqlite3.OperationalError as error:  # locked, disk full
            raise OSError(
                f"{self._path}: expected a cache of vectors that can be written ({error})"
            ) from error
        except sqlite3.DatabaseError as error:
            if self._path is None:
                raise
            logger.warning("%s: the cache of vectors is damaged (%s); it is made anew", self._path, error)
            self._path.unlink()
            return self._vectors(texts, make, workers=workers)

    def _vectors(
        self, texts: Sequence[str], make: Callable[[str], np.ndarray], *, workers: int
    ) -> list[np.ndarray]:
        keys = [blake2b(f"{self._model}\0{text}".encode(), digest_size=16).digest() for text in texts]
        with self._open() as database, ThreadPoolExecutor(workers) as pool:
            found = {key: row for key in keys if (row := _read(database, key)) is not None}
            missing = [(key, text) for key, text in zip(keys, texts, strict=True) if key not in found]
            with tqdm(total=len(missing), desc="embed", unit="text", disable=len(missing) < _BATCH) as bar:
                for start in range(0, len(missing), _BATCH):
                    batch = missing[start : start + _BATCH]
                    made = pool.map(make, [text for _, text in batch])
                    rows = {key: vector for (key, _), vector in zip(batch, made, strict=True)}
                    with database:  # a transaction
                        database.executemany(
                            "INSERT OR REPLACE INTO vectors VALUES (?, ?)",
                            [(key, _checked(vector.tobytes())) for key, vector in rows.items()],
                        )
                    found |= rows
                    bar.update(len(batch))
        return [found[key] for key in keys]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        if self._path is None:
            with closing(_connect(":memory:")) as database:
                yield database
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            database = _connect(self._path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, or a folder that cannot be written
                raise OSError(f"{self._path}: expected a cache of vectors to open ({error})") from error
            logger.warning("%s: no cache of vectors (%s); it is made anew", self._path, error)
            self._path.unlink()
            database = _connect(self._path)
        with closing(database):
            yield database


def _connect(path: Path | str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=60)
    try:
        with database:
            database.execute(_SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database


def _read(database: sqlite3.Connection, key: bytes) -> np.ndarray | None:
    row = database.execute("SELECT value FROM vectors WHERE key = ?", (key,)).fetchone()
    if row is None or _checked(row[0][:-8]) != row[0]:
        return None
    return np.frombuffer(row[0][:-8], np.int16)


def _checked(content: bytes) -> bytes:
    return content + blake2b(content, digest_size=8).digest()
