"""What the embedder of a tokenizer reads of a table of ads, each distinct content once.

Letters: N ads, C contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.columns import given_numbers, given_vectors
from training.tokenizer.embedders.content import AdContent
from training.tokenizer.embedders.given_vectors import GivenContent
from training.tokenizer.tables import Kind, check_columns

_EVERY: dict[str, Kind] = {
    "ad_id": "integers",
    "account_id": "integers or texts",
    "conversion_type": "integers or texts",
}


def contents_of(
    ads: pl.DataFrame,
    config: TokenizerConfig,
    *,
    numeric_columns: Sequence[str] = (),
    widths: Sequence[int] = (),
    vector_file: Path | None = None,
) -> tuple[Any, np.ndarray]:
    """C contents for the embedder of `config`, and which of them each ad has, int64 [N].

    Many ads share a text, and each text is embedded once; what ads come with is taken ad by ad.

    Args:
        ads: N rows.
        config: of the tokenizer.
        numeric_columns: see `data.numeric_columns`.
        widths: of the modalities of the embedding; empty for a single one.
        vector_file: see `AdContent`.

    Raises:
        ValueError: a column is missing, of the wrong type or null.
    """
    text_too: dict[str, Kind] = {"text": "texts"} if config.reads_texts else {}
    check_columns(ads.lazy(), _EVERY | text_too, where="ads")
    given = None
    if "given" in config.parts:
        vectors = given_vectors(ads, missing_is_zero=config.embedding != "given")
        numbers = given_numbers(ads, numeric_columns)
        given = GivenContent(vectors, numbers, tuple(numeric_columns), tuple(widths))
        if config.embedding == "given":
            return given, np.arange(ads.height)
    text = pl.col("text") if config.reads_texts else pl.lit("").alias("text")
    keys = ads.select(text, pl.col("account_id", "conversion_type").cast(pl.String))
    inverse = np.arange(ads.height)
    if given is None:
        columns = ["text"] if config.instructions is None else keys.columns
        keys, inverse = _distinct(keys.select(columns))
    texts = keys["text"].to_list()
    if config.embedding in ("bag", "tfidf_svd"):
        return texts, inverse
    fields = None
    if config.instructions is not None:
        fields = list(keys.select("account_id", "conversion_type").iter_rows())
    return AdContent(texts, fields, given=given, vector_file=vector_file), inverse


def _distinct(keys: pl.DataFrame) -> tuple[pl.DataFrame, np.ndarray]:
    """Distinct rows in their order, and which of them each row is."""
    distinct = keys.unique().sort(keys.columns)
    place = distinct.with_row_index("_place")
    found = keys.join(place, on=keys.columns, how="left", maintain_order="left")["_place"]
    return distinct, found.to_numpy().astype(np.int64)
