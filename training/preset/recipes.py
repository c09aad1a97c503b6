"""Settings of recipes, beside those of the loop that they share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, model_validator

from training.preset.loop import LoopConfig


class TrainingConfig(LoopConfig):
    """Pre-training, see `training.recipes.pretrain`.

    Attributes:
        targets_per_request: targets drawn of each request (its basket is a set).
        following_requests: a request also has the targets of its user's next ones, so many, of the training
            part; for logs in which what comes soon says as much as what comes next.
        lambda_value: lambda_e, weight of the value level.
        lambda_mtp: weight of the multi-token-prediction loss.
        lambda_item: weight of the loss of the item level, of a model that has one (`model.item`).
        behavior_weights: w_behavior of each behavior; 0 for one that is left out. A purchase says more than a
            click, and a click more than an impression.
        user_weight: w_user of a target: none is 1 for all; value weighs by what the user was worth in the
            training part (see `training.data.user_value`), so that the model serves those well who bring
            most.
        min_history: events a user must have before a target counts as a sample.
        recent_weeks: train on targets of the last weeks only (their histories go all the way back); None for
            all weeks.
        warm_start: another run, its folder of a model, or one of its checkpoints, whose weights a new model
            starts with where they fit; None for random ones.
    """

    targets_per_request: int = Field(8, ge=1)
    following_requests: int = Field(0, ge=0)
    lambda_value: float = Field(0.2, ge=0)
    lambda_mtp: float = Field(0.3, ge=0)
    lambda_item: float = Field(1.0, ge=0)
    behavior_weights: dict[Literal["impression", "click", "conversion"], NonNegativeFloat] = Field(
        default={"impression": 1.0, "click": 1.0, "conversion": 1.0}
    )
    user_weight: Literal["none", "value"] = "none"
    min_history: int = Field(1, ge=0)
    recent_weeks: int | None = Field(None, ge=1)
    warm_start: str | None = None


class FineTuneConfig(LoopConfig):
    """Fine-tuning for FP8, see `training.recipes.fine_tune_fp8`; which requests, says section `training`.

    Attributes:
        catalogue_targets: SIDs drawn from the catalogue for each request, beside its targets.
        calibration_batches: batches that ranges of activations are measured on before the first step.
    """

    steps: int = Field(200, ge=1)
    learning_rate: float = Field(1e-5, gt=0)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    validate_every: int = Field(100, ge=1)
    batch_size: int = Field(32, ge=1)
    catalogue_targets: int = Field(10, ge=0)
    calibration_batches: int = Field(8, ge=1)


class PostTrainConfig(LoopConfig):
    """Post-training on lists of candidates, see `training.recipes.post_train`.

    Which requests and targets, and the weights of VSL's terms, says section `training`.

    Attributes:
        objective: what is learnt of a list; vsl learns nothing of it and is the control: the same requests.
        lists: name of the lists of training requests, a folder of RUN/lists; only requests with one are
            trained on.
        validation_lists: the same of validation requests; None validates on their targets alone.
        reward: id of the reward model whose rewards the lists have; None where just one has scored them.
        list_size: most candidates of a list at a time: what was shown, and others that are drawn anew in each
            epoch; None for all.
        supervised: learn from the targets of a request, too; without, from its list alone.
        strength: of the lists beside the targets. 1 lets both pull equally at the start: it multiplies
            lambda = |g_VSL| / |g_RL|, which is measured.
        balance_batches: batches that lambda is measured on.
        beta: of rspo, uvr and dpo: of the differences of log-probabilities.
        delta: of rspo and uvr: mean log(p / p_ref) of an anchor and what is worth less, from which on it is
            judged without the reference.
        reward_scale: of rspo and uvr: v of the exponents 2^v. rank is the share of the others that are worth
            less, max is reward / largest of the list, both with 0 for rewards below 0; range takes the least
            of the list for 0.
        reward_top: of rspo and uvr: v of the best candidate of a list.
        sibling_weight: of rspo, uvr and dpo: each leading code that a candidate shares with the better one
            adds so much to its weight 1; 0 for none.
        epsilon: of grpo: its ratio is clipped to 1 - epsilon .. 1 + epsilon.
        kl_weight: of grpo: weight of KL(p || p_ref).
    """

    steps: int = Field(100, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    warmup_steps: int = Field(20, ge=0)
    validate_every: int = Field(100, ge=1)
    objective: Literal["vsl", "rspo", "uvr", "dpo", "grpo"] = "rspo"
    lists: str = "train"
    validation_lists: str | None = None
    reward: str | None = None
    list_size: int | None = Field(24, ge=1)
    supervised: bool = True
    strength: float = Field(1.0, gt=0)
    balance_batches: int = Field(8, ge=1)
    beta: float = Field(0.5, gt=0)
    delta: float = 0.5
    reward_scale: Literal["max", "range", "rank"] = "rank"
    reward_top: float = Field(6.0, gt=0, le=8)
    sibling_weight: float = Field(0.0, ge=0)
    epsilon: float = Field(0.5, gt=0, lt=1)
    kl_weight: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> PostTrainConfig:
        if not self.supervised:
            if self.objective in ("vsl", "uvr"):
                raise ValueError(f"expected supervised: true with objective {self.objective}, got false")
            if self.validation_lists is None:
                raise ValueError("expected validation_lists with supervised: false, got none")
        return self
