"""How events travel from a source to the writer thread, and their outcomes back."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from indexer.events.error import EventError
from indexer.store.incoming import Outcome


class UnavailableError(RuntimeError):
    """An event was not taken or not applied, through no fault of its own: send it again later.

    Attributes:
        status: HTTP status that says so, 503 or 507 (no space).
        retry_after_s: when to try again.
    """

    def __init__(self, message: str, *, status: int = 503, retry_after_s: float = 1.0) -> None:
        """Keep the reason."""
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s


@dataclass(frozen=True)
class Item:
    """One event as a source gives it.

    Attributes:
        raw: JSON.
        source: name under which its offset is kept.
        offset: where the source stands once this event has been applied; None for HTTP.
        error: why it is no event at all, when the source knows already.
    """

    raw: bytes
    source: str
    offset: bytes | None = None
    error: EventError | None = None


class Submission:
    """Items that came together; `future` holds their outcomes once all are committed."""

    def __init__(self, items: Iterable[Item], *, kept: bool) -> None:
        """Wrap.

        Args:
            items: in order.
            kept: wait for the store to recover (streams) instead of failing at once (HTTP).
        """
        self.items, self.kept = list(items), kept
        self.outcomes: list[Outcome | None] = [None] * len(self.items)
        self.future: Future[list[Outcome]] = Future()
        self.future.set_running_or_notify_cancel()  # nobody can cancel what may be committed already
        self._open = len(self.items)

    def settle(self, index: int, outcome: Outcome) -> None:
        """Outcome of one item, after its commit."""
        self.outcomes[index] = outcome
        self._open -= 1
        if not self._open:
            self.future.set_result([o for o in self.outcomes if o is not None])

    def fail(self, error: Exception) -> None:
        """End without outcomes for the items that are still open."""
        if not self.future.done():
            self.future.set_exception(error)
