"""Presets: every key of every section is checked, whoever reads it, and errors list what would be right."""

import argparse
import importlib
import re
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from training.preset.preset import SECTIONS, ConfigError, Preset, add_preset_arguments
from training.preset.recipes import TrainingConfig

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "configs").glob("*.yaml"))
# Each needs --config of its own section alone; what else they need (folders) is missing when they are asked.
COMMANDS = {
    "training.data.prepare": ("--out", "none/out"),
    "training.tokenizer.__main__": ("--data", "none", "--out", "none/out"),
    "training.recipes.pretrain": ("--run", "none"),
    "training.evaluation.__main__": ("--run", "none"),
    "training.recipes.fine_tune_fp8": ("--run", "none"),
    "export.__main__": ("--run", "none"),
    "export.tensorrt": ("--run", "none"),
}


@pytest.fixture
def preset(tmp_path):
    def write(text):
        path = tmp_path / "p.yaml"
        path.write_text(text)
        return path

    return write


def holds(found, present) -> bool:
    """Whether a value is what a preset says, which may leave keys of a section out."""
    if isinstance(present, dict) and isinstance(found, dict):
        return all(key in found and holds(found[key], value) for key, value in present.items())
    return found == present


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_shipped_presets(path):
    loaded, present = Preset.load(path), yaml.safe_load(path.read_text())
    assert (loaded.data is None) == ("data" not in present)  # a preset of a seeded model has none
    for section, keys in present.items():
        assert holds(getattr(loaded, section).model_dump(mode="json"), keys)
    assert path.read_text().startswith(("# python -m ", "# make "))  # the command that runs it


def test_values_and_overrides(preset):
    path = preset("training:\n  steps: 7\n  learning_rate: 1.0e-2\nserving:\n")
    overrides = ["training.batch_size=3", "model.width=8", "training.behavior_weights={click: 2}"]
    loaded = Preset.load(path, overrides)
    training = loaded.training
    assert (training.steps, training.learning_rate, training.batch_size) == (7, 0.01, 3)
    assert (training.behavior_weights, loaded.model.width) == ({"click": 2.0}, 8)
    assert Preset.load(path, ["training.steps=8", "training.steps=9"]).training.steps == 9  # the last wins
    assert Preset.load(preset("model:\n  width: 8\n")).training == TrainingConfig()
    with pytest.raises(ValidationError, match="frozen"):
        loaded.training = TrainingConfig()


