"""Features -> one projection -> unit vector: what the embedders of texts share.

    x = P^T f / |P^T f|

They differ in how P is found. Letters: N texts, F features, D dimensions.
"""

import logging
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.embedders.base import Arrays
from training.tokenizer.embedders.words import Words

logger = logging.getLogger(__name__)

MIN_LENGTH = 1e-9  # a shorter projection is noise: no direction


class ProjectedWords:
    """Words, projected."""

    def __init__(self, words: Words, *, components: np.ndarray) -> None:
        """Take the features and components float32 [D, F], P^T.

        Raises:
            ValueError: the shapes do not agree.
        """
        features = len(words.vocabulary)
        if components.ndim != 2 or components.shape[1] != features:
            raise ValueError(
                f"expected components [D, {features}] of {features} words, got {list(components.shape)}"
            )
        self.words, self.components = words, components
        self._projection = np.ascontiguousarray(components.T, dtype=np.float64)  # [F, D]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [N, D]; rows have length 1, or are zero where no word is known."""
        # Sparse [N, F] @ dense [F, D] adds row by row in storage order, so a row is the same in any batch.
        projected = np.asarray(self.words.features(texts) @ self._projection)
        norm = np.sqrt((projected * projected).sum(axis=1, keepdims=True))  # [N, 1]
        unit = np.divide(projected, norm, out=np.zeros_like(projected), where=norm > MIN_LENGTH)
        return unit.astype(np.float32)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return idf and components, and the vocabulary as metadata."""
        arrays, metadata = self.words.state()
        return {**arrays, "components": self.components}, metadata

    @classmethod
    def from_state(cls, arrays: Arrays, metadata: dict[str, Any]) -> Self:
        """Rebuild from `state()`."""
        return cls(Words.from_state(arrays, metadata), components=arrays["components"])


def svd_components(features: csr_matrix, config: TokenizerConfig) -> np.ndarray:
    """Leading right singular vectors float32 [D, F] of features [N, F] (latent semantic analysis).

    D is `config.embedding_dim`, or less, with a warning, when there are fewer features or texts.
    """
    texts, width = features.shape
    dim = min(config.embedding_dim, width, texts)
    if dim < config.embedding_dim:
        logger.warning(
            "embedding_dim shrinks from %d to %d: %d distinct texts have %d features",
            *(config.embedding_dim, dim, texts, width),
        )
    svd = TruncatedSVD(n_components=dim, n_iter=5, random_state=config.seed).fit(features)
    return np.ascontiguousarray(svd.components_, dtype=np.float32)
