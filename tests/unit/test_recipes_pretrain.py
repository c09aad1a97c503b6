"""Pre-training on a log: it learns, goes on where it was, on newer logs too, and in several processes."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from serving.files import sha256
from tests.tiny_log import open_run, write_run
from training.data.prepare import prepare
from training.loop.checkpoint import Checkpoint, CheckpointError
from training.loop.device import Device
from training.loop.retention import find_checkpoint, open_checkpoint, save_checkpoint
from training.preset.preset import Preset
from training.recipes import pretrain
from training.recipes.pretrain import prepare_training
from training.recipes.warm_start import take_weights
from training.run import RunData, SpecError
from training.tokenizer.__main__ import run as tokenize
from training.tokenizer.alignment import NONE, Alignment
from training.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory, no_curves):
    """Preset and run folder of the tiny log; tests write their models elsewhere."""
    torch.set_num_threads(1)
    return write_run(tmp_path_factory.mktemp("log"))


def trainer(run, folder, *overrides, device=None, fresh=False):
    preset = Preset.load(run[0], overrides)
    return prepare_training(preset, run[1], folder=folder, device=device or Device(), fresh=fresh)


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A model after all its 40 steps."""
    folder = tmp_path_factory.mktemp("trained")
    trainer(run, folder).run()
    return folder


def command(monkeypatch, run, folder, *words):
    """The command line, in this process."""
    arguments = ["--config", run[0], "--run", run[1], "--out", folder, *words]
    monkeypatch.setattr(sys, "argv", ["pretrain", *map(str, arguments)])
    pretrain.main()


def weights(folder):
    return open_checkpoint(folder).model.state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_loss_falls(trained):
    found = open_checkpoint(trained)
    last = found.history[-1]
    uniform = sum(math.log(v) for v in found.spec.level_sizes)
    assert last["train_sid"] < uniform - 1
    assert last["validation_sid"] < uniform - 0.8
    assert last["train_sid"] < found.history[0]["train_sid"]
    assert [r["step"] for r in found.history] == [20, 40]
    assert last["validation_sid"] == pytest.approx(4.8274, abs=0.001)  # as it has always been


def test_padding_does_not_reach_the_gradient(run, tmp_path):
    """What stands in a target of weight 0 changes nothing."""
    one = trainer(run, tmp_path)
    batch = next(one.source.batches(0))
    padded = np.flatnonzero(batch.weight[:, -1] == 0)
    assert len(padded)  # otherwise this test says nothing
    gradients = []
    for code in (0, 3):
        batch.tokens[padded, -1], batch.value[padded, -1] = code, code
        one.model.zero_grad()
        one.objective(one.model, Device().put(batch)).total.sum.backward()
        gradients.append([p.grad.clone() for p in one.model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_a_checkpoint_holds_the_sids_of_the_training_weeks(run, trained):
    _, spec, dataset = open_run(run)
    np.testing.assert_array_equal(open_checkpoint(trained).seen_sids, dataset.seen_sids(spec.level_sizes))


def test_no_request_is_an_error(run, tmp_path):
    with pytest.raises(ValueError, match="expected at least one training request with 9999 earlier events"):
        trainer(run, tmp_path, "training.min_history=9999")


def test_fewer_requests_than_processes(run, tmp_path):
    with pytest.raises(
        ValueError, match="at least one request of a batch for each of 4 processes, got batches of 2"
    ):
        trainer(run, tmp_path, "training.batch_size=2", device=Device(world=4))


# Going on


def test_ctrl_c_and_going_on_is_one_run(run, trained, tmp_path, monkeypatch, capsys):
    """Through the command line; the checkpoint is of the step where it stopped."""
    steps = iter(range(100))

    def stop_at_27(*arguments, describe, **options):
        for batch in real(*arguments, describe=describe, **options):
            if next(steps) == 26:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    real = pretrain.LoggedRequests.batches.__globals__["stream"]
    with monkeypatch.context() as patched:
        patched.setitem(pretrain.LoggedRequests.batches.__globals__, "stream", stop_at_27)
        with pytest.raises(SystemExit) as caught:
            command(patched, run, tmp_path)
    stood = open_checkpoint(tmp_path)
    assert str(caught.value.code).strip() == f"stopped at step {stood.step} of 40; run again to go on there"
    assert stood.step in (27, 28)
    torch.manual_seed(12345)  # nothing may come from the state of the process
    command(monkeypatch, run, tmp_path)
    assert f"resumed at step {stood.step} of 40\n" in capsys.readouterr().out
    a, b = open_checkpoint(trained), open_checkpoint(tmp_path)
    assert equal(a.model.state_dict(), b.model.state_dict())
    strip = [[{k: v for k, v in r.items() if k != "seconds"} for r in c.history] for c in (a, b)]
    assert strip[0] == strip[1]


def test_a_finished_run_stays_as_it_is(run, trained, monkeypatch, capsys):
    before = find_checkpoint(trained).stat().st_mtime_ns
    command(monkeypatch, run, trained)
    assert capsys.readouterr().out == f"{trained}: up to date (step 40 of 40)\n"
    assert find_checkpoint(trained).stat().st_mtime_ns == before


def test_other_settings_are_told_and_taken(run, trained, tmp_path, monkeypatch, capsys):
    words = [f"--set=training.{s}" for s in ("steps=44", "learning_rate=0.005", "batch_size=4")]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000040").symlink_to(find_checkpoint(trained))
    command(monkeypatch, run, tmp_path, *words)
    out = capsys.readouterr().out
    assert "resumed at step 40 of 44\n" in out
    assert (
        "changed since (was -> is): training.batch_size 8 -> 4, training.learning_rate 0.01 -> 0.005, "
        "training.steps 40 -> 44\n"
    ) in out
    found = open_checkpoint(tmp_path)
    assert (found.step, found.settings["batch_size"]) == (44, 4)
    assert [r["step"] for r in found.history] == [20, 40, 44]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.width=32",
            r"other settings \(was -> is\): model.width 16 -> 32; its weights do not fit them: ",
        ),
        ("model.heads=4", r"model.heads 2 -> 4; its weights"),  # shapes are the same, meanings are not
        ("model.shared_layers=1", r"model.shared_layers 2 -> 1; its weights"),
        ("features.short_slots=5", r"features.short_slots 4 -> 5; its weights"),
    ],
)
def test_another_model_is_refused(run, trained, override, message):
    for steps in (40, 80):
        with pytest.raises(SpecError, match=message):
            trainer(run, trained, override, f"training.steps={steps}")


