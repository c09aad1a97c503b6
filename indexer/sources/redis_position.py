"""How far a Redis stream was read, and whether it still holds what comes behind.

Redis 7 counts what was ever added to a stream. The count as of an entry goes with its id into the index, so
the entries that vanished between it and the first one left are known. `entries-read` of a group does not
tell: when a group reads past a hole, Redis does not count the hole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from indexer.store.gaps import Gap

EntryId = tuple[int, int]


@dataclass(frozen=True)
class Position:
    """The last entry that was read, and how many were ever added up to it; None where nobody counted."""

    entry: EntryId = (0, 0)
    added: int | None = None

    @classmethod
    def decode(cls, raw: bytes | None) -> Position:
        """From an offset of the index; None is the beginning."""
        entry, _, added = (raw or b"0-0").partition(b" ")
        return cls(entry_id(entry), int(added) if added else None)

    def encode(self) -> bytes:
        """Offset of the index."""
        return (text_of(self.entry) + ("" if self.added is None else f" {self.added}")).encode()


@dataclass(frozen=True)
class StreamInfo:
    """What XINFO STREAM says.

    Attributes:
        first: first entry that is there; None in an empty stream.
        last: last entry that was ever there.
        length: entries that are there.
        added: entries that were ever there; None before Redis 7.
    """

    first: EntryId | None
    last: EntryId
    length: int
    added: int | None

    @classmethod
    def decode(cls, answer: dict[str, Any]) -> StreamInfo:
        """From an answer of redis-py."""
        first, added = answer.get("first-entry"), answer.get("entries-added")
        return cls(
            entry_id(first[0]) if first else None,
            entry_id(answer["last-generated-id"]),
            int(answer["length"]),
            None if added is None else int(added),
        )


def find_gap(info: StreamInfo, position: Position) -> Gap | None:
    """What is missing between a position and what the stream holds behind it; None where nothing is.

    A hole before entries that were read since shows once the position has reached the end of the stream.
    Before the first read of a new index nothing is missing.
    """
    after, added = position.entry, position.added
    caught_up = info.last == after
    if after == (0, 0):
        return None
    resumes = text_of(info.first) if info.first and not caught_up else "the next event"
    if info.last < after:
        return Gap(text_of(after), resumes, lost=None)  # flushed, or restored from an older copy
    if info.first and info.first <= after and not caught_up:
        return None  # what is trimmed is trimmed from the start
    if info.added is None or added is None:
        whole = caught_up or info.first == (after[0], after[1] + 1)
        return None if whole else Gap(text_of(after), resumes, lost=None)
    lost = info.added - added - (0 if caught_up else info.length)
    if lost < 0:  # fewer than at that time: it was made anew
        return Gap(text_of(after), resumes, lost=None)
    return Gap(text_of(after), resumes, lost=lost) if lost else None


def added_before_next(info: StreamInfo, position: Position) -> int | None:
    """Entries that were ever there before the next one behind a position; None where that cannot be told."""
    if info.added is None or info.last == position.entry:
        return info.added
    return info.added - info.length if info.first is None or info.first > position.entry else None


def entry_id(raw: bytes | str) -> EntryId:
    """Milliseconds and number."""
    text = raw.decode() if isinstance(raw, bytes) else raw
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number or 0)


def text_of(entry: EntryId) -> str:
    """As Redis writes it."""
    return f"{entry[0]}-{entry[1]}"
