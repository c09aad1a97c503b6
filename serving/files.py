"""Files and folders that are there whole or not at all, whatever crashes: written beside, synced, renamed.

And what is read back from them: digests, numbers in names, JSON objects of bounded size.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NUMBER = re.compile("0|[1-9][0-9]{0,17}", re.ASCII)  # fits 64 bits; `isdigit` takes "²" and any length
_MAX_JSON = 64 << 20


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; at the end of the block it is synced and takes the place of `path`.

    An exception in the block leaves `path` as it was, and nothing beside it.

    Raises:
        OSError: the disk is full or not writable.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.new")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_file(path: str | Path, content: bytes | str) -> None:
    """Write a file whole or not at all; text as UTF-8.

    Raises:
        OSError: the disk is full or not writable; an older file stays.
    """
    with new_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def new_folder(folder: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder beside `folder` to fill; at the end of the block it is `folder`, every file synced.

    An exception in the block leaves everything as it was. Where an older folder is replaced, a crash between
    the two renames leaves it beside: whoever reads calls `undo_interrupted` first.

    Args:
        folder: where it will be; parents are made.
        replace: take the place of an older folder.

    Raises:
        FileExistsError: `folder` exists and is not to be replaced.
        OSError: the disk is full or not writable.
    """
    folder = Path(folder)
    work, old = _beside(folder, "new"), _beside(folder, "old")
    if not replace and folder.exists():
        raise FileExistsError(f"{folder}: expected no such folder, it exists")
    undo_interrupted(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
        _sync_all(work)
        shutil.rmtree(old, ignore_errors=True)
        if replace and folder.exists():
            folder.rename(old)
        try:
            work.rename(folder)
        except OSError:
            undo_interrupted(folder)
            raise
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Whoever has the lock of a file or a folder goes on, others wait; it goes with its process.

    Raises:
        OSError: it cannot be opened; a file that is not there is made.
    """
    descriptor = os.open(path, os.O_RDONLY if Path(path).is_dir() else os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def undo_interrupted(folder: str | Path) -> None:
    """Bring back what a replacement moved aside, where a crash stopped it between its two renames."""
    old = _beside(Path(folder), "old")
    if old.is_dir() and not Path(folder).exists():
        old.rename(folder)


def sync(path: str | Path) -> None:
    """Hand a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | Path) -> str:
    """Hex digest of a file.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def number_of(text: str) -> int | None:
    """The whole number that a text or the name of a file spells in at most 18 ASCII digits; None for others.

    Signs, spaces, leading zeros and digits of other alphabets spell none: a number has one name.
    """
    return int(text) if _NUMBER.fullmatch(text) else None


def read_small(path: str | Path, *, limit: int) -> bytes:
    """Content of a regular file of at most `limit` bytes.

    Raises:
        ValueError: it is longer.
        OSError: it cannot be read, or is no regular file; a pipe would be waited for.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: expected a file, got something else of that name")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path}: expected at most {limit:,} bytes, got more")
    return content


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: it holds something else, or more than any of ours does.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(read_small(path, limit=_MAX_JSON))
    except RecursionError as error:
        raise ValueError(f"{path}: expected a JSON object, got brackets too deep to read") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _sync_all(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):  # what a folder holds comes before it
        sync(path)
    sync(folder)
