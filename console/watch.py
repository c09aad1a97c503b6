"""The one thread that looks at the sources, for all viewers together."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from console.board import Board
from console.frames import Frames
from console.reading import Feed

logger = logging.getLogger(__name__)


class Watch:
    """Puts a frame on the board for every look of a feed, while the block runs."""

    def __init__(self, board: Board, feed: Feed) -> None:
        """Look at nothing yet."""
        self._board, self._feed, self._stop = board, feed, threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, after the look in hand."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        frames = Frames()
        try:
            for reading in self._feed.readings(self._stop):
                self._board.publish(frames.add(reading))
        except (OSError, ValueError) as error:  # of a recording; what a service answers ends nothing
            logger.error("no more frames: %s", error)
