"""Amazon 2018 logs of one category, as AkaliKong/MiniOneRec (Apache-2.0) has them.

    <category>.item.json.gz                   id -> title, description, brand
    <category>.sequences.DERIVED.jsonl.gz     split, user_id, history_item_id (at most 10), item_id

Only rows of `valid` and `test` are there. Rows of valid are learnt from: a user's items are one basket. Rows
of test judge: whether the item that came next is near the last one of the history. Times are not in the
files; valid comes before test. To choose settings, a third of the users of valid judge, and the others are
learnt from: test has no part in it.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from training.tokenizer.cooccurrence.baskets import Baskets


@dataclass(frozen=True, eq=False)
class Amazon:
    """One category.

    Attributes:
        titles: of the items 0..N-1.
        baskets: of the users of valid that are learnt from.
        last: int64 [Q], last item of the history of each row that judges.
        following: int64 [Q], the item that came next.
    """

    titles: list[str]
    baskets: Baskets
    last: np.ndarray
    following: np.ndarray

    @classmethod
    def load(cls, folder: Path, category: str, *, judge: Literal["test", "valid"] = "test") -> Amazon:
        """Read the files of a category.

        Args:
            folder: with the files.
            category: as their names begin.
            judge: rows of test, or those of a third of the users of valid.

        Raises:
            OSError: a file is missing.
        """
        with gzip.open(folder / f"{category}.item.json.gz", "rt", encoding="utf-8") as file:
            items = json.load(file)
        titles = [str(items[str(item)]["title"]) for item in range(len(items))]
        with gzip.open(folder / f"{category}.sequences.DERIVED.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        valid = [row for row in rows if row["split"] == "valid"]
        users = sorted({row["user_id"] for row in valid})
        third = set(np.random.default_rng(0).permutation(users)[: len(users) // 3].tolist())
        judging = [row for row in valid if row["user_id"] in third]
        if judge == "test":
            third, judging = set(), [row for row in rows if row["split"] == "test"]
        baskets: dict[str, set[int]] = {}
        for row in valid:
            if row["user_id"] not in third:
                baskets.setdefault(row["user_id"], set()).update([*row["history_item_id"], row["item_id"]])
        pairs = [(row["history_item_id"][-1], row["item_id"]) for row in judging]
        last, following = np.array(pairs, np.int64).T
        return cls(titles, Baskets.of([sorted(basket) for basket in baskets.values()]), last, following)

    def ads(self) -> pl.DataFrame:
        """The items as ads of one account, for the tokenizer."""
        count = len(self.titles)
        one: dict[str, Any] = {"account_id": ["amazon"] * count, "conversion_type": ["purchase"] * count}
        return pl.DataFrame({"ad_id": np.arange(count), **one, "text": self.titles})


def next_item_recall(
    vectors: np.ndarray, last: np.ndarray, following: np.ndarray, *, ks: tuple[int, ...] = (1, 5, 10)
) -> dict[int, float]:
    """Share of rows whose next item is among the k nearest other items of the last one.

    Args:
        vectors: float32 [N, D] of length 1 or 0.
        last: int64 [Q].
        following: int64 [Q].
        ks: how many neighbours.
    """
    similarity = vectors @ vectors.T  # [N, N]; a category has a few thousand items
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : max(ks)]
    right = order[last] == following[:, None]
    return {k: float(right[:, :k].any(axis=1).mean()) for k in ks}
