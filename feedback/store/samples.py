"""Samples in the order in which they were made. Who learns from them keeps the last sequence number.

A trainer reads `after` the number in its checkpoint and saves the new one with the next: what the weights
have learnt and what they are said to have learnt are one file, so nothing is learnt twice or left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import lmdb

from feedback.store.layout import FeedbackStoreError, number_key, number_of, open_environment
from feedback.store.meta import STATE, Meta
from serving.model.features import BEHAVIORS
from serving.served_log.record import ServedRecord

_NAMES = {code: name for name, code in BEHAVIORS.items()}


class TrimmedError(FeedbackStoreError):
    """Samples behind an offset are gone: the reader was away for longer than they are kept.

    Attributes:
        after: offset behind which there are samples again.
    """

    def __init__(self, message: str, *, after: int) -> None:
        """Say what is gone."""
        super().__init__(message)
        self.after = after


@dataclass(frozen=True)
class Fact:
    """One thing that came of one ad.

    Attributes:
        ad_id: of the answer.
        behavior: code of `serving.model.features.BEHAVIORS`.
        timestamp: unix seconds, not before the request.
        value: 0 where none was sent.
    """

    ad_id: int
    behavior: int
    timestamp: int
    value: float


@dataclass(frozen=True)
class JoinedSample:
    """What was served, and what came of it.

    Attributes:
        sequence: offset; from 1.
        revision: 0 for what was known when the window closed; a later one has everything known until then
            and takes the place of those before it.
        record: as it was served.
        facts: by ad and behavior; an ad that nobody reported on has none.
    """

    sequence: int
    revision: int
    record: ServedRecord
    facts: tuple[Fact, ...]

    @cached_property
    def outcomes(self) -> dict[int, Fact]:
        """By ad the fact of its highest behavior: the outcome of an exposure (docs/data.md)."""
        found: dict[int, Fact] = {}
        for fact in sorted(self.facts, key=lambda f: f.behavior):
            found[fact.ad_id] = fact
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Rows of the events table: what was reported, with user, request and place in the answer.

        Of a request that named no user there are none: the table is of users.
        """
        record, places = self.record, {ad: at for at, ad in enumerate(self.record.ad_ids)}
        if record.user_id is None:
            return []
        return [
            {
                "user_id": record.user_id,
                "ad_id": fact.ad_id,
                "timestamp": fact.timestamp,
                "behavior": _NAMES[fact.behavior],
                "value": fact.value,
                "provenance": "served",
                "request_id": record.request_id,
                "position": places[fact.ad_id],
            }
            for fact in self.facts
        ]


def encode_sample(record: bytes, *, revision: int, facts: list[tuple[int, int, int, float]]) -> bytes:
    """Value of a sample; `record` is the line of the served log."""
    head = json.dumps({"revision": revision, "facts": facts})
    return head[:-1].encode() + b', "record": ' + record + b"}"


def decode_sample(sequence: int, raw: bytes) -> JoinedSample:
    """Inverse of `encode_sample`.

    Raises:
        FeedbackStoreError: unreadable.
    """
    try:
        values = json.loads(raw)
        facts = tuple(Fact(*fact) for fact in values["facts"])
        return JoinedSample(sequence, values["revision"], ServedRecord(**values["record"]), facts)
    except (ValueError, TypeError, KeyError) as error:
        raise FeedbackStoreError(f"sample {sequence}: unreadable: {error!r}") from error


class Samples:
    """Reads the samples of a store, beside its writer; once a process."""

    def __init__(self, folder: str | Path) -> None:
        """Open.

        Raises:
            FeedbackStoreError: there is no store.
        """
        self._folder = Path(folder)
        self._environment = open_environment(self._folder, readonly=True)
        try:
            self._meta = self._environment.open_db(b"meta", create=False)
            self._samples = self._environment.open_db(b"samples", create=False)
        except lmdb.Error as error:
            self._environment.close()
            raise FeedbackStoreError(f"{folder}: no feedback store yet: {error}") from error

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Let go of the store."""
        self._environment.close()

    @property
    def newest(self) -> int:
        """Sequence number of the newest sample; 0 where there is none."""
        with self._environment.begin() as txn:
            return Meta.decode(txn.get(STATE, db=self._meta)).sequence

    def read(self, *, after: int, limit: int = 1024) -> list[JoinedSample]:
        """Samples behind an offset, in order; fewer than `limit` where there are no more yet.

        Raises:
            TrimmedError: the next one is gone.
            FeedbackStoreError: one is unreadable; or the offset is of another store.
        """
        with self._environment.begin() as txn:
            newest = Meta.decode(txn.get(STATE, db=self._meta)).sequence
            if after > newest:
                raise FeedbackStoreError(
                    f"{self._folder}: expected an offset of at most {newest}, got {after}: of another store"
                )
            found = list(self._read(txn, after=after, limit=limit))
        if after < newest and (not found or found[0].sequence != after + 1):
            oldest = found[0].sequence if found else newest + 1
            raise TrimmedError(
                f"{self._folder}: samples {after + 1} .. {oldest - 1} are gone, read after {oldest - 1}",
                after=oldest - 1,
            )
        return found

    def _read(self, txn: lmdb.Transaction, *, after: int, limit: int) -> Iterator[JoinedSample]:
        with txn.cursor(db=self._samples) as cursor:
            if not cursor.set_range(number_key(after + 1)):
                return
            for at, (key, value) in enumerate(cursor.iternext()):
                if at == limit:
                    return
                yield decode_sample(number_of(bytes(key)), bytes(value))
