"""The writer thread: applies events of all sources in batches, answers after the commit, and does chores."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from indexer.events.error import EventError
from indexer.events.parse import parse_event
from indexer.sidecar.chores import Chore, Chores
from indexer.sidecar.config import WorkerConfig
from indexer.sidecar.intake import Intake, Queued
from indexer.sidecar.metrics import WriterMetrics
from indexer.sidecar.outage import Outage, needs_reopening, of_the_machine
from indexer.sources.submission import Item, Submission, UnavailableError
from indexer.store.incoming import Event, Incoming, Outcome

log = logging.getLogger("gr4ad.indexer")

_IDLE_S = 0.1  # longest wait for an event before the chores get their turn
_PROBE = "probe"  # its offset is written to see whether the store takes writes again


def parse_ad_event(item: Item) -> Event:
    """The ad event of an item.

    Raises:
        EventError: it is none.
    """
    return parse_event(item.raw)


class Store(Protocol):
    """What the worker needs of `indexer.store.index_store.IndexStore`."""

    def apply(self, items: Sequence[Incoming], *, offsets: Mapping[str, bytes]) -> list[Outcome]:
        """Events and offsets in one durable transaction."""


class Worker:
    """Owns all writes. Everything but `submit`, `call`, `problems`, `start` and `stop` runs in its thread."""

    def __init__(
        self,
        store: Store,
        *,
        heartbeat: Path,
        metrics: WriterMetrics,
        config: WorkerConfig | None = None,
        chores: Mapping[str, Chore] | None = None,
        parse: Callable[[Item], Event] = parse_ad_event,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            store: the index.
            heartbeat: file to touch every second.
            metrics: counts batches and outcomes.
            config: sizes and times.
            chores: called between batches, by name.
            parse: makes an event of an item, or raises `EventError`.
        """
        self.config = config or WorkerConfig()
        self.outage = Outage(max_retry_s=self.config.max_retry_s)
        self.crash: BaseException | None = None
        self._store, self._heartbeat, self._metrics, self._parse = store, heartbeat, metrics, parse
        self._chores = Chores(chores or {}, metrics=metrics)
        self._intake = Intake(max_events=self.config.queue_events, max_bytes=self.config.queue_bytes)
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="index-writer", daemon=True)
        self._stopping = threading.Event()
        self._turn_began = time.monotonic()
        self._beat_at = 0.0

    def start(self) -> None:
        """Start the thread."""
        self._turn_began = time.monotonic()
        self._thread.start()

    def submit(
        self, items: Iterable[Item], *, kept: bool = False, stop: threading.Event | None = None
    ) -> Submission | None:
        """Hand events over; thread-safe.

        Args:
            items: events in order.
            kept: keep them while the store fails (streams), instead of failing the submission.
            stop: wait for room in the queue until this is set.

        Returns:
            The submission, or None when `stop` was set before there was room.

        Raises:
            UnavailableError: no room, the store fails, or the worker stops.
        """
        if not kept:
            self.outage.check()
        submission = Submission(items, kept=kept)
        return submission if self._intake.put(submission, stop=stop) else None

    def call(self, function: Callable[[], Any]) -> Future:
        """Run a function of the store in the writer's thread, between two batches; thread-safe."""
        future: Future = Future()
        if self._stopping.is_set():
            raise UnavailableError("the indexer is stopping")
        self._calls.put((function, future))
        self._intake.wake()
        return future

    @property
    def depth(self) -> int:
        """Events waiting."""
        return len(self._intake)

    def problems(self) -> list[str]:
        """What keeps it from applying events; empty when nothing does."""
        problems = []
        if self.crash is not None or (self._thread.ident and not self._thread.is_alive()):
            problems.append(f"the writer thread has ended: {self.crash!r}")
        elif not self._thread.ident:
            problems.append("the writer thread has not started")
        elif (took := time.monotonic() - self._turn_began) > self.config.stuck_s:
            problems.append(f"the writer thread has been at one batch or chore for {took:.0f} s")
        if failure := self.outage.failure:
            problems.append(f"the store is not writable: {failure.message}")
        return problems

    def stop(self, *, timeout_s: float = 20.0) -> bool:
        """Apply what was taken and end; False when that took too long. Those of a failing store are left."""
        self._stopping.set()
        self._intake.close()
        if self._thread.ident:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set() or (len(self._intake) and not self.outage.failure):
                self._turn()
            self._run_calls()
        except BaseException as error:
            self._intake.close()  # before anybody can see that it has ended
            self.crash = error
            log.exception("the writer thread ends")
        finally:
            self._intake.close()
            self._intake.drop(lambda submission: True, UnavailableError("the indexer is stopping"))

    def _turn(self) -> None:
        now = self._turn_began = time.monotonic()
        if now - self._beat_at >= 1.0:
            self._beat_at = now
            with suppress(OSError):  # the store says so, too, when the disk is gone
                self._heartbeat.touch()
        self._run_calls()
        if pause := self.outage.pause_s:
            self._stopping.wait(min(_IDLE_S, pause))
            return
        busy = not self.outage.failure and self._chores.run()
        batch = self._intake.take(
            self.config.batch_events,
            max_bytes=self.config.batch_bytes,
            first_s=0.0 if busy else _IDLE_S,
            more_s=self.config.batch_ms / 1000,
        )
        if batch:
            self._commit(batch)
        elif self.outage.failure:
            self._probe()

    def _run_calls(self) -> None:
        for _ in range(self._calls.qsize()):  # not those that come meanwhile: events have their turn, too
            function, future = self._calls.get_nowait()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except Exception as error:
                    future.set_exception(error)

    def _commit(self, queued: list[Queued]) -> bool:
        """Apply and settle; False when the store failed and they were given back."""
        items = [submission.items[i] for submission, i in queued]
        incoming = [Incoming(self._parsed(i), i.raw, i.source) for i in items]
        offsets = {i.source: i.offset for i in items if i.offset is not None}
        began = time.monotonic()
        try:
            outcomes = self._store.apply(incoming, offsets=offsets)
        except Exception as error:
            if needs_reopening(error):
                raise  # end, and be started again
            if of_the_machine(error):
                self._fail(queued, error)
                return False
            log.exception("a batch of %d events failed", len(queued))
            return self._isolate(queued, error)  # a fault that one event brings out must not stop the others
        self._metrics.batch(len(items), seconds=time.monotonic() - began)
        self.outage.over()
        for (submission, i), one, outcome in zip(queued, incoming, outcomes, strict=True):
            kind = "unreadable" if isinstance(one.event, EventError) else one.event.kind
            self._metrics.outcome(one.source, kind=kind, result=outcome.result, reason=outcome.reason)
            submission.settle(i, outcome)
        return True

    def _parsed(self, item: Item) -> Event | EventError:
        if item.error is not None:
            return item.error
        try:
            return self._parse(item)
        except EventError as error:
            return error

    def _isolate(self, queued: list[Queued], error: Exception) -> bool:
        """Apply one by one; the event that fails alone, too, goes to the dead letters."""
        if len(queued) > 1:
            for i, one in enumerate(queued):
                if not self._commit([one]):
                    self._intake.put_back([s for s in queued[i + 1 :] if not s[0].future.done()])
                    return False
            return True
        submission, i = queued[0]
        if submission.items[i].error is not None:  # not even its dead letter can be written
            self._fail(queued, error)
            return False
        reason = EventError("internal", f"{type(error).__name__}: {error}")
        submission.items[i] = replace(submission.items[i], error=reason)
        return self._commit(queued)

    def _fail(self, queued: list[Queued], error: Exception) -> None:
        self._metrics.store_failures.inc()
        refused = self.outage.failed(error)
        for submission, _ in queued:
            if not submission.kept:
                submission.fail(refused)
        self._intake.put_back([one for one in queued if one[0].kept])
        self._intake.drop(lambda submission: not submission.kept, refused)

    def _probe(self) -> None:
        try:
            self._store.apply([], offsets={_PROBE: str(time.time_ns()).encode()})
        except Exception as error:
            self._fail([], error)
        else:
            self.outage.over()
