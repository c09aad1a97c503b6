"""A function in a process of its own, of low priority: neither its time nor its crash is the writer's."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from serving.index.layout import IndexStoreError


class Beside:
    """Started at once. The function, of a module, and its arguments are handed over pickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Start."""
        context = multiprocessing.get_context("spawn")  # a fork would share the writer's LMDB
        self._result, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(theirs, function, arguments), daemon=True)
        # Ctrl-C goes to the whole group; only the sidecar shall answer it, and end this one by SIGTERM.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def wait(self, timeout_s: float) -> bool:
        """Whether there is a result, or will be none; at the latest after so many seconds."""
        return self._result.poll(timeout_s)

    def result(self) -> Any:
        """What the function returned; once it has ended.

        Raises:
            IndexStoreError: it raised, or its process ended before it returned.
        """
        try:
            done, value = self._result.recv()
        except EOFError:
            self._process.join()
            raise IndexStoreError(f"its process ended with {self._process.exitcode}") from None
        finally:
            self._result.close()
        self._process.join()
        if not done:
            raise IndexStoreError(value)
        return value

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.join()
        self._result.close()


def _run(result: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.nice(10)
    try:
        result.send((True, function(*arguments)))
    except Exception as error:  # whatever it is, the writer goes on
        result.send((False, str(error) or repr(error)))
