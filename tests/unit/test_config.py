"""Presets: every key is known, every type is checked, and the error lists what would be right."""

from pathlib import Path

import pytest
import yaml

from serving.backend.settings import ServingConfig
from training.config import (
    SECTIONS,
    ConfigError,
    EvaluationConfig,
    FeatureConfig,
    QuantizeAwareConfig,
    TrainingConfig,
    load_section,
)
from training.data.config import DataConfig
from training.model.config import ModelConfig
from training.precision import PrecisionConfig
from training.tokenizer import TokenizerConfig

CLASSES = {
    "data": DataConfig,
    "tokenizer": TokenizerConfig,
    "features": FeatureConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "quantize_aware": QuantizeAwareConfig,
    "evaluation": EvaluationConfig,
    "precision": PrecisionConfig,
    "serving": ServingConfig,
}
PRESETS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture
def preset(tmp_path):
    def write(text):
        path = tmp_path / "p.yaml"
        path.write_text(text)
        return path

    return write


def training(path, *overrides):
    return load_section(path, "training", TrainingConfig, overrides=overrides)


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_loads_in_all_sections(path):
    assert set(CLASSES) == set(SECTIONS)
    present = yaml.safe_load(path.read_text())
    for name, cls in CLASSES.items():
        if name != "data" or name in present:  # a preset of a seeded model has no data
            load_section(path, name, cls)


def test_there_are_presets():
    assert "demo" in {p.stem for p in PRESETS}


def test_values_and_overrides(preset):
    path = preset("training:\n  steps: 7\n  learning_rate: 1.0e-2\n")
    config = training(path, "training.batch_size=3", "model.width=9", "training.behavior_weights={click: 2}")
    assert (config.steps, config.learning_rate, config.batch_size) == (7, 0.01, 3)
    assert config.behavior_weights == {"click": 2.0}
    assert training(path, "training.steps=8").steps == 8  # an override wins
    assert training(preset("model:\n  width: 8\n")) == TrainingConfig()  # a section may be left out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainig:\n  steps: 1\n", r"p.yaml: unknown section 'trainig'; known: data, tokenizer, .*serving"),
        ("training:\n  step: 1\n", r"training: unknown key 'step'; known: batch_size, .*steps"),
        ("training:\n  steps: many\n", r"training: steps: .*integer.*got 'many'"),
        ("training:\n  steps: 1.5\n", r"training: steps: .*integer.*got 1.5"),
        ("training:\n  steps: 0\n", r"training: steps: .*greater than or equal to 1, got 0"),
        ("training:\n  learning_rate: .nan\n", r"learning_rate: .*got nan"),
        ("training:\n  behavior_weights: {view: 1}\n", r"behavior_weights.*view.*got 'view'"),
        ("training: 3\n", r"training: expected keys and values, got 3"),
        ("- training\n", r"p.yaml: expected sections data, .*got list"),
        ("training: [\n", r"p.yaml: cannot be read as YAML"),
        ("", r"p.yaml: expected sections .*got NoneType"),
    ],
)
def test_bad_presets(preset, text, message):
    with pytest.raises(ConfigError, match=message):
        training(preset(text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps", r"override 'training.steps': expected section.key=value with section in data"),
        ("steps=3", "expected section.key=value"),
        ("train.steps=3", "expected section.key=value with section in data, tokenizer"),
        ("training.stepz=3", "unknown key 'stepz'; known: batch_size"),
        ("training.steps=lots", "steps: .*got 'lots'"),
        ("training.steps=[1", r"override 'training.steps=\[1': expected a YAML value, got '\[1'"),
    ],
)
def test_bad_overrides(preset, override, message):
    with pytest.raises(ConfigError, match=message):
        training(preset("training:\n  steps: 1\n"), override)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read as YAML: .*No such file"):
        training(tmp_path / "none.yaml")


def test_model_sizes_must_fit_each_other(preset):
    with pytest.raises(ConfigError, match="width divisible by heads, got width 10 and heads 4"):
        load_section(preset("model: {width: 10, heads: 4}\n"), "model", ModelConfig)
    with pytest.raises(ConfigError, match="shared_layers < layers .*got 6 of 6"):
        load_section(preset("model: {layers: 6, shared_layers: 6}\n"), "model", ModelConfig)
