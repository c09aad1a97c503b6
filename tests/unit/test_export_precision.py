"""`--precision`: where the gate's requests come from, what the command line refuses, what it hands over."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import export.__main__ as module
from export.builder import BuildError
from export.gate_requests import held_out_requests
from export.kept import TARGETS
from export.made_from import made_from
from export.pbtxt import RenderError
from export.render import render
from serving.engines.ort import OrtExecutor
from serving.files import sha256
from serving.model.current import current_version
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.pipeline import serving_config
from tests.slots import events_of, plain_slots
from tests.tiny_log import open_run, write_run
from tests.unit.test_bundle import edit
from tests.unit.test_scheduler import add_version
from training.evaluation.requests import draw_requests
from training.loop.checkpoint import Checkpoint, load_checkpoint, weights_sha256
from training.loop.retention import find_checkpoint, save_checkpoint
from training.preset.precision import PrecisionConfig
from training.preset.preset import Preset
from training.rollout.executor import TorchExecutor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Preset and run folder with data, tokenizer and an untrained checkpoint."""
    torch.set_num_threads(1)
    preset, folder = write_run(tmp_path_factory.mktemp("log"))
    _, spec, _ = open_run((preset, folder))
    torch.manual_seed(0)
    made = Checkpoint(model=spec.build(), spec=spec, settings={"threads": 1}, step=1)
    save_checkpoint(folder / "model", made, keep=1)
    return preset, folder


def drawn(run, **config):
    _, spec, dataset = open_run(run)
    config = PrecisionConfig(**config)
    return dataset, held_out_requests(
        run[1], spec, preset=Preset.load(run[0]), count=config.gate_requests, seed=config.seed
    )


def export(monkeypatch, capsys, *words):
    """Status or message of the command, what it printed, and what it would have published."""
    handed = {}

    def write_bundle(checkpoint, bundles, **options):
        handed.update(options, checkpoint=checkpoint, bundles=bundles)
        raise OSError("far enough")

    monkeypatch.setattr(module, "write_bundle", write_bundle)
    monkeypatch.setattr(sys, "argv", ["export", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        module.main()
    return caught.value.code, capsys.readouterr().err, handed


def test_requests_are_of_the_validation_weeks(run):
    dataset, requests = drawn(run, gate_requests=1000)
    groups = dataset.groups("validation", target_behaviors=("conversion",), min_history=3)
    assert len(requests.slots) == len(requests.targets) == len(groups) > 20
    split, log = dataset.split, dataset.log
    assert groups.now.min() >= split.train_end
    assert groups.now.max() < split.validation_end
    for row in (0, 7, len(groups) - 1):  # history strictly before, all ads of the basket as targets
        user, now = groups.user_row[row], groups.now[row]
        events = np.arange(log.user_ptr[user], log.user_ptr[user + 1])
        past = events[log.timestamp[events] < now][-dataset.spec.max_history :]
        at = np.searchsorted(dataset.ad_ids, log.ad_ids[past])
        behaviors, timestamps = log.behavior[past], log.timestamp[past]
        history = events_of(log.ad_ids[past], dataset.ad_sids[at], behaviors=behaviors, timestamps=timestamps)
        slots, _ = plain_slots(dataset.spec, history, int(now))
        np.testing.assert_array_equal(requests.slots[row], slots)
        here = events[(log.timestamp[events] == now) & (log.behavior[events] == 3)]
        assert requests.targets[row].tolist() == sorted(set(log.ad_ids[here].tolist()))
    assert requests.snapshot.ad_ids.tolist() == dataset.ad_ids.tolist()


def test_no_test_request_is_seen(run):
    dataset, requests = drawn(run, gate_requests=1000)
    test = draw_requests(dataset, target_behaviors=("conversion",), min_history=3, count=1000, seed=0)
    slots, _ = dataset.context(test.groups, test.rows)
    seen = {s.tobytes() for s in requests.slots}
    assert not any(s.tobytes() in seen for s in slots)


def test_draw_is_seeded_and_of_the_size_asked_for(run):
    (_, a), (_, b), (_, c) = (drawn(run, gate_requests=9, seed=s) for s in (0, 0, 1))
    assert len(a.slots) == 9
    np.testing.assert_array_equal(a.slots, b.slots)
    assert (a.slots != c.slots).any()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("data/stats.json", r"data/stats.json: expected it, .*found none; run `make data`, or .*fp32"),
        ("tokenizer/sids.parquet", r"sids.parquet: expected it, .*run `make tokenize`, or .*fp32"),
    ],
)
def test_missing_data_says_what_to_run(run, tmp_path, missing, message, monkeypatch, capsys):
    folder = shutil.copytree(run[1], tmp_path / "run")
    (folder / missing).unlink()
    error, _, handed = export(monkeypatch, capsys, "--config", run[0], "--run", folder, "--precision", "int8")
    assert not handed
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)


