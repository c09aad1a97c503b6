"""The two kinds of tokenizer: one that learns SIDs from what ads are, one that takes those they come with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.columns import check_readable
from training.tokenizer.cooccurrence.positives import Cooccurrence
from training.tokenizer.given_sids import GivenSids
from training.tokenizer.storage import TokenizerError, read_folder
from training.tokenizer.tokenizer import Tokenizer


def fit(
    ads: pl.DataFrame,
    config: TokenizerConfig,
    *,
    train_end: int,
    numeric_columns: Sequence[str] = (),
    widths: Sequence[int] = (),
    cooccurrence: Cooccurrence | None = None,
    vector_file: Path | None = None,
    older: Tokenizer | None = None,
) -> Tokenizer | GivenSids:
    """A tokenizer for these ads.

    Args:
        ads: the prepared table.
        config: which kind, and its settings.
        train_end: unix seconds; later ads must not shape codebooks, since nobody knew them at that time.
            Given SIDs are taken of all ads.
        numeric_columns: of ads, see `data.numeric_columns`.
        widths: of the modalities of the embedding, see `data.embedding_columns`; empty for a single one.
        cooccurrence: baskets of the training part; None where there are none.
        vector_file: where vectors that take long are kept between runs; None keeps none.
        older: whose codes a tokenizer that learns begins with.

    Raises:
        ValueError: a column or setting is unusable; says which.
    """
    check_readable(ads, config, numeric_columns=numeric_columns)
    if config.sids == "given":
        return GivenSids.fit(ads, config)
    known = ads.filter(pl.col("created_at") < train_end)
    return Tokenizer.fit(
        known,
        config,
        numeric_columns=numeric_columns,
        widths=widths,
        cooccurrence=cooccurrence,
        vector_file=vector_file,
        older=older,
    )


def load(folder: Path, *, vector_file: Path | None = None) -> Tokenizer | GivenSids:
    """Read a saved tokenizer of either kind and check it.

    Args:
        folder: where it was saved.
        vector_file: where vectors that take long are kept between runs; None keeps none.

    Raises:
        TokenizerError: a file is missing or corrupted, or was written by a newer version.
    """
    _, config, *_ = read_folder(Path(folder))
    if config.get("sids") == "given":
        return GivenSids.load(folder)
    tokenizer = Tokenizer.load(folder)
    tokenizer.vector_file = vector_file
    return tokenizer


def saved_id(folder: Path) -> str | None:
    """Id of the tokenizer that a folder holds; None where it holds no sound one."""
    try:
        return read_folder(folder)[0]
    except TokenizerError:
        return None


def load_older(config: TokenizerConfig, *, vector_file: Path | None = None) -> Tokenizer | None:
    """The tokenizer that `align_to` names, if any; `vector_file` as in `load`.

    Raises:
        TokenizerError: there is none, or it is unusable.
        ValueError: one of the two takes given SIDs, whose codes nothing can align.
    """
    if config.align_to is None:
        return None
    older = load(Path(config.align_to), vector_file=vector_file)
    if config.sids == "given" or not isinstance(older, Tokenizer):
        raise ValueError(
            f"tokenizer.align_to {config.align_to}: expected two tokenizers that learn SIDs, got "
            f"{'given' if config.sids == 'given' else 'learnt'} SIDs now, {older.config.sids} there"
        )
    return older


def is_made_with(
    tokenizer: Tokenizer | GivenSids,
    config: TokenizerConfig,
    *,
    numeric_columns: Sequence[str],
    widths: Sequence[int] = (),
) -> bool:
    """Whether fitting with these settings would give a tokenizer of this kind and shape."""
    if config.sids == "given" and isinstance(tokenizer, GivenSids):
        pairs = zip(config.given_sizes, tokenizer.level_sizes, strict=False)
        return config.levels == tokenizer.config.levels and all(size in (None, now) for size, now in pairs)
    return (
        isinstance(tokenizer, Tokenizer)
        and tokenizer.config.to_json() == config.to_json()
        and tokenizer.numeric_columns == tuple(numeric_columns)
        and tokenizer.widths == tuple(widths)
    )
