"""Rewards of stored lists, and how long they take."""

from __future__ import annotations

import time

import numpy as np
from tqdm import tqdm

from serving.model.features import BEHAVIORS
from training.data.groups import TargetGroups
from training.data.list_store import RewardWriter, StoredLists
from training.data.samples import RequestDataset
from training.data.split import PARTS
from training.reward.fit import Source
from training.reward.reward_model import RewardError, RewardModel

_CANDIDATES, _REQUESTS = 512, 20


def score_lists(model: RewardModel, lists: StoredLists, dataset: RequestDataset) -> RewardWriter:
    """Write the reward of every candidate, the shards that are missing.

    Raises:
        RewardError: a list is of a request that the dataset does not have.
        ValueError: the model is of another catalogue or other features.
        OSError: the disk is full or not writable.
    """
    writer = RewardWriter(lists, model.id)
    missing = writer.missing()
    if not missing:
        return writer
    where = _requests_of(lists, dataset)
    with tqdm(total=sum(len(lists.about.rows(shard)) for shard in missing), unit="list") as progress:
        for shard in missing:
            rewards = []
            for stored in lists.about.rows(shard):
                groups, row = where[stored]
                ads = lists.lists.ads[lists.candidates(stored)]
                rewards.append(model.score(dataset, groups, row, ads).reward)
                progress.update()
            writer.write(shard, rewards)
    return writer


def _requests_of(lists: StoredLists, dataset: RequestDataset) -> dict[int, tuple[TargetGroups, int]]:
    """The request of each list; with targets of any behavior every request of the log is one."""
    found: dict[int, tuple[TargetGroups, int]] = {}
    for part in PARTS:
        groups = dataset.groups(part, target_behaviors=tuple(BEHAVIORS), min_history=0)
        stored = lists.rows_of(dataset, groups)
        found |= {int(stored[row]): (groups, int(row)) for row in np.flatnonzero(stored >= 0)}
    absent = [row for row in range(len(lists)) if row not in found]
    if absent:
        user, now = lists.lists.user_id[absent[0]], lists.lists.now[absent[0]]
        raise RewardError(
            f"{lists.folder}: expected requests of this log, got {len(absent)} others, "
            f"first user {user} at {now}"
        )
    return found


def speed(model: RewardModel, source: Source) -> float:
    """Median milliseconds for 512 candidates of a test request, drawn from the catalogue; on one core."""
    dataset = source.dataset
    groups = dataset.groups(
        PARTS[-1], target_behaviors=source.target_behaviors, min_history=source.min_history
    )
    random, taken = np.random.default_rng(0), []
    for row in random.permutation(len(groups))[:_REQUESTS]:
        ads = random.choice(dataset.ad_ids, _CANDIDATES)
        start = time.perf_counter()
        model.score(dataset, groups, int(row), ads)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken) * 1000)