def test_no_validation_request(run, monkeypatch, capsys):
    words = ("--config", run[0], "--run", run[1], "--precision", "int8", "--set", "training.min_history=900")
    error, _, handed = export(monkeypatch, capsys, *words)
    assert not handed
    assert "expected at least one validation request with ('conversion',) after 900 events" in error


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ((), "fp32"),
        (("--precision", "fp32"), "fp32"),
        (("--precision", "int8"), "int8"),
        (("--set", "precision.precision=int8"), "int8"),
        (("--set", "precision.precision=int8", "--precision", "fp32"), "fp32"),
    ],
)
def test_command_line_over_preset_over_fp32(run, monkeypatch, capsys, words, precision):
    config = (
        "--set",
        "serving.widths=4-8-16:6",
        "--set",
        "precision.gate_requests=5",
        "--set",
        "serving.threads=3",
    )
    live = ("--set", "serving.normalise=codebook-live-live", "--set", "precision.min_overlap50=0.7")
    error, said, handed = export(
        monkeypatch, capsys, "--config", run[0], "--run", run[1], *config, *live, *words
    )
    assert error == "error: far enough"
    lowering = handed["lowering"]
    assert (lowering is None) == (precision == "fp32")
    assert ("reading validation requests" in said) == (precision == "int8")
    if lowering:  # as it will be served
        gate = lowering.gate
        assert lowering.precision == precision
        assert (len(gate.requests.slots), str(gate.plan), gate.threads) == (5, "4-8-16:6", 3)
        assert gate.normalise == ("codebook", "live", "live")
        assert gate.config.min_overlap50 == 0.7


@pytest.mark.parametrize("step", [1, 5])
def test_a_bundle_carries_the_evaluation_of_its_own_step(run, tmp_path, monkeypatch, capsys, step):
    folder = shutil.copytree(run[1] / "model", tmp_path / "model").parent
    (folder / "model" / "evaluation.json").write_text(f'{{"step": {step}, "recall": 0.5}}')
    _, said, handed = export(monkeypatch, capsys, "--config", run[0], "--run", folder)
    assert handed["checkpoint"].step == 1
    assert handed["quality"] == ({"step": 1, "recall": 0.5} if step == 1 else {})
    assert ("evaluation.json: of step 5, left out of the bundle of step 1" in said) == (step == 5)


def test_a_post_trained_model_becomes_a_bundle(run, tmp_path, monkeypatch, capsys):
    """Its weights with its own evaluation, though the model that it started from has one of this step."""
    preset, folder = run[0], tmp_path / "run"
    shutil.copytree(run[1], folder)
    trained = find_checkpoint(folder / "model")
    tuned = load_checkpoint(trained)
    with torch.no_grad():
        tuned.model.bos.add_(1.0)
    model = folder / "model" / "post_trained" / "rspo"
    of_tuned = save_checkpoint(model, replace(tuned, source=weights_sha256(trained)), keep=1)
    (folder / "model" / "evaluation.json").write_text('{"step": 1, "recall": 0.5}')
    (model / "evaluation.json").write_text('{"step": 1, "recall": 0.7}')
    words = ("--config", preset, "--run", folder)
    _, _, handed = export(monkeypatch, capsys, *words, "--model", model)
    assert handed["quality"]["recall"] == 0.7
    assert torch.equal(handed["checkpoint"].model.bos, tuned.model.bos)
    _, _, handed = export(monkeypatch, capsys, *words)
    assert handed["quality"]["recall"] == 0.5
    assert not torch.equal(handed["checkpoint"].model.bos, tuned.model.bos)

    options = {
        "preset": Preset.load(preset),
        "precision": "fp32",
        "fine_tuned": False,
        "ranker": False,
        "version": 1,
    }
    for checkpoint, of in ((trained, folder / "model"), (of_tuned, model)):
        values = made_from(folder, checkpoint, **options).values
        assert values["evaluation"] == sha256(of / "evaluation.json")
        assert values["weights"] == weights_sha256(checkpoint)


def test_a_post_trained_model_goes_the_whole_way(run, tmp_path, monkeypatch, capsys):
    """Through the command: gate passed, repository filled, and the graphs answer as its own weights do."""
    folder = shutil.copytree(run[1], tmp_path / "run")
    trained = load_checkpoint(find_checkpoint(folder / "model"))
    torch.manual_seed(7)
    settings = {"objective": "rspo", "threads": 1}
    tuned = replace(trained, model=trained.spec.build(), settings=settings, source="0" * 64)
    model = folder / "model" / "post_trained" / "rspo"
    save_checkpoint(model, tuned, keep=1)
    words = ("--config", run[0], "--run", folder, "--model", model, "--repository", tmp_path / "repository")
    sets = ("serving.widths=4-8-16:6", "precision.gate_requests=20", "precision.min_overlap50=0.5")
    sets += ("precision.max_value_error=1",)
    monkeypatch.setattr(
        sys,
        "argv",
        ["export", *map(str, words), "--precision", "int8", *(w for s in sets for w in ("--set", s))],
    )
    module.main()
    assert "int8 against fp32 on 20 requests" in capsys.readouterr().out
    assert (tmp_path / "repository" / "gr4ad").is_dir()
    bundle = folder / "bundles" / str(current_version(folder / "bundles"))
    requests = drawn(run, gate_requests=20)[1]

    def answers(executor):
        return beam_search(
            executor,
            requests.snapshot.trie,
            requests.slots,
            requests.profile,
            plan=WidthPlan((4, 8, 16), 6),
            num_results=np.full(20, 10),
            value_table=trained.spec.value_buckets.means,
        ).leaves[:, :10]

    def overlap(a, b):
        return np.mean([len(np.intersect1d(x, y)) / 10 for x, y in zip(a, b, strict=True)])

    served = answers(OrtExecutor(bundle, levels=3, threads=1))
    assert overlap(served, answers(TorchExecutor(tuned.model.eval()))) > 0.85
    assert overlap(served, answers(TorchExecutor(trained.model.eval()))) < 0.6


