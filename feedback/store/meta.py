"""What the store says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from feedback.store.layout import FORMAT, FeedbackStoreError

STATE = b"state"


@dataclass(frozen=True)
class Meta:
    """As of one transaction.

    Attributes:
        format: of the store.
        sequence: of the newest sample; 0 before the first.
        newest: time of the newest served request, unix seconds.
        waiting: requests that feedback came for, and no record yet.
        rejected: events that were not taken, ever.
        counters: since the store was made: `samples`, `corrections`, `served`, `repeated` (records of a
            request id that was known), `unnamed` (records without one), `unknown_request`, `lost.<source>`.
        gaps: by source: what a log or stream had lost, in words; the latest.
    """

    format: int = FORMAT
    sequence: int = 0
    newest: int = 0
    waiting: int = 0
    rejected: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)
    gaps: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, raw: bytes | memoryview | None) -> Meta:
        """Inverse; None is a new store.

        Raises:
            FeedbackStoreError: unreadable, or of another format.
        """
        if raw is None:
            return cls()
        try:
            values: dict[str, Any] = json.loads(bytes(raw))
            if values["format"] != FORMAT:
                raise FeedbackStoreError(f"feedback store: expected format {FORMAT}, got {values['format']}")
            return cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            raise FeedbackStoreError(f"feedback store: meta is unreadable: {error!r}") from error
