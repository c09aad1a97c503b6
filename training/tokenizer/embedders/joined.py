"""Words, sentences and what ads come with: features side by side, one projection, a unit vector.

    x = P^T f / |P^T f|,   f = [ words ; sentence ; given ]

which is the sum of a projection of each part. P starts at the leading right singular vectors of the features
side by side and, where baskets are known, goes on with co-occurrence learning as that of `bag` does.

Sentence and given features, and their rows of P, lie on the quantizers' grid of 2^-20: the sum of their
products is exact in float64 in whatever order it is added, and so the same in a matrix product of any shape.

Letters: N contents, F features, W of them words, D dimensions.
"""

from __future__ import annotations

import logging
from typing import Any, Self

import numpy as np
from scipy.sparse import csr_matrix, hstack

from serving.embedding.instructions import Instructions
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.cooccurrence.contrastive import learn_projection
from training.tokenizer.cooccurrence.positives import Positives
from training.tokenizer.embedders.base import Arrays
from training.tokenizer.embedders.content import AdContent
from training.tokenizer.embedders.given_vectors import GivenVectors
from training.tokenizer.embedders.minilm import MiniLm
from training.tokenizer.embedders.projected import MIN_LENGTH, svd_components
from training.tokenizer.embedders.words import Words
from training.tokenizer.instructions import read_instructions
from training.tokenizer.quantizers.grid import on_grid

logger = logging.getLogger(__name__)

MOST = 2.0**12  # length of a column of P up to which a sum of products stays below 2^53 grid steps


class Joined:
    """Parts of an ad, projected together.

    Attributes:
        words: words of the text; None where they are not read.
        sentences: the text as a sentence model reads it.
        given: vectors and numbers that ads come with.
        components: P^T, float32 [D, F].
    """

    def __init__(
        self,
        *,
        words: Words | None,
        sentences: MiniLm | None,
        given: GivenVectors | None,
        components: np.ndarray,
    ) -> None:
        """Put fitted parts together.

        Raises:
            ValueError: there is none, the shapes do not agree, or a projection that is too long.
        """
        self.words, self.sentences, self.given = words, sentences, given
        width = self.word_count + self.dense_count
        if not width or components.ndim != 2 or components.shape[1] != width:
            raise ValueError(f"expected components [D, {width}], got {list(components.shape)}")
        self.components = np.array(components, np.float32)
        self.components[:, self.word_count :] = on_grid(components[:, self.word_count :])
        projection = self.components.astype(np.float64).T
        self._of_words = np.ascontiguousarray(projection[: self.word_count])  # [W, D]
        self._of_dense = np.ascontiguousarray(projection[self.word_count :])  # [F - W, D]
        longest = np.sqrt((self._of_dense**2).sum(axis=0)).max(initial=0)
        if not longest <= MOST:
            raise ValueError(f"expected a finite projection of length <= {MOST}, got {longest}")

    @classmethod
    def fit(cls, content: AdContent, config: TokenizerConfig, *, positives: Positives | None = None) -> Self:
        """Learn the parts that `config.parts` names, and their projection, from N contents.

        Raises:
            SentenceModelError: the extra for sentences is not installed.
            ValueError: a part finds nothing to learn from.
        """
        words, sentences, given, found = None, None, None, []
        if "words" in config.parts:
            words, features = Words.fit(content.texts, config)
            found.append(features)
        if "minilm" in config.parts:
            instructions = read_instructions(config.instructions) if config.instructions else None
            sentences = MiniLm.opened(instructions=instructions)
        if "given" in config.parts:
            given = GivenVectors.fit(_given(content), config)
        found.append(csr_matrix(_dense(content, sentences, given)))
        features = csr_matrix(hstack(found))
        components = svd_components(features, config)
        if config.learns_from_baskets:
            if positives is None or not positives.strength.nnz:
                logger.warning("nothing is known to be bought together: the embedding knows contents only")
            else:
                learnt = learn_projection(
                    features, components.T, positives, settings=config.cooccurrence, seed=config.seed
                )
                components = np.ascontiguousarray(learnt.T)
        return cls(words=words, sentences=sentences, given=given, components=components)

    @property
    def word_count(self) -> int:
        """W."""
        return len(self.words.vocabulary) if self.words else 0

    @property
    def dense_count(self) -> int:
        """F - W."""
        return (self.sentences.golden.shape[1] if self.sentences else 0) + (
            self.given.width if self.given else 0
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Numbers of the ads that are read."""
        return self.given.columns if self.given else ()

    @property
    def widths(self) -> tuple[int, ...]:
        """Dimensions of each modality of the embeddings that are read."""
        return self.given.widths if self.given else ()

    def embed(self, content: AdContent) -> np.ndarray:
        """Return float32 [N, D]; rows have length 1, or are zero where nothing is known of an ad.

        Raises:
            SentenceModelError: the extra for sentences is not installed, or computes other vectors.
        """
        projected = _dense(content, self.sentences, self.given) @ self._of_dense
        if self.words:
            # Sparse [N, W] @ dense [W, D] adds a row in storage order, so it is the same in any batch.
            projected = np.asarray(self.words.features(content.texts) @ self._of_words) + projected
        length = np.sqrt((projected * projected).sum(axis=1, keepdims=True))  # [N, 1]
        unit = np.divide(projected, length, out=np.zeros_like(projected), where=length > MIN_LENGTH)
        return unit.astype(np.float32)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return arrays and metadata of the parts, and the components."""
        arrays: Arrays = {"components": self.components}
        metadata: dict[str, Any] = {}
        if self.words:
            more, metadata["words"] = self.words.state()
            arrays |= more
        if self.sentences:
            arrays["golden"] = self.sentences.golden
            instructions = self.sentences.instructions
            metadata["minilm"] = {"instructions": instructions.templates if instructions else None}
        if self.given:
            more, metadata["given"] = self.given.state()
            arrays |= more
        return arrays, metadata

    @classmethod
    def from_state(cls, arrays: Arrays, metadata: dict[str, Any]) -> Self:
        """Rebuild from `state()`."""
        words, sentences, given = (metadata.get(part) for part in ("words", "minilm", "given"))
        instructions = sentences["instructions"] if sentences else None
        return cls(
            words=Words.from_state(arrays, words) if words else None,
            sentences=MiniLm(
                arrays["golden"], instructions=Instructions(instructions) if instructions else None
            )
            if sentences
            else None,
            given=GivenVectors.from_state(arrays, given) if given else None,
            components=arrays["components"],
        )


def _dense(content: AdContent, sentences: MiniLm | None, given: GivenVectors | None) -> np.ndarray:
    """Features float64 [N, F - W] that are no words, on the grid."""
    found = [np.zeros((len(content), 0))]
    if sentences:
        found.append(sentences.embed(content).astype(np.float64))
    if given:
        found.append(on_grid(given.embed(_given(content))).astype(np.float64))
    return np.concatenate(found, axis=1)


def _given(content: AdContent) -> Any:
    if content.given is None:
        raise ValueError("expected ads with embeddings or numbers for the part given, got none")
    return content.given
