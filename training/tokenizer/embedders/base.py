"""What the tokenizer asks of an embedder."""

from typing import Any, Protocol, Self

import numpy as np

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.cooccurrence.positives import Positives

Arrays = dict[str, np.ndarray]


class Embedder(Protocol):
    """Content of an ad -> vector. N contents of a kind that the embedder knows, D dimensions."""

    @classmethod
    def fit(cls, content: Any, config: TokenizerConfig, *, positives: Positives | None = None) -> Self:
        """Learn from N contents, texts or `GivenContent`, and from which of them are bought together.

        One that learns nothing of baskets leaves `positives` alone; one that does falls back to the content
        where there are none.
        """
        ...

    def embed(self, content: Any) -> np.ndarray:
        """Return float32 [N, D], no row longer than `MAX_NORM` of the quantizer; zero where nothing is known.

        A row must depend on its own content only, never on the others of the call.
        """
        ...

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the learnt arrays and JSON-able metadata, enough for `from_state`."""
        ...

    @classmethod
    def from_state(cls, arrays: Arrays, metadata: dict[str, Any]) -> Self:
        """Rebuild an embedder that embeds bit for bit as the one that gave the state."""
        ...
