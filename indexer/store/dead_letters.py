"""Events that could not be applied: kept for people, and those that came too early tried again.

A record is JSON of the fields of `DeadLetter`; its number is the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from indexer.events.error import EventError
from indexer.events.event import AdEvent
from indexer.events.parse import event_of, parse_event
from indexer.store.incoming import Incoming
from indexer.store.transaction import ReadTransaction, WriteTransaction
from serving.index.layout import ad_key, number_key

RAW_BYTES = 64 << 10
MAX_BYTES = 1 << 30  # of all letters, as they lie on disk; the oldest make room
MAX_WAITING = 256  # events of one ad that are tried again at each of its changes


@dataclass(frozen=True)
class DeadLetter:
    """An event that could not be applied.

    Attributes:
        number: counts up from 0.
        source: name of the source it came from.
        reason: a word for programs.
        message: what was expected and what came.
        raw: its first 64 KiB, bytes that are not UTF-8 as lone surrogates.
        length: bytes of the whole.
        sha256: of the whole.
        time: unix seconds at which it was refused.
        event: its fields, where it could be parsed.
        waiting: it is tried again whenever its ad changes.
    """

    number: int
    source: str
    reason: str
    message: str
    raw: str
    length: int
    sha256: str
    time: int
    event: dict[str, Any] | None
    waiting: bool

    @classmethod
    def decode(cls, number: int, value: bytes) -> DeadLetter:
        """From its record.

        Raises:
            ValueError: it is damaged.
        """
        try:
            return cls(number, **json.loads(value))
        except (TypeError, RecursionError) as error:
            raise ValueError(f"dead letter {number}: unreadable: {error}") from error

    def encode(self) -> bytes:
        """Record."""
        values = asdict(self)
        del values["number"]
        return json.dumps(values).encode()

    @property
    def raw_bytes(self) -> bytes:
        """What came, cut at 64 KiB."""
        return self.raw.encode(errors="surrogateescape")

    def shown(self) -> dict[str, Any]:
        """All fields for others, as JSON has no place for bytes that are not UTF-8: with a backslash."""
        return vars(self) | {"raw": self.raw_bytes.decode(errors="backslashreplace")}

    def parse(self) -> AdEvent | EventError:
        """The event once more."""
        try:
            if self.event is not None:
                return event_of(self.event)
            if self.length > RAW_BYTES:
                raise EventError("too_long", f"only the first {RAW_BYTES} of {self.length} bytes were kept")
            return parse_event(self.raw_bytes)
        except EventError as error:
            return error

    def version(self) -> int:
        """Version of the event; 0 where it could not be parsed."""
        return self.event["version"] if self.event else 0


class DeadLetters:
    """Dead letters and waiting events inside one write transaction."""

    def __init__(self, writing: WriteTransaction, *, most: int) -> None:
        """`most` letters are kept, the oldest make room."""
        self._writing, self._txn, self._tables, self._most = writing, writing.txn, writing.tables, most

    def add(self, item: Incoming, *, reason: str, message: str, time: int, waits: bool) -> int | None:
        """Keep an event; returns its number, None where the same one waits already."""
        event = item.event if isinstance(item.event, AdEvent) else None
        digest = hashlib.sha256(item.raw).hexdigest()
        waiting = self.waiting(event.ad_id) if waits and event else []
        fields = event.fields() if event else None
        if any(letter.event == fields for letter in map(self.get, waiting)):
            return None
        waits = waits and len(waiting) < MAX_WAITING
        number = self._writing.counters.get("dead_letters", 0)
        self._writing.count("dead_letters")
        raw = item.raw[:RAW_BYTES].decode(errors="surrogateescape")
        letter = DeadLetter(
            number=number,
            source=item.source,
            reason=reason,
            message=message,
            raw=raw,
            length=len(item.raw),
            sha256=digest,
            time=time,
            event=fields,
            waiting=waits,
        )
        self._put(letter)
        if waits and event:
            self._set_waiting(event.ad_id, [*waiting, number])
        self._make_room()
        return number

    def get(self, number: int) -> DeadLetter:
        """A letter that exists.

        Raises:
            ValueError: it does not, or is damaged.
        """
        return get_dead_letter(self._writing, number)

    def waiting(self, ad_id: int) -> list[int]:
        """Numbers of the events that wait for an ad."""
        raw = self._txn.get(ad_key(ad_id), db=self._tables.waiting)
        return np.frombuffer(raw or b"", ">u8").tolist()

    def numbers(self) -> list[int]:
        """Of all letters."""
        with self._txn.cursor(db=self._tables.dead) as cursor:
            return [int.from_bytes(key, "big") for key in cursor.iternext(keys=True, values=False)]

    def remove(self, letter: DeadLetter) -> None:
        """It took effect, or nobody wants it any more."""
        self._txn.delete(number_key(letter.number), db=self._tables.dead)
        self._stop_waiting(letter)

    def refuse(self, letter: DeadLetter, *, reason: str, message: str) -> None:
        """It was tried again and is wrong for another reason, so it waits no longer."""
        self._stop_waiting(letter)
        self._put(replace(letter, reason=reason, message=message, waiting=False))

    def _put(self, letter: DeadLetter) -> None:
        self._txn.put(number_key(letter.number), letter.encode(), db=self._tables.dead)

    def _stop_waiting(self, letter: DeadLetter) -> None:
        if letter.waiting and letter.event:
            ad_id = event_of(letter.event).ad_id
            self._set_waiting(ad_id, [n for n in self.waiting(ad_id) if n != letter.number])

    def _set_waiting(self, ad_id: int, numbers: list[int]) -> None:
        if numbers:
            self._txn.put(ad_key(ad_id), np.array(numbers, ">u8").tobytes(), db=self._tables.waiting)
        else:
            self._txn.delete(ad_key(ad_id), db=self._tables.waiting)

    def _make_room(self) -> None:
        while self._too_many():
            with self._txn.cursor(db=self._tables.dead) as cursor:
                cursor.first()
                number = int.from_bytes(cursor.key(), "big")
            self.remove(self.get(number))
            self._writing.count("dead_letters_forgotten")

    def _too_many(self) -> bool:
        stat = self._txn.stat(self._tables.dead)
        pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return stat["entries"] > self._most or (stat["entries"] > 1 and pages * stat["psize"] > MAX_BYTES)


def get_dead_letter(reading: ReadTransaction, number: int) -> DeadLetter:
    """A letter that exists.

    Raises:
        ValueError: it does not, or is damaged.
    """
    value = reading.txn.get(number_key(number), db=reading.tables.dead)
    if value is None:
        raise ValueError(f"expected the number of a dead letter, got {number}")
    return DeadLetter.decode(number, bytes(value))


def dead_letter_records(
    reading: ReadTransaction, *, after: int, limit: int, max_bytes: int
) -> tuple[list[tuple[int, bytes]], bool]:
    """Numbers and records above `after`, and whether more follow.

    They are at most `limit`, and no more once they have `max_bytes`: a letter alone may have 1.2 MB.
    """
    records: list[tuple[int, bytes]] = []
    size = 0
    for number, record in _records(reading, after=after):
        if len(records) == limit or size >= max_bytes:
            return records, True
        records.append((number, record))
        size += len(record)
    return records, False


def iterate_dead_letters(reading: ReadTransaction, *, after: int = -1) -> Iterator[DeadLetter]:
    """Dead letters above `after` in order of their numbers, one at a time in memory.

    Raises:
        ValueError: one is damaged.
    """
    for number, record in _records(reading, after=after):
        yield DeadLetter.decode(number, record)


def _records(reading: ReadTransaction, *, after: int) -> Iterator[tuple[int, bytes]]:
    with reading.txn.cursor(db=reading.tables.dead) as cursor:
        if cursor.set_range(number_key(after + 1)):
            for key, value in cursor:
                yield int.from_bytes(key, "big"), bytes(value)