def link(trained, folder):
    """A folder with the checkpoint of a finished run."""
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-000040").symlink_to(find_checkpoint(trained))
    return folder


def test_what_changes_no_shape_goes_on(run, trained, tmp_path):
    """Dropout and length of the history used to be refused."""
    again = trainer(
        run, link(trained, tmp_path), "training.steps=42", "model.dropout=0.1", "features.max_history=16"
    )
    assert (again.step, again.start.spec.model.dropout) == (40, 0.1)
    assert (again.start.spec.features.max_history, again.source.dataset.spec.max_history) == (16, 16)
    assert again.model.layers[0].dropout.p == 0.1
    again.run()
    assert open_checkpoint(tmp_path).spec.features.max_history == 16


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("training.learning_rate=0.005", "training.learning_rate 0.01 -> 0.005"),
        ("training.steps=20", "training.steps 40 -> 20"),
        ("data.target_behaviors=[conversion, impression]", r"data.target_behaviors \['conversion'\] -> "),
    ],
)
def test_a_finished_run_of_other_inputs_is_not_up_to_date(run, trained, override, change):
    """It used to say that it had resumed, and end."""
    with pytest.raises(SpecError, match=rf"its end \(step 40\), with other inputs .*: {change}.*--fresh"):
        trainer(run, trained, override)


@pytest.mark.parametrize(
    "override",
    ["training.threads=2", "training.validate_every=7", "training.patience=9", "evaluation.requests=7"],
)
def test_what_makes_no_other_weights_leaves_a_run_up_to_date(run, trained, override):
    assert trainer(run, trained, override) is None


def test_a_finished_run_of_another_log_is_not_up_to_date(run, trained, tmp_path):
    found = open_checkpoint(trained)
    assert found.inputs["data/events.parquet"] == sha256(run[1] / "data" / "events.parquet")
    other = replace(found, inputs=found.inputs | {"data/events.parquet": "1f" * 32})
    save_checkpoint(tmp_path, other, keep=1)
    with pytest.raises(
        SpecError, match="with other inputs .*: data/events.parquet 1f1f1f1f -> [0-9a-f]{8}; raise"
    ):
        trainer(run, tmp_path)
    assert trainer(run, tmp_path, "training.steps=41").step == 40


