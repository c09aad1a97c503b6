"""Settings of the reward model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RewardConfig(BaseModel):
    """Reward model, see `training.reward`.

    Attributes:
        model: which one scores: trees, neural, or the mean of both.
        rows: what it learns from: exposures of the log, or candidates that are drawn where a log has no
            impressions; auto takes exposures where most of them in the training part came to nothing.
        lists: stored lists, names in RUN/lists, whose requests and candidates it learns from and is judged on
            instead; parts without any have candidates that are drawn.
        folds: of users; each is scored by a model that was fitted on the others.
        weeks: requests of the last weeks of the training part are learnt from.
        statistics_weeks: statistics of ads are taken anew so often; a request sees the last before it.
        requests: drawn of those weeks, at most.
        judged_requests: drawn of validation and of test each, at most.
        popular: ads drawn by recent popularity for a request, at most.
        siblings: ads drawn from under the prefixes of two codes of the history, at most.
        negatives: candidates without an outcome that are kept of a request; their weights stand for the rest.
        trees: most trees of each of the two (probability, value); validation says how many are kept.
        leaves: of a tree.
        tree_rate: learning rate of the trees.
        width: of the neural model's first hidden layer; the second has half of it.
        epochs: of the neural model, at most; validation says which one is kept.
        learning_rate: of the neural model.
        threads: of the fit.
        seed: of draws, folds and models.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Literal["trees", "neural", "mean"] = "mean"
    rows: Literal["auto", "exposures", "candidates"] = "auto"
    lists: tuple[str, ...] = ()
    folds: int = Field(2, ge=2, le=16)
    weeks: int = Field(8, ge=1)
    statistics_weeks: int = Field(4, ge=1)
    requests: int = Field(6000, ge=1)
    judged_requests: int = Field(1000, ge=1)
    popular: int = Field(128, ge=0)
    siblings: int = Field(64, ge=0)
    negatives: int = Field(96, ge=1)
    trees: int = Field(300, ge=1)
    leaves: int = Field(31, ge=2)
    tree_rate: float = Field(0.05, gt=0, le=1)
    width: int = Field(96, ge=2)
    epochs: int = Field(6, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    threads: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)
