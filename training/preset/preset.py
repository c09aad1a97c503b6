"""Presets: one YAML a preset, one section a concern; all sections are checked whenever one is read.

The model of a section lives where its settings are used. This module puts them together, and checks what
only two of them together can break.
"""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, model_validator

from serving.backend.plans import SearchPlans
from serving.backend.settings import ServingConfig
from serving.model.features import BEHAVIORS
from serving.model.request_features import RequestFeature
from serving.search.widths import WidthPlan
from training.preset.data import DataConfig, FeatureConfig
from training.preset.evaluation import EvaluationConfig
from training.preset.model import ModelConfig
from training.preset.online import OnlineConfig
from training.preset.precision import PrecisionConfig
from training.preset.publish import PublishConfig
from training.preset.recipes import FineTuneConfig, PostTrainConfig, TrainingConfig
from training.preset.reward import RewardConfig
from training.preset.rollout import RolloutConfig
from training.preset.tokenizer import TokenizerConfig


class ConfigError(ValueError):
    """A preset or an override has an unknown key, a wrong type, or values that do not fit each other."""


class Preset(BaseModel):
    """Every setting of a run; `load` reads one from a file.

    A section that a file leaves out has its defaults, but for `data`: a preset of a seeded model has none.

    Raises:
        pydantic.ValidationError: a section is not valid, or two do not fit each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataConfig | None = None
    features: FeatureConfig = FeatureConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    post_training: PostTrainConfig = PostTrainConfig()
    online: OnlineConfig = OnlineConfig()
    fine_tune_fp8: FineTuneConfig = FineTuneConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    serving: ServingConfig = ServingConfig()
    precision: PrecisionConfig = PrecisionConfig()
    publish: PublishConfig = PublishConfig()
    _path: str = PrivateAttr("preset")

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read and check a preset.

        Args:
            path: YAML file.
            overrides: "section.key=value" strings, the value in YAML; later ones win. A key of a group within
                a section has another dot: "data.split.by=days".

        Raises:
            ConfigError: names the file and, for each of its faults, section, key, what was expected and what
                came.
        """
        values, faults = _read(Path(path)), []
        overridden: set[tuple[str, ...]] = set()
        for override in overrides:
            try:
                keys, value = _split_override(override)
            except ConfigError as error:
                faults.append(str(error))
                continue
            if _put(values, keys, value=value):
                overridden.add(keys)
        try:
            preset = cls.model_validate(values)
        except ValidationError as error:
            faults += _faults(error, overridden)
        if faults:
            more = f"{len(faults)} faults:\n  " if len(faults) > 1 else ""
            raise ConfigError(f"{path}: {more}" + "\n  ".join(faults))
        preset._path = str(path)
        return preset

    @property
    def logs(self) -> DataConfig:
        """Section `data`, for what reads logs.

        Raises:
            ConfigError: the preset has none.
        """
        if self.data is None:
            raise ConfigError(
                f"{self._path}: data: expected this section (source: completejourney or parquet), got none"
            )
        return self.data

    @property
    def request_features(self) -> tuple[RequestFeature, ...]:
        """What a model of this preset knows of a request besides its user."""
        return tuple(f.feature() for f in self.data.request_features) if self.data else ()

    def warnings(self) -> list[str]:
        """What is allowed, and seldom meant."""
        weights = self.training.behavior_weights
        left_out = [name for name in (self.data.target_behaviors if self.data else ()) if name not in weights]
        found = []
        if left_out:
            found.append(
                f"training.behavior_weights leaves out {', '.join(left_out)} of data.target_behaviors: "
                "weight 0, nothing is learned of them"
            )
        if self.data and self.data.audiences == "on" and self.serving.audience == "off":
            found.append(
                "data.audiences is on, serving.audience is off: ads with an audience are shown to nobody"
            )
        return found

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        levels = self.tokenizer.levels
        faults = []

        def check(section: str, of: Callable[[], object]) -> None:
            try:
                of()
            except ValueError as error:
                faults.append(f"{section}: {error}")

        check("features", lambda: self.features.spec(levels=levels, profile_sizes=()))
        check("serving", lambda: SearchPlans.of(self.serving, levels=levels))
        check("evaluation", lambda: _check_evaluation(self.evaluation, levels=levels))
        if self.rollout.widths is not None:
            widths = self.rollout.widths
            check("rollout", lambda: WidthPlan.parse(widths, levels=levels))
        weights = self.training.behavior_weights
        targets = tuple(self.data.target_behaviors if self.data else BEHAVIORS)
        if not any(weight > 0 for behavior, weight in weights.items() if behavior in targets):
            faults.append(
                "training.behavior_weights: expected a weight > 0 for one of data.target_behaviors "
                f"{targets}, got {weights}"
            )
        if self.model.copy_path != (self.features.habits > 0):
            wanted = "1 or more with" if self.model.copy_path else "0 without"
            faults.append(f"features.habits: expected {wanted} model.copy_path, got {self.features.habits}")
        if self.model.decoder == "mtp" and self.training.lambda_mtp:
            faults.append(
                "training.lambda_mtp: expected 0 with model.decoder: mtp, in which no level is predicted "
                f"without tokens, got {self.training.lambda_mtp}"
            )
        columns = dict(self.data.embedding_columns) if self.data else {}
        if columns and not self.tokenizer.reads_given:
            how = f"sids: {self.tokenizer.sids}, embedding: {self.tokenizer.embedding}"
            faults.append(
                f"data.embedding_columns {sorted(columns)}: expected tokenizer.embedding: given, which reads "
                f"them, or a list with it, got {how}; set that, or data.embedding_columns: {{}}"
            )
        sizes = (*self.tokenizer.codebook_sizes, self.tokenizer.hash_size)
        if math.prod(sizes) >= 1 << 63:  # see `serving.index.keys.pack`
            faults.append(f"tokenizer: expected level sizes whose product is below 2**63, got {sizes}")
        if faults:
            raise ValueError("\n".join(faults))
        return self


