"""Words of a text as features: sublinear TF-IDF of word n-grams.

Letters: N texts, F features.
"""

import logging
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.embedders.base import Arrays

logger = logging.getLogger(__name__)

# Label paths hold one-letter and one-digit words ("2 LB") that scikit-learn's own pattern drops.
TOKEN_PATTERN = r"(?u)\b\w+\b"


class Words:
    """A vocabulary of n-grams, and how much each of them says."""

    def __init__(self, vocabulary: dict[str, int], ngram_max: int, *, idf: np.ndarray) -> None:
        """Take F features: their columns, and idf float32 [F].

        Raises:
            ValueError: the shapes do not agree.
        """
        if idf.shape != (len(vocabulary),):
            raise ValueError(
                f"vocabulary of {len(vocabulary)} words needs idf [{len(vocabulary)}], got {list(idf.shape)}"
            )
        self.vocabulary, self.ngram_max, self.idf = vocabulary, ngram_max, idf
        self._vectorizer = _vectorizer(ngram_max, vocabulary=vocabulary)
        self._vectorizer.idf_ = idf.astype(np.float64)

    @classmethod
    def fit(cls, texts: Sequence[str], config: TokenizerConfig) -> tuple[Self, csr_matrix]:
        """Learn vocabulary and idf from N texts; beside them the texts' features, float64 [N, F].

        These are made with the idf before it is rounded to float32, which the last bits of an SVD show.

        Raises:
            ValueError: fewer than two features are left after `min_df`.
        """
        vectorizer = _vectorizer(config.ngram_max, min_df=config.min_df)
        try:
            features = vectorizer.fit_transform(texts)
            width = features.shape[1]
        except ValueError as error:
            # scikit-learn's wording does not say which setting to change.
            logger.debug("vectorizer: %s", error)
            width = 0
        if width < 2:
            raise ValueError(
                f"expected at least 2 text features in min_df = {config.min_df} texts each, got {width} "
                f"from {len(texts)} distinct texts: lower min_df or give texts that share words"
            )
        # Ids as plain int, words in order: the state must be JSON-able and the same on every fit.
        vocabulary = {word: int(column) for word, column in sorted(vectorizer.vocabulary_.items())}
        return cls(vocabulary, config.ngram_max, idf=vectorizer.idf_.astype(np.float32)), features

    def features(self, texts: Sequence[str]) -> csr_matrix:
        """Return float64 [N, F], rows of length 1, or zero where no word is known."""
        if not len(texts):
            return csr_matrix((0, len(self.vocabulary)), dtype=np.float64)
        return self._vectorizer.transform(texts)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return idf, and the vocabulary as metadata."""
        return {"idf": self.idf}, {"ngram_max": self.ngram_max, "vocabulary": self.vocabulary}

    @classmethod
    def from_state(cls, arrays: Arrays, metadata: dict[str, Any]) -> Self:
        """Rebuild from `state()`."""
        return cls(metadata["vocabulary"], metadata["ngram_max"], idf=arrays["idf"])


def _vectorizer(ngram_max: int, **settings: Any) -> TfidfVectorizer:
    # One home for the settings that fit and load must share.
    return TfidfVectorizer(
        ngram_range=(1, ngram_max),
        sublinear_tf=True,
        token_pattern=TOKEN_PATTERN,
        dtype=np.float64,
        **settings,
    )
