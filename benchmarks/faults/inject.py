"""Faults of a running server, one function each. They leave it to the deployment to recover."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.stubs import Stub, stubs


def stubs_of(shm_prefix: str, model: str) -> list[Stub]:
    """Living processes of a Python model, oldest first."""
    return sorted((s for s in stubs(shm_prefix) if s.model == model), key=lambda s: s.started)


def kill_stub(shm_prefix: str, model: str) -> int:
    """SIGKILL to one process of a model; its process id."""
    pid = stubs_of(shm_prefix, model)[0].pid
    os.kill(pid, signal.SIGKILL)
    return pid


def suspend_stub(shm_prefix: str, model: str, *, seconds: float) -> int:
    """SIGSTOP to one process of a model, SIGCONT after `seconds` if it still lives; its process id."""
    pid = stubs_of(shm_prefix, model)[0].pid
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return pid


@contextlib.contextmanager
def away(folder: Path) -> Iterator[None]:
    """A folder is not there during the block, as an index on a volume that is lost for a moment."""
    other = folder.with_name(f"{folder.name}.away")
    folder.rename(other)
    try:
        yield
    finally:
        other.rename(folder)


@contextlib.contextmanager
def truncated(file: Path) -> Iterator[None]:
    """A file lacks its second half during the block: who has it mapped gets SIGBUS where he reads there."""
    whole = file.read_bytes()
    with file.open("r+b") as opened:
        opened.truncate(len(whole) // 2 // 4096 * 4096)
    try:
        yield
    finally:
        with file.open("r+b") as opened:  # in place: it stays the file that is mapped
            opened.write(whole)
