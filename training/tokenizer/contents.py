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

COLUMNS = ("ad_id", "account_id", "conversion_type", "text")


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
    check_ads(ads, text=config.reads_texts)
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


def check_ads(ads: pl.DataFrame, *, text: bool) -> None:
    """Whether a table has the columns that every tokenizer reads, and texts where it reads them.

    Raises:
        ValueError: a column is missing, of the wrong type or null.
    """
    columns = COLUMNS if text else COLUMNS[:-1]
    missing = [name for name in columns if name not in ads.columns]
    if missing:
        raise ValueError(f"table of ads: expected columns {list(columns)}, missing {missing}")
    for name in columns:
        dtype, column = ads.schema[name], ads[name]
        wanted = {"ad_id": dtype.is_integer(), "text": dtype == pl.String}
        if not wanted.get(name, dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum)):
            raise ValueError(f"table of ads, column {name}: unexpected type {dtype}")
        if column.null_count():
            row = column.is_null().arg_max()
            raise ValueError(f"table of ads, column {name}: expected no null, got one in row {row}")
