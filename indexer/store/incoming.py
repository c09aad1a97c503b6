"""What goes into the store and what comes out: an event as a source delivers it, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Result = Literal["applied", "stale", "rejected"]


class Event(Protocol):
    """What a source delivers, as `indexer.events.event.AdEvent`."""

    @property
    def kind(self) -> Any:
        """A word, for counters."""


@dataclass(frozen=True)
class Incoming:
    """An event as a source delivers it.

    Attributes:
        event: parsed, an `Event`, or the `EventError` why it could not be.
        raw: as it came, for the dead letters.
        source: name of the source.
    """

    event: Any
    raw: bytes
    source: str


@dataclass(frozen=True)
class Outcome:
    """What became of an event.

    Attributes:
        result: applied; stale, that is known already, so without effect; or rejected, now a dead letter.
        reason: why it is not applied.
        message: same, for people.
        sequence: of the index after the transaction; readers that have it see the effect.
    """

    result: Result
    reason: str
    message: str
    sequence: int
