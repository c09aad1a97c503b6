"""A reward model fitted on the training part, by fold of users, and judged on validation and test.

Validation says when to stop, calibrates, and shows which of trees, neural and mean to let serve; test has
no say. Letters: R requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from serving.model.features import BEHAVIORS
from serving.ranking.features import feature_set
from training.data.folds import user_fold
from training.data.groups import TargetGroups
from training.data.list_store import StoredLists
from training.data.samples import RequestDataset
from training.preset.reward import RewardConfig
from training.reward.calibration import Calibration
from training.reward.candidates import Drawn, Exposed, Labelled, has_impressions
from training.reward.catalogue import Catalogue
from training.reward.judge import judge
from training.reward.neural import Neural
from training.reward.ranker import Predicted, Ranker
from training.reward.requests import RequestFeatures
from training.reward.reward_model import KINDS, About, RewardModel, categories_of, vocabulary_of
from training.reward.rows import Rows, rows_of
from training.reward.trees import Trees

SERVES = (*KINDS, "mean")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a reward model is made from.

    Attributes:
        dataset: requests of all parts.
        ads: table of its ads.
        tokenizer_id: whose SIDs they have.
        target_behaviors: what counts.
        min_history: events that a user must have before a request.
        lists: stored lists to take candidates from.
        made_from: all that this was read with, settings and sha256 of files.
    """

    dataset: RequestDataset
    ads: pl.DataFrame
    tokenizer_id: str
    target_behaviors: tuple[str, ...]
    min_history: int
    lists: tuple[StoredLists, ...] = ()
    made_from: dict[str, Any] = field(default_factory=dict)


def fit_reward(source: Source, config: RewardConfig) -> tuple[RewardModel, dict[str, Any]]:
    """Fit the rankers of all folds, calibrate and judge them; the model, not stored yet, and the report.

    Raises:
        ValueError: a part has no request, or only candidates of one kind, or no value above 0; so also where
            only the training users outside one fold have none.
    """
    began = time.process_time()
    dataset = source.dataset
    catalogue = Catalogue.of(dataset, source.ads)
    features = RequestFeatures(
        dataset, catalogue, target_behaviors=source.target_behaviors, weeks=config.statistics_weeks
    )
    draw = _Draw(source, config, features)
    rows = {part: draw.rows(part) for part in ("train", "validation", "test")}
    for part in ("train", "validation"):
        _check_kinds(rows[part], part)
    for fold in range(config.folds):
        _check_kinds(rows["train"], "train", without=fold)
    categories = categories_of(dataset)
    rankers: dict[str, list[Ranker]] = {kind: [] for kind in KINDS}
    seconds = {"rows": time.process_time() - began}
    for fold in range(config.folds):
        fitted_on = rows["train"].take(rows["train"].fold != fold)
        for kind in KINDS:
            start = time.process_time()
            rankers[kind].append(
                Trees.fit(fitted_on, rows["validation"], config)
                if kind == "trees"
                else Neural.fit(fitted_on, rows["validation"], config, categories=categories)
            )
            seconds[kind] = seconds.get(kind, 0.0) + time.process_time() - start
    about = About(
        serves=config.model,
        features=feature_set(categories),
        categories=categories,
        vocabulary=vocabulary_of(dataset.vocabulary.categories, dataset.spec),
        max_history=dataset.spec.max_history,
        target_behaviors=source.target_behaviors,
        tokenizer_id=source.tokenizer_id,
        folds=config.folds,
        seed=config.seed,
        statistics_weeks=config.statistics_weeks,
        width=config.width,
        calibration={},
        made_from=source.made_from,
    )
    model = RewardModel(about, catalogue, statistics=features.newest, rankers=rankers)
    predicted = {kind: predict_rows(model, rows["validation"], kind) for kind in SERVES}
    lines = {kind: Calibration.fit(predicted[kind], rows["validation"]) for kind in SERVES}
    model.about = replace(about, calibration=lines)
    report: dict[str, Any] = {"serves": config.model, "rows_from": draw.rows_from}
    for part in ("validation", "test"):
        report[part] = {
            kind: judge(predict_rows(model, rows[part], kind), rows[part], lines[kind]) for kind in SERVES
        }
    report["best_by_validation"] = min(SERVES, key=lambda kind: report["validation"][kind]["log_loss"])
    report["rows"] = {
        part: {"requests": len(np.unique(of.request)), "rows": len(of), "outcomes": int(of.had.sum())}
        for part, of in rows.items()
    }
    report["cpu_seconds"] = seconds | {"all": time.process_time() - began}
    return model, report


