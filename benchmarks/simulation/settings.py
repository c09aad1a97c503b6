"""What `make simulate` compares, and under which rules: `benchmarks/simulation/arms.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Kind = Literal["generator", "popularity", "retrieved"]
Order = Literal["probability", "value", "reward"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Arm(_Strict):
    """A row of the table.

    Attributes:
        name: what the row is called.
        kind: a trained generator, popularity of the training part, or a pointwise ranker over ads that
            simple rules retrieve.
        run: of a generator, its run folder; `{seed}` stands for the seed, here and in `model`.
        model: folder with its checkpoints, below the run.
        widths: of the search; the preset's where left out.
        order: of its answers: by probability, by p x expected value, or the first of the latter re-ranked by
            the ranker.
        paper: figures that the paper reports in this place, in percent: revenue, QPS.
        curve: arms of one curve differ in how strongly they learn; joined in the picture.
    """

    name: str
    kind: Kind = "generator"
    run: str | None = None
    model: str = "model"
    widths: str | None = None
    order: Order = "value"
    paper: dict[Literal["revenue", "qps"], float] = {}
    curve: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "generator") != (self.run is not None):
            raise ValueError(f"{self.name}: expected a run of a generator, and of nothing else")
        return self


class AuctionConfig(_Strict):
    """One way to hold the auctions.

    Attributes:
        candidates: first ads of an answer that take part.
        estimate: whose purchase probabilities the platform believes: the arm's own, or the ranker's.
    """

    candidates: PositiveInt
    estimate: Literal["own", "ranker"]


class FitSettings(_Strict):
    """The fit of the response model.

    Attributes:
        factors: F.
        steps: of Adam.
        batch: requests a step.
        sample: ads of the catalogue drawn each step.
        learning_rate: of the few weights that all ads share, at the start; falls to 0 linearly.
        table_learning_rate: of the weights of ads and words.
        decay: times the squares of all that is free, added to the loss of a request.
        recent_weeks: of the training part.
        seed: of draws and weights.
    """

    factors: PositiveInt = 24
    steps: PositiveInt = 300
    batch: PositiveInt = 64
    sample: PositiveInt = 1024
    learning_rate: PositiveFloat = 0.02
    table_learning_rate: PositiveFloat = 0.004
    decay: float = Field(1e-4, ge=0)
    recent_weeks: PositiveInt = 26
    seed: int = 0


class Settings(_Strict):
    """A simulation.

    Attributes:
        config: preset of all arms.
        run: run folder whose logs are replayed; those of all arms must be the same.
        ranker: folder of the reward model that is the platform's ranker, below the run.
        lists: of each generator's run, below `lists/`: candidate lists that its drift is measured on.
        drift_requests: lists that it is measured on.
        seeds: of the generators.
        requests: test requests, of judged users.
        min_history: events before a request.
        folds: of the users; one is judged, the response model is fitted on the others.
        depth: ads of an answer.
        rerank: first ads of an answer that the ranker reorders, and candidates of the metrics.
        cutoffs: k of the metrics.
        attention: share of users that look at each slot, the first one first.
        rounds: times that each request is replayed with other bids and other purchases.
        auctions: ways to hold them, by name.
        fit: of the response model.
        baseline: id of the arm that others are compared to.
        seed: of all draws.
        arms: by id; the keys of the table name some ids.
    """

    config: str = "configs/demo.yaml"
    run: Path
    ranker: str = "reward"
    lists: str = "train"
    drift_requests: PositiveInt = 40
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    requests: PositiveInt = 1500
    min_history: int = Field(10, ge=0)
    folds: int = Field(2, ge=2)
    depth: PositiveInt = 64
    rerank: PositiveInt = 50
    cutoffs: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (10, 50)
    attention: Annotated[tuple[float, ...], Field(min_length=1)] = (1.0, 0.7, 0.5)
    rounds: PositiveInt = 8
    auctions: dict[str, AuctionConfig]
    fit: FitSettings = FitSettings()
    baseline: str
    seed: int = 0
    arms: dict[str, Arm]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.baseline not in self.arms:
            raise ValueError(f"baseline: expected one of {', '.join(self.arms)}, got {self.baseline!r}")
        return self

    @classmethod
    def load(cls, path: Path, **changes: object) -> Self:
        """Read a file; `changes` that are not None replace its keys.

        Raises:
            pydantic.ValidationError: an unknown key, a wrong type, or values that do not fit each other.
        """
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return cls.model_validate(content | {k: v for k, v in changes.items() if v is not None})