def test_sections_that_no_command_at_hand_reads_are_checked(preset):
    """Such presets used to train, and such overrides used to pass."""
    with pytest.raises(
        ConfigError, match=r"p.yaml: serving: unknown key 'widthz'; known: attributes, .*cache, .*widths"
    ):
        Preset.load(preset("serving: {widthz: 3}\n"))
    with pytest.raises(
        ConfigError,
        match=r"model: unknown key 'bogus'; known: context_dropout, copy_path, decoder.*\(an override\)$",
    ):
        Preset.load(preset("training: {steps: 1}\n"), ["model.bogus=1"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_checks_all_sections(command, preset, monkeypatch, capsys):
    path = str(preset("serving: {widthz: 3}\n"))
    words = ["command", "--config", path, *COMMANDS[command], "--set", "model.bogus=1"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        sys.exit(importlib.import_module(command).main())
    said = capsys.readouterr().err if ended.value.code == 1 else ended.value.code
    assert re.search(r"^error: .*p.yaml: 2 faults", said)
    assert "serving: unknown key 'widthz'; known: attributes, " in said
    assert "model: unknown key 'bogus'; known: context_dropout, copy_path, decoder, dropout, " in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainig:\n  steps: 1\n", r"p.yaml: unknown section 'trainig'; known: data, features, .*serving"),
        ("training:\n  step: 1\n", r"p.yaml: training: unknown key 'step'; known: batch_size, .*steps"),
        ("data: {source: parquet, pth: x}\n", r"data: unknown key 'pth'; known: .*path, .*source"),
        (
            "data: {source: completejourney, split: {bye: days}}\n",
            r"data.split: unknown key 'bye'; known: by, test, validation; did you mean by\?$",
        ),
        (
            "data: {source: completejourney, split: weeks}\n",
            r"data.split: expected keys and values, got 'weeks'",
        ),
        (
            "data: {source: completejourney, split: {test: 1.5}}\n",
            r"data.split: expected whole numbers for by: weeks, got .*1.5",
        ),
        ("data: {}\n", r"data.source: Field required"),
        ("training:\n  steps: many\n", r"training.steps: .*integer.*got 'many'"),
        ("training:\n  steps: 1.5\n", r"training.steps: .*integer.*got 1.5"),
        ("training:\n  steps: 0\n", r"training.steps: .*greater than or equal to 1, got 0"),
        ("training:\n  learning_rate: .nan\n", r"training.learning_rate: .*got nan"),
        ("training:\n  learning_rate: .inf\n", r"training.learning_rate: .*finite.*got inf"),
        ("training:\n  behavior_weights: {view: 1}\n", r"behavior_weights.*view.*got 'view'"),
        ("training: 3\n", r"training: expected keys and values, got 3"),
        ("- training\n", r"p.yaml: expected sections data, .*got list"),
        ("training: [\n", r"p.yaml: cannot be read as YAML"),
        ("model: {width: 8}\nmodel: {width: 9}\n", r"(?s)expected every key once, got 'model' again.*line 2"),
        ("model:\n  width: 8\n  width: 9\n", r"(?s)expected every key once, got 'width' again.*line 3"),
        ("", r"p.yaml: expected sections .*got NoneType"),
        ("? [a]\n: 1\n", r"(?s)cannot be read as YAML: .*unhashable"),
        ("1: {}\n", r"p.yaml: 1: .*string.*got 1"),
        ("model: {width: 10, heads: 4}\n", r"model: expected width divisible by heads, got width 10 and"),
        ("model: {layers: 6, shared_layers: 6}\n", r"model: expected shared_layers < layers .*got 6 of 6$"),
    ],
)
def test_bad_presets(preset, text, message):
    with pytest.raises(ConfigError, match=message):
        Preset.load(preset(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("features: {short_slots: 0, long_slots: 0}", r"features: expected short_slots \+ long_slots >= 1"),
        ("serving: {widths: 64-128}", r"serving: width plan: expected 3 widths .*got '64-128'"),
        ("serving: {max_widths: 1-1-1}", r"serving.max_widths: expected at least serving.widths"),
        ("serving: {normalise: live}", r"serving: normalise: expected 3 of"),
        ("evaluation: {widths: 8-8:1}", r"evaluation: width plan: expected 3 widths"),
        ("evaluation: {widths: 8-8-8:1}", r"evaluation: .*largest cut-off, 100, got widths '8-8-8:1'"),
        ("tokenizer: {codebook_sizes: [8]}", r"(?s)2 faults:.*serving: width plan: expected 2.*evaluation: "),
        (
            "data: {source: completejourney}\ntraining: {behavior_weights: {click: 1, conversion: 0}}",
            r"training.behavior_weights: expected a weight > 0 for one of .*conversion",
        ),
    ],
)
def test_sections_must_fit_each_other(preset, text, message):
    with pytest.raises(ConfigError, match=message):
        Preset.load(preset(text))


def test_all_faults_are_told_at_once(preset):
    path = preset("trainig: {}\nmodel: {widht: 3, layers: many}\nserving: {threads: 0}\n")
    with pytest.raises(ConfigError) as caught:
        Preset.load(path, ["steps=3", "evaluation.request=1"])
    head, *lines = str(caught.value).splitlines()
    assert head == f"{path}: 6 faults:"
    for part in ("'steps=3'", "'trainig'", "'widht'", "model.layers: ", "serving.threads: ", "'request'"):
        assert sum(part in line for line in lines) == 1, part


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps", r"override 'training.steps': expected section.key=value with section in data"),
        ("steps=3", "expected section.key=value"),
        ("train.steps=3", "expected section.key=value with section in data, features"),
        ("training.stepz=3", "unknown key 'stepz'; known: batch_size"),
        ("training.steps=lots", r"training.steps: .*got 'lots' \(an override\)"),
        ("training.steps=[1", r"override 'training.steps=\[1': expected a YAML value, got '\[1'"),
    ],
)
def test_bad_overrides(preset, override, message):
    with pytest.raises(ConfigError, match=message):
        Preset.load(preset("training:\n  steps: 1\n"), [override])


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read as YAML: .*No such file"):
        Preset.load(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"bytes.yaml: cannot be read as YAML"):
        Preset.load(tmp_path / "bytes.yaml")


