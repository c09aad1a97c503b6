"""The log on this machine: files of whole lines, `<process>.<number>.jsonl`, a row of them for each writer.

A writer only ever appends to its newest file, and never to one of a process before it: what a crash tears is
the last line of a file, which nobody completes. A reader takes lines that have their end. Where there are too
many files, those go that were not written to for longest; a reader that was not done with one sees a hole in
the numbers.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"(?P<writer>\d{20}-\d+)\.(?P<number>\d{8})\.jsonl", re.ASCII)


@dataclass(frozen=True, order=True)
class Segment:
    """One file of the log.

    Attributes:
        writer: the process that wrote it: when it began, and its number. Later writers sort behind.
        number: place in the row of its writer, from 0.
    """

    writer: str
    number: int

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.writer}.{self.number:08d}.jsonl"


def segments(folder: Path) -> dict[str, list[Segment]]:
    """Files that are there, by writer, oldest first; no folder is no file."""
    found: dict[str, list[Segment]] = {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        if match := _NAME.fullmatch(name):
            found.setdefault(match["writer"], []).append(Segment(match["writer"], int(match["number"])))
    return found


class SegmentWriter:
    """Appends to files of its own; for one thread."""

    def __init__(self, folder: Path, *, file_bytes: int, keep_files: int) -> None:
        """Nothing is opened or made before the first write.

        Args:
            folder: of all writers.
            file_bytes: a file that has so many gets no more.
            keep_files: of all writers.
        """
        self._folder, self._file_bytes, self._keep = folder, file_bytes, keep_files
        self._writer = f"{time.time_ns():020d}-{os.getpid()}"
        self._number, self._file, self._size = -1, -1, 0

    def write(self, lines: Sequence[bytes]) -> None:
        """Append lines, all of them or none.

        Raises:
            OSError: the disk is full or not writable; nothing of these lines stays.
        """
        if self._file < 0 or self._size >= self._file_bytes:
            self._next()
        content = memoryview(b"".join(line + b"\n" for line in lines))
        written = 0
        try:
            while written < len(content):
                written += os.write(self._file, content[written:])
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += written

    def close(self) -> None:
        """Close the file; the next write begins another one."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _next(self) -> None:
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        following = Segment(self._writer, self._number + 1)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._folder / following.name, flags, 0o640)
        self._number, self._size = following.number, 0
        self._remove_old()

    def _remove_old(self) -> None:
        names = [segment.name for row in segments(self._folder).values() for segment in row]
        written: list[tuple[int, str]] = []
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another writer was faster
                written.append(((self._folder / name).stat().st_mtime_ns, name))
        for _, name in sorted(written)[: -self._keep]:
            (self._folder / name).unlink(missing_ok=True)


def read_lines(folder: Path, segment: Segment, *, start: int, limit: int) -> tuple[list[bytes], int]:
    """Whole lines of a file, from a position on.

    Args:
        folder: of the log.
        segment: the file.
        start: where a line begins.
        limit: bytes to look at, at most; more than the longest line.

    Returns:
        The lines, and where the next one begins. A line without its end is not among them.

    Raises:
        OSError: the file is gone or cannot be read.
        ValueError: a line is longer than `limit`.
    """
    with (folder / segment.name).open("rb") as file:
        file.seek(start)
        content = file.read(limit)
    whole, end, _ = content.rpartition(b"\n")
    if not end:
        if len(content) == limit:
            raise ValueError(f"{folder / segment.name} at {start}: expected lines below {limit} bytes")
        return [], start
    return whole.split(b"\n"), start + len(whole) + 1
