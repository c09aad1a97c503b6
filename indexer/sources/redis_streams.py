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
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from indexer.events.error import EventError
from indexer.sources.config import RedisConfig
from indexer.sources.source import OffsetOf, Source, Taker, log
from indexer.sources.submission import Item

_BLOCK_MS = 300
_MEASURE_S = 2.0
_GONE = ("NOGROUP", "UNBLOCKED")  # the group or the stream was removed, also while we waited for entries

EntryId = tuple[int, int]


class RedisSource(Source):
    """Consumer of one stream; its offsets are entry ids."""

    failures = (redis.RedisError, OSError)

    def __init__(self, config: RedisConfig, worker: Taker, *, offset_of: OffsetOf) -> None:
        """Prepare.

        Raises:
            ValueError: the URL is none of Redis.
        """
        self.name = f"redis:{config.stream}"
        self._config = config
        # One try a call: `Source` reconnects, with pauses, and says so.
        self._client: Any = redis.Redis.from_url(  # its types are unions of all protocols and modes
            config.url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=5,
            socket_timeout=_BLOCK_MS / 1000 + 10,
            client_name="gr4ad-indexer",
        )
        self._handed: EntryId | None = None  # last entry that the worker got
        self._committed: EntryId = (0, 0)
        self._to_acknowledge: deque[bytes] = deque()
        self._measured_at = 0.0
        super().__init__(worker, offset_of=offset_of)

    def _open(self) -> None:
        if self._handed is None:
            offset = self._offset_of(self.name)
            self._handed = self._committed = _entry_id(offset) if offset else (0, 0)
        self._make_group()
        self._claim()

    def _make_group(self) -> None:
        config, handed = self._config, self._handed or (0, 0)
        try:
            self._client.xgroup_create(config.stream, config.group, id=_text(handed), mkstream=True)
            if handed > (0, 0):
                log.warning("%s: group %s made anew from %s", self.name, config.group, _text(handed))
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        last = _entry_id(self._client.xinfo_stream(config.stream)["last-generated-id"])
        if last < handed:
            # Flushed, or restored from an older copy. Ids may begin anew, so all that is there counts as new;
            # what had been applied is stale by its version.
            log.warning(
                "%s: ends at %s, before %s: read from its start", self.name, _text(last), _text(handed)
            )
            handed = self._handed = self._committed = (0, 0)
        group = self._group()
        delivered = _entry_id(group["last-delivered-id"])
        if delivered != handed:
            again = self._client.xrange(config.stream, f"({_text(handed)}", _text(delivered), count=10_000)
            read = group.get("entries-read")  # with it Redis still knows the lag
            known = read is not None and handed < delivered and len(again) < 10_000
            self._client.xgroup_setid(
                config.stream,
                config.group,
                _text(handed),
                entries_read=read - len(again) if read is not None and known else None,
            )

    def _claim(self) -> None:
        """Take over what is pending anywhere in the group and acknowledge what had been applied.

        Only the holder of the index's lock gets here, so every other consumer of its group is dead, however
        short its idle time. Entries that were trimmed from the stream leave the list on the way.
        """
        config, start = self._config, b"0-0"
        while True:
            start, entries, *_ = self._client.xautoclaim(
                config.stream, config.group, config.consumer, 0, start_id=start, count=100
            )
            applied = [i for i, _ in entries if _entry_id(i) <= self._committed]
            if applied:
                self._client.xack(config.stream, config.group, *applied)
                self.state.redelivered += len(applied)
            if _entry_id(start) == (0, 0):
                return

    def _poll(self) -> None:
        config = self._config
        self._acknowledge()
        if time.monotonic() - self._measured_at > _MEASURE_S:
            self._measure()
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
        handed = self._handed or (0, 0)
        known = [i for i, _ in entries if _entry_id(i) <= self._committed]
        self._to_acknowledge.extend(known)
        self.state.redelivered += len(known)
        fresh = [(i, fields) for i, fields in entries if _entry_id(i) > handed]
        if not fresh:
            return
        submission = self._worker.submit(
            [self._item(i, fields) for i, fields in fresh], kept=True, stop=self._stop
        )
        if submission is not None:
            ids = [i for i, _ in fresh]
            self._handed = _entry_id(ids[-1])
            self.state.received += len(ids)
            submission.future.add_done_callback(lambda future: self._done(ids, future))

    def _item(self, entry_id: bytes, fields: dict[bytes, bytes] | None) -> Item:
        raw = (fields or {}).get(self._config.field.encode())
        if raw is not None:
            return Item(raw, self.name, entry_id)
        names = sorted(n.decode(errors="replace") for n in fields or {})
        text = {n.decode(errors="replace"): v.decode(errors="replace") for n, v in (fields or {}).items()}
        error = EventError(
            "missing_field", f"entry {entry_id.decode()}: expected field {self._config.field!r}, got {names}"
        )
        return Item(json.dumps(text).encode(), self.name, entry_id, error)

    def _done(self, ids: list[bytes], future: Future) -> None:
        """In the writer's thread, after the commit."""
        if future.exception() is None:
            self._committed = max(self._committed, _entry_id(ids[-1]))
            self._to_acknowledge.extend(ids)

    def _acknowledge(self) -> None:
        while self._to_acknowledge:
            ids = [self._to_acknowledge[i] for i in range(min(len(self._to_acknowledge), 1000))]
            self._client.xack(self._config.stream, self._config.group, *ids)
            for _ in ids:  # not before Redis has them
                self._to_acknowledge.popleft()

    def _measure(self) -> None:
        self._measured_at = time.monotonic()
        group = self._group(missing_ok=True)
        lag, pending = group.get("lag"), group.get("pending", 0)
        oldest = self._client.xrange(self._config.stream, f"({_text(self._committed)}", count=1)
        now = time.time()
        self.state.lag_seconds = max(now - _entry_id(oldest[0][0])[0] / 1000, 0.0) if oldest else 0.0
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


def _entry_id(raw: bytes | str) -> EntryId:
    text = raw.decode() if isinstance(raw, bytes) else raw
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number or 0)


def _text(entry_id: EntryId) -> str:
    return f"{entry_id[0]}-{entry_id[1]}"
