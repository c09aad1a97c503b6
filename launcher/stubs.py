"""The processes of Python models ("stubs") of one server, and its regions of shared memory.

Both carry the server's own prefix, so that nothing here ever touches another server of the same machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from launcher.processes import process_stat

SHM = Path("/dev/shm")
_STUB = "triton_python_backend_stub"
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2  # linux/falloc.h
_STOPPED = "tT"  # by a signal, by a debugger


class Stub(NamedTuple):
    """One process of a Python model.

    Attributes:
        pid: Its process id.
        model: Name of its model.
        version: Version of its model.
        started: When it started, in clock ticks since boot.
        region: Name of the shared memory in which tensors are handed to it.
    """

    pid: int
    model: str
    version: str
    started: int
    region: str


def stubs(shm_prefix: str) -> list[Stub]:
    """Living processes of the server with this prefix, one an instance of a version of a Python model."""
    return list(_stubs(shm_prefix))


def is_stopped(pid: int) -> bool:
    """Whether a process stands still because of a signal; False for one that is gone."""
    stat = process_stat(pid)
    return stat is not None and stat[0] in _STOPPED


def remove_leftovers(shm_prefix: str) -> None:
    """Ends the stubs and removes the files in memory that a dead server with this prefix has left."""
    deadline = time.monotonic() + 5.0
    while (left := stubs(shm_prefix)) and time.monotonic() < deadline:
        for stub in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stub.pid, signal.SIGKILL)
        time.sleep(0.02)
    for region in SHM.glob(f"{shm_prefix}*"):
        region.unlink(missing_ok=True)


def free_region(name: str) -> None:
    """Removes a region of a stub that has ended, and gives its memory back.

    Removing the name is not enough: Triton keeps it mapped, and with it 16 MiB for each stub that died.
    Punching leaves zeros behind, where truncating would kill whoever reads there.
    """
    path = SHM / name
    try:
        with path.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
            ctypes.CDLL(None).fallocate(file.fileno(), mode, ctypes.c_long(0), ctypes.c_long(size))
        path.unlink()
    except FileNotFoundError:  # Triton was first
        return


def _stubs(shm_prefix: str) -> Iterator[Stub]:
    for entry in Path("/proc").glob("[0-9]*"):
        words = _arguments(entry)
        # <stub> <repository>/<model>/<version>/model.py <region> ...
        if len(words) < 3 or not words[0].endswith(_STUB) or not words[2].startswith(shm_prefix):
            continue
        stat = process_stat(int(entry.name))
        if stat is not None:
            version = Path(words[1]).parent
            yield Stub(
                pid=int(entry.name),
                model=version.parent.name,
                version=version.name,
                started=int(stat[19]),
                region=words[2],
            )


def _arguments(entry: Path) -> list[str]:
    try:
        return (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # gone meanwhile
        return []
