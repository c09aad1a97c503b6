"""A batch of events inside one write transaction: ads are read, changed, encoded and written once each.

Letters: N ads of the batch with new content, T levels.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import lmdb
import numpy as np

from indexer.encode.encoder import Encoder, encode_contents
from indexer.events.event import CONTENT_FIELDS, AdEvent, EventError
from indexer.store.dead_letters import DeadLetter, DeadLetters, Incoming
from indexer.store.registers import PASSING_REASONS, WAITING_REASONS, AdState, Decision, Result, decide
from indexer.store.tables import Tables
from serving.index.layout import ACTIVE, StoreMeta, ad_key, change_dtype, number_key, sid_key

_AD = struct.Struct("<Bqqq")  # `layout.AD`
_quote = json.encoder.encode_basestring


@dataclass(frozen=True)
class Outcome:
    """What became of an event.

    Attributes:
        result: applied; stale, that is known already, so without effect; or rejected, now a dead letter.
        reason: why it is not applied.
        message: same, for people.
        sequence: of the index after the transaction; readers that have it see the effect.
    """

    result: Result
    reason: str
    message: str
    sequence: int


@dataclass
class _Work:
    """An ad of the batch: before, now, and whether its content is among what was read."""

    before: AdState | None
    state: AdState | None
    has_content: bool = False
    new_content: bool = False


class Batch:
    """One use: `take` every event, then `finish`."""

    def __init__(
        self,
        transaction: lmdb.Transaction,
        tables: Tables,
        *,
        meta: StoreMeta,
        counters: dict[str, int],
        encoders: Mapping[str, Encoder],
        accounts: Collection[str] | None,
        now: int,
        max_dead_letters: int,
    ) -> None:
        """Of a write transaction; `counters` are changed in place."""
        self._transaction, self._tables, self._meta, self._now = transaction, tables, meta, now
        self._encoders, self._accounts, self._counters = encoders, accounts, counters
        self._dead = DeadLetters(transaction, tables, counters=counters, most=max_dead_letters)
        self._works: dict[int, _Work] = {}
        self._taken: list[tuple[str, Decision]] = []  # kind, decision
        self._waiting: dict[int, int] = {}  # dead letter -> item of this batch
        self.log_rows: dict[str, int] = {}
        self.outcomes: list[Outcome] = []

    def take(self, item: Incoming) -> None:
        """Apply one event to the ads in memory, or keep it as a dead letter."""
        event = item.event
        if isinstance(event, EventError):
            decision = Decision("rejected", None, event.reason, event.message)
        else:
            decision = self._decide(event)
        if decision.result == "rejected":
            waits = decision.reason in WAITING_REASONS
            number = self._dead.add(
                item, reason=decision.reason, message=decision.message, time=self._now, waits=waits
            )
            if waits and number is not None:
                self._waiting[number] = len(self._taken)
        self._taken.append((event.kind if isinstance(event, AdEvent) else "", decision))
        if decision.result == "applied" and isinstance(event, AdEvent):
            self._accept(event, decision)
            self._retry(event.ad_id)

    def again(self, letter: DeadLetter, event: AdEvent | EventError) -> None:
        """Try a dead letter once more, as `take` does, in its place."""
        if isinstance(event, EventError):
            self._taken.append(("", Decision("rejected", None, event.reason, event.message)))
            return
        decision = self._decide(event)
        self._taken.append((event.kind, decision))
        if decision.result == "rejected":
            if not letter.waiting or decision.reason not in PASSING_REASONS:
                self._dead.refuse(letter, reason=decision.reason, message=decision.message)
            return
        self._dead.remove(letter)
        if decision.result == "applied":
            self._accept(event, decision)
            self._retry(event.ad_id)

    def finish(self) -> StoreMeta:
        """Write the ads, generations and change log; the caller writes `meta` and the counters, and commits.

        Raises:
            IndexStoreError: an encoder failed.
        """
        changed = {a: w for a, w in sorted(self._works.items()) if w.state != w.before or w.new_content}
        if changed:
            self._meta = replace(self._meta, sequence=self._meta.sequence + 1)
            self._write(changed)
        for kind, decision in self._taken:
            name = decision.reason if decision.result == "rejected" else kind
            self._count(f"{decision.result}.{name}")
        sequence = self._meta.sequence
        self.outcomes = [Outcome(d.result, d.reason, d.message, sequence) for _, d in self._taken]
        return self._meta

    def _count(self, name: str) -> None:
        self._counters[name] = self._counters.get(name, 0) + 1

    def _decide(self, event: AdEvent) -> Decision:
        work = self._work(event.ad_id)
        if event.kind == "update" and work.state and not work.has_content:
            work.state = replace(work.state, content=self._content(event.ad_id))
            work.before, work.has_content = (
                work.before and replace(work.before, content=work.state.content),
                True,
            )
        return decide(event, work.state, refuse=self._refusal)

    def _accept(self, event: AdEvent, decision: Decision) -> None:
        work = self._work(event.ad_id)
        if decision.state and (
            not work.state or decision.state.content_version != work.state.content_version
        ):
            work.new_content = work.has_content = True
        work.state = decision.state

    def _retry(self, ad_id: int) -> None:
        """Try the ad's waiting events, in version order, until none of them changes it any more."""
        progress = True
        while progress:
            progress = False
            letters = [self._dead.get(n) for n in self._dead.waiting(ad_id)]
            for letter in sorted(letters, key=lambda x: (x.event or {})["version"]):
                event = AdEvent(**(letter.event or {}))
                decision = self._decide(event)
                if decision.result == "rejected" and decision.reason in PASSING_REASONS:
                    continue
                item = self._waiting.pop(letter.number, None)
                if item is not None:
                    self._taken[item] = (event.kind, decision)
                elif decision.result != "rejected":
                    self._count(f"recovered.{event.kind}")
                if decision.result == "rejected":
                    self._dead.refuse(letter, reason=decision.reason, message=decision.message)
                    continue
                self._dead.remove(letter)
                if decision.result == "applied":
                    self._accept(event, decision)
                    progress = True

    def _refusal(self, event: AdEvent) -> tuple[str, str] | None:
        if (
            self._accounts is not None
            and event.account_id is not None
            and event.account_id not in self._accounts
        ):
            return (
                "unknown_account",
                f"ad {event.ad_id}: account {event.account_id[:80]!a} is not among the known",
            )
        ready = [name for name, generation in self._meta.generations.items() if generation.ready]
        if not any(name in self._encoders for name in ready):
            return "no_encoder", (
                f"ad {event.ad_id}: expected an encoder of {' or '.join(ready) or 'a ready generation'}"
                f", got {sorted(self._encoders) or 'none'}"
            )
        return None

    def _work(self, ad_id: int) -> _Work:
        if ad_id not in self._works:
            raw = self._transaction.get(ad_key(ad_id), db=self._tables.ads)
            status, status_version, content_version, _ = _AD.unpack(raw) if raw else (0, 0, 0, 0)
            state = AdState(status, status_version, content_version, None) if raw else None
            self._works[ad_id] = _Work(state, state)
        return self._works[ad_id]

    def _content(self, ad_id: int) -> dict[str, str] | None:
        return decode_content(self._transaction.get(ad_key(ad_id), db=self._tables.content))

    def _write(self, changed: dict[int, _Work]) -> None:
        encoded = [a for a, w in changed.items() if w.new_content]
        for ad_id, work in changed.items():
            self._transaction.put(ad_key(ad_id), _pack(work.state, self._now), db=self._tables.ads)
            if work.new_content:
                value = encode_content(work.state.content)  # type: ignore[union-attr, arg-type]
                self._transaction.put(ad_key(ad_id), value, db=self._tables.content)
        for name, generation in self._meta.generations.items():
            new: dict[int, np.ndarray] = {}
            encoder = self._encoders.get(name)
            if encoder is not None and encoded:
                contents = [changed[a].state.content for a in encoded]  # type: ignore[union-attr]
                new = dict(zip(encoded, encode_contents(encoder, encoded, contents), strict=True))  # type: ignore[arg-type]
            elif encoded and generation.ready:
                key = f"unencoded.{name}"
                self._counters[key] = self._counters.get(key, 0) + len(encoded)
            forget = not generation.ready and encoder is None
            rows = [
                row
                for ad_id, work in changed.items()
                if (row := self._write_sid(name, ad_id, work, new.get(ad_id), forget=forget)) is not None
            ]
            if rows and generation.ready:
                value = np.array(rows, change_dtype(len(generation.level_sizes))).tobytes()
                key_ = number_key(self._meta.sequence)
                self._transaction.put(key_, value, db=self._tables.generations[name].changes, append=True)
                self.log_rows[name] = len(rows)

    def _write_sid(
        self, name: str, ad_id: int, work: _Work, new: np.ndarray | None, *, forget: bool
    ) -> tuple[Any, ...] | None:
        """Bring one ad of one generation up to date; its row of the change log where readers see a change.

        `forget`: what an unfinished generation holds is out of date; it is filled in later.
        """
        tables, key = self._tables.generations[name], ad_key(ad_id)
        raw = self._transaction.get(key, db=tables.codes)
        old = np.frombuffer(raw, "<i4") if raw else None
        codes = old if new is None else new
        if forget and work.new_content:
            codes = None
        was_active = old is not None and work.before is not None and work.before.status == ACTIVE
        active = codes is not None and work.state is not None and work.state.status == ACTIVE
        moved = (old is None) != (codes is None) or (codes is not None and not np.array_equal(old, codes))  # type: ignore[arg-type]
        if was_active and (moved or not active):
            self._transaction.delete(sid_key(old), key, db=tables.sids)  # type: ignore[arg-type]
        if active and (moved or not was_active):
            self._transaction.put(sid_key(codes), key, db=tables.sids)  # type: ignore[arg-type]
        if moved and codes is not None:
            self._transaction.put(key, codes.astype("<i4").tobytes(), db=tables.codes)
        elif moved:
            self._transaction.delete(key, db=tables.codes)
        if codes is None or (not moved and active == was_active):
            return None
        return ad_id, active, 1, codes


def _pack(state: AdState | None, now: int) -> bytes:
    assert state is not None
    return _AD.pack(state.status, state.status_version, state.content_version, now)


def encode_content(content: dict[str, str]) -> bytes:
    """Value of `content`."""
    account, conversion, text = (_quote(content[name]) for name in CONTENT_FIELDS)
    # Put together by hand: a bulk load makes millions, and this takes a tenth of the time of `json.dumps`.
    return f'{{"account_id":{account},"conversion_type":{conversion},"text":{text}}}'.encode()


def decode_content(raw: bytes | memoryview | None) -> dict[str, str] | None:
    """Inverse of `encode_content`."""
    return None if raw is None else json.loads(bytes(raw))
