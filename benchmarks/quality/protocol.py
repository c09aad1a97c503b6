"""Leave the last one out, rank all items but those of the history: who is asked what, how answers count.

The test item of a user is the last of the line, the validation item the one before; a test history holds the
validation item. With one target of a user

    Recall@k = 1 if the target is among the first k, else 0;   NDCG@k = 1 / log2(1 + place) if it is, else 0

Letters: R requests, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from training.data.groups import TargetGroups, history
from training.data.parts import TRAIN
from training.data.prepared import Prepared, load_prepared
from training.data.split import PARTS
from training.preset.preset import Preset

CUTOFFS = (5, 10, 20)
DEPTH = max(CUTOFFS)  # items of an answer
NOTHING = -1  # where an answer is shorter

Figures = dict[str, np.ndarray]
"""Metric and cutoff, as `ndcg10` -> float64 [R]."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """What there is to learn from: items 1 .. N of the training part of each user, oldest first.

    Attributes:
        prepared: tables and split of a run folder.
        item_ids: int64 [N], ids of the items 1 .. N.
        event_item: int64, item 1 .. N of each event of the log.
    """

    prepared: Prepared
    item_ids: np.ndarray
    event_item: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Of a prepared data folder.

        Raises:
            OSError: a table is missing.
            ValueError: one is broken.
        """
        prepared = load_prepared(folder)
        item_ids = prepared.tables.ads["ad_id"].sort().to_numpy()
        return cls(prepared, item_ids, np.searchsorted(item_ids, prepared.log.ad_ids) + 1)

    def training(self) -> list[np.ndarray]:
        """Items of each user that has one."""
        log, kept = self.prepared.log, self.prepared.parts.event == TRAIN
        users = (log.user_ptr[:-1], log.user_ptr[1:])
        parts = [self.event_item[a:b][kept[a:b]] for a, b in zip(*users, strict=True)]
        return [part for part in parts if len(part)]

    def ids(self, items: np.ndarray) -> np.ndarray:
        """Ids of items 1 .. N."""
        return self.item_ids[items - 1]


@dataclass(frozen=True, eq=False)
class Asked:
    """Users of a part, what is known of each, and what each should be answered.

    Attributes:
        groups: requests of the part.
        rows: int64 [R], those of them that were drawn.
        users: int64 [R], ids, each once.
        histories: of each, items 1 .. N, oldest first.
        targets: int64 [R], item 1 .. N.
        item_ids: int64 [N].
    """

    groups: TargetGroups
    rows: np.ndarray
    users: np.ndarray
    histories: list[np.ndarray]
    targets: np.ndarray
    item_ids: np.ndarray

    @classmethod
    def of(cls, sequences: Sequences, preset: Preset, *, part: str, count: int) -> Self:
        """Draw users, seeded; all of them where there are no more.

        Args:
            sequences: of all users.
            preset: section `data` says what a target is, `evaluation.seed` who is drawn.
            part: validation or test.
            count: R, at most.

        Raises:
            ValueError: no user, or one with several targets, of which this protocol knows nothing.
        """
        log, parts = sequences.prepared.log, sequences.prepared.parts
        behaviors, least = preset.logs.target_behaviors, preset.training.min_history
        part_of = PARTS.index(part)
        groups = parts.groups(log, part_of, target_behaviors=behaviors, min_history=least)
        drawn = np.random.default_rng(preset.evaluation.seed).permutation(len(groups))[:count]
        rows = np.sort(drawn)
        users, asked = np.unique(groups.user_row[rows], return_counts=True)
        targets = np.diff(groups.target_ptr)[rows]
        if not len(rows) or (targets != 1).any() or (asked != 1).any():
            raise ValueError(
                f"expected one {part} item of each user (data.split: {{by: last_events, validation: 1, test: "
                f"1}}), got {int(targets.sum())} of {len(users)} users"
            )
        return cls(
            groups,
            rows,
            users=log.user_ids[groups.user_row[rows]],
            histories=[sequences.event_item[history(log, int(groups.request[row]))] for row in rows],
            targets=sequences.event_item[groups.target_events[groups.target_ptr[rows]]],
            item_ids=sequences.item_ids,
        )

    def metrics(self, ranked: np.ndarray) -> Figures:
        """Of answers int64 [R, DEPTH], items 1 .. N or `NOTHING`, best first."""
        hit = ranked == self.targets[:, None]
        place = np.where(hit.any(1), hit.argmax(1), DEPTH)
        gain = 1 / np.log2(place + 2)
        return {
            f"{metric}{k}": np.where(place < k, value, 0.0)
            for metric, value in (("recall", np.ones(len(place))), ("ndcg", gain))
            for k in CUTOFFS
        }


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model answers, as it lies on disk: `users` int64 [R] and `items` int64 [R, DEPTH], ids."""

    users: np.ndarray
    items: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read.

        Raises:
            OSError: there is no such file.
            ValueError: it is not of answers.
        """
        with np.load(path, allow_pickle=False) as file:
            return cls(file["users"], file["items"])

    def save(self, path: Path) -> None:
        """Write."""
        np.savez(path, users=self.users, items=self.items)

    def figures(self, asked: Asked) -> Figures:
        """Of the users that were asked, in their order.

        Raises:
            ValueError: other users were.
        """
        if not np.array_equal(self.users, asked.users):
            raise ValueError(
                f"expected answers to {len(asked.users)} users, got {len(self.users)}, or of others"
            )
        items = np.searchsorted(asked.item_ids, self.items) + 1
        return asked.metrics(np.where(self.items == NOTHING, NOTHING, items))


def means(figures: Figures) -> dict[str, Any]:
    """Mean over users of each metric."""
    return {name: float(values.mean()) for name, values in figures.items()}
