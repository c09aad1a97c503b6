"""What the endpoints work with, and their ways to the writer's thread."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from indexer.events.json_object import MAX_EVENT_BYTES
from indexer.http.guard import Guard
from indexer.sidecar.gaps import Gaps
from indexer.sidecar.metrics import WriterMetrics
from indexer.sidecar.worker import Worker
from indexer.sources.source import SourceState
from indexer.sources.submission import Item, Submission, UnavailableError
from indexer.store.incoming import Outcome
from indexer.store.index_store import IndexStore
from serving.index.layout import IndexStoreError
from web.errors import HttpError

SOURCE = "http"
_ANSWER_S = 30.0  # longest wait for a commit
T = TypeVar("T")


@dataclass(frozen=True)
class ApiLimits:
    """Bytes of one event, of a bulk and of a page, rows of a bulk, seconds a body may take to arrive."""

    event_bytes: int = MAX_EVENT_BYTES
    bulk_bytes: int = 32 << 20
    bulk_rows: int = 10_000
    page_bytes: int = 1 << 20
    body_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class WriterApi:
    """What endpoints of any worker work with.

    Attributes:
        worker: all writes go through it.
        metrics: for /metrics.
        guard: who may write.
        ready: problems, and states of the sources.
        limits: of bodies.
    """

    worker: Worker
    metrics: WriterMetrics
    guard: Guard
    ready: Callable[[], tuple[list[str], dict[str, SourceState]]]
    limits: ApiLimits = field(default_factory=ApiLimits)
    _aside: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="http-aside"))

    async def submit(self, raws: Sequence[bytes]) -> list[Outcome]:
        """Outcomes of events, after their commit.

        Raises:
            UnavailableError: they were not taken or not applied.
            HttpError: 503, not committed in time.
        """
        if not raws:
            return []
        submit = functools.partial(self._submit, raws)
        submission = submit() if len(raws) == 1 else await self.aside(submit)
        return await _answer(submission.future)

    async def aside(self, function: Callable[[], T]) -> T:
        """A function that takes a while, in the one thread for such: no number of them stops the event loop.

        What it calls should not hold the interpreter for more than some milliseconds at a time.
        """
        return await asyncio.get_running_loop().run_in_executor(self._aside, function)

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

    def _submit(self, raws: Sequence[bytes]) -> Submission:
        submission = self.worker.submit([Item(raw, SOURCE) for raw in raws])
        assert submission is not None  # without `stop` there is no other way out
        return submission


@dataclass(frozen=True, kw_only=True)
class Api(WriterApi):
    """What the endpoints of the index work with.

    Attributes:
        store: the index, for `call`.
        gaps: what streams lost; `acknowledge` by `call`.
    """

    store: IndexStore
    gaps: Gaps


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
