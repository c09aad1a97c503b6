"""The log of a server: bounded in size and in speed, whatever the server writes."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from logging.handlers import RotatingFileHandler
from pathlib import Path

MAX_BYTES = 16 << 20
BACKUPS = 2  # <log>.1 and <log>.2
_BURST_BYTES = 1 << 20
_BYTES_PER_S = 64 << 10
_CHUNK = 64 << 10
_KEPT_LINES, _KEPT_CHARACTERS = 1000, 4000
_NOISE = ("CudaDriverHelper", "CUDA driver version is insufficient")  # said wherever there is no GPU


class ServerLog:
    """A thread that takes what processes print from a pipe and writes it to a file that rotates.

    A server that runs out of file descriptors writes 20 MB of errors a second. Here it gets a mebibyte at
    once and 64 KiB a second after that; what is more is counted and left out, so that the cause stays in the
    file.
    """

    def __init__(self, path: Path | None) -> None:
        """Empties the file and begins; `stream` is the end of the pipe for those who print.

        Args:
            path: the file; None for this process's standard output, whose owner bounds it.
        """
        self._handler: logging.Handler = logging.StreamHandler(sys.stdout)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in rotated(path):
                old.unlink(missing_ok=True)
            self._handler = RotatingFileHandler(
                path, maxBytes=MAX_BYTES, backupCount=BACKUPS, errors="replace"
            )
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._reader, writer = os.pipe()
        self.stream = os.fdopen(writer, "w", buffering=1)
        self._thread = threading.Thread(target=self._run, name="server-log", daemon=True)
        self._thread.start()

    def lines(self) -> list[str]:
        """The last lines, a thousand at most."""
        return list(self._lines)

    def errors(self) -> list[str]:
        """The last lines Triton marks as errors: its long tables push them out of the log's end."""
        errors = [line for line in self.lines() if line[:1] == "E" and line[1:5].isdigit()]
        return [line for line in errors if not any(text in line for text in _NOISE)][-25:]

    def close(self, timeout_s: float = 5.0) -> None:
        """Waits for the rest; not for somebody who still holds the pipe."""
        self.stream.close()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        left_over, budget, at, skipped = b"", float(_BURST_BYTES), time.monotonic(), 0
        is_whole = True
        while chunk := os.read(self._reader, _CHUNK):
            now = time.monotonic()
            budget = min(budget + (now - at) * _BYTES_PER_S, _BURST_BYTES)
            at = now
            # Whole seconds at once: where every byte that fits is taken, bits of lines get through.
            if len(chunk) > budget or (skipped and budget < _BYTES_PER_S):
                skipped += chunk.count(b"\n")
                is_whole = chunk.endswith(b"\n")
                continue
            budget -= len(chunk)
            if skipped:
                self._write(f"... {skipped} lines left out: more than {_BYTES_PER_S >> 10} KiB a second")
                left_over, skipped = b"", 0
                chunk = chunk if is_whole else chunk.partition(b"\n")[2]
            *lines, left_over = (left_over + chunk).split(b"\n")
            for line in lines:
                self._write(line.decode(errors="replace"))
        if left_over:
            self._write(left_over.decode(errors="replace"))
        os.close(self._reader)
        self._handler.close()

    def _write(self, line: str) -> None:
        self._lines.append(line[:_KEPT_CHARACTERS])
        # A full disk must not end the thread: the server would wait for its pipe. (`emit` tells stderr.)
        self._handler.emit(logging.makeLogRecord({"msg": line}))


def rotated(path: Path) -> list[Path]:
    """A log and what was rotated out of it."""
    return [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, BACKUPS + 1))]


def tail(path: Path, *, max_bytes: int, start: int = 0) -> str:
    """The last bytes of a file that may be long, none before `start`; empty for one that is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - max_bytes, start))
            return file.read(max_bytes).decode(errors="replace")
    except OSError:
        return ""
