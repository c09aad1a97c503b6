"""Text -> columns of known n-grams.

It is analysed as scikit-learn does: lower case, words by a pattern, word n-grams joined by one space.

Letters: N texts, L features of the longest text of a block.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

# Bounds every matrix of a block: 16 MiB of float64, unless one text alone has more features.
BLOCK_ELEMENTS = 2**21

Features = list[tuple[int, int]]  # (column, count) of each known n-gram of a text, by column
Item = TypeVar("Item")


class WordColumns:
    """A vocabulary of n-grams."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Take `token_pattern`, `ngram_max` and `vocabulary`, whose n-gram i is column i.

        Raises:
            re.error, KeyError, TypeError, ValueError: they are no such settings.
        """
        self._words = re.compile(settings["token_pattern"]).findall
        self._ngram_max = int(settings["ngram_max"])
        self._columns = {ngram: column for column, ngram in enumerate(settings["vocabulary"])}

    def __len__(self) -> int:
        """Number of columns."""
        return len(self._columns)

    def features(self, text: str) -> Features:
        """Known n-grams of a text; a graph adds in this order, as the tokenizer does."""
        return sorted(Counter(self._known(text)).items())

    def knows(self, text: str) -> bool:
        """Whether a text holds an n-gram of the vocabulary."""
        return next(self._known(text), None) is not None

    def _known(self, text: str) -> Iterator[int]:
        words = self._words(text.lower())
        for n in range(1, self._ngram_max + 1):
            for start in range(len(words) - n + 1):
                column = self._columns.get(" ".join(words[start : start + n]))
                if column is not None:
                    yield column


def blocks(items: Iterable[tuple[Item, Features]], *, width: int) -> Iterator[list[tuple[Item, Features]]]:
    """Items in blocks of a bounded size; `width` is what a row costs at least."""
    block: list[tuple[Item, Features]] = []
    widest = width
    for item, features in items:
        widest = max(widest, len(features))
        if block and (len(block) + 1) * widest > BLOCK_ELEMENTS:
            yield block
            block, widest = [], max(width, len(features))
        block.append((item, features))
    if block:
        yield block


def padded(block: list[Features]) -> dict[str, np.ndarray]:
    """Inputs of a graph: columns int64 [N, L] and sublinear term frequencies tf float64 [N, L].

    Padding has frequency 0.
    """
    longest = max(1, *map(len, block))
    columns = np.zeros((len(block), longest), np.int64)
    tf = np.zeros((len(block), longest), np.float64)
    filled = np.arange(longest) < np.array([len(features) for features in block])[:, None]  # [N, L]
    flat = np.array([pair for features in block for pair in features], np.int64).reshape(-1, 2)
    columns[filled] = flat[:, 0]
    # NumPy's logarithm, as scikit-learn's: ONNX Runtime's may round differently.
    tf[filled] = np.log(flat[:, 1].astype(np.float64)) + 1.0
    return {"columns": columns, "tf": tf}
