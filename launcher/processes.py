"""Processes: start one that ends with this one, end it, ask the system about one."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher import child
from launcher.server_files import ServerError

MIN_FILES = 1024
"""Files that a process of ours must be allowed to open: connections, models, the index."""


def raise_file_limit() -> int:
    """Lets this process, and those that it starts, open as many files as the system allows; returns how many.

    Raises:
        ServerError: they are fewer than `MIN_FILES`: a server that runs out of them writes its log full.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    # Not above a million: some programs close every number that they might have, one by one.
    wanted = 1 << 20 if unlimited else min(hard, 1 << 20)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft < MIN_FILES:
        raise ServerError(f"open files (ulimit -n): expected a limit of at least {MIN_FILES}, got {soft}")
    return soft


def start_process(
    command: Sequence[str],
    *,
    output: int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a command in a session of its own; it gets SIGTERM when the thread that calls this ends.

    Args:
        command: The command.
        output: File descriptor for what it prints; None leaves it this process's.
        env: Its whole environment; None for this process's.
        cwd: Its folder.
    """
    wrapper = [sys.executable, "-I", "-S", child.__file__, str(os.getpid())]
    return subprocess.Popen(
        [*wrapper, *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        env=None if env is None else dict(env),
        cwd=cwd,
        start_new_session=True,
    )


def end_process(process: subprocess.Popen[bytes], *, kill_after_s: float) -> int:
    """Sends SIGTERM, and SIGKILL to its group when that does not help; returns the exit status."""
    if process.poll() is None:
        process.terminate()
        try:
            return process.wait(kill_after_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def process_stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the state on (see proc(5)); None for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