def test_logs_are_needed_only_where_they_are_read(preset):
    with pytest.raises(ConfigError, match=r"p.yaml: data: expected this section .*got none"):
        _ = Preset.load(preset("model: {}\n")).logs


def test_command_line():
    parser = argparse.ArgumentParser()
    add_preset_arguments(parser, default="configs/bench.yaml")
    arguments = parser.parse_args(["--set", "model.width=64", "--set", "model.heads=2"])
    loaded = Preset.load(arguments.config, arguments.overrides)
    assert (loaded.model.width, loaded.model.heads, loaded.model.layers) == (64, 2, 9)
    assert tuple(Preset.model_fields) == SECTIONS


def test_an_override_reaches_a_group_of_keys(preset):
    path = preset("data: {source: completejourney}\n")
    split = Preset.load(path, ["data.split.by=days", "data.split.test=4"]).logs.split
    assert (split.by, split.sizes) == ("days", (1, 4))
    weights = Preset.load(path, ["training.behavior_weights.conversion=3"]).training.behavior_weights
    assert weights == {"conversion": 3.0}
    with pytest.raises(ConfigError, match=r"data.split.test: .*got 'x' \(an override\)$"):
        Preset.load(path, ["data.split.test=x"])
    with pytest.raises(ConfigError, match=r"data.split: expected keys and values, got 'days'"):
        Preset.load(path, ["data.split=days", "data.split.test=4"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.copy_path=true"], "features.habits: expected 1 or more with model.copy_path, got 0"),
        (["features.habits=8"], "features.habits: expected 0 without model.copy_path, got 8"),
        (["features.habits=-1"], "features.habits: .*greater than or equal to 0"),
    ],
)
def test_a_copy_path_needs_habits_and_habits_a_copy_path(preset, overrides, message):
    with pytest.raises(ConfigError, match=message):
        Preset.load(preset("data: {source: completejourney}\n"), overrides)


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("training.stepz=3", "did you mean steps"),
        ("training.learningrate=3", "did you mean learning_rate?"),
        ("trainin.steps=3", "did you mean training or post_training?"),
        ("data.split.tst=3", "did you mean test?"),
        ("tokenizer.hashsize=3", "did you mean hash_size?"),
    ],
)
def test_errors_name_what_may_have_been_meant(preset, override, near):
    with pytest.raises(ConfigError, match=re.escape(near)):
        Preset.load(preset("data: {source: completejourney}\n"), [override])


def test_nothing_is_near_a_word_that_is_like_none(preset):
    with pytest.raises(ConfigError) as caught:
        Preset.load(preset("model: {width: 8}\n"), ["model.zzzz=3"])
    assert "did you mean" not in str(caught.value)


def test_weights_of_behaviors(preset):
    zero = "training: {behavior_weights: {click: 0, conversion: 0}}"
    with pytest.raises(ConfigError, match="behavior_weights: expected a weight > 0 for one of"):
        Preset.load(preset(zero))  # of a preset without logs too
    path = preset("data: {source: completejourney, target_behaviors: [click, conversion]}\n")
    assert Preset.load(path).warnings() == []
    [warning] = Preset.load(path, ["training.behavior_weights={conversion: 1}"]).warnings()
    assert warning.startswith("training.behavior_weights leaves out click of data.target_behaviors: weight 0")
    audiences = 'data.audiences="on"'
    [warning] = Preset.load(path, [audiences]).warnings()
    assert warning.endswith("serving.audience is off: ads with an audience are shown to nobody")
    assert Preset.load(path, [audiences, 'serving.audience="on"']).warnings() == []


def test_semantic_ids_must_fit_a_number(preset):
    """It used to be found out when the model was to be trained."""
    with pytest.raises(ConfigError, match=r"tokenizer: expected level sizes whose product is below 2\*\*63"):
        Preset.load(
            preset("tokenizer: {codebook_sizes: [1048576, 1048576, 1048576], hash_size: 1024}\n"),
            ["serving.widths=64-128-256-256:64", "evaluation.widths=64-128-256-256:1"],
        )
