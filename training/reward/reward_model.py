"""The reward model: P(target behavior) of candidates in a request, and the value expected then.

Letters: A ads, K keys, n candidates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from serving.files import new_folder, read_object, sha256, undo_interrupted
from serving.model.features import FeatureSpec
from serving.ranking.features import NUMBERS, Features, feature_set
from serving.ranking.statistics import AdStatistics
from training.data.folds import user_fold
from training.data.groups import TargetGroups
from training.data.samples import RequestDataset
from training.reward.calibration import Calibration
from training.reward.catalogue import Catalogue
from training.reward.neural import Neural
from training.reward.ranker import Predicted, Ranker
from training.reward.requests import RequestFeatures
from training.reward.trees import Trees

MODEL, ARRAYS = "model.json", "arrays.safetensors"
FORMAT = 3
KINDS = ("trees", "neural")


class RewardError(ValueError):
    """A reward model is missing, damaged, or of other features, histories or another catalogue."""


@dataclass(frozen=True)
class About:
    """What a reward model is, besides its weights.

    Attributes:
        serves: trees, neural or mean.
        features: see `feature_set`.
        categories: codes of each column of profile and request features.
        vocabulary: what those codes stand for, see `vocabulary_of`.
        max_history: events of a longer history that it saw, the newest.
        target_behaviors: what p is the chance of.
        tokenizer_id: whose SIDs its catalogue has.
        folds: of users.
        seed: of the folds.
        statistics_weeks: see `RequestFeatures`.
        width: of the neural model.
        calibration: of trees, neural and mean.
        made_from: settings and sha256 of files, see `serving.inputs.Inputs.values`.
    """

    serves: str
    features: str
    categories: tuple[int, ...]
    vocabulary: str
    max_history: int
    target_behaviors: tuple[str, ...]
    tokenizer_id: str
    folds: int
    seed: int
    statistics_weeks: int
    width: int
    calibration: dict[str, Calibration]
    made_from: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> About:
        """Inverse of `asdict`."""
        lines = {name: Calibration(**line) for name, line in values["calibration"].items()}
        tuples = {name: tuple(values[name]) for name in ("categories", "target_behaviors")}
        return cls(**{**values, **tuples, "calibration": lines})


@dataclass(frozen=True, eq=False)
class Scores:
    """Of n candidates; the reward is p * value.

    Attributes:
        p: float64 [n], P(target behavior | shown in this request).
        value: float64 [n], E[value | it].
    """

    p: np.ndarray
    value: np.ndarray

    @property
    def reward(self) -> np.ndarray:
        """Expected value, float64 [n]."""
        return self.p * self.value


class RewardModel:
    """A ranker for each fold of users, fitted on the users of the others.

    Attributes:
        id: 16 hex digits of the sha256 over all that a score depends on.
        about: what it is.
    """

    def __init__(
        self,
        about: About,
        catalogue: Catalogue,
        *,
        statistics: AdStatistics,
        rankers: dict[str, list[Ranker]],
        model_id: str = "",
    ) -> None:
        """Put the parts together; `rankers[kind][fold]`, and the id once it is stored."""
        self.about, self.catalogue, self.statistics, self.rankers = about, catalogue, statistics, rankers
        self.id = model_id
        self._bound: tuple[RequestDataset, RequestFeatures] | None = None

    def score(self, dataset: RequestDataset, groups: TargetGroups, row: int, ads: np.ndarray) -> Scores:
        """Scores of ads in a request, by the rankers that did not see its user.

        An ad that came after the fit has the statistics of its prefix of two codes, and a history. Of an id
        that the dataset lacks, as -1, nothing is known: it scores as an ad that nobody had, of mean value.

        Args:
            dataset: with the requests.
            groups: requests.
            row: one of them.
            ads: int64 [n] ids.

        Raises:
            RewardError: the dataset has other profile columns or request features, or keeps other histories.
            CatalogueError: it has other ads or SIDs.
        """
        features = self.features(dataset).of(groups, row, np.asarray(ads, np.int64))
        user = dataset.log.user_ids[groups.user_row[row : row + 1]]
        fold = int(user_fold(user, folds=self.about.folds, seed=self.about.seed)[0])
        return self.calibrated(features, fold)

    def calibrated(self, features: Features, fold: int | None) -> Scores:
        """Scores of candidates by features, see `predict`."""
        predicted, line = self.predict(features, fold), self.about.calibration[self.about.serves]
        return Scores(line.probability(predicted), line.value(predicted, features.value))

    def predict(self, features: Features, fold: int | None, *, kind: str | None = None) -> Predicted:
        """What the rankers of a fold say, not calibrated.

        Args:
            features: of candidates.
            fold: of their user; None for the mean over the rankers of all folds, as a server takes it, which
                knows no user.
            kind: trees, neural or mean; None for what serves.
        """
        kinds = kinds_of(kind or self.about.serves)
        folds = range(self.about.folds) if fold is None else (fold,)
        found = [self.rankers[k][f].predict(features) for k in kinds for f in folds]
        return Predicted(
            np.mean([each.logit for each in found], axis=0), np.mean([each.ratio for each in found], axis=0)
        )

    def features(self, dataset: RequestDataset) -> RequestFeatures:
        """The dataset as this model sees it; kept for the next call.

        Raises:
            RewardError: other profile columns or request features, or other categories of them, or histories
                of another length.
            CatalogueError: other ads or SIDs.
        """
        if self._bound is None or self._bound[0] is not dataset:
            categories = categories_of(dataset)
            if categories != self.about.categories:
                raise RewardError(
                    f"reward model {self.id}: expected columns of profile and request features with "
                    f"{list(self.about.categories)} codes, got {list(categories)}: make it again"
                )
            vocabulary = vocabulary_of(dataset.vocabulary.categories, dataset.spec)
            if vocabulary != self.about.vocabulary:
                raise RewardError(
                    f"reward model {self.id}: expected profile and request features with the categories "
                    f"{self.about.vocabulary}, got {vocabulary}: as many, but others; make it again"
                )
            if dataset.spec.max_history != self.about.max_history:
                raise RewardError(
                    f"reward model {self.id}: expected features.max_history {self.about.max_history}, got "
                    f"{dataset.spec.max_history}: make it again"
                )
            bound = RequestFeatures(
                dataset,
                self.catalogue,
                target_behaviors=self.about.target_behaviors,
                weeks=self.about.statistics_weeks,
                newest=self.statistics,
            )
            self._bound = dataset, bound
        return self._bound[1]

    def save(self, folder: Path, files: dict[str, str]) -> str:
        """Write it whole, with more files beside, over an older one; its id.

        Args:
            folder: where it will be.
            files: content by name, of what else lies in the folder.

        Raises:
            OSError: the disk is full or not writable.
        """
        arrays = {name: getattr(self.catalogue, name) for name in ("ad_ids", "sids", "codes")}
        arrays |= {f"statistics.{name}": array for name, array in self.statistics.arrays.items()}
        with new_folder(folder, replace=True) as work:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, work / ARRAYS)
            made = [ARRAYS]
            for kind, rankers in self.rankers.items():
                for fold, ranker in enumerate(rankers):
                    made += ranker.save(work, f"{kind}-{fold}")
            content = {"format": FORMAT, **asdict(self.about), "sha256": {f: sha256(work / f) for f in made}}
            self.id = _id_of(content)
            (work / MODEL).write_text(json.dumps({"id": self.id, **content}, indent=1) + "\n")
            for name, text in files.items():
                (work / name).write_text(text)
        return self.id

    @classmethod
    def load(cls, folder: Path) -> RewardModel:
        """Read what `save` wrote, and check every file.

        Raises:
            RewardError: missing, damaged, of another format or another set of features.
        """
        undo_interrupted(folder)
        try:
            content = read_object(folder / MODEL)
            stated, digests = content.pop("id"), content["sha256"]
            if content["format"] != FORMAT:
                raise RewardError(f"{folder}: expected format {FORMAT}, got {content['format']}")
            if _id_of(content) != stated:
                raise RewardError(f"{folder / MODEL}: expected id {_id_of(content)}, got {stated}")
            for name, digest in digests.items():
                if sha256(folder / name) != digest:
                    raise RewardError(f"{folder / name}: expected sha256 {digest}, got another content")
            about = About.from_json({k: v for k, v in content.items() if k not in ("format", "sha256")})
            if about.features != feature_set(about.categories):
                raise RewardError(
                    f"{folder}: expected a reward model over the features {feature_set(about.categories)} of "
                    f"this release, got {about.features}: make it again"
                )
            return cls(about, **_parts_of(folder, about), model_id=stated)
        except RewardError:
            raise
        except FileNotFoundError as error:
            raise RewardError(
                f"{folder}: expected a reward model, got none ({error}): make reward"
            ) from error
        except (
            OSError,
            LookupError,
            TypeError,
            ValueError,
            RuntimeError,
            SafetensorError,
            lightgbm.basic.LightGBMError,
        ) as error:
            raise RewardError(f"{folder}: not a readable reward model: {error}") from error


def kinds_of(serves: str) -> tuple[str, ...]:
    """The kinds of rankers that one that serves consists of: for `mean` all."""
    return KINDS if serves == "mean" else (serves,)


def categories_of(dataset: RequestDataset) -> tuple[int, ...]:
    """Codes of each column of profile and request features."""
    return dataset.spec.column_sizes


def vocabulary_of(profile: Mapping[str, tuple[str, ...]], features: FeatureSpec) -> str:
    """16 hex digits that name what each code of profile and request features stands for.

    Args:
        profile: of each column the categories of its codes 1, 2, ..
        features: has the request's.
    """
    columns = json.dumps([list(profile.items()), [asdict(feature) for feature in features.request_features]])
    return hashlib.sha256(columns.encode()).hexdigest()[:16]


def _id_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _parts_of(folder: Path, about: About) -> dict[str, Any]:
    arrays = load_file(folder / ARRAYS)
    of_ads = {n.removeprefix("statistics."): a for n, a in arrays.items() if n.startswith("statistics.")}
    folds = range(about.folds)
    return {
        "catalogue": Catalogue(arrays["ad_ids"], arrays["sids"], arrays["codes"]),
        "statistics": AdStatistics(of_ads),
        "rankers": {
            "trees": [Trees.load(folder, f"trees-{fold}") for fold in folds],
            "neural": [
                Neural.load(
                    folder,
                    f"neural-{fold}",
                    numbers=len(NUMBERS),
                    categories=about.categories,
                    width=about.width,
                )
                for fold in folds
            ],
        },
    }
