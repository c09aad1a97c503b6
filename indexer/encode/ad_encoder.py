"""SIDs of new ads: text -> columns of known n-grams here, codes in ONNX Runtime, the hash level last.

Gives what `training.tokenizer.tokenizer.Tokenizer.encode` gives, without the packages that fit a tokenizer.

Letters: N ads, T levels = codebooks + the hash level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from indexer.encode.graph_encoder import GraphEncoder
from indexer.encode.words import WordColumns, blocks, padded
from indexer.events.content import Content

WORD_NGRAMS = "word_ngrams"


class AdEncoder(GraphEncoder):
    """Texts -> codes, and the hash level."""

    analysis = WORD_NGRAMS

    def _read(self, content: dict[str, Any]) -> None:
        super()._read(content)
        self.words = WordColumns(content)
        self._feature_count = len(self.words)
        # What a row of a block costs at least: a score for every code, and the vector.
        self._width = max(*self.level_sizes[:-1], self._dim)

    def refusal(self, content: Content) -> str | None:
        """See `Encoder`; any text will do."""
        return None

    def knows(self, text: str) -> bool:
        """See `Encoder`: whether a text holds an n-gram of the vocabulary."""
        return self.words.knows(text)

    def _codes(self, contents: Sequence[Content]) -> np.ndarray:
        """Memory beside the answer is bounded by the block, and by the longest text alone."""
        # Many ads share a text: encode each once. inverse [N] -> row of `distinct`.
        distinct: dict[str, int] = {}
        inverse = [distinct.setdefault(content["text"], len(distinct)) for content in contents]
        items = ((text, self.words.features(text)) for text in distinct)
        inputs = (padded([features for _, features in block]) for block in blocks(items, width=self._width))
        return self._run(inputs)[inverse]
