"""A store that takes no writes: who is at fault, what clients are told, when it is tried again."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import lmdb

from indexer.sources.submission import UnavailableError

log = logging.getLogger("gr4ad.indexer")


@dataclass(frozen=True)
class Failure:
    """Why the store takes nothing at the moment.

    Attributes:
        message: of the last error.
        status: HTTP status that says so, 503 or 507 (no space).
        since: unix seconds.
    """

    message: str
    status: int
    since: float


class Outage:
    """Whether the store takes writes. The writer's thread sets it, all may read it.

    Attributes:
        failure: None while the store takes writes.
        tries: failed ones in a row.
    """

    def __init__(self, *, max_retry_s: float) -> None:
        """None yet; pauses between two tries grow up to `max_retry_s`."""
        self.failure: Failure | None = None
        self.tries = 0
        self._max_retry_s, self._retry_at = max_retry_s, 0.0

    @property
    def pause_s(self) -> float:
        """Seconds until the next try; 0 where it is due, or nothing has failed."""
        return max(self._retry_at - time.monotonic(), 0.0) if self.failure else 0.0

    def failed(self, error: Exception) -> UnavailableError:
        """The store did not take something; what clients are told."""
        message = f"{type(error).__name__}: {error}"
        self.tries += 1
        self._retry_at = time.monotonic() + min(0.25 * 2.0 ** min(self.tries, 16), self._max_retry_s)
        if self.failure is None:
            log.error("the store does not take writes, tried again until it does: %s", message)
        since = self.failure.since if self.failure else time.time()
        self.failure = Failure(message, 507 if _no_space(error) else 503, since)
        return self._told(self.failure)

    def over(self) -> None:
        """The store took something."""
        if self.failure:
            log.warning("the store takes writes again after %.1f s", time.time() - self.failure.since)
        self.failure, self.tries = None, 0

    def check(self) -> None:
        """Nothing is taken from clients that can send it again later.

        Raises:
            UnavailableError: the store takes no writes.
        """
        if failure := self.failure:
            raise self._told(failure)

    def _told(self, failure: Failure) -> UnavailableError:
        message = f"the store is not writable: {failure.message}"
        return UnavailableError(message, status=failure.status, retry_after_s=max(self.pause_s, 0.5))


def needs_reopening(error: Exception) -> bool:
    """Whether LMDB works again only once the index is opened anew."""
    return any(isinstance(e, lmdb.PanicError) for e in _causes(error))


def of_the_machine(error: Exception) -> bool:
    """Whether the disk or the memory is at fault, so that the same events may pass later."""
    return any(isinstance(e, lmdb.Error | OSError | MemoryError) for e in _causes(error))


def _no_space(error: Exception) -> bool:
    return any(
        isinstance(e, lmdb.MapFullError)
        or (isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT))
        or os.strerror(errno.ENOSPC) in str(e)
        for e in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
