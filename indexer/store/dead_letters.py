"""Events that could not be applied: kept for people, and those that came too early tried again.

A record is JSON: source, reason, message, raw (its first 64 KiB, bytes that are not UTF-8 as lone
surrogates), length and sha256 of the whole, time, event (its fields, where it could be parsed), waiting (it
is tried again).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import lmdb
import numpy as np

from indexer.events.event import AdEvent, EventError, EventLimits, parse_event
from indexer.store.tables import Tables
from serving.index.layout import ad_key, number_key

RAW_BYTES = 64 << 10
MAX_WAITING = 256  # events of one ad that are tried again at each of its changes


@dataclass(frozen=True)
class Incoming:
    """An event as a source delivers it.

    Attributes:
        event: parsed, or why it could not be.
        raw: as it came, for the dead letters.
        source: name of the source.
    """

    event: AdEvent | EventError
    raw: bytes
    source: str


@dataclass(frozen=True)
class DeadLetter:
    """An event that could not be applied; see the module."""

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

    def parse(self, limits: EventLimits) -> AdEvent | EventError:
        """The event once more, under the limits of today."""
        if self.event is not None:
            return AdEvent(**self.event)
        if self.length > RAW_BYTES:
            return EventError("too_long", f"only the first {RAW_BYTES} of {self.length} bytes were kept")
        try:
            return parse_event(self.raw_bytes, limits=limits)
        except EventError as error:
            return error


class DeadLetters:
    """Dead letters and waiting events inside one write transaction."""

    def __init__(
        self, transaction: lmdb.Transaction, tables: Tables, *, counters: dict[str, int], most: int
    ) -> None:
        """`most` letters are kept, the oldest make room; `counters` are changed in place."""
        self._transaction, self._tables, self._counters, self._most = transaction, tables, counters, most

    def add(self, item: Incoming, *, reason: str, message: str, time: int, waits: bool) -> int | None:
        """Keep an event; returns its number, None where the same one waits already."""
        event = item.event if isinstance(item.event, AdEvent) else None
        digest = hashlib.sha256(item.raw).hexdigest()
        waiting = self.waiting(event.ad_id) if waits and event else []
        fields = event.fields() if event else None
        if any(letter.event == fields for letter in map(self.get, waiting)):
            return None
        waits = waits and len(waiting) < MAX_WAITING
        number = self._counters.get("dead_letters", 0)
        self._counters["dead_letters"] = number + 1
        raw = item.raw[:RAW_BYTES].decode(errors="surrogateescape")
        letter = DeadLetter(
            number, item.source, reason, message, raw, len(item.raw), digest, time, fields, waits
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
        value = self._transaction.get(number_key(number), db=self._tables.dead)
        if value is None:
            raise ValueError(f"expected the number of a dead letter, got {number}")
        return DeadLetter.decode(number, bytes(value))

    def waiting(self, ad_id: int) -> list[int]:
        """Numbers of the events that wait for an ad."""
        raw = self._transaction.get(ad_key(ad_id), db=self._tables.waiting)
        return np.frombuffer(raw or b"", ">u8").tolist()

    def remove(self, letter: DeadLetter) -> None:
        """It took effect, or nobody wants it any more."""
        self._transaction.delete(number_key(letter.number), db=self._tables.dead)
        self._stop_waiting(letter)

    def refuse(self, letter: DeadLetter, *, reason: str, message: str) -> None:
        """It was tried again and is wrong for another reason, so it waits no longer."""
        self._stop_waiting(letter)
        self._put(DeadLetter(**(vars(letter) | {"reason": reason, "message": message, "waiting": False})))

    def _put(self, letter: DeadLetter) -> None:
        self._transaction.put(number_key(letter.number), letter.encode(), db=self._tables.dead)

    def _stop_waiting(self, letter: DeadLetter) -> None:
        if letter.waiting and letter.event:
            ad_id = letter.event["ad_id"]
            self._set_waiting(ad_id, [n for n in self.waiting(ad_id) if n != letter.number])

    def _set_waiting(self, ad_id: int, numbers: list[int]) -> None:
        if numbers:
            self._transaction.put(ad_key(ad_id), np.array(numbers, ">u8").tobytes(), db=self._tables.waiting)
        else:
            self._transaction.delete(ad_key(ad_id), db=self._tables.waiting)

    def _make_room(self) -> None:
        while self._transaction.stat(self._tables.dead)["entries"] > self._most:
            with self._transaction.cursor(db=self._tables.dead) as cursor:
                cursor.first()
                number = int.from_bytes(cursor.key(), "big")
            self.remove(self.get(number))
            self._counters["dead_letters_forgotten"] = self._counters.get("dead_letters_forgotten", 0) + 1


def list_dead_letters(
    transaction: lmdb.Transaction, tables: Tables, *, after: int = -1, limit: int | None = None
) -> list[DeadLetter]:
    """Dead letters in order of their numbers, at most `limit` of those above `after`."""
    letters: list[DeadLetter] = []
    with transaction.cursor(db=tables.dead) as cursor:
        if cursor.set_range(number_key(after + 1)):
            for key, value in cursor:
                if limit is not None and len(letters) >= limit:
                    break
                letters.append(DeadLetter.decode(int.from_bytes(key, "big"), bytes(value)))
    return letters