def test_seeded_weights_need_no_data(tmp_path, run, monkeypatch, capsys):
    _, said, handed = export(
        monkeypatch,
        capsys,
        *("--config", run[0], "--run", tmp_path, "--precision", "int8", "--seeded-weights"),
        *("--set", "precision.gate_requests=3", "--set", "tokenizer.codebook_sizes=[6, 5]"),
    )
    assert handed["lowering"].gate.requests.targets is None
    assert len(handed["lowering"].gate.requests.slots) == 3
    assert "random requests" in said


@pytest.mark.parametrize("words", [("--precision", "int8"), ("--set", "precision.precision=int8")])
def test_tensorrt_refuses_int8_before_any_work(run, monkeypatch, capsys, words):
    monkeypatch.setattr(module, "load_checkpoint", lambda *_: pytest.fail("loaded"))
    error, _, handed = export(
        monkeypatch, capsys, "--config", run[0], "--run", run[1], "--target", "tensorrt", *words
    )
    assert error.startswith(
        "error: expected a precision that target tensorrt runs (fp32, fp16, fp8), got int8"
    )
    assert not handed


def test_precision_without_an_export_is_a_mistake(run, monkeypatch, capsys):
    status, said, _ = export(
        monkeypatch, capsys, "--config", run[0], "--run", run[1], "--render-only", "--precision", "int8"
    )
    assert status == 2
    assert "--render-only makes none" in said


def test_unknown_precision_and_threshold(run, monkeypatch, capsys):
    common = ("--config", run[0], "--run", run[1])
    status, said, _ = export(monkeypatch, capsys, *common, "--precision", "int4")
    assert (status, "choose from fp32, fp16, int8, fp8" in said.replace("'", "")) == (2, True)
    error, *_ = export(monkeypatch, capsys, *common, "--set", "precision.min_overlap=0.5")
    assert "unknown key 'min_overlap'; known: calibration_requests" in error
    error, *_ = export(monkeypatch, capsys, *common, "--set", "precision.min_overlap50=50")
    assert "precision.min_overlap50: Input should be less than or equal to 1, got 50" in error
    assert Preset.load(run[0]).training.min_history == 3  # the preset itself is fine


@pytest.mark.parametrize("target", TARGETS)
def test_rendering_an_int8_bundle(pipeline, tmp_path, target):
    bundles = shutil.copytree(pipeline.bundles, tmp_path / "bundles")
    edit(bundles / "1", precision="int8")

    def rendered():
        return render(
            bundles, tmp_path / "repository", index=tmp_path, config=serving_config(), target=target
        )

    if target == "tensorrt":
        with pytest.raises(
            RenderError,
            match=r"bundles/1: expected a precision that target tensorrt runs .*got int8 \(targets: cpu, "
            r"onnx",
        ):
            rendered()
        assert not (tmp_path / "repository").exists()
    else:
        assert "lazyar_prefix" in rendered()


def test_without_tensorrt_nothing_is_exported(run, monkeypatch, capsys):
    """What a target needs is asked for before the work, not after calibration and gate."""
    monkeypatch.setattr(module, "Builder", lambda *_: (_ for _ in ()).throw(BuildError("no GPU here")))
    error, _, handed = export(
        monkeypatch, capsys, "--config", run[0], "--run", run[1], "--target", "tensorrt"
    )
    assert error == "error: no GPU here"
    assert not handed


@pytest.mark.parametrize("fails", [True, False])
def test_a_version_serves_only_when_it_is_rendered(run, pipeline, tmp_path, monkeypatch, fails):
    folder = tmp_path / "run"
    shutil.copytree(run[1] / "model", folder / "model")
    bundles = shutil.copytree(pipeline.bundles, folder / "bundles")

    def write_bundle(*_, activate, **__):
        assert not activate
        add_version(bundles, 2)
        return bundles / "2"

    def render(*_, serving, **__):
        assert (serving, current_version(bundles)) == (2, 1)
        if fails:
            raise OSError("disk full")
        return ["gr4ad"]

    monkeypatch.setattr(module, "write_bundle", write_bundle)
    monkeypatch.setattr(module, "render", render)
    monkeypatch.setattr(sys, "argv", ["export", "--config", str(run[0]), "--run", str(folder)])
    if fails:
        with pytest.raises(SystemExit, match="error: disk full"):
            module.main()
    else:
        module.main()
    assert current_version(bundles) == (1 if fails else 2)
