"""The join: served records and feedback in any order, samples and histories out, a transaction at a time.

What an event changes, the samples that come of it and the offset of its source are one transaction: an event
takes effect once, whatever crashes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from feedback.events.event import FeedbackEvent
from feedback.join.rules import Refusal, refusal, takes_effect
from feedback.join.store_writer import StoreWriter
from feedback.join.work import Work
from feedback.store.requests import RequestState, digest_of
from indexer.events.error import EventError
from indexer.store.incoming import Incoming, Outcome
from serving.model.features import BEHAVIORS
from serving.served_log.record import ServedRecord

_DUE = 256  # requests of one transaction
_MAX_FED = 1024  # facts that wait for one record
_WAITS: Refusal = ("waiting", "the record of its request has not come yet; it counts when it does")


class Joiner(StoreWriter):
    """Applies what comes. Everything is for one thread."""

    def apply(self, items: Sequence[Incoming], *, offsets: Mapping[str, bytes]) -> list[Outcome]:
        """Records and feedback, in one durable transaction.

        Args:
            items: in order, with a `ServedRecord`, a `FeedbackEvent` or an `EventError` each.
            offsets: of their sources, behind these.

        Raises:
            lmdb.Error: the disk or the map is full, or the store is damaged; nothing is kept.
        """
        with self.work(offsets) as work:
            results = [self._apply(work, item) for item in items]
            for digest in list(dict.fromkeys(d for _, _, d in results if d is not None)):
                state = work.state(digest)
                if state is not None and state.revision:
                    work.emit(digest, state)
            sequence = work.sequence
        return [
            Outcome(result, *(why or ("", "")), sequence=sequence)  # type: ignore[arg-type]
            for result, why, _ in results
        ]

    def close_due(self) -> bool:
        """Make samples of requests whose window is over, forget old ones; True where more are due."""
        with self.work({}) as work:
            now, looked_at = self.now_of(work.newest), 0
            for digest in work.due(now, limit=_DUE):
                looked_at += 1
                state = work.state(digest)
                if state is None:
                    continue
                if not state.is_served:
                    self._give_up(work, digest, state)
                elif state.revision:
                    self._forget_old(work, digest, state, now=now)
                elif state.clock + self.config.window_s <= now:
                    work.emit(digest, state)
                    work.look_at(digest, state.clock + self.config.correct_s)
                else:  # when feedback that waited for it was due
                    work.look_at(digest, state.clock + self.config.window_s)
        return looked_at == _DUE

    def _apply(self, work: Work, item: Incoming) -> tuple[str, Refusal | None, bytes | None]:
        """Result, why it is not plainly applied, and the request that it changed."""
        event = item.event
        if isinstance(event, EventError):
            return self._reject(work, item, (event.reason, event.message))
        digest = None if event.request_id is None else digest_of(event.request_id)
        if isinstance(event, ServedRecord):
            return self._serve(work, event, digest=digest, raw=item.raw)
        assert isinstance(event, FeedbackEvent)
        assert digest is not None
        key = (event.ad_id, BEHAVIORS[event.behavior])
        fact = (event.timestamp, event.value or 0.0)
        state = work.state(digest)
        if state is None or not state.is_served:
            return self._keep_waiting(work, item, digest=digest, key=key, fact=fact)
        why = self._refusal(work, state, key, fact)
        if why is not None:
            return self._reject(work, item, why)
        if not self._feed(work, digest, state, key=key, fact=fact):
            return "stale", ("duplicate", "known already, with this or a later timestamp"), None
        work.put(digest, state)
        return "applied", None, digest

    def _serve(
        self, work: Work, record: ServedRecord, *, digest: bytes | None, raw: bytes
    ) -> tuple[str, Refusal | None, bytes | None]:
        work.newest = max(work.newest, record.timestamp)
        if digest is None:
            work.counters["unnamed"] += 1
            return "applied", ("unnamed", "the request had no id, so nobody can say what came of it"), None
        known = work.state(digest)
        if known is not None and known.is_served:
            work.counters["repeated"] += 1
            return "stale", ("repeated", "a request of this id was served before; the first one counts"), None
        # A server's clock that is ahead must not hold a request open for as long as it is.
        clock = min(record.written, self.time() + self.config.skew_s)
        state = RequestState(
            is_served=True,
            clock=clock if self.config.clock == "wall" else float(record.timestamp),
            timestamp=record.timestamp,
            user=record.user,
            ad_ids=record.ad_ids,
        )
        work.put_record(digest, raw)
        work.counters["served"] += 1
        if known is not None:
            work.waiting -= 1
            for key, fact in known.fed.items():
                why = self._refusal(work, state, key, fact)
                if why is None:
                    self._feed(work, digest, state, key=key, fact=fact)
                else:
                    self._reject_waited(work, record.request_id or "", key=key, fact=fact, why=why)
        work.put(digest, state)
        work.look_at(digest, state.clock + self.config.window_s)
        return "applied", None, None

    def _refusal(
        self, work: Work, state: RequestState, key: tuple[int, int], fact: tuple[int, float]
    ) -> Refusal | None:
        now = self.now_of(work.newest)
        return refusal(state, ad_id=key[0], timestamp=fact[0], now=now, config=self.config)

    def _feed(
        self, work: Work, digest: bytes, state: RequestState, *, key: tuple[int, int], fact: tuple[int, float]
    ) -> bool:
        """A fact of a served request; False where it is no news. Clocks that differ put none before it."""
        fact = (max(fact[0], state.timestamp), fact[1])
        if not takes_effect(state.fed, key, fact):
            return False
        state.fed[key] = fact
        if state.user is not None:
            work.remember(state.user, digest, (fact[0], *key))
        return True

    def _keep_waiting(
        self, work: Work, item: Incoming, *, digest: bytes, key: tuple[int, int], fact: tuple[int, float]
    ) -> tuple[str, Refusal | None, bytes | None]:
        state = work.state(digest)
        if state is None:
            if work.waiting >= self.config.max_waiting:
                message = f"expected a request that was served, got another; {work.waiting:,} wait already"
                return self._reject(work, item, ("unknown_request", message))
            state = RequestState()
            work.waiting += 1
            work.look_at(digest, self.now_of(work.newest) + self.config.wait_s)
        if key not in state.fed and len(state.fed) >= _MAX_FED:
            message = f"expected at most {_MAX_FED:,} facts of a request that is not known yet, got more"
            return self._reject(work, item, ("unknown_request", message))
        if not takes_effect(state.fed, key, fact):
            return "stale", ("duplicate", "known already, with this or a later timestamp"), None
        state.fed[key] = fact
        work.put(digest, state)
        return "applied", _WAITS, None

    def _forget_old(self, work: Work, digest: bytes, state: RequestState, *, now: float) -> None:
        if state.clock + self.config.correct_s <= now:
            work.forget(digest)
        else:
            work.look_at(digest, state.clock + self.config.correct_s)

    def _give_up(self, work: Work, digest: bytes, state: RequestState) -> None:
        """No record came in time."""
        message = f"expected a request that was served, got none within {self.config.wait_s:g} s"
        for key, fact in state.fed.items():
            self._reject_waited(work, digest.hex(), key=key, fact=fact, why=("unknown_request", message))
        work.waiting -= 1
        work.forget(digest)

    def _reject(self, work: Work, item: Incoming, why: Refusal) -> tuple[str, Refusal | None, bytes | None]:
        work.counters[why[0]] += 1
        work.reject(item.source, item.raw, reason=why[0], message=why[1], time_s=self.time())
        return "rejected", why, None

    def _reject_waited(
        self, work: Work, request: str, *, key: tuple[int, int], fact: tuple[int, float], why: Refusal
    ) -> None:
        raw = json.dumps({"request": request, "ad_id": key[0], "behavior": key[1], "timestamp": fact[0]})
        work.counters[why[0]] += 1
        work.reject("waiting", raw.encode(), reason=why[0], message=why[1], time_s=self.time())
