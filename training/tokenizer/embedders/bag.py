"""Words with a projection that learns which texts are bought together ("bag" of words).

The projection starts as that of `tfidf_svd` and goes on with the contrastive loss of GR4AD's co-occurrence
learning (arXiv 2602.22732, section on UA-SID). A text that nobody bought is placed by the words that it
shares with texts that somebody did.
"""

import logging
from collections.abc import Sequence
from typing import Self

import numpy as np

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.cooccurrence.contrastive import learn_projection
from training.tokenizer.cooccurrence.positives import Positives
from training.tokenizer.embedders.projected import ProjectedWords, svd_components
from training.tokenizer.embedders.words import Words

logger = logging.getLogger(__name__)


class Bag(ProjectedWords):
    """Words on a learnt projection."""

    @classmethod
    def fit(
        cls, texts: Sequence[str], config: TokenizerConfig, *, positives: Positives | None = None
    ) -> Self:
        """Learn vocabulary, idf and projection from N texts and what is bought with each of them.

        Without any positives the projection stays that of `tfidf_svd`: content is all that is known.

        Raises:
            ValueError: fewer than two features are left after `min_df`, or positives of other texts.
        """
        words, features = Words.fit(texts, config)
        components = svd_components(features, config)
        if positives is None or not positives.strength.nnz:
            logger.warning("nothing is known to be bought together: the embedding knows words only")
            return cls(words, components=components)
        learnt = learn_projection(
            features, components.T, positives, settings=config.cooccurrence, seed=config.seed
        )
        return cls(words, components=np.ascontiguousarray(learnt.T))
