"""Recall of neighbours at each stage of a tokenizer, from words to codes, and for groups of texts.

Stages: words alone (TF-IDF + SVD, the first version), the tokenizer's vectors, and what its codes keep of
them. Groups: `warm`, texts that learning saw in baskets; `kept out`, texts whose baskets a second embedder of
the same settings was not shown; `few`, texts with fewer than five baskets in the training part.

Letters: A ads, N distinct texts, B baskets, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.cooccurrence.baskets import read_baskets
from training.tokenizer.cooccurrence.held_out import HeldOut, best_seller_recall_at, groups, recall_at
from training.tokenizer.embedders.tfidf_svd import TfidfSvd
from training.tokenizer.recall import KEPT_OUT, KS, fit_embedder, without
from training.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

BEST_SELLER, WORDS, LEARNT, CODES = "best-seller", "words", "learnt", "codes"

Row = dict[int, float]  # recall by k


@dataclass(frozen=True)
class Recall:
    """Recall at k.

    Attributes:
        stages: by stage and group; a stage lacks a group without texts, or one that it cannot be asked about,
            and a stage without a group is not there: `words` where texts share none.
        anchors: texts that were asked for, by group.
    """

    stages: dict[str, dict[str, Row]]
    anchors: dict[str, int]

    def ratio(self, group: str, *, k: int = 1) -> float | None:
        """Recall of the tokenizer's vectors in units of that of words; None where words find nothing."""
        words = self.stages.get(WORDS, {}).get(group, {}).get(k, 0.0)
        return self.stages[LEARNT][group][k] / words if words > 0 else None

    def to_json(self) -> dict[str, dict[str, Row | None]]:
        """The stages; None for a group that one lacks."""
        return {
            stage: {group: found.get(group) for group in self.anchors} for stage, found in self.stages.items()
        }


@dataclass(frozen=True, eq=False)
class Texts:
    """Distinct texts of the ads.

    Attributes:
        texts: N.
        first: int64 [N], row of an ad of each.
        of: int64 [A], text of each ad.
        fitted: int64, those that the tokenizer was fitted on.
    """

    texts: np.ndarray
    first: np.ndarray
    of: np.ndarray
    fitted: np.ndarray

    @classmethod
    def among(cls, ads: pl.DataFrame, *, fitted_until: int) -> Texts:
        """Of a table of ads."""
        texts, first, of = np.unique(ads["text"].to_numpy(), return_index=True, return_inverse=True)
        return cls(texts, first, of, np.unique(of[(ads["created_at"] < fitted_until).to_numpy()]))


def measure_recall(
    tokenizer: Tokenizer,
    ads: pl.DataFrame,
    *,
    data_dir: Path,
    behaviors: Sequence[str],
    fitted_until: int,
) -> Recall | None:
    """Measure it on the baskets after the training part; None where they hold no pair that counts.

    Args:
        tokenizer: reads texts.
        ads: A rows.
        data_dir: folder of the prepared tables.
        behaviors: events of these make a basket.
        fitted_until: unix seconds; ads created before are those the tokenizer was fitted on.

    Raises:
        OSError: a file is missing.
        ValueError: a table or split.json is broken.
    """
    texts, config = Texts.among(ads, fitted_until=fitted_until), tokenizer.config
    kind = config.cooccurrence.basket
    train, later = (
        read_baskets(data_dir, part=part, behaviors=behaviors, basket=kind).contents(
            ads["ad_id"].to_numpy(), texts.of, count=len(texts.texts)
        )
        for part in ("train", "later")
    )
    held_out = HeldOut.of(later)
    if not len(held_out.anchors):
        return None
    hidden = np.random.default_rng(config.seed).random(len(texts.texts)) < KEPT_OUT
    asked = dict(groups(held_out, train))
    asked["kept out"] = groups(held_out, train, kept_out=hidden)["kept out"]
    asked = {name: asked[name] for name in ("warm", "kept out", "few")}
    one_of_each = ads[texts.first]
    with threadpool_limits(limits=1):
        words = _by_words(texts, config)
        own = tokenizer.vectors(one_of_each)
        seen = dict.fromkeys(asked, own)
        if config.learns_from_baskets:
            shown = without(train, hidden)[:, texts.fitted]
            # Contents come in the order of their texts, and so do rows of `one_of_each`.
            content, _ = tokenizer.contents(one_of_each[texts.fitted])
            embedder = fit_embedder(content, config, shown)
            seen["kept out"] = embedder.embed(tokenizer.contents(one_of_each)[0])
    codes = _unit(tokenizer.reconstruct(tokenizer.encode(one_of_each)))
    some = {name: anchors for name, anchors in asked.items() if len(anchors)}  # a share of none is no number
    stages = {
        BEST_SELLER: {n: best_seller_recall_at(held_out, KS, anchors=a) for n, a in some.items()},
        WORDS: {n: recall_at(words, held_out, KS, anchors=a) for n, a in some.items() if words is not None},
        LEARNT: {n: recall_at(seen[n], held_out, KS, anchors=a) for n, a in some.items()},
        # The codebooks saw all texts, so codes cannot be asked about what is kept out.
        CODES: {n: recall_at(codes, held_out, KS, anchors=a) for n, a in some.items() if n != "kept out"},
    }
    known = {stage: found for stage, found in stages.items() if found}
    return Recall(known, {name: len(anchors) for name, anchors in asked.items()})


def _by_words(texts: Texts, config: TokenizerConfig) -> np.ndarray | None:
    """Vectors [N, D] of their words; None where the texts share too few to learn from."""
    try:
        embedder = TfidfSvd.fit(texts.texts[texts.fitted].tolist(), config)
    except ValueError as error:
        logger.info("recall of words is left out: %s", error)
        return None
    return embedder.embed(texts.texts.tolist())


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows [N, D] of length 1, or 0 where they are."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)