def predict_rows(model: RewardModel, rows: Rows, kind: str) -> Predicted:
    """What the rankers say of rows, each asked about the users that it did not see."""
    logit, ratio = np.empty(len(rows)), np.empty(len(rows))
    for fold in range(model.about.folds):
        at = np.flatnonzero(rows.fold == fold)
        if len(at):
            found = model.predict(rows.features.take(at), fold, kind=kind)
            logit[at], ratio[at] = found.logit, found.ratio
    return Predicted(logit, ratio)


class _Draw:
    """Rows of a part, from its exposures or from candidates."""

    def __init__(self, source: Source, config: RewardConfig, features: RequestFeatures) -> None:
        self._source, self._config, self._features = source, config, features
        self._folds = user_fold(source.dataset.log.user_ids, folds=config.folds, seed=config.seed)
        exposed = config.rows == "exposures"
        if config.rows == "auto" and not source.lists:
            exposed = has_impressions(source.dataset, source.target_behaviors)
        self.rows_from = "exposures" if exposed else "candidates"

    def rows(self, part: str) -> Rows:
        """Those of the training part with some of what came to nothing, all of the others."""
        config = self._config
        groups, candidates, preferred = self._of_part(part)
        if not len(groups):
            raise ValueError(f"reward model: expected at least one {part} request, got none")
        train = part == "train"
        most = config.requests if train else config.judged_requests
        drawn = np.random.default_rng((config.seed, len(part))).permutation(preferred)[:most]
        return rows_of(
            groups,
            np.sort(drawn),
            candidates=candidates,
            features=self._features,
            folds=self._folds,
            negatives=config.negatives if train else None,
            seed=config.seed,
            title=f"candidates of {part}",
        )

    def _of_part(self, part: str) -> tuple[TargetGroups, Callable[[TargetGroups, int], Labelled], np.ndarray]:
        """Requests, what their candidates are, and those to draw from: with stored lists where there are."""
        source, config, dataset = self._source, self._config, self._source.dataset
        exposed = self.rows_from == "exposures"

        def groups_of(weeks: int | None) -> TargetGroups:
            return dataset.groups(
                part,
                target_behaviors=tuple(BEHAVIORS) if exposed else source.target_behaviors,
                min_history=source.min_history,
                recent_weeks=weeks,
            )

        recent = groups_of(config.weeks)
        if exposed:
            return recent, Exposed(dataset, part, source.target_behaviors).of, np.arange(len(recent))
        drawn = Drawn(
            self._features,
            popular=config.popular,
            siblings=config.siblings,
            seed=config.seed,
            lists=source.lists,
        )
        every = groups_of(None)
        listed = np.flatnonzero(drawn.has_list(every))
        return (every, drawn.of, listed) if len(listed) else (recent, drawn.of, np.arange(len(recent)))


def _check_kinds(rows: Rows, part: str, *, without: int | None = None) -> None:
    """Of all rows, or of those that the rankers of a fold are fitted on: the ones without it."""
    fitted_on = np.ones(len(rows), bool) if without is None else rows.fold != without
    had, value = rows.had[fitted_on], rows.value[fitted_on]
    users = "" if without is None else f" of users outside fold {without}"
    outcomes = int(had.sum())
    if not 0 < outcomes < len(had):
        raise ValueError(
            f"reward model: expected {part} candidates{users} with and without an outcome, got {outcomes} "
            f"with one of {len(had)}"
        )
    if not value[had].max() > 0:
        raise ValueError(
            f"reward model: expected an outcome of a value above 0 in {part}{users}, got none of {outcomes}: "
            "p x value would be 0 for every candidate"
        )
