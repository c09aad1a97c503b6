"""What the endpoints work with, and their ways to the writer's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from indexer.events.json_object import MAX_EVENT_BYTES
from indexer.http.guard import Guard
from indexer.sidecar.metrics import Metrics
from indexer.sidecar.worker import Worker
from indexer.sources.source import SourceState
from indexer.sources.submission import Item, UnavailableError
from indexer.store.incoming import Outcome
from indexer.store.index_store import IndexStore
from serving.index.layout import IndexStoreError
from web.errors import HttpError

SOURCE = "http"
_ANSWER_S = 30.0  # longest wait for a commit
T = TypeVar("T")


@dataclass(frozen=True)
class ApiLimits:
    """Bytes of one event and of a bulk, rows of a bulk, seconds a body may take to arrive."""

    event_bytes: int = MAX_EVENT_BYTES
    bulk_bytes: int = 32 << 20
    bulk_rows: int = 10_000
    body_s: float = 60.0


@dataclass(frozen=True)
class Api:
    """What the endpoints work with.

    Attributes:
        store: the index, for `call`.
        worker: all writes go through it.
        metrics: for /metrics.
        guard: who may write.
        ready: problems, and states of the sources.
        limits: of bodies.
    """

    store: IndexStore
    worker: Worker
    metrics: Metrics
    guard: Guard
    ready: Callable[[], tuple[list[str], dict[str, SourceState]]]
    limits: ApiLimits = field(default_factory=ApiLimits)

    async def submit(self, raws: Iterable[bytes]) -> list[Outcome]:
        """Outcomes of events, after their commit.

        Raises:
            UnavailableError: they were not taken or not applied.
            HttpError: 503, not committed in time.
        """
        items = [Item(raw, SOURCE) for raw in raws]
        if not items:
            return []
        submission = self.worker.submit(items)
        assert submission is not None  # without `stop` there is no other way out
        return await _answer(submission.future)

    async def call(self, function: Callable[[], T]) -> T:
        """A function in the writer's thread, between two batches: the store is not for several threads.

        Raises:
            UnavailableError: the store cannot do it at the moment.
            HttpError: 404, a ValueError of the function; 503, not done in time.
        """
        try:
            return await _answer(self.worker.call(function))
        except ValueError as error:
            raise HttpError(404, "unknown_dead_letter", str(error)) from None
        except IndexStoreError as error:
            raise UnavailableError(str(error)) from None


async def _answer(future: Future[T]) -> T:
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await asyncio.shield(asyncio.wrap_future(future))
    except TimeoutError:
        raise HttpError(
            503,
            "slow",
            f"not committed within {_ANSWER_S:.0f} s, and it may still be; sending it again does no harm",
            headers={"Retry-After": "5"},
        ) from None
