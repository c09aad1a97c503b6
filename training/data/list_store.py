"""Candidate lists on disk: made once off the latency path, read by whatever learns from them.

A folder `<run>/lists/<name>/` has `about.json`, shards `part-00000.parquet` of equally many requests, and for
each reward model that has scored them `rewards.<id>/` with a file a shard. Each file is there whole or not at
all, so what was stopped goes on with the shards that are missing.

Letters: N requests, n candidates of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from training.data.groups import TargetGroups
from training.data.list_about import About, ListStoreError
from training.data.list_files import part_of, remove_lists, rewards_of
from training.data.list_shards import (
    ContextList,
    Shard,
    read_rewards,
    read_shard,
    write_rewards,
    write_shard,
)
from training.data.lists import CandidateList
from training.data.log import EventLog, Int64
from training.data.samples import RequestDataset


class ListWriter:
    """Makes the shards of a folder that are not there yet."""

    def __init__(self, folder: Path, about: About, *, fresh: bool = False) -> None:
        """Go on with a folder whose lists are made from the same; others in it are removed.

        Args:
            folder: where the lists go.
            about: what they are.
            fresh: remove the lists that are there in any case.

        Raises:
            ListStoreError: there is something else in the folder; everything is as it was.
            OSError: the disk is full or not writable.
        """
        self.folder, self.about = folder, about
        try:
            same = not fresh and About.load(folder) == about
        except ListStoreError:
            same = False
        if not same:
            remove_lists(folder)
            folder.mkdir(parents=True, exist_ok=True)
            about.save(folder)

    def missing(self) -> list[int]:
        """Shards to make, ascending."""
        return [shard for shard in range(self.about.shards) if not part_of(self.folder, shard).is_file()]

    def write(self, shard: int, contexts: Sequence[ContextList]) -> None:
        """Write a shard.

        Raises:
            ValueError: lists of another number of requests, or that cannot be stored.
            OSError: the disk is full or not writable.
        """
        expected = len(self.about.rows(shard))
        if len(contexts) != expected:
            raise ValueError(f"shard {shard}: expected lists of {expected} requests, got {len(contexts)}")
        write_shard(part_of(self.folder, shard), contexts, levels=len(self.about.level_sizes))


@dataclass(frozen=True, eq=False)
class StoredLists:
    """Lists of a folder, in memory.

    Attributes:
        folder: where they lie.
        about: what they are.
        lists: of all shards.
        rewards: float32, of every candidate; None where no reward model was named.
    """

    folder: Path
    about: About
    lists: Shard
    rewards: np.ndarray | None = None

    @classmethod
    def open(cls, folder: Path, *, reward: str | None = None) -> Self:
        """Read a folder.

        Args:
            folder: where they lie.
            reward: id of the reward model whose rewards `get` gives; None for rewards of 0.

        Raises:
            ListStoreError: shards or rewards are missing or damaged; says which and how to get them.
        """
        about = About.load(folder)
        absent = [shard for shard in range(about.shards) if not part_of(folder, shard).is_file()]
        if absent or not about.shards:
            raise ListStoreError(
                f"{folder}: expected {about.shards} shards, at least one, got "
                f"{about.shards - len(absent)}: make rollout goes on with them"
            )
        shards = [
            read_shard(part_of(folder, shard), level_sizes=about.level_sizes, contexts=len(about.rows(shard)))
            for shard in range(about.shards)
        ]
        opened = cls(folder, about, Shard.join(shards))
        opened._check_once()
        if reward is None:
            return opened
        rewards = RewardWriter(opened, reward)
        if rewards.missing():
            raise ListStoreError(
                f"{rewards.folder}: expected rewards of {about.shards} shards, got "
                f"{about.shards - len(rewards.missing())}: score these lists with that reward model"
            )
        found = [
            read_rewards(part_of(rewards.folder, shard), counts=np.diff(part.ptr))
            for shard, part in enumerate(shards)
        ]
        return cls(folder, about, opened.lists, np.concatenate(found))

    def __len__(self) -> int:
        """Requests, N."""
        return len(self.lists.now)

    def check(self, *, tokenizer_id: str, weights: str | None = None) -> None:
        """Whether a model can learn from these lists.

        Args:
            tokenizer_id: the model's.
            weights: sha256 of the weights whose log p the references have to be; None for those of any model.

        Raises:
            ListStoreError: they are of another tokenizer or of other weights.
        """
        for what, expected, got in (
            ("tokenizer", tokenizer_id, self.about.tokenizer_id),
            ("weights", weights or self.about.weights, self.about.weights),
        ):
            if got != expected:
                raise ListStoreError(
                    f"{self.folder}: expected lists of the {what} {expected}, got those of {got}: make them "
                    "again with make rollout"
                )

    def rows_of(self, dataset: RequestDataset, groups: TargetGroups) -> Int64:
        """Row of each of the requests, int64 [N]; -1 for one that no list was made for."""
        names = ("user_id", "now", "nth")
        here = pl.DataFrame({name: getattr(self.lists, name) for name in names}).with_row_index("row")
        wanted = dict(zip(names, request_keys(dataset.log, groups.request), strict=True))
        found = pl.DataFrame(wanted).join(here, on=list(names), how="left", maintain_order="left")
        return found["row"].cast(pl.Int64).fill_null(-1).to_numpy()

    def get(self, row: int) -> CandidateList:
        """The candidates of a request; their rewards are 0 where no reward model was named."""
        at, lists = self.candidates(row), self.lists
        return CandidateList(
            sids=lists.sids[at],
            reward=np.zeros(at.stop - at.start, np.float32) if self.rewards is None else self.rewards[at],
            flags=lists.flags[at],
            ads=lists.ads[at],
            log_p_ref=lists.log_p_ref[at],
        )

    def bought(self, row: int) -> np.ndarray:
        """To which ads of its candidates a request led, by the log, bool [n]."""
        return self.lists.bought[self.candidates(row)]

    def candidates(self, row: int) -> slice:
        """Where the candidates of a request lie in the columns of `lists`."""
        return slice(int(self.lists.ptr[row]), int(self.lists.ptr[row + 1]))

    def _check_once(self) -> None:
        """A shard in the place of another would answer for its requests."""
        keys = np.stack([self.lists.user_id, self.lists.now, self.lists.nth], axis=1)
        distinct = len(np.unique(keys, axis=0))
        if distinct != len(keys):
            raise ListStoreError(
                f"{self.folder}: expected lists of {len(keys)} distinct requests, got {distinct}"
            )


class RewardWriter:
    """Keeps what a reward model gives to stored lists, shard by shard."""

    def __init__(self, lists: StoredLists, reward: str) -> None:
        """Of a reward model, by its id.

        Raises:
            ValueError: the id is no name of a folder.
        """
        self._lists, self.folder = lists, rewards_of(lists.folder, reward)

    def missing(self) -> list[int]:
        """Shards without rewards, ascending; `StoredLists.about.rows` says which requests they have."""
        every = range(self._lists.about.shards)
        return [shard for shard in every if not part_of(self.folder, shard).is_file()]

    def write(self, shard: int, rewards: Sequence[np.ndarray]) -> None:
        """Write the rewards of a shard's requests, float [n] each.

        Raises:
            ValueError: they are not of its candidates, or not finite.
            OSError: the disk is full or not writable.
        """
        rows = self._lists.about.rows(shard)
        self.folder.mkdir(exist_ok=True)
        counts = np.diff(self._lists.lists.ptr[rows.start : rows.stop + 1])
        write_rewards(part_of(self.folder, shard), rewards, counts=counts)


def request_keys(log: EventLog, requests: Int64) -> tuple[Int64, Int64, Int64]:
    """User, time and `nth` of requests, int64 [N] each, which are the same in a log that has grown."""
    users, times = log.exposures.user_row, log.times()
    opens = np.ones(len(users), bool)
    opens[1:] = (users[1:] != users[:-1]) | (times[1:] != times[:-1])
    every = np.arange(len(users))
    nth = every - np.maximum.accumulate(np.where(opens, every, 0))
    return log.user_ids[users[requests]], times[requests], nth[requests]
