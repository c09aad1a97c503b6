"""What embedders read of ads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.tokenizer.embedders.given_vectors import GivenContent


@dataclass(frozen=True)
class AdContent:
    """N distinct contents of ads, for an embedder of several parts.

    Attributes:
        texts: N texts.
        fields: (account_id, conversion_type) of each, where instructions ask for them.
        given: what they come with, where it is read.
        vector_file: where vectors that take long are kept between runs; None keeps none.
    """

    texts: Sequence[str]
    fields: Sequence[tuple[str, str]] | None = None
    given: GivenContent | None = None
    vector_file: Path | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.texts)
