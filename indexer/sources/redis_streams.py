"""Events from a Redis stream, each applied once, whatever restarts in between.

The store's offset, not the consumer group, decides what was applied. On every connection the group is set
back to the last entry that was handed over, so that Redis delivers again what was pending at this or a dead
consumer, in order; of these, entries up to the committed offset are only acknowledged.
"""

from __future__ import annotations

import json
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import redis

from indexer.events.error import EventError
from indexer.sources.config import RedisConfig
from indexer.sources.redis_position import (
    EntryId,
    Position,
    StreamInfo,
    added_before_next,
    entry_id,
    find_gap,
    text_of,
)
from indexer.sources.source import OffsetOf, OnGap, Source, Taker, log
from indexer.sources.submission import Item
from indexer.store.gaps import Gap
from serving.redis_client import make_client

_BLOCK_MS = 300
_MEASURE_S = 2.0
_COMMIT_S = 0.05  # between two looks whether all that was handed over is committed
_GONE = ("NOGROUP", "UNBLOCKED")  # the group or the stream was removed, also while we waited for entries


class RedisSource(Source):
    """Consumer of one stream; its offsets are entry ids."""

    failures = (redis.RedisError, OSError)

    def __init__(self, config: RedisConfig, worker: Taker, *, offset_of: OffsetOf, on_gap: OnGap) -> None:
        """Prepare.

        Raises:
            ValueError: see `make_client`.
        """
        self.name = f"redis:{config.stream}"
        self._config = config
        # One try a call: `Source` reconnects, with pauses, and says so.
        self._client = make_client(
            config.url, connect_timeout_s=5, timeout_s=_BLOCK_MS / 1000 + 10, name="gr4ad-indexer"
        )
        self._handed: Position | None = None  # last entry that the worker got
        self._added: int | None = None  # entries that were ever there before the next one
        self._gap: Gap | None = None  # before that one, on record
        self._waits = False  # one is not on record yet: nothing more is read till then
        self._committed: EntryId = (0, 0)
        self._to_acknowledge: deque[bytes] = deque()
        self._measured_at = 0.0
        super().__init__(worker, offset_of=offset_of, on_gap=on_gap)

    def _open(self) -> None:
        if self._handed is None:
            self._handed = Position.decode(self._offset_of(self.name))
            self._committed, self._added = self._handed.entry, self._handed.added
        self._make_group()
        self._claim()

    def _make_group(self) -> None:
        config, handed = self._config, (self._handed or Position()).entry
        try:
            self._client.xgroup_create(config.stream, config.group, id=text_of(handed), mkstream=True)
            if handed > (0, 0):
                log.warning("%s: group %s made anew from %s", self.name, config.group, text_of(handed))
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        info = self._look_for_gap()
        if info.last < handed:
            # Flushed, or restored from an older copy. Ids may begin anew, so all that is there counts as new;
            # what had been applied is stale by its version.
            ends, before = text_of(info.last), text_of(handed)
            log.warning("%s: ends at %s, before %s: read from its start", self.name, ends, before)
            handed = self._committed = (0, 0)
            self._handed = Position()
            self._added = added_before_next(info, self._handed)
        group = self._group()
        delivered = entry_id(group["last-delivered-id"])
        if delivered != handed:
            until = text_of(delivered)
            again = self._client.xrange(config.stream, f"({text_of(handed)}", until, count=10_000)
            read = group.get("entries-read")  # with it Redis still knows the lag
            known = read is not None and handed < delivered and len(again) < 10_000
            self._client.xgroup_setid(
                config.stream,
                config.group,
                text_of(handed),
                entries_read=read - len(again) if read is not None and known else None,
            )

    def _look_for_gap(self) -> StreamInfo:
        """What the stream holds now; a hole behind what was handed over is put on record.

        Not before all of that is committed: after a crash it is looked for from the committed entry on, and
        it must be the same one.
        """
        info = StreamInfo.decode(self._client.xinfo_stream(self._config.stream))
        handed = self._handed or Position()
        gap = find_gap(info, handed)
        self._waits = gap is not None and not gap.is_same(self._gap)
        if gap is not None and self._waits and (gap.lost is None or self._committed >= handed.entry):
            log.error("%s: %s", self.name, gap)
            self._on_gap(self.name, gap)
            self._gap, self._waits = gap, False
        # While a hole waits, the count goes on without it: when more comes first, it shows later.
        if not self._waits and (before := added_before_next(info, handed)) is not None:
            self._added = before
        if info.last == handed.entry and handed.added is None:
            self._handed = Position(handed.entry, info.added)
        return info

    def _claim(self) -> None:
        """Take over what is pending anywhere in the group and acknowledge what had been applied.

        Only the holder of the index's lock gets here, so every other consumer of its group is dead, however
        short its idle time. Entries that are no longer in the stream leave the list on the way; Redis 6.2
        keeps them, and its claim does not say which they are.
        """
        config, start, done = self._config, b"0-0", False
        while not done:
            start, *_ = self._client.xautoclaim(
                config.stream, config.group, config.consumer, 0, start_id=start, count=100
            )
            done = entry_id(start) == (0, 0)
        last = text_of(self._committed)
        while applied := self._client.xpending_range(
            config.stream, config.group, min="-", max=last, count=1000
        ):
            self._client.xack(config.stream, config.group, *(entry["message_id"] for entry in applied))
            self.state.redelivered += len(applied)

    def _poll(self) -> None:
        config = self._config
        self._acknowledge()
        if time.monotonic() - self._measured_at > _MEASURE_S or self._waits:
            self._measure()
        if self._waits:
            self._stop.wait(_COMMIT_S)
            return
        try:
            answer = self._client.xreadgroup(
                config.group, config.consumer, {config.stream: ">"}, count=config.count, block=_BLOCK_MS
            )
        except redis.ResponseError as error:
            if not str(error).startswith(_GONE):
                raise
            log.warning("%s: %s", self.name, error)
            self._make_group()
            return
        entries = answer[0][1] if answer else []
        handed = self._handed or Position()
        known = [i for i, _ in entries if entry_id(i) <= self._committed]
        self._to_acknowledge.extend(known)
        self.state.redelivered += len(known)
        fresh = [(i, fields) for i, fields in entries if entry_id(i) > handed.entry]
        if not fresh:
            return
        added = self._added
        positions = [
            Position(entry_id(i), None if added is None else added + n) for n, (i, _) in enumerate(fresh, 1)
        ]
        items = [self._item(i, fields, at) for (i, fields), at in zip(fresh, positions, strict=True)]
        submission = self._worker.submit(items, kept=True, stop=self._stop)
        if submission is not None:
            ids = [i for i, _ in fresh]
            self._handed, self._gap, self._added = positions[-1], None, positions[-1].added
            self.state.received += len(ids)
            submission.future.add_done_callback(lambda future: self._done(ids, future))

    def _item(self, number: bytes, fields: dict[bytes, bytes] | None, at: Position) -> Item:
        raw = (fields or {}).get(self._config.field.encode())
        if raw is not None:
            return Item(raw, self.name, at.encode())
        names = sorted(n.decode(errors="replace") for n in fields or {})
        text = {n.decode(errors="replace"): v.decode(errors="replace") for n, v in (fields or {}).items()}
        error = EventError(
            "missing_field", f"entry {number.decode()}: expected field {self._config.field!r}, got {names}"
        )
        return Item(json.dumps(text).encode(), self.name, at.encode(), error)

    def _done(self, ids: list[bytes], future: Future) -> None:
        """In the writer's thread, after the commit."""
        if future.exception() is None:
            self._committed = max(self._committed, entry_id(ids[-1]))
            self._to_acknowledge.extend(ids)

    def _acknowledge(self) -> None:
        while self._to_acknowledge:
            ids = [self._to_acknowledge[i] for i in range(min(len(self._to_acknowledge), 1000))]
            self._client.xack(self._config.stream, self._config.group, *ids)
            for _ in ids:  # not before Redis has them
                self._to_acknowledge.popleft()

    def _measure(self) -> None:
        self._measured_at = time.monotonic()
        with suppress(redis.ResponseError):  # the stream is gone: the next read says so
            self._look_for_gap()
        group = self._group(missing_ok=True)
        lag, pending = group.get("lag"), group.get("pending", 0)
        oldest = self._client.xrange(self._config.stream, f"({text_of(self._committed)}", count=1)
        now = time.time()
        self.state.lag_seconds = max(now - entry_id(oldest[0][0])[0] / 1000, 0.0) if oldest else 0.0
        # Redis counts what a group has read, and after XGROUP SETID and a crash it may count wrong: 31,744
        # events of lag were seen with nothing left to read. What is committed is known.
        if not oldest:
            self.state.lag_events = 0
        else:
            self.state.lag_events = None if lag is None else max(int(lag) + int(pending), 1)

    def _group(self, *, missing_ok: bool = False) -> dict[str, Any]:
        try:
            groups = self._client.xinfo_groups(self._config.stream)
        except redis.ResponseError:
            if not missing_ok:
                raise
            groups = []
        found = [g for g in groups if g["name"] == self._config.group.encode()]
        if not found and not missing_ok:
            raise redis.ResponseError(f"NOGROUP group {self._config.group} is gone")
        return found[0] if found else {}

    def _close(self) -> None:
        self._client.close()
