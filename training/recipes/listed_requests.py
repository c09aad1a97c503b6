"""Batches of logged requests, each with its list of candidates, for post-training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from training.data.batch import Sample
from training.data.groups import TargetGroups
from training.data.list_about import ABOUT
from training.data.list_store import StoredLists
from training.data.lists import CandidateFlag, CandidateList
from training.data.log import Int64
from training.data.samples import RequestDataset
from training.loop.device import Device
from training.preset.preset import Preset
from training.preset.recipes import PostTrainConfig
from training.recipes.requests import LoggedRequests
from training.spec import ModelSpec

LISTS = "lists"  # folder of a run


@dataclass(frozen=True)
class ListsOfParts:
    """Stored lists of training requests and, where there are some, of validation requests.

    Attributes:
        train: those that are trained on.
        validation: None to validate on targets alone.
        reward: id of the reward model whose rewards they have; None for rewards of 0.
    """

    train: StoredLists
    validation: StoredLists | None = None
    reward: str | None = None

    @classmethod
    def open(cls, run: Path, config: PostTrainConfig) -> ListsOfParts:
        """Read the lists that a section names, with rewards where its objective looks at any.

        Raises:
            ListStoreError: lists or rewards are missing or damaged.
            ValueError: none, or more than one reward model has scored them and none is named.
        """
        train, validation = run / LISTS / config.lists, config.validation_lists
        reward = None if config.objective == "vsl" else config.reward or _only_reward(train)
        return cls(
            StoredLists.open(train, reward=reward),
            StoredLists.open(run / LISTS / validation, reward=reward) if validation else None,
            reward,
        )

    def check(self, spec: ModelSpec, weights: str) -> None:
        """Whether a model can learn from them.

        Args:
            spec: the model's.
            weights: sha256 of the weights that it starts from, which have to be the reference.

        Raises:
            ListStoreError: they are of another tokenizer or of other weights.
        """
        for lists in self._all():
            lists.check(tokenizer_id=spec.tokenizer_id, weights=weights)

    def files(self, run: Path) -> list[str]:
        """Paths in the run folder of all that was read."""
        patterns = [ABOUT, "*.parquet", *([f"rewards.{self.reward}/*.parquet"] if self.reward else [])]
        found = [path for lists in self._all() for pattern in patterns for path in lists.folder.glob(pattern)]
        return sorted(path.relative_to(run).as_posix() for path in found)

    def _all(self) -> list[StoredLists]:
        return [lists for lists in (self.train, self.validation) if lists is not None]


class ListedRequests(LoggedRequests):
    """Logged requests that have a list of candidates, with it."""

    _config: PostTrainConfig

    def __init__(
        self,
        dataset: RequestDataset,
        spec: ModelSpec,
        *,
        lists: ListsOfParts,
        preset: Preset,
        device: Device,
    ) -> None:
        """Find the requests that have lists.

        Args:
            dataset: events and SIDs.
            spec: of the model.
            lists: of requests of the same log.
            preset: section `training` says which requests and targets, `post_training` how many at a time.
            device: which share is this process's.

        Raises:
            ValueError: no training or validation request with a list, or fewer in a batch than processes.
        """
        self._lists = {"train": lists.train, "validation": lists.validation}
        self._places: dict[str, Int64] = {}  # in those lists, of the requests of each part
        super().__init__(dataset, spec, preset=preset, config=preset.post_training, device=device)

    def _kept(self, part: str, groups: TargetGroups) -> TargetGroups:
        stored = self._lists[part]
        if stored is None:
            return groups
        places = stored.rows_of(self.dataset, groups)
        listed = np.flatnonzero(places >= 0)
        self._places[part] = places[listed]
        if not len(listed):
            raise ValueError(
                f"{stored.folder}: expected lists of {part} requests, got {len(stored)} lists and none of "
                f"the {len(groups)} requests that training.min_history and training.recent_weeks leave"
            )
        return groups.take(listed)

    def _samples(self, groups: TargetGroups, rows: np.ndarray, *, epoch: int) -> list[Sample]:
        part = "train" if groups is self.groups else "validation"
        samples, stored = super()._samples(groups, rows, epoch=epoch), self._lists[part]
        if stored is None:
            return samples
        size, seed = self._config.list_size, self._config.seed
        lists = (stored.get(int(self._places[part][row])) for row in rows)
        return [
            replace(sample, candidates=some(found, size, seed=(seed, epoch, int(row))))
            for sample, found, row in zip(samples, lists, rows, strict=True)
        ]


def some(candidates: CandidateList, size: int | None, *, seed: tuple[int, ...]) -> CandidateList:
    """At most `size` candidates in their order: those that were shown, and others drawn at random."""
    if size is None or len(candidates.sids) <= size:
        return candidates
    shown = (candidates.flags & CandidateFlag.LOGGED) > 0
    chance = np.random.default_rng(seed).random(len(shown)) + shown
    return candidates.take(np.sort(np.argsort(-chance)[:size]))


def _only_reward(folder: Path) -> str:
    """Id of the reward model that has scored lists."""
    found = sorted(path.name.removeprefix("rewards.") for path in folder.glob("rewards.*"))
    if len(found) != 1:
        raise ValueError(
            f"{folder}: expected rewards of one reward model, got {', '.join(found) or 'none'}: "
            + ("name it in post_training.reward" if found else "score these lists with one")
        )
    return found[0]
