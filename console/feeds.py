"""Where looks come from: the services of a deployment, read all at once, or a recording played back."""

from __future__ import annotations

import lzma
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from console.learning import Earned, Learnt, read_earned, read_learnt
from console.reading import BUNDLES, LOOP, TRAINER, Feed, Reading, line_of, recorded
from console.versions import Versions, read_versions
from web.pages import read_page

_T = TypeVar("_T")
_TIMEOUT_S = 1.0
_FOLDER_EVERY_S = 1.0


class LiveFeed:
    """Reads every source once a turn, for all viewers together."""

    def __init__(
        self, urls: Mapping[str, str], *, bundles: Path | None, hz: float, run: Path | None = None
    ) -> None:
        """Read nothing yet.

        Args:
            urls: of metrics pages, by source.
            bundles: folder of model versions; None for none.
            hz: turns a second.
            run: run folder in which a trainer, or a loop, may write; None for none.
        """
        self._urls, self._bundles, self._run, self._period = dict(urls), bundles, run, 1.0 / hz
        self._versions: Versions | str | None = None
        self._learnt: Learnt | str | None = None
        self._earned: Earned | str | None = None
        self._folder_at = -float("inf")

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """See `Feed`. A source that is slow holds a turn up for a second at most."""
        due = time.monotonic()
        with ThreadPoolExecutor(max_workers=len(self._urls) or 1) as pool:
            while not stop.wait(max(0.0, due - time.monotonic())):
                due = max(due + self._period, time.monotonic())
                yield self._read(pool)

    def _read(self, pool: ThreadPoolExecutor) -> Reading:
        at, asked = time.time(), {name: pool.submit(_page, url) for name, url in self._urls.items()}
        pages, problems = {}, {}
        for name, answer in asked.items():
            try:
                pages[name] = answer.result()
            except (OSError, ValueError) as error:
                problems[name] = f"{self._urls[name]}: {error}"
        if time.monotonic() - self._folder_at >= _FOLDER_EVERY_S:
            self._folder_at = time.monotonic()
            self._versions = _read(read_versions, self._bundles)
            self._learnt, self._earned = _read(read_learnt, self._run), _read(read_earned, self._run)
        found = {"versions": self._versions, "learnt": self._learnt, "earned": self._earned}
        sources = {"versions": BUNDLES, "learnt": TRAINER, "earned": LOOP}
        problems |= {sources[name]: said for name, said in found.items() if isinstance(said, str)}
        whole: dict[str, Any] = {name: one for name, one in found.items() if not isinstance(one, str)}
        return Reading(at=at, pages=pages, problems=problems, **whole)


class Recorded:
    """Another feed, written to a file on the way."""

    def __init__(self, feed: Feed, path: Path) -> None:
        """Begin the file.

        Raises:
            OSError: it cannot be written.
        """
        path.write_bytes(b"")
        self._feed, self._path = feed, path

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """See `Feed`.

        Raises:
            OSError: the file cannot take more.
        """
        with lzma.open(self._path, "wt", encoding="utf-8") as file:
            for reading in self._feed.readings(stop):
                file.write(line_of(reading))
                yield reading


class Replay:
    """Plays a recording once, as fast as it was recorded, or faster."""

    def __init__(self, path: Path, *, speed: float) -> None:
        """Play it `speed` times as fast.

        Raises:
            OSError, ValueError: see `recorded`.
        """
        next(recorded(path), None)  # what is no recording is told now
        self._path, self._speed = path, speed

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """See `Feed`. Times are those of the recording.

        Raises:
            OSError, ValueError: see `recorded`.
        """
        began, first = time.monotonic(), None
        for reading in recorded(self._path):
            first = reading.at if first is None else first
            due = began + (reading.at - first) / self._speed
            if stop.wait(max(0.0, due - time.monotonic())):
                return
            yield reading


def _read(look: Callable[[Path], _T], folder: Path | None) -> _T | str | None:
    """What a look at a folder finds, or why it finds nothing; None without a folder."""
    try:
        return None if folder is None else look(folder)
    except (OSError, ValueError) as error:
        return str(error)


def _page(url: str) -> str:
    return read_page(url, timeout_s=_TIMEOUT_S).decode("utf-8", "replace")
