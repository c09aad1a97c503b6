"""Moments in which Ctrl-C has to wait."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """SIGINT and SIGTERM of the block are handled at its end: what is half made could not be taken apart.

    An exception in the middle of an import, for example, comes out of an extension as another one.
    """
    if threading.current_thread() is not threading.main_thread():  # it gets no signals
        yield
        return
    noted: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda which, _: noted.append(which)) for number in numbers}
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])
    for caught in noted[:1]:
        signal.raise_signal(caught)
