"""TF-IDF and a truncated SVD: the light embedder that needs no GPU and no download.

Letters: N texts, F features, D dimensions.
"""

import logging
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from training.tokenizer.config import TokenizerConfig
from training.tokenizer.embedders.base import Arrays

logger = logging.getLogger(__name__)

# Label paths hold one-letter and one-digit words ("2 LB") that scikit-learn's own pattern drops.
TOKEN_PATTERN = r"(?u)\b\w+\b"
MIN_LENGTH = 1e-9  # a shorter projection is noise: no direction


class TfidfSvd:
    """Sublinear TF-IDF of word n-grams, projected on the leading right singular vectors (LSA)."""

    def __init__(
        self, vocabulary: dict[str, int], ngram_max: int, *, idf: np.ndarray, components: np.ndarray
    ) -> None:
        """Take F features: their columns, idf float32 [F] and components float32 [D, F].

        Raises:
            ValueError: the shapes do not agree.
        """
        features = len(vocabulary)
        if idf.shape != (features,) or components.ndim != 2 or components.shape[1] != features:
            raise ValueError(
                f"vocabulary of {features} words needs idf [{features}] and components [D, {features}], "
                f"got {list(idf.shape)} and {list(components.shape)}"
            )
        self._vocabulary, self._ngram_max = vocabulary, ngram_max
        self._idf, self._components = idf, components
        self._vectorizer = _vectorizer(ngram_max, vocabulary=vocabulary)
        self._vectorizer.idf_ = idf.astype(np.float64)
        self._projection = np.ascontiguousarray(components.T, dtype=np.float64)  # [F, D]

    @classmethod
    def fit(cls, texts: Sequence[str], config: TokenizerConfig) -> Self:
        """Learn vocabulary, idf and projection from N texts.

        D is `config.embedding_dim`, or less, with a warning, when there are fewer features or texts.

        Raises:
            ValueError: fewer than two features are left after `min_df`.
        """
        vectorizer = _vectorizer(config.ngram_max, min_df=config.min_df)
        try:
            counts = vectorizer.fit_transform(texts)  # sparse [N, F]
            features = counts.shape[1]
        except ValueError as error:
            # scikit-learn's wording does not say which setting to change.
            logger.debug("vectorizer: %s", error)
            features = 0
        if features < 2:
            raise ValueError(
                f"expected at least 2 text features in min_df = {config.min_df} texts each, got {features} "
                f"from {len(texts)} distinct texts: lower min_df or give texts that share words"
            )
        dim = min(config.embedding_dim, features, len(texts))
        if dim < config.embedding_dim:
            logger.warning(
                "embedding_dim shrinks from %d to %d: %d distinct texts have %d features",
                *(config.embedding_dim, dim, len(texts), features),
            )
        svd = TruncatedSVD(n_components=dim, n_iter=5, random_state=config.seed).fit(counts)
        # Ids as plain int, words in order: the state must be JSON-able and the same on every fit.
        vocabulary = {word: int(column) for word, column in sorted(vectorizer.vocabulary_.items())}
        return cls(
            vocabulary,
            config.ngram_max,
            idf=vectorizer.idf_.astype(np.float32),
            components=np.ascontiguousarray(svd.components_, dtype=np.float32),
        )

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [N, D]; rows have length 1, or are zero where no word is known."""
        if not len(texts):
            return np.zeros((0, self._components.shape[0]), np.float32)
        # Sparse [N, F] @ dense [F, D] adds row by row in storage order, so a row is the same in any batch.
        projected = np.asarray(self._vectorizer.transform(texts) @ self._projection)
        norm = np.sqrt((projected * projected).sum(axis=1, keepdims=True))  # [N, 1]
        unit = np.divide(projected, norm, out=np.zeros_like(projected), where=norm > MIN_LENGTH)
        return unit.astype(np.float32)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return idf and components, and the vocabulary as metadata."""
        metadata = {"ngram_max": self._ngram_max, "vocabulary": self._vocabulary}
        return {"idf": self._idf, "components": self._components}, metadata

    @classmethod
    def from_state(cls, arrays: Arrays, metadata: dict[str, Any]) -> Self:
        """Rebuild from `state()`."""
        return cls(
            metadata["vocabulary"], metadata["ngram_max"], idf=arrays["idf"], components=arrays["components"]
        )


def _vectorizer(ngram_max: int, **settings: Any) -> TfidfVectorizer:
    # One home for the settings that fit and load must share.
    return TfidfVectorizer(
        ngram_range=(1, ngram_max),
        sublinear_tf=True,
        token_pattern=TOKEN_PATTERN,
        dtype=np.float64,
        **settings,
    )
