"""Presets: one YAML a preset, one section a concern, every key checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

SECTIONS = (
    "data",
    "tokenizer",
    "features",
    "model",
    "training",
    "quantize_aware",
    "evaluation",
    "precision",
    "serving",
)

Section = TypeVar("Section", bound=BaseModel)


class ConfigError(ValueError):
    """A preset has an unknown key, a wrong type or a value out of range."""


class FeatureConfig(BaseModel):
    """Context of a request; see `serving.model.features.FeatureSpec` for the meaning of each key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    short_slots: int = Field(24, ge=0)
    long_slots: int = Field(36, ge=0)
    max_history: int = Field(1024, ge=1)


class TrainingConfig(BaseModel):
    """Optimisation.

    Attributes:
        steps: optimizer steps.
        batch_size: requests a step, over all processes together.
        targets_per_request: targets drawn of each request (its basket is a set).
        learning_rate, warmup_steps, weight_decay, clip_norm: AdamW with warm-up, then cosine to a tenth.
        lambda_value: lambda_e, weight of the value level.
        lambda_mtp: weight of the multi-token-prediction loss.
        behavior_weights: w_behavior of each behavior.
        validate_every, validation_requests: how often and on how many requests.
        recent_weeks: train on targets of the last weeks only (their histories go all the way back); None for
            all weeks.
        min_history: events a user must have before a target counts as a sample.
        threads: CPU threads of each process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(2000, ge=1)
    batch_size: int = Field(64, ge=1)
    targets_per_request: int = Field(8, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    lambda_value: float = Field(0.2, ge=0)
    lambda_mtp: float = Field(0.3, ge=0)
    behavior_weights: dict[Literal["impression", "click", "conversion"], float] = Field(
        default={"impression": 1.0, "click": 1.0, "conversion": 1.0}
    )
    validate_every: int = Field(500, ge=1)
    validation_requests: int = Field(256, ge=1)
    min_history: int = Field(10, ge=0)
    recent_weeks: int | None = Field(None, ge=1)
    seed: int = 0
    threads: int = Field(2, ge=1)


class QuantizeAwareConfig(BaseModel):
    """Fine-tuning for FP8, see `training.quantize_aware`.

    Attributes:
        steps: optimizer steps.
        batch_size: requests a step.
        catalogue_targets: SIDs drawn from the catalogue for each request, beside its targets.
        learning_rate: AdamW, cosine to 0.
        calibration_batches: batches that ranges of activations are measured on before the first step.
        validation_batches: batches of validation requests that the divergence is measured on, before and
            after.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(200, ge=1)
    batch_size: int = Field(32, ge=1)
    catalogue_targets: int = Field(10, ge=0)
    learning_rate: float = Field(1e-5, gt=0)
    calibration_batches: int = Field(8, ge=1)
    validation_batches: int = Field(8, ge=1)
    seed: int = 0


class EvaluationConfig(BaseModel):
    """Ranking quality on the test weeks.

    Attributes:
        requests: test requests drawn (seeded); all of them when there are fewer.
        cutoffs: k of Recall@k and NDCG@k.
        widths: width plan of the beam search; the last width must reach the largest cutoff.
        batch_size: requests a search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int = Field(2000, ge=1)
    cutoffs: tuple[int, ...] = (10, 50, 100)
    widths: str = "64-128-256:1"
    batch_size: int = Field(16, ge=1)
    seed: int = 0


def load_section(
    path: str | Path, name: str, cls: type[Section], *, overrides: tuple[str, ...] = ()
) -> Section:
    """Read one section of a preset.

    Args:
        path: YAML file.
        name: section, one of `SECTIONS`.
        cls: model that validates it.
        overrides: "section.key=value" strings; those of other sections are ignored here.

    Raises:
        ConfigError: says the file, the key, what was expected and what came.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections {', '.join(SECTIONS)}, got {type(content).__name__}")
    for section in content:
        if section not in SECTIONS:
            raise ConfigError(f"{path}: unknown section {section!r}; known: {', '.join(SECTIONS)}")
    values = dict(content.get(name) or {}) if isinstance(content.get(name) or {}, dict) else content[name]
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: {name}: expected keys and values, got {values!r}")
    for override in overrides:
        section, key, value = _split_override(override)
        if section == name:
            try:
                values[key] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ConfigError(f"override {override!r}: expected a YAML value, got {value!r}") from error
    return _validated(cls, values, where=f"{path}: {name}")


def _split_override(text: str) -> tuple[str, str, str]:
    left, equals, value = text.partition("=")
    section, dot, key = left.partition(".")
    if not (equals and dot and section in SECTIONS):
        raise ConfigError(
            f"override {text!r}: expected section.key=value with section in {', '.join(SECTIONS)}"
        )
    return section, key, value


def _validated(cls: type[Section], values: dict[str, Any], *, where: str) -> Section:
    known = sorted(cls.model_fields)
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
    try:
        return cls(**values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'section'}: {e['msg']}, got {e['input']!r}"
            for e in error.errors()
        )
        raise ConfigError(f"{where}: {problems}") from error
