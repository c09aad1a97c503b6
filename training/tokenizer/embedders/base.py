"""What the tokenizer asks of an embedder."""

from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np

from training.tokenizer.config import TokenizerConfig

Arrays = dict[str, np.ndarray]


class TextEmbedder(Protocol):
    """Text of an ad -> unit vector. N texts, D dimensions."""

    @classmethod
    def fit(cls, texts: Sequence[str], config: TokenizerConfig) -> Self:
        """Learn from N texts."""
        ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [N, D], each row of length 1, or all zero for a text with no known feature.

        A row must depend on its own text only, never on the other texts of the call.
        """
        ...

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the learnt arrays and JSON-able metadata, enough for `from_state`."""
        ...

    @classmethod
    def from_state(cls, arrays: Arrays, metadata: dict[str, Any]) -> Self:
        """Rebuild an embedder that embeds bit for bit as the one that gave the state."""
        ...