SECTIONS = tuple(Preset.model_fields)


def add_preset_arguments(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """Add `--config` (required where there is no default) and `--set`, for `Preset.load`.

    The values are `arguments.config` and the list `arguments.overrides`.
    """
    ending = f" [{default}]" if default else ", e.g. configs/demo.yaml"
    parser.add_argument("--config", required=default is None, default=default, help=f"preset{ending}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="override a key of the preset, e.g. training.steps=100; may be given several times",
    )


class _Loader(yaml.SafeLoader):
    """YAML in which a key may stand once: of two, PyYAML would silently take the later one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"expected every key once, got {key.value!r} again", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[Any, Any]:
    """Sections of a file; those without content are left out."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections {', '.join(SECTIONS)}, got {type(content).__name__}")
    return {section: keys for section, keys in content.items() if keys is not None}


def _split_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Keys from the section on, and the value."""
    left, equals, value = text.partition("=")
    section, *keys = left.split(".")
    if not (equals and keys and all(keys) and section in SECTIONS):
        near = _near(section, SECTIONS) if equals and keys else ""
        raise ConfigError(
            f"override {text!r}: expected section.key=value with section in {', '.join(SECTIONS)}{near}"
        )
    try:
        return (section, *keys), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: expected a YAML value, got {value!r}") from error


def _put(values: dict[Any, Any], keys: tuple[str, ...], *, value: Any) -> bool:
    """Set a nested key; False where something else than keys and values is on the way, a fault of its own."""
    for key in keys[:-1]:
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            return False
    values[keys[-1]] = value
    return True


def _near(name: str, known: Iterable[str]) -> str:
    """Which of the known names may have been meant."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _check_evaluation(config: EvaluationConfig, *, levels: int) -> None:
    widths = WidthPlan.parse(config.widths, levels=levels).sid
    if widths[-1] < max(config.cutoffs):
        raise ValueError(
            f"expected a last width of at least the largest cut-off, {max(config.cutoffs)}, "
            f"got widths {config.widths!r}"
        )
    config.levels_normalised(levels)


def _faults(error: ValidationError, overridden: Collection[tuple[str, ...]]) -> list[str]:
    found = []
    for fault in error.errors():
        where = tuple(map(str, fault["loc"]))
        said, came = fault["msg"].removeprefix("Value error, "), repr(fault["input"])
        if not where:  # what the validator of Preset said
            found += said.split("\n")
        elif fault["type"] == "extra_forbidden" and len(where) == 1:
            known = ", ".join(SECTIONS) + _near(where[0], SECTIONS)
            found.append(f"unknown section {where[0]!r}; known: {known}")
        elif fault["type"] == "extra_forbidden":
            *path, key = where
            known = ", ".join(_keys(*path)) + _near(key, _keys(*path))
            found.append(f"{'.'.join(path)}: unknown key {key!r}; known: {known}")
        elif fault["type"] == "model_type":
            found.append(f"{'.'.join(where)}: expected keys and values, got {came}")
        elif fault["type"] == "value_error" and len(where) == 1:  # of a section: the text says what came
            found.append(f"{where[0]}: {said}")
        else:
            found.append(f"{'.'.join(where)}: {said}, got {came}")
        if any(where[: len(keys)] == keys for keys in overridden):
            found[-1] += " (an override)"
    return found


def _keys(section: str, *parts: str) -> list[str]:
    default = Preset.model_fields[section].default
    fields = (type(default) if default is not None else DataConfig).model_fields
    for part in parts:
        fields = type(fields[part].default).model_fields
    return sorted(fields)
