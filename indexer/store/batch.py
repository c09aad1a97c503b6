"""A batch of events inside one write transaction: what each does to its ad, in memory, until `finish`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from indexer.encode.encoder import Encoder
from indexer.events.content import Content
from indexer.events.error import EventError
from indexer.events.event import AdEvent
from indexer.store.ad_changes import AdChange, write_changes
from indexer.store.arrays import read_ads
from indexer.store.dead_letters import DeadLetter, DeadLetters
from indexer.store.incoming import Incoming, Outcome
from indexer.store.records import decode_ad, decode_content, decode_key
from indexer.store.registers import PASSING_REASONS, WAITING_REASONS, AdState, Decision, decide
from indexer.store.transaction import WriteTransaction
from serving.index.audience import MAX_AUDIENCES, Audience, AudienceError, Columns
from serving.index.layout import ad_key


class Batch:
    """One use: `take` every event, then `finish`."""

    def __init__(
        self,
        writing: WriteTransaction,
        *,
        encoders: Mapping[str, Encoder],
        accounts: Collection[str] | None,
        columns: Columns | None,
        now: int,
        max_dead_letters: int,
    ) -> None:
        """Of a write transaction."""
        self._writing, self._now = writing, now
        self._encoders, self._accounts, self._columns = encoders, accounts, columns
        self._dead = DeadLetters(writing, most=max_dead_letters)
        self._changes: dict[int, AdChange] = {}
        self._taken: list[tuple[str, Decision]] = []  # kind, decision
        self._swept = False
        self._waiting: dict[int, int] = {}  # dead letter -> item of this batch

    def take(self, item: Incoming) -> None:
        """Apply one event to the ads in memory, or keep it as a dead letter."""
        event, decision = item.event, self._decide(item.event)
        if decision.result == "rejected":
            waits = decision.reason in WAITING_REASONS
            number = self._dead.add(
                item, reason=decision.reason, message=decision.message, time=self._now, waits=waits
            )
            if waits and number is not None:
                self._waiting[number] = len(self._taken)
        self._taken.append((_kind(event), decision))
        self._accept(event, decision)

    def again(self, letter: DeadLetter) -> None:
        """Try a dead letter once more, as `take` does, in its place."""
        event = letter.parse()
        decision = self._decide(event)
        self._taken.append((_kind(event), decision))
        if isinstance(event, EventError):
            return
        if decision.result != "rejected":
            self._dead.remove(letter)
        elif not letter.waiting or decision.reason not in PASSING_REASONS:
            self._dead.refuse(letter, reason=decision.reason, message=decision.message)
        self._accept(event, decision)

    def finish(self) -> list[Outcome]:
        """Write the ads, their SIDs and the change log; what became of each event, in order.

        Raises:
            IndexStoreError: an encoder failed.
        """
        writing = self._writing
        changed = {a: c for a, c in sorted(self._changes.items()) if c.state != c.before or c.new_content}
        if changed:
            writing.meta = replace(writing.meta, sequence=writing.meta.sequence + 1)
            write_changes(writing, changed, encoders=self._encoders, now=self._now)
        for kind, decision in self._taken:
            writing.count(f"{decision.result}.{decision.reason if decision.result == 'rejected' else kind}")
        sequence = writing.meta.sequence
        return [Outcome(d.result, d.reason, d.message, sequence) for _, d in self._taken]

    def _decide(self, event: AdEvent | EventError) -> Decision:
        if isinstance(event, EventError):
            return Decision("rejected", None, event.reason, event.message)
        change = self._change(event.ad_id)
        if event.kind == "update" and change.state and not change.content_read:
            raw = self._writing.txn.get(ad_key(event.ad_id), db=self._writing.tables.content)
            change.state = replace(change.state, content=decode_content(raw))
            if change.before:
                change.before = replace(change.before, content=change.state.content)
            change.content_read = True
        return decide(event, change.state, refuse=self._refusal)

    def _accept(self, event: AdEvent | EventError, decision: Decision) -> None:
        """Take the ad as it is now, and try what waits for it."""
        if decision.result == "applied" and isinstance(event, AdEvent):
            self._set(event, decision)
            self._retry(event.ad_id)

    def _set(self, event: AdEvent, decision: Decision) -> None:
        change, state = self._change(event.ad_id), decision.state
        is_new = change.state is None or (state and state.content_version != change.state.content_version)
        if state and is_new and event.content:
            change.new_content = change.content_read = True
        change.state = state

    def _retry(self, ad_id: int) -> None:
        """Try the ad's waiting events, in version order, until none of them changes it any more."""
        progress = True
        while progress:
            progress = False
            letters = [self._dead.get(n) for n in self._dead.waiting(ad_id)]
            for letter in sorted(letters, key=DeadLetter.version):
                event = letter.parse()
                decision = self._decide(event)
                if decision.result == "rejected" and decision.reason in PASSING_REASONS:
                    continue
                item = self._waiting.pop(letter.number, None)
                if item is not None:
                    self._taken[item] = (_kind(event), decision)
                elif decision.result != "rejected":
                    self._writing.count(f"recovered.{_kind(event)}")
                if decision.result == "rejected":
                    self._dead.refuse(letter, reason=decision.reason, message=decision.message)
                    continue
                self._dead.remove(letter)
                if decision.result == "applied" and isinstance(event, AdEvent):
                    self._set(event, decision)
                    progress = True

    def _refusal(self, event: AdEvent, content: Content) -> tuple[str, str] | None:
        if event.audience_text and (why := self._wrong_audience(event.audience_text)) is not None:
            return "wrong_audience", f"ad {event.ad}: {why}"
        if not event.content:
            return None
        account = event.content.get("account_id")
        if self._accounts is not None and account is not None and account not in self._accounts:
            return "unknown_account", f"ad {event.ad}: account {account[:80]!a} is not among the known"
        ready = [name for name, generation in self._writing.meta.generations.items() if generation.ready]
        if not any(name in self._encoders for name in ready):
            return "no_encoder", (
                f"ad {event.ad}: expected an encoder of {' or '.join(ready) or 'a ready generation'}"
                f", got {sorted(self._encoders) or 'none'}"
            )
        for encoder in (self._encoders[name] for name in ready if name in self._encoders):
            if (why := encoder.refusal(content)) is not None:
                return "wrong_content", f"ad {event.ad_id}: {why}"
        return None

    def _wrong_audience(self, text: str) -> str | None:
        try:
            if self._columns is not None:
                Audience.parse(text).check(self._columns)
        except AudienceError as error:
            return str(error)
        audiences = self._writing.audiences
        if not audiences.has_room(text) and not self._swept:
            self._swept = True  # what no ad has any more
            audiences.keep(set(np.unique(read_ads(self._writing)["audience"]).tolist()))
        if audiences.has_room(text):
            return None
        return f"audience: expected at most {MAX_AUDIENCES:,} distinct ones in an index, got one more"

    def _change(self, ad_id: int) -> AdChange:
        if ad_id not in self._changes:
            txn, tables = self._writing.txn, self._writing.tables
            raw, state = txn.get(ad_key(ad_id), db=tables.ads), None
            if raw:
                status, status_version, content_version, _, audience, account = decode_ad(raw)
                key = decode_key(txn.get(ad_key(ad_id), db=tables.keys))
                state = AdState(
                    status,
                    status_version,
                    content_version,
                    content=None,  # till it is needed
                    key=key,
                    audience=self._writing.audiences.text_of(audience),
                    account=account,
                )
            self._changes[ad_id] = AdChange(state, state)
        return self._changes[ad_id]


def _kind(event: AdEvent | EventError) -> str:
    return event.kind if isinstance(event, AdEvent) else ""