def test_a_run_that_stopped_early_is_at_its_end_until_something_changes(run, tmp_path, monkeypatch, capsys):
    """Then its patience begins anew."""
    sets = [f"--set=training.{s}" for s in ("patience=1", "validate_every=2", "steps=400", "learning_rate=1")]
    command(monkeypatch, run, tmp_path, *sets)
    assert "stopped early: validation loss of the SID" in capsys.readouterr().out
    step = open_checkpoint(tmp_path).step
    assert step < 400
    command(monkeypatch, run, tmp_path, *sets)
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}: up to date (step {step} of 400; stopped early, step ")
    command(monkeypatch, run, tmp_path, *sets[:-1], "--set=training.learning_rate=0.001")
    assert f"resumed at step {step} of 400\nchanged since (was -> is): training.learning_rate 1.0" in (
        capsys.readouterr().out
    )
    found = open_checkpoint(tmp_path)
    assert found.step > step
    assert found.history[found.first_record]["step"] > step


def test_a_checkpoint_of_before_is_told_by_its_model(run, trained, tmp_path):
    """It has no inputs; what is in its model is known all the same."""
    save_checkpoint(tmp_path, replace(open_checkpoint(trained), inputs=None), keep=1)
    path = find_checkpoint(tmp_path) / "checkpoint.json"
    content = json.loads(path.read_text())
    for name in ("inputs", "first_record"):
        del content[name]
    for name in ("patience", "checkpoint_minutes", "warm_start"):
        del content["settings"][name]
    path.write_text(json.dumps(content))
    assert trainer(run, tmp_path) is None
    with pytest.raises(SpecError, match=r"model.width 16 -> 32"):
        trainer(run, tmp_path, "model.width=32")


# Warm start


def test_a_warm_start_takes_what_fits_and_names_the_rest(run, trained, tmp_path, capsys):
    warm = trainer(
        run, tmp_path, f"training.warm_start={trained}", "model.layers=4", "features.short_slots=6"
    )
    there, here = weights(trained), warm.model.state_dict()
    same = {name for name in here if name in there and torch.equal(here[name], there[name])}
    assert {name for name in here if not name.startswith("layers.3.")} - same == {"context.slot"}
    out = capsys.readouterr().out
    assert f"{trained}: weights taken, but for context.slot (8x16 there, 10x16 here), layers.3." in out
    assert "(not there)" in out
    assert warm.step == 0
    warm.run()
    assert open_checkpoint(tmp_path).step == 40


def test_codes_and_categories_of_other_meaning_are_not_taken(run, trained, tmp_path, capsys):
    found = open_checkpoint(trained)
    columns = {"age": ("other", "young")}
    other = replace(found, spec=replace(found.spec, tokenizer_id="1234", profile_columns=columns))
    save_checkpoint(tmp_path / "other", other, keep=1)
    path = find_checkpoint(tmp_path / "other")
    warm = trainer(run, tmp_path / "new", f"training.warm_start={path}")
    here, there = warm.model.state_dict(), found.model.state_dict()
    differ = {name for name in here if not torch.equal(here[name], there[name])}
    assert differ == {*(f"codes.tables.{t}.weight" for t in range(3)), "context.profile.0.weight"}
    out = capsys.readouterr().out
    assert "codes.tables.2.weight (codes of another tokenizer)" in out
    assert "context.profile.0.weight (other categories)" in out


@pytest.mark.parametrize("tied", [True, False])
def test_codes_of_an_aligned_tokenizer_take_the_rows_they_go_on_from(run, tmp_path, tied, capsys):
    """Tables and heads, also of levels of another size; a code from nowhere stays as it was."""
    overrides = [f"model.tie_embeddings={tied}", "model.copy_path=true", "features.habits=4"]
    data, preset = RunData.load(run[1]), Preset.load(run[0], overrides)
    older = replace(data.fit_spec(preset), tokenizer_id="older", level_sizes=(7, 5, 16))
    torch.manual_seed(1)
    source = Checkpoint(model=older.build(), spec=older, settings={})
    sources = (np.array([3, 0, 5, 6, NONE, 4]), np.arange(5)[::-1].copy(), np.empty(0, np.int64))
    alignment = Alignment(data.tokenizer_id, "older", sources, (0.5, 0.4))
    torch.manual_seed(0)
    model = data.fit_spec(preset).build()
    fresh = {name: weight.clone() for name, weight in model.state_dict().items()}
    left = take_weights(model, data.fit_spec(preset), source=source, alignment=alignment)
    here, there = model.state_dict(), source.model.state_dict()
    tables = [f"{part}codes.tables.{level}.weight" for part in ("", "copy_path.") for level in range(3)]
    weights = [(name, i % 3, 1) for i, name in enumerate(tables)]
    if not tied:
        weights += [(f"heads.{level}.{part}", level, 0) for level in range(3) for part in ("weight", "bias")]
    for name, level, first in weights:
        for code, old in enumerate(sources[level]):
            wanted = fresh[name][first + code] if old == NONE else there[name][first + old]
            assert torch.equal(here[name][first + code], wanted)
        if not len(sources[level]):
            assert torch.equal(here[name], fresh[name])
    for part in ("", "copy_path."):
        assert f"{part}codes.tables.0.weight (1 codes go on from none)" in left
        assert f"{part}codes.tables.2.weight (16 codes go on from none)" in left
    assert torch.equal(here["fuse.mix.weight"], there["fuse.mix.weight"])


def test_an_alignment_to_a_third_tokenizer_says_nothing(run, trained, tmp_path, capsys):
    """The file beside the tokenizer is read by the command; what it is not aligned to is not taken."""
    found, sources = open_checkpoint(trained), (np.arange(6), np.arange(5), np.empty(0, np.int64))
    save_checkpoint(tmp_path / "o", replace(found, spec=replace(found.spec, tokenizer_id="older")), keep=1)
    for name, told in (("older", "codes.tables.2.weight (16 codes go on"), ("third", "another tokenizer")):
        shutil.copytree(run[1], tmp_path / name)
        Alignment(found.spec.tokenizer_id, name, sources, (1.0, 1.0)).save(tmp_path / name / "tokenizer")
        overrides = f"training.warm_start={tmp_path / 'o'}"
        warm = trainer((run[0], tmp_path / name), tmp_path / f"{name}-model", overrides)
        assert told in capsys.readouterr().out
        table = warm.model.state_dict()["codes.tables.0.weight"]
        assert torch.equal(table, weights(trained)["codes.tables.0.weight"]) == (name == "older")


def test_a_warm_start_needs_a_new_model_and_a_checkpoint(run, trained, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"training.warm_start: expected a checkpoint, or a folder .* got "
    ):
        trainer(run, tmp_path, f"training.warm_start={tmp_path / 'none'}")
    link(trained, tmp_path)
    with pytest.raises(SpecError, match=r"expected a new model, this one stands at step 40; .*--fresh"):
        trainer(run, tmp_path, f"training.warm_start={trained}", "training.steps=50")
    assert trainer(run, tmp_path, f"training.warm_start={trained}", fresh=True).step == 0


# Weights of behaviors


def test_behaviors_without_a_weight(run, tmp_path, capsys):
    targets = "data.target_behaviors=[conversion, impression]"
    trainer(run, tmp_path, targets, "training.behavior_weights={conversion: 1}")
    assert "warning: training.behavior_weights leaves out impression of data" in capsys.readouterr().err
    trainer(run, tmp_path, targets)
    assert "warning" not in capsys.readouterr().err
    # A behavior that the preset allows as a target, and that the log does not have.
    with pytest.raises(
        ValueError,
        match=r"expected a weight > 0 for a behavior of the training targets \(of conversion\), got",
    ):
        trainer(
            run,
            tmp_path,
            "data.target_behaviors=[conversion, click]",
            "training.behavior_weights={click: 1, conversion: 0}",
        )


def test_fresh_starts_over(run, trained, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000040").symlink_to(find_checkpoint(trained))
    again = trainer(run, tmp_path, "training.steps=2", fresh=True)
    assert again.step == 0
    again.run()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]


# Newer logs


def append_week(preset, run):
    """A week later: dearer purchases, a user of another profile, an ad that was not there; prepared again."""
    config = Preset.load(preset).logs
    source = Path(config.path)
    users, ads, events = (pl.read_parquet(source / f"{n}.parquet") for n in ("users", "ads", "events"))
    newcomer = users["user_id"].max() + 1
    last = events["timestamp"].max()
    ad = ads.tail(1).with_columns(pl.col("ad_id") + 1, item_id=pl.lit("new"), text=pl.lit("a new tea"))
    day = 86_400
    new = events.filter(pl.col("timestamp") > last - 7 * day).with_columns(
        timestamp=pl.col("timestamp") + 7 * day, value=pl.col("value") * 10
    )
    more = events.filter(pl.col("user_id") == 0).unique(["timestamp", "behavior"])
    more = more.with_columns(user_id=pl.lit(newcomer), ad_id=ad["ad_id"][0])
    # In the middle of the alphabet, so that the codes of a vocabulary of this log alone would move.
    user = pl.DataFrame({"user_id": [newcomer], "age": ["ripe"]})
    tables = {"users": [users, user], "ads": [ads, ad], "events": [events, new, more.cast(events.schema)]}
    for name, parts in tables.items():
        pl.concat(parts).write_parquet(source / f"{name}.parquet")
    prepare(config, run / "data")
    kept = Tokenizer.load(run / "tokenizer").config
    tokenize(kept, run / "data", out_dir=run / "tokenizer", keep=True)
    return newcomer


def test_a_model_goes_on_with_a_week_more(tmp_path, no_curves):
    run = write_run(tmp_path)
    first = trainer(run, tmp_path / "model", "training.steps=20")
    first.run()
    before = open_checkpoint(tmp_path / "model")
    newcomer = append_week(*run)
    _, alone, _ = open_run(run)
    assert alone.value_buckets.edges.tolist() != before.spec.value_buckets.edges.tolist()
    assert alone.profile_columns != before.spec.profile_columns
    second = trainer(run, tmp_path / "model")
    assert len(second.source.groups) > len(first.source.groups)
    assert second.step == 20
    second.run()
    after = open_checkpoint(tmp_path / "model")
    assert after.step == 40
    assert after.spec.to_json() == before.spec.to_json()
    assert after.held_out != before.held_out
    assert not equal(after.model.state_dict(), before.model.state_dict())
    # A code means the category that it meant before; a category that the model does not know is unknown.
    dataset = second.source.dataset
    codes = dict(zip(dataset.log.user_ids.tolist(), dataset.profile[:, 0].tolist(), strict=True))
    assert before.spec.profile_columns == {"age": ("old", "young")}
    assert codes == {**{u: 1 + u % 2 for u in range(12)}, newcomer: 0}
    assert set(before.seen_sids) < set(after.seen_sids)


def test_the_tokenizer_must_be_the_models(run, trained, tmp_path):
    found = open_checkpoint(trained)
    save_checkpoint(tmp_path, replace(found, spec=replace(found.spec, tokenizer_id="1234")), keep=1)
    for steps in (40, 80):
        with pytest.raises(SpecError, match=r"tokenizer: expected tokenizer 1234 \(the model's\).*--fresh"):
            trainer(run, tmp_path, f"training.steps={steps}")


# Numbers that are none


def test_a_run_that_diverges_fails_and_leaves_the_good_checkpoint(run, trained, tmp_path, monkeypatch):
    words = ["--set=training.learning_rate=1e20", "--set=training.warmup_steps=0"]
    with pytest.raises(SystemExit) as caught:
        command(monkeypatch, run, tmp_path / "new", *words)
    said = str(caught.value.code)  # a text: status 1
    assert said.startswith("error: step 1: expected a finite loss and gradient, got loss nan")
    assert "the batch (epoch 0) holds the requests of users " in said
    assert said.count(" at ") == 8
    assert not (tmp_path / "new").exists()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000040").symlink_to(find_checkpoint(trained))
    with pytest.raises(SystemExit, match=r"error: step 4\d: expected"):
        command(monkeypatch, run, tmp_path, *words, "--set=training.steps=80")
    assert find_checkpoint(tmp_path).name == "step-000040"
    assert all(w.isfinite().all() for w in weights(tmp_path).values())


# Several processes


@pytest.mark.slow
def test_torchrun_equals_one_process(run, tmp_path):
    """The run of the documentation, two processes that also build their batches in workers."""
    overrides = ("training.steps=6", "training.validate_every=3")
    words = ["-m", "--", "training.recipes.pretrain", "--config", run[0], "--run", run[1]]
    words += ["--out", tmp_path / "two"]
    words += [w for o in (*overrides, "training.workers=1") for w in ("--set", o)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    subprocess.run([*torchrun, *map(str, words)], cwd=ROOT, check=True, capture_output=True, timeout=120)
    trainer(run, tmp_path / "one", *overrides).run()
    one, two = (open_checkpoint(tmp_path / n) for n in ("one", "two"))
    expected, got = one.model.state_dict(), two.model.state_dict()
    width = one.model.config.width
    for name in expected:
        # A bias of keys moves all attention scores alike: its gradient is noise, which Adam makes large.
        if name.endswith("qkv_self.bias"):
            expected[name][width : 2 * width] = got[name][width : 2 * width] = 0
        elif name.endswith("key.bias"):
            continue
        torch.testing.assert_close(
            got[name], expected[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
    for a, b in zip(one.history, two.history, strict=True):
        for key in a.keys() - {"seconds"}:
            assert a[key] == pytest.approx(b[key], abs=1e-5)


def test_a_folder_of_another_recipe_is_not_trained_on(run, trained, tmp_path):
    """A post-trained model is no start of pre-training, and is not lost for being in the way."""
    settings = {"objective": "rspo", "steps": 40}
    save_checkpoint(tmp_path, replace(open_checkpoint(trained), source="0" * 64, settings=settings), keep=1)
    with pytest.raises(SpecError, match="expected a run of pre-training, got one of post-training with rspo"):
        trainer(run, tmp_path)
    assert trainer(run, tmp_path, fresh=True).step == 0
