"""SIDs of new ads: text -> columns of known n-grams here, codes in ONNX Runtime, the hash level last.

Gives what `training.tokenizer.tokenizer.Tokenizer.encode` gives, without the packages that fit a tokenizer.
The text is analysed as scikit-learn does: lower case, words by a pattern, word n-grams joined by one space.

Letters: N ads, L features of the longest text of a block, T levels = codebooks + the hash level.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from indexer.encode.graph_encoder import GraphEncoder
from indexer.events.content import Content

WORD_NGRAMS = "word_ngrams"
BLOCK_ELEMENTS = (
    2**21
)  # bounds every matrix of a block: 16 MiB of float64, unless one text alone has more features

Features = list[tuple[int, int]]  # (column, count) of each known n-gram of a text, by column


class AdEncoder(GraphEncoder):
    """Texts -> codes, and the hash level."""

    analysis = WORD_NGRAMS
    _columns: dict[str, int]

    def _read(self, content: dict[str, Any]) -> None:
        super()._read(content)
        self._words = re.compile(content["token_pattern"]).findall
        self._ngram_max = int(content["ngram_max"])
        self._columns = {ngram: column for column, ngram in enumerate(content["vocabulary"])}
        # What a row of a block costs at least: a score for every code, and the vector.
        self._width = max(*self.level_sizes[:-1], self._dim)

    def refusal(self, content: Content) -> str | None:
        """See `Encoder`; any text will do."""
        return None

    def _codes(self, contents: Sequence[Content]) -> np.ndarray:
        """Memory beside the answer is bounded by the block, and by the longest text alone."""
        # Many ads share a text: encode each once. inverse [N] -> row of `distinct`.
        distinct: dict[str, int] = {}
        inverse = [distinct.setdefault(content["text"], len(distinct)) for content in contents]
        padded = map(_padded, self._blocks(distinct))
        return self._run({"columns": columns, "tf": tf} for columns, tf in padded)[inverse]

    def _blocks(self, texts: Iterable[str]) -> Iterator[list[Features]]:
        block: list[Features] = []
        width = self._width
        for text in texts:
            features = self._features(text)
            width = max(width, len(features))
            if block and (len(block) + 1) * width > BLOCK_ELEMENTS:
                yield block
                block, width = [], max(self._width, len(features))
            block.append(features)
        if block:
            yield block

    def knows(self, text: str) -> bool:
        """Whether a text holds an n-gram of the vocabulary; all that hold none share one prefix."""
        return next(self._known(text), None) is not None

    def _features(self, text: str) -> Features:
        # The graph adds in this order, as the tokenizer does.
        return sorted(Counter(self._known(text)).items())

    def _known(self, text: str) -> Iterator[int]:
        """Columns of a text's n-grams that the vocabulary has."""
        words = self._words(text.lower())
        for n in range(1, self._ngram_max + 1):
            for start in range(len(words) - n + 1):
                column = self._columns.get(" ".join(words[start : start + n]))
                if column is not None:
                    yield column


def _padded(block: list[Features]) -> tuple[np.ndarray, np.ndarray]:
    """Columns int64 [N, L] and sublinear term frequencies float64 [N, L]; padding has frequency 0."""
    longest = max(1, *map(len, block))
    columns = np.zeros((len(block), longest), np.int64)
    tf = np.zeros((len(block), longest), np.float64)
    filled = np.arange(longest) < np.array([len(features) for features in block])[:, None]  # [N, L]
    flat = np.array([pair for features in block for pair in features], np.int64).reshape(-1, 2)
    columns[filled] = flat[:, 0]
    # NumPy's logarithm, as scikit-learn's: ONNX Runtime's may round differently.
    tf[filled] = np.log(flat[:, 1].astype(np.float64)) + 1.0
    return columns, tf
