"""Records from the served log's files, each handed over once: the store's offsets decide.

A writer's row of files is a source of its own, `served:<writer>`; its offset is the number of a file and the
byte behind the last line that took effect.
"""

from __future__ import annotations

from pathlib import Path

from feedback.events.parse import SERVED
from indexer.sources.source import OffsetOf, OnGap, Source, Taker, log
from indexer.sources.submission import Item
from indexer.store.gaps import Gap
from serving.served_log.record import MAX_RECORD_BYTES
from serving.served_log.segments import Segment, read_lines, segments

_IDLE_S = 0.1
_READ_BYTES = 2 * MAX_RECORD_BYTES
_LINES = 256  # of one submission
Position = tuple[int, int]
"""Number of a file, and byte in it."""


class ServedFiles(Source):
    """Follows all files of a folder, those to come too."""

    failures = (OSError,)

    def __init__(self, folder: Path, worker: Taker, *, offset_of: OffsetOf, on_gap: OnGap) -> None:
        """Prepare; the folder need not be there yet."""
        self.name = f"{SERVED}{folder.name}"
        self._folder = folder
        self._at: dict[str, Position] = {}  # by writer: where the next line begins
        self._behind: set[str] = set()  # writers whose last line was not seen yet
        super().__init__(worker, offset_of=offset_of, on_gap=on_gap)

    def _open(self) -> None:
        """Nothing to connect to."""

    def _close(self) -> None:
        """Nothing is held open."""

    def _acknowledge(self) -> None:
        """Nobody is to be told: the log keeps its files for as long as it was told to."""

    def _poll(self) -> None:
        found, taken = segments(self._folder), 0
        for writer, row in found.items():
            taken += self._follow(writer, row)
        for writer in self._at.keys() - found.keys():  # all of its files are gone
            position = self._at.pop(writer)
            if writer in self._behind:
                self._missing(writer, position, "another server's records")
            self._behind.discard(writer)
        if not taken:
            self._stop.wait(_IDLE_S)

    def _follow(self, writer: str, row: list[Segment]) -> int:
        """Hand over the next lines of a writer's files; how many."""
        number, start = self._at.get(writer) or self._stored(writer)
        if row[0].number > number:
            self._missing(writer, (number, start), f"file {row[0].number}")
            number, start = row[0].number, 0
        self._at[writer] = number, start
        self._behind.add(writer)
        try:
            lines, end = read_lines(self._folder, Segment(writer, number), start=start, limit=_READ_BYTES)
        except FileNotFoundError:  # removed a moment ago: the next look sees the hole
            return 0
        if not lines and row[-1].number > number:
            self._at[writer] = number + 1, 0  # this file gets no more lines, and its torn rest is nobody's
            return 0
        if not lines:
            self._behind.discard(writer)
            return 0
        if len(lines) > _LINES:
            lines = lines[:_LINES]
            end = start + sum(len(line) + 1 for line in lines)
        items, at = [], start
        for line in lines:
            at += len(line) + 1
            items.append(Item(line, SERVED + writer, f"{number} {at}".encode()))
        if self._worker.submit(items, kept=True, stop=self._stop) is None:
            return 0
        self._at[writer] = (number, end)
        self.state.received += len(items)
        return len(items)

    def _stored(self, writer: str) -> Position:
        offset = self._offset_of(SERVED + writer)
        if offset is None:
            return 0, 0
        number, _, start = offset.decode().partition(" ")
        return int(number), int(start)

    def _missing(self, writer: str, position: Position, resumes: str) -> None:
        gap = Gap(f"file {position[0]}, byte {position[1]}", resumes, lost=None)
        log.error("%s%s: %s", SERVED, writer, gap)
        self._on_gap(SERVED + writer, gap)
