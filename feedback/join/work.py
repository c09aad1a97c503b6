"""One transaction of the join: what it read, what it changed, written together at its end."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import lmdb
import numpy as np

from feedback.join.rules import JoinConfig, facts_of
from feedback.store.histories import with_event
from feedback.store.layout import EVENT, number_key
from feedback.store.meta import STATE, Meta
from feedback.store.requests import RequestState
from feedback.store.samples import encode_sample

Tables = Mapping[str, Any]
_SHOWN = 4096  # bytes that are kept of what was not taken


class Work:
    """Within one LMDB write transaction; `finish` writes what is changed, before the commit.

    Attributes:
        sequence: of the newest sample.
        newest: time of the newest served request.
        counters: as `feedback.store.meta.Meta`.
    """

    def __init__(self, txn: lmdb.Transaction, tables: Tables, *, config: JoinConfig) -> None:
        """Begin."""
        self._txn, self._tables, self._config = txn, tables, config
        self._meta = Meta.decode(txn.get(STATE, db=tables["meta"]))
        self.sequence, self.newest = self._meta.sequence, self._meta.newest
        self.waiting, self._rejected = self._meta.waiting, self._meta.rejected
        self.counters = Counter(self._meta.counters)
        self._states: dict[bytes, RequestState | None] = {}
        self._changed: set[bytes] = set()
        self._histories: dict[int, np.ndarray] = {}

    def state(self, digest: bytes) -> RequestState | None:
        """What is known of a request; None for nothing."""
        if digest not in self._states:
            raw = self._txn.get(digest, db=self._tables["requests"])
            self._states[digest] = None if raw is None else RequestState.decode(bytes(raw))
        return self._states[digest]

    def put(self, digest: bytes, state: RequestState) -> None:
        """A request is new or has changed."""
        self._states[digest] = state
        self._changed.add(digest)

    def put_record(self, digest: bytes, raw: bytes) -> None:
        """Keep a served record as it came."""
        self._txn.put(digest, raw, db=self._tables["records"])

    def look_at(self, digest: bytes, when: float) -> None:
        """Have a request among those that are due at a time, seconds."""
        self._txn.put(number_key(max(math.ceil(when * 1000), 0)) + digest, b"", db=self._tables["due"])

    def due(self, now: float, *, limit: int) -> Iterator[bytes]:
        """Requests that are due, the first ones; each is due no more."""
        last = number_key(max(int(now * 1000), 0))
        with self._txn.cursor(db=self._tables["due"]) as cursor:
            keys = list[bytes]()
            for key in cursor.iternext(keys=True, values=False) if cursor.first() else ():
                if bytes(key)[:8] > last or len(keys) == limit:
                    break
                keys.append(bytes(key))
        for key in keys:
            self._txn.delete(key, db=self._tables["due"])
            yield key[8:]

    def forget(self, digest: bytes) -> None:
        """Nothing is known of a request from now on."""
        self._states[digest] = None
        self._changed.discard(digest)
        for table in ("requests", "records"):
            self._txn.delete(digest, db=self._tables[table])

    def emit(self, digest: bytes, state: RequestState) -> None:
        """A sample of what came of a request within its window, or, after the first, of all that is known."""
        facts = facts_of(state)
        if state.revision == 0:
            first = facts_of(state, within_s=self._config.window_s)
            self._sample(digest, state, first)
            if len(first) == len(facts):
                return
        self._sample(digest, state, facts)

    def _sample(self, digest: bytes, state: RequestState, facts: list[tuple[int, int, int, float]]) -> None:
        record = bytes(self._txn.get(digest, b"", db=self._tables["records"]))
        self.sequence += 1
        value = encode_sample(record, revision=state.revision, facts=facts)
        self._txn.put(number_key(self.sequence), value, db=self._tables["samples"])
        if (old := self.sequence - self._config.keep_samples) > 0:
            self._txn.delete(number_key(old), db=self._tables["samples"])
        self.counters["corrections" if state.revision else "samples"] += 1
        state.revision += 1
        self.put(digest, state)

    def remember(self, user: int, digest: bytes, fact: tuple[int, int, int]) -> None:
        """Put what a request led to (seconds, ad, behavior) into its user's history."""
        if user not in self._histories:
            raw = self._txn.get(number_key(user), db=self._tables["histories"])
            self._histories[user] = np.frombuffer(raw or b"", EVENT).copy()
        event = (*fact, digest[:8])
        self._histories[user] = with_event(self._histories[user], event, most=self._config.max_history)

    def reject(self, source: str, raw: bytes, *, reason: str, message: str, time_s: float) -> None:
        """Keep what was not taken, and why."""
        self._rejected += 1
        shown = {
            "source": source,
            "reason": reason,
            "message": message,
            "raw": raw[:_SHOWN].decode(errors="backslashreplace"),
            "time": int(time_s),
        }
        self._txn.put(number_key(self._rejected), json.dumps(shown).encode(), db=self._tables["rejected"])
        if (old := self._rejected - self._config.keep_rejected) > 0:
            self._txn.delete(number_key(old), db=self._tables["rejected"])

    def finish(self, offsets: Mapping[str, bytes]) -> None:
        """Write what has changed, and where the sources stand."""
        for digest in self._changed:
            state = self._states[digest]
            assert state is not None
            self._txn.put(digest, state.encode(), db=self._tables["requests"])
        for user, history in self._histories.items():
            self._txn.put(number_key(user), history.tobytes(), db=self._tables["histories"])
        for source, offset in offsets.items():
            self._txn.put(source.encode(), offset, db=self._tables["offsets"])
        after = replace(
            self._meta,
            sequence=self.sequence,
            newest=self.newest,
            waiting=self.waiting,
            rejected=self._rejected,
            counters=dict(self.counters),
        )
        if after != self._meta:
            self._txn.put(STATE, after.encode(), db=self._tables["meta"])
