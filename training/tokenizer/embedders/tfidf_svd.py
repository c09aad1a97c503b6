"""TF-IDF and a truncated SVD: knows words, and nothing of who buys what."""

from collections.abc import Sequence
from typing import Self

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.cooccurrence.positives import Positives
from training.tokenizer.embedders.projected import ProjectedWords, svd_components
from training.tokenizer.embedders.words import Words


class TfidfSvd(ProjectedWords):
    """Words on the leading right singular vectors."""

    @classmethod
    def fit(
        cls, texts: Sequence[str], config: TokenizerConfig, *, positives: Positives | None = None
    ) -> Self:
        """Learn vocabulary, idf and projection from N texts; `positives` are not looked at.

        Raises:
            ValueError: fewer than two features are left after `min_df`.
        """
        words, features = Words.fit(texts, config)
        return cls(words, components=svd_components(features, config))
