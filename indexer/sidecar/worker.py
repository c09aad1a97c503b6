"""The writer thread: applies events of all sources in batches, answers after the commit, and does chores."""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import lmdb

from indexer.events.event import DEFAULT_LIMITS, AdEvent, EventError, EventLimits, parse_event
from indexer.sidecar.intake import Intake, Item, Slot, Submission, UnavailableError
from indexer.sidecar.metrics import Metrics
from indexer.store.batch import Outcome
from indexer.store.dead_letters import Incoming

log = logging.getLogger("gr4ad.indexer")

_IDLE_S = 0.1  # longest wait for an event before the chores get their turn
_PROBE = "probe"  # its offset is written to see whether the store takes writes again


class Store(Protocol):
    """What the worker needs of `indexer.store.index_store.IndexStore`."""

    def apply(self, items: Sequence[Incoming], *, offsets: Mapping[str, bytes]) -> list[Outcome]:
        """Events and offsets in one durable transaction."""


@dataclass(frozen=True)
class WorkerConfig:
    """Settings of the worker.

    Attributes:
        batch_events: events of one transaction.
        batch_ms: wait for more events after the first.
        queue_events: events that may wait; streams use half of it.
        queue_bytes: bytes that may wait.
        max_retry_s: longest pause between two tries of a store that fails.
        stuck_s: a turn of the loop that takes longer makes the sidecar unready.
    """

    batch_events: int = 256
    batch_ms: float = 10.0
    queue_events: int = 4096
    queue_bytes: int = 64 << 20
    max_retry_s: float = 30.0
    stuck_s: float = 60.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("batch_events", "queue_events", "queue_bytes", "max_retry_s", "stuck_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"expected {name} > 0, got {getattr(self, name)}")
        if self.batch_ms < 0:
            raise ValueError(f"expected batch_ms >= 0, got {self.batch_ms}")


@dataclass(frozen=True)
class Failure:
    """Why the store takes nothing at the moment."""

    message: str
    status: int
    since: float


@dataclass
class _Chore:
    run: Callable[[], bool]
    name: str
    failures: int = 0
    not_before: float = 0.0


class Worker:
    """Owns all writes. Everything but `submit`, `call`, `problems`, `start` and `stop` runs in its thread."""

    def __init__(
        self,
        store: Store,
        *,
        heartbeat: Path,
        metrics: Metrics,
        config: WorkerConfig | None = None,
        limits: EventLimits = DEFAULT_LIMITS,
        chores: Mapping[str, Callable[[], bool]] | None = None,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            store: the index.
            heartbeat: file to touch every second.
            metrics: counts batches and outcomes.
            config: sizes and times.
            limits: of events.
            chores: called between batches; they do a little and return whether more is to be done at once.
        """
        self.config = config or WorkerConfig()
        self.failure: Failure | None = None
        self.crash: BaseException | None = None
        self._store, self._heartbeat, self._metrics = store, heartbeat, metrics
        self._limits = limits
        self._chores = [_Chore(run, name) for name, run in (chores or {}).items()]
        self._intake = Intake(max_events=self.config.queue_events, max_bytes=self.config.queue_bytes)
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="index-writer", daemon=True)
        self._stopping = threading.Event()
        self._turn_began = time.monotonic()
        self._beat_at = self._retry_at = 0.0
        self._tries = 0

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
        failure = self.failure
        if failure and not kept:
            raise self._unavailable(failure)
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
        if self.failure:
            problems.append(f"the store is not writable: {self.failure.message}")
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
            while not self._stopping.is_set() or (len(self._intake) and not self.failure):
                self._turn()
            self._run_calls()
        except BaseException as error:
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
        if self.failure and now < self._retry_at:
            self._stopping.wait(min(_IDLE_S, self._retry_at - now))
            return
        busy = not self.failure and any([self._do(c) for c in self._chores])
        batch = self._intake.take(
            self.config.batch_events, first_s=0.0 if busy else _IDLE_S, more_s=self.config.batch_ms / 1000
        )
        if batch:
            self._commit(batch)
        elif self.failure:
            self._probe()

    def _run_calls(self) -> None:
        with suppress(queue.Empty):
            while True:
                function, future = self._calls.get_nowait()
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(function())
                    except Exception as error:
                        future.set_exception(error)

    def _do(self, chore: _Chore) -> bool:
        if time.monotonic() < chore.not_before:
            return False
        try:
            more = chore.run()
            chore.failures = 0
            return bool(more)
        except Exception as error:
            chore.failures += 1
            chore.not_before = time.monotonic() + min(2.0**chore.failures, 60.0)
            self._metrics.chore_failures.labels(chore.name).inc()
            if chore.failures == 1:  # and not every minute while the cause lasts
                log.error("%s failed, tried again later: %s: %s", chore.name, type(error).__name__, error)
            return False

    def _commit(self, slots: list[Slot]) -> bool:
        """Apply and settle; False when the store failed and the slots were given back."""
        items = [submission.items[i] for submission, i in slots]
        incoming = [Incoming(self._parsed(i), i.raw, i.source) for i in items]
        offsets = {i.source: i.offset for i in items if i.offset is not None}
        began = time.monotonic()
        try:
            outcomes = self._store.apply(incoming, offsets=offsets)
        except Exception as error:
            if any(isinstance(e, lmdb.PanicError) for e in _causes(error)):
                raise  # LMDB works again only once the index is opened anew: end, and be started again
            if _of_the_machine(error):
                self._fail(slots, error)
                return False
            log.exception("a batch of %d events failed", len(slots))
            return self._isolate(slots, error)  # a fault that one event brings out must not stop the others
        self._metrics.batch(len(items), seconds=time.monotonic() - began)
        self._recovered()
        for (submission, i), one, outcome in zip(slots, incoming, outcomes, strict=True):
            kind = one.event.kind if isinstance(one.event, AdEvent) else "unreadable"
            self._metrics.outcome(one.source, kind=kind, result=outcome.result, reason=outcome.reason)
            submission.settle(i, outcome)
        return True

    def _parsed(self, item: Item) -> AdEvent | EventError:
        if item.error is not None:
            return item.error
        try:
            return parse_event(item.raw, limits=self._limits)
        except EventError as error:
            return error

    def _isolate(self, slots: list[Slot], error: Exception) -> bool:
        """Apply one by one; the event that fails alone, too, goes to the dead letters."""
        if len(slots) > 1:
            for i, slot in enumerate(slots):
                if not self._commit([slot]):
                    self._intake.put_back([s for s in slots[i + 1 :] if not s[0].future.done()])
                    return False
            return True
        submission, i = slots[0]
        if submission.items[i].error is not None:  # not even its dead letter can be written
            self._fail(slots, error)
            return False
        reason = EventError("internal", f"{type(error).__name__}: {error}")  # type: ignore[arg-type]
        submission.items[i] = replace(submission.items[i], error=reason)
        return self._commit(slots)

    def _fail(self, slots: list[Slot], error: Exception) -> None:
        message = f"{type(error).__name__}: {error}"
        self._tries += 1
        pause = min(0.25 * 2.0 ** min(self._tries, 16), self.config.max_retry_s)
        self._retry_at = time.monotonic() + pause
        self._metrics.store_failures.inc()
        if self.failure is None:
            log.error("the store does not take writes, tried again until it does: %s", message)
        since = self.failure.since if self.failure else time.time()
        self.failure = Failure(message, 507 if _no_space(error) else 503, since)
        refused = self._unavailable(self.failure)
        for submission, _ in slots:
            if not submission.kept:
                submission.fail(refused)
        self._intake.put_back([slot for slot in slots if slot[0].kept])
        self._intake.drop(lambda submission: not submission.kept, refused)

    def _probe(self) -> None:
        try:
            self._store.apply([], offsets={_PROBE: str(time.time_ns()).encode()})
        except Exception as error:
            self._fail([], error)
        else:
            self._recovered()

    def _recovered(self) -> None:
        if self.failure:
            log.warning("the store takes writes again after %.1f s", time.time() - self.failure.since)
        self.failure, self._tries = None, 0

    def _unavailable(self, failure: Failure) -> UnavailableError:
        pause = max(self._retry_at - time.monotonic(), 0.5)
        return UnavailableError(
            f"the store is not writable: {failure.message}", status=failure.status, retry_after_s=pause
        )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _of_the_machine(error: Exception) -> bool:
    """Whether the disk or the memory is at fault, so that the same events may pass later."""
    return any(isinstance(e, lmdb.Error | OSError | MemoryError) for e in _causes(error))


def _no_space(error: Exception) -> bool:
    return any(
        isinstance(e, lmdb.MapFullError)
        or (isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT))
        or os.strerror(errno.ENOSPC) in str(e)
        for e in _causes(error)
    )
