"""What a tokenizer reads of the ads besides texts: given SIDs, given embeddings, numbers.

Letters: N ads, T levels, D dimensions, F numeric columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import polars as pl

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.tables import check_columns

_EMBEDDING, _SID = re.compile(r"embedding_(\d+)"), re.compile(r"sid_(\d+)")
_LIST = "embedding"


def check_readable(ads: pl.DataFrame, config: TokenizerConfig, *, numeric_columns: Sequence[str]) -> None:
    """Whether a tokenizer of these settings can read these ads.

    Raises:
        ValueError: it cannot; says which column is missing or wrong, and which setting asks for it.
    """
    if numeric_columns and not config.reads_given:
        raise ValueError(
            f"data.numeric_columns {list(numeric_columns)}: expected tokenizer.embedding: given, which reads "
            f"them, or a list with it, got sids: {config.sids}, embedding: {config.embedding}"
        )
    if config.sids == "given":
        given_sids(ads, config.given_sizes)
        return
    if "given" in config.parts:
        given_vectors(ads, missing_is_zero=config.embedding != "given")
        given_numbers(ads, numeric_columns)
        if not numeric_columns and not _numbered(ads, _EMBEDDING) and _LIST not in ads.columns:
            raise ValueError(
                "ads: expected a column embedding, or columns embedding_0, .., or data.numeric_columns, for "
                f"tokenizer.embedding: given, got the columns {ads.columns}"
            )
    if not config.reads_texts:
        return
    if "text" in ads.columns:
        check_columns(ads.lazy(), {"text": "texts"}, where="ads")
    if "text" not in ads.columns or (ads["text"].cast(pl.String).str.strip_chars() == "").all():
        raise ValueError(
            f"ads: expected texts for tokenizer.embedding: {config.embedding}, got none; where the table has "
            "embeddings set tokenizer.embedding: given, where it has SIDs tokenizer.sids: given"
        )


def given_sids(ads: pl.DataFrame, sizes: Sequence[int | None]) -> np.ndarray:
    """SIDs int32 [N, T] of the columns sid_0 .. sid_<T - 1>.

    Args:
        ads: N rows.
        sizes: codes of each of the T levels; None for a level that may have any.

    Raises:
        ValueError: another number of columns, a null, no integers, or a code that its level does not have.
    """
    names, wanted = _numbered(ads, _SID), [f"sid_{level}" for level in range(len(sizes))]
    if names != wanted:
        raise ValueError(
            f"ads: expected the columns {', '.join(wanted)} of the {len(sizes)} levels of "
            f"tokenizer.given_sizes, got {', '.join(names) or 'none'}"
        )
    for name, size in zip(names, sizes, strict=True):
        column = ads[name]
        if not column.dtype.is_integer():
            raise ValueError(f"ads, column {name}: expected whole numbers, got {column.dtype}")
        most = (size or 2**20) - 1
        bad = (~column.is_between(0, most)).fill_null(True)
        if bad.any():
            row = int(bad.arg_max() or 0)
            raise ValueError(
                f"ads, row {row}, column {name}: expected a code 0..{most}, got {column[row]} (and "
                f"{int(bad.sum()) - 1} more such rows)"
            )
    return ads.select(names).cast(pl.Int32).to_numpy().reshape(ads.height, len(names))


def given_vectors(ads: pl.DataFrame, *, missing_is_zero: bool = False) -> np.ndarray:
    """Embeddings float32 [N, D] of the list column `embedding`, or of embedding_0 .. embedding_<D - 1>.

    D is 0 where the table has neither.

    Args:
        ads: N rows.
        missing_is_zero: an ad whose list is null has zeros, as in the sidecar; other parts say what it is.

    Raises:
        ValueError: both, a column that is left out, lists of unequal length or all of them empty, a null, or
            a value that is no finite number in float32.
    """
    names = _numbered(ads, _EMBEDDING)
    if _LIST in ads.columns:
        if names:
            raise ValueError(f"ads: expected either {_LIST} or {names[0]}, .., got both")
        column = ads[_LIST]
        if not isinstance(column.dtype, pl.List | pl.Array):
            raise ValueError(f"ads, column {_LIST}: expected lists of numbers, got {column.dtype}")
        lengths = (column.arr.to_list() if isinstance(column.dtype, pl.Array) else column).list.len()
        width = next((int(length) for length in lengths if length), 0)
        if not width:
            raise ValueError(f"ads, column {_LIST}: expected lists of numbers, got none with a number")
        if missing_is_zero:
            zeros = pl.lit([0.0] * width, dtype=pl.List(pl.Float64))
            column = ads.select(pl.col(_LIST).cast(pl.List(pl.Float64), strict=False).fill_null(zeros))[_LIST]
            lengths = column.list.len()
        odd = (lengths != width).fill_null(True)
        if odd.any():
            row = int(odd.arg_max() or 0)
            raise ValueError(
                f"ads, row {row}, column {_LIST}: expected {width} numbers as in other rows, got "
                f"{lengths[row]}"
            )
        values = column.explode().cast(pl.Float64, strict=False).to_numpy()
        matrix = values.reshape(ads.height, width)
    else:
        wanted = [f"embedding_{i}" for i in range(len(names))]
        if names != wanted:
            missing = next(name for name in wanted if name not in names)
            raise ValueError(f"ads: expected {len(names)} columns embedding_0, .., missing: {missing}")
        numbers = ads.select(pl.col(name).cast(pl.Float64, strict=False) for name in names)
        matrix = numbers.to_numpy() if names else np.zeros((ads.height, 0))
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(matrix, np.float32)
    bad = ~np.isfinite(matrix).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"ads, row {row}, embedding: expected finite numbers in float32, got another value")
    return matrix


def given_numbers(ads: pl.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Numeric columns float64 [N, F]; NaN where a number is left out.

    Raises:
        ValueError: a column is missing or holds no numbers.
    """
    for name in names:
        if name not in ads.columns or not ads.schema[name].is_numeric():
            got = ads.schema.get(name, "no such column")
            raise ValueError(f"ads, column {name}: expected numbers, got {got}")
    columns = [ads[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in names]
    return np.stack(columns, axis=1) if columns else np.zeros((ads.height, 0))


def _numbered(ads: pl.DataFrame, pattern: re.Pattern[str]) -> list[str]:
    """Columns of a numbered family, by number."""
    found = [(int(match[1]), name) for name in ads.columns if (match := pattern.fullmatch(name))]
    return [name for _, name in sorted(found)]
