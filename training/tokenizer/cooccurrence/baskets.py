"""Baskets: which ads belong together because one user took them at once.

Letters: B baskets, E entries (an ad in a basket), N contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from training.tokenizer.tables import read_split, scan_events


@dataclass(frozen=True, eq=False)
class Baskets:
    """Distinct ads of each basket, baskets in the order of time.

    Attributes:
        ptr: int64 [B + 1]; the ads of basket b are `ads[ptr[b]:ptr[b + 1]]`.
        ads: int64 [E], ad ids.
    """

    ptr: np.ndarray
    ads: np.ndarray

    @classmethod
    def of(cls, baskets: Sequence[Sequence[int]]) -> Self:
        """From lists of ad ids."""
        ptr = np.cumsum([0, *map(len, baskets)])
        return cls(ptr, np.array([ad for basket in baskets for ad in basket], np.int64))

    def __len__(self) -> int:
        """Number of baskets, B."""
        return len(self.ptr) - 1

    def contents(self, ad_ids: np.ndarray, content: np.ndarray, *, count: int) -> csr_matrix:
        """Which contents are in which basket, uint8 [B, N] of ones; ads that are not known are left out.

        Args:
            ad_ids: int64 [A], the known ads.
            content: int64 [A], content 0..N-1 of each of them; ads of one content are one.
            count: N.
        """
        order = np.argsort(ad_ids, kind="stable")
        found = np.minimum(np.searchsorted(ad_ids[order], self.ads), max(len(ad_ids) - 1, 0))
        known = ad_ids[order][found] == self.ads if len(ad_ids) else np.zeros(len(self.ads), bool)
        basket = np.repeat(np.arange(len(self)), np.diff(self.ptr))[known]
        entries = (np.ones(len(basket), np.int32), (basket, content[order][found[known]]))
        matrix = csr_matrix(entries, shape=(len(self), count))  # adds entries of one place up
        matrix.sum_duplicates()
        matrix.data = np.ones(len(matrix.data), np.uint8)
        return matrix


def read_baskets(
    data_dir: Path,
    *,
    part: Literal["train", "later"],
    behaviors: Sequence[str],
    basket: Literal["request", "user"] = "request",
) -> Baskets:
    """Baskets of a prepared data folder, see `training.data.prepare`.

    A request is the rows of one user and request id; those without an id, of one user and time.

    Args:
        data_dir: holds events.parquet and split.json.
        part: `train`, or what comes later, validation and test.
        behaviors: events of these count, the targets.
        basket: what is one.

    Raises:
        OSError: a file is missing.
        ValueError: split.json does not say where the training part ends, or a column of the events is not as
            it should be.
    """
    train_end, by_column = read_split(data_dir)
    train = pl.col("split") == "train" if by_column else pl.col("timestamp") < train_end
    rows = scan_events(data_dir, also={"split": "texts"} if by_column else None)
    rows = rows.filter(pl.col("behavior").is_in(list(behaviors)), train if part == "train" else ~train)
    keys = ["user_id"]
    if basket == "request":
        time: pl.Expr = pl.col("timestamp")
        if "request_id" in rows.collect_schema():
            keys.append("request_id")
            time = pl.when(pl.col("request_id").is_null()).then(time)
        rows, keys = rows.with_columns(time.alias("without_id")), [*keys, "without_id"]
    found = (
        rows.group_by(keys)
        .agg(pl.col("ad_id").unique().sort(), pl.col("timestamp").max().alias("time"))
        .sort("time", *keys)
        .select("ad_id")
        .collect(engine="streaming")["ad_id"]
    )
    ptr = np.append(0, np.cumsum(found.list.len().to_numpy(), dtype=np.int64))
    return Baskets(ptr, found.explode(empty_as_null=False).to_numpy().astype(np.int64))
