"""Steps of a benchmark that are commands of the project, as processes that end with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from launcher import child

_ENDS_S = 30.0  # for a step that is told to stop, before it is killed
_running: set[subprocess.Popen[bytes]] = set()

T = TypeVar("T")


def status_of(module: str, *options: object, log: Path | None = None, cwd: Path | None = None) -> int:
    """Run a module to its end; its exit status.

    It gets SIGTERM when this process ends, however that happens, and shares its terminal, so its Ctrl-C.

    Args:
        module: as behind `python -m`.
        options: of its command line.
        log: is appended what it prints; None for where this process prints.
        cwd: folder to run it in.
    """
    command = [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), sys.executable, "-m", module]
    with ExitStack() as stack:
        output = stack.enter_context(log.open("ab")) if log else None
        process = subprocess.Popen([*command, *map(str, options)], cwd=cwd, stdout=output, stderr=output)
        _running.add(process)
        try:
            return process.wait()
        except KeyboardInterrupt:
            _end(process)
            raise
        finally:
            _running.discard(process)


def run_step(module: str, *options: object, of: str = "", log: Path | None = None) -> None:
    """`status_of`, of which only 0 will do.

    Args:
        module: see `status_of`.
        options: see `status_of`.
        of: what it is a step of, for the terminal.
        log: see `status_of`.

    Raises:
        SystemExit: it failed; says which, and where its log is.
    """
    name = f"{of}, {module}" if of else module
    if log:
        print(f"{name} (log: {log})", flush=True)
    status = status_of(module, *options, log=log)
    if status:
        raise SystemExit(f"error: {name}: status {status}" + (f"; see {log}" if log else ""))


def all_of(jobs: Sequence[Callable[[], T]], *, at_once: int) -> list[T]:
    """Results of jobs that are made of steps, so many of them at a time.

    Where one fails, or Ctrl-C comes, no other is begun, and steps that run are told to stop.

    Args:
        jobs: in the order to begin them in.
        at_once: so many at a time.
    """
    pool = ThreadPoolExecutor(at_once)
    futures = [pool.submit(job) for job in jobs]
    try:
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        return [future.result() for future in futures]
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in futures):  # a job may begin its next step meanwhile
            for process in [*_running]:
                _end(process)
            wait(futures, timeout=0.1)
        raise
    finally:
        pool.shutdown()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_ENDS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
