"""What ads of a table come with besides texts, as content of the index.

Letters: N ads, D dimensions, T levels, F numeric columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from indexer.events.content import Content, pack_vector

if TYPE_CHECKING:
    import polars as pl

_NO_NUMBERS = ("ad_id", "created_at")  # columns of every table of ads that say something else


class GivenContent(Sequence[Content]):
    """Fields `GIVEN_FIELDS` of N ads, made row by row: as objects, millions would not fit in memory."""

    def __init__(self, ads: pl.DataFrame) -> None:
        """Of a table that `make data` wrote: embedding or embedding_0 .., sid_0 .., numeric columns."""
        self._count = ads.height
        listed, single = _numbered(ads, "embedding"), "embedding" in ads.columns
        self._vectors = ads.select(listed).to_numpy().astype(np.float32) if listed else None  # [N, D]
        if single:
            self._vectors = ads["embedding"].explode().to_numpy().astype(np.float32).reshape(ads.height, -1)
        sids = _numbered(ads, "sid")
        self._sids = ads.select(sids).to_numpy() if sids else None  # [N, T]
        known = {*_NO_NUMBERS, *listed, *sids}
        names = [name for name, kind in ads.schema.items() if kind.is_numeric() and name not in known]
        self._numbers = {name: ads[name].to_list() for name in names}

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return self._vectors is not None or self._sids is not None or bool(self._numbers)

    def __len__(self) -> int:
        """N."""
        return self._count

    def __getitem__(self, row: int) -> Content:  # type: ignore[override]
        """Of one ad."""
        found: Content = {}
        if self._vectors is not None:
            found["embedding"] = pack_vector(self._vectors[row])
        if self._sids is not None:
            found["sid"] = self._sids[row].tolist()
        numbers = {name: float(v[row]) for name, v in self._numbers.items() if v[row] is not None}
        return found | ({"numbers": numbers} if numbers else {})


def _numbered(ads: pl.DataFrame, family: str) -> list[str]:
    names = [name for name in ads.columns if re.fullmatch(rf"{family}_\d+", name)]
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))
