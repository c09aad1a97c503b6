"""What is known of one request: whether its record came, and what came of its ads."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from feedback.store.layout import FeedbackStoreError

Fed = dict[tuple[int, int], tuple[int, float]]
"""(ad, code of the behavior) -> (unix seconds, value): of each at most one."""


def digest_of(request_id: str) -> bytes:
    """Key of a request."""
    return blake2b(request_id.encode(errors="surrogatepass"), digest_size=16).digest()


@dataclass
class RequestState:
    """One request.

    Attributes:
        is_served: its record came; until then nothing below but `fed` is known.
        clock: when it was answered, by the clock that windows go by, seconds.
        timestamp: the request's own time, unix seconds.
        user: id; None where the request named nobody.
        ad_ids: of the answer.
        fed: what came of them. Of a request whose record has not come it is as it was sent, unchecked.
        revision: samples that were made of it.
    """

    is_served: bool = False
    clock: float = 0.0
    timestamp: int = 0
    user: int | None = None
    ad_ids: list[int] = field(default_factory=list)
    fed: Fed = field(default_factory=dict)
    revision: int = 0

    def encode(self) -> bytes:
        """JSON."""
        fed = [[*key, *value] for key, value in self.fed.items()]
        return json.dumps(vars(self) | {"fed": fed}, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, raw: bytes) -> RequestState:
        """Inverse of `encode`.

        Raises:
            FeedbackStoreError: unreadable.
        """
        try:
            values: dict[str, Any] = json.loads(raw)
            fed = {(ad, code): (when, value) for ad, code, when, value in values.pop("fed")}
            return cls(**values, fed=fed)
        except (ValueError, TypeError, KeyError) as error:
            raise FeedbackStoreError(f"feedback store: a request is unreadable: {error!r}") from error
