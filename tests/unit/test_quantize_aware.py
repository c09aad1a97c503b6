"""Fine-tuning for FP8: what it learns, what it hands back, and which checkpoints an export takes."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
import training.quantize_aware as module
from training.checkpoint import load_checkpoint, save_checkpoint, weights_sha256
from training.quantize_aware import FOLDER, divergence, fine_tune

import export.__main__ as export_module
from tests.tiny_log import write_run
from training.model.fp8 import FP8, expose_tied_heads, modelopt_quantization
from training.model.gr4ad import Generator
from training.preset.preset import Preset
from training.preset.recipes import FineTuneConfig
from training.run import open_run

STEP = 7
QUICK = (
    "--set",
    "fine_tune_fp8.steps=3",
    "--set",
    "fine_tune_fp8.batch_size=4",
    "--set",
    "fine_tune_fp8.calibration_batches=2",
    "--set",
    "fine_tune_fp8.validation_batches=2",
)


@pytest.fixture(scope="module")
def modelopt():
    return pytest.importorskip(
        "modelopt", reason="FP8 fine-tuning needs nvidia-modelopt (make precision-setup)"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Preset and run folder with data, tokenizer and a checkpoint with random weights."""
    torch.set_num_threads(1)
    preset, folder = write_run(tmp_path_factory.mktemp("log"))
    _, spec, training, _ = open_run(Preset.load(preset), folder)
    torch.manual_seed(0)
    model = spec.build()
    with torch.no_grad():  # large enough for FP8 to hurt
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(2)
    save_checkpoint(
        folder / "model" / "checkpoint",
        model=model,
        spec=spec,
        training=training,
        step=STEP,
        history=[{"step": STEP, "loss": 1.0}],
    )
    return preset, folder


@pytest.fixture(scope="module")
def parts(run):
    """Trained model, and what `fine_tune` needs besides it."""
    dataset, spec, training, data = open_run(Preset.load(run[0]), run[1])
    groups, validation = (
        dataset.groups(part, target_behaviors=data.target_behaviors, min_history=training.min_history)
        for part in ("train", "validation")
    )
    model = load_checkpoint(run[1] / "model" / "checkpoint").model
    return model, (dataset, groups, validation), {"training": training, "buckets": spec.value_buckets}


def config(**values):
    return FineTuneConfig(
        **{"steps": 60, "batch_size": 8, "calibration_batches": 3, "learning_rate": 3e-5, **values}
    )


def state_of(model):
    return copy.deepcopy(model.state_dict())


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def tuned(modelopt, parts):
    """State of the model before, and what `fine_tune` gave."""
    model, positional, named = parts
    before = state_of(model)
    return before, *fine_tune(model, *positional, config=config(), **named)


# KL by hand.


def test_divergence_by_hand():
    p = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]])  # [B = 1, n = 2, V = 2]
    q = torch.tensor([[[0.5, 0.5], [0.75, 0.25]]])
    r = torch.tensor([[[0.2, 0.3, 0.5], [1.0, 1.0, 2.0]]])  # another level, another V
    s = torch.tensor([[[0.5, 0.3, 0.2], [1.0, 2.0, 1.0]]])
    first = (0 + 0.25 * np.log(0.25 / 0.75) + 0.75 * np.log(0.75 / 0.25)) / 2
    second = (0.2 * np.log(0.2 / 0.5) + 0.5 * np.log(0.5 / 0.2) + 0.25 * np.log(0.5) + 0.5 * np.log(2)) / 2
    shift = torch.tensor([[[3.0], [-2.0]]])  # logits are free up to a constant
    wanted, got = [p.log(), r.log()], [q.log() + shift, s.log() - shift]
    assert float(divergence(wanted, got)) == pytest.approx(first + second, rel=1e-5)
    assert float(divergence(wanted[:1], got[:1])) == pytest.approx(first, rel=1e-5)
    assert float(divergence(got, wanted)) == pytest.approx(first + second, rel=1e-5)  # these two: symmetric
    assert float(divergence(wanted, wanted)) == pytest.approx(0, abs=1e-6)


def test_divergence_weighs_by_the_first():
    """KL(p || q), not KL(q || p)."""
    p, q = torch.tensor([[[0.9, 0.1]]]), torch.tensor([[[0.5, 0.5]]])
    expected = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    assert float(divergence([p.log()], [q.log()])) == pytest.approx(expected, rel=1e-5)


def test_divergence_needs_all_levels():
    logits = torch.zeros(1, 1, 2)
    with pytest.raises(ValueError, match="shorter|longer"):
        divergence([logits, logits], [logits])


# Learning.


def quantized_divergence(student: Generator, teacher: Generator, parts) -> float:
    """KL of the teacher in FP32 to a student in FP8, on validation requests and other SIDs."""
    _, (dataset, _, validation), named = parts
    drawn = module._batches(dataset, validation, config=config(seed=5), **named)
    batches = [next(drawn) for _ in range(6)]
    quantized = copy.deepcopy(student)
    expose_tied_heads(quantized)

    def warm(model: torch.nn.Module) -> None:
        for inputs in batches[:2]:
            model(*inputs)

    with torch.no_grad():
        modelopt_quantization().quantize(quantized, FP8, forward_loop=warm)
        losses = [divergence(teacher(*x)[0], quantized(*x)[0]) for x in batches[2:]]
    return float(torch.stack(losses).mean())


def test_it_learns_to_answer_in_fp8_as_in_fp32(tuned, parts):
    _, model, figures = tuned
    teacher = parts[0]
    assert set(figures) == {"kl_before", "kl_after"}
    assert 0 < figures["kl_after"] < 0.9 * figures["kl_before"]  # measured: 0.00389 -> 0.00305
    # And not only by its own account: quantized anew, as an export does.
    before = quantized_divergence(teacher, teacher, parts)
    assert before == pytest.approx(figures["kl_before"], rel=0.5)
    after = quantized_divergence(model, teacher, parts)
    assert 0 < after < 0.95 * before, (before, after)


def test_what_comes_back_is_a_plain_model(tuned, parts):
    before, model, _ = tuned
    original = parts[0]
    assert type(model) is Generator
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
    assert not any("quantizer" in name for name, _ in model.named_modules())
    state = model.state_dict()
    assert list(state) == list(before)
    assert all(state[k].dtype == torch.float32 and state[k].shape == before[k].shape for k in state)
    changed = {k.split(".")[0] for k in state if not torch.equal(state[k], before[k])}
    assert {"codes", "fuse", "layers", "context_kv", "heads", "norm"} <= changed
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in original.parameters()}
    assert not shared


def test_the_original_is_not_changed(tuned, parts):
    before, _, _ = tuned
    assert equal(before, state_of(parts[0]))
    assert not any("quantizer" in name for name, _ in parts[0].named_modules())


def test_a_seed_decides(modelopt, parts):
    model, positional, named = parts
    a, b, c = (
        fine_tune(model, *positional, config=config(steps=3, seed=seed), **named) for seed in (3, 3, 4)
    )
    assert equal(a[0].state_dict(), b[0].state_dict())
    assert a[1] == b[1]
    assert not equal(a[0].state_dict(), c[0].state_dict())


def test_batches_hold_targets_and_catalogue(parts):
    """Targets of requests first, then SIDs of any ad: beams visit those too."""
    _, (dataset, groups, _), named = parts
    catalogue = {tuple(s) for s in dataset.ad_sids.tolist()}
    drawn = module._batches(dataset, groups, config=config(catalogue_targets=5), **named)
    seen: set[tuple[int, ...]] = set()
    for _ in range(20):
        slots, profile, tokens = next(drawn)
        assert (slots.dtype, profile.dtype, tokens.dtype) == (torch.int32, torch.int32, torch.int64)
        assert len(slots) == len(profile) == len(tokens)
        targets = tokens.shape[1] - 5
        assert 1 <= targets <= named["training"].targets_per_request
        rows = [tuple(s) for s in tokens.reshape(-1, 3).tolist()]
        assert set(rows) <= catalogue
        seen |= {tuple(s) for s in tokens[:, -5:].reshape(-1, 3).tolist()}
    assert len(seen) > 0.9 * len(catalogue)
    none = next(module._batches(dataset, groups, config=config(catalogue_targets=0), **named))[2]
    assert none.shape[1] <= named["training"].targets_per_request


# The command line.


def command(monkeypatch, run, *words):
    preset, folder = run
    monkeypatch.setattr(
        sys, "argv", ["quantize_aware", "--config", str(preset), "--run", str(folder), *map(str, words)]
    )
    module.main()


def export(monkeypatch, run, *words):
    """What `python -m export --precision fp8 --fine-tuned` would publish, and how it ends."""
    handed: dict = {}

    def write_bundle(checkpoint, bundles, **options):
        handed.update(options, checkpoint=checkpoint)
        raise OSError("far enough")

    monkeypatch.setattr(export_module, "write_bundle", write_bundle)
    preset, folder = run
    monkeypatch.setattr(
        sys,
        "argv",
        ["export", "--config", str(preset), "--run", str(folder), "--set", "serving.widths=4-8-16:6", *words],
    )
    with pytest.raises(SystemExit) as caught:
        export_module.main()
    return str(caught.value.code), handed


FP8_WORDS = ("--precision", "fp8", "--fine-tuned", "--target", "onnxruntime")
FP8_WORDS += ("--set", "precision.calibration_requests=9")


@pytest.fixture
def own_run(run, tmp_path):
    """A run folder to write into; data and tokenizer are those of `run`."""
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    for name in ("data", "tokenizer", "model/checkpoint"):
        (folder / name).symlink_to(run[1] / name)
    return run[0], folder


def test_checkpoint_that_export_takes(modelopt, own_run, monkeypatch, capsys):
    command(monkeypatch, own_run, *QUICK)
    folder = own_run[1] / "model" / FOLDER
    assert f"{folder}: KL to the FP32 model " in capsys.readouterr().out
    original, tuned = load_checkpoint(own_run[1] / "model" / "checkpoint"), load_checkpoint(folder)
    assert not equal(original.model.state_dict(), tuned.model.state_dict())
    assert tuned.spec.to_json() == original.spec.to_json()
    assert (tuned.step, tuned.training, tuned.optimizer_state) == (STEP, original.training, None)
    *earlier, record = tuned.history
    assert earlier == original.history
    assert record["quantize_aware"]["steps"] == 3
    assert record["kl_before"] > 0
    assert record["kl_after"] > 0

    error, handed = export(monkeypatch, own_run, *FP8_WORDS)
    assert error == "error: far enough"
    lowering = handed["lowering"]
    assert lowering.precision == "fp8"
    assert equal(lowering.fine_tuned.state_dict(), tuned.model.state_dict())
    assert equal(handed["checkpoint"].model.state_dict(), original.model.state_dict())
    calibration, gate = lowering.calibration, lowering.gate.requests
    assert len(calibration.slots) == 9
    # Calibrated on training weeks, judged on validation weeks.
    assert not {s.tobytes() for s in calibration.slots} & {s.tobytes() for s in gate.slots}


def test_out_goes_elsewhere(modelopt, own_run, monkeypatch, tmp_path):
    command(monkeypatch, own_run, *QUICK, "--out", tmp_path / "there" / "tuned")
    assert load_checkpoint(tmp_path / "there" / "tuned").step == STEP
    assert not (own_run[1] / "model" / FOLDER).exists()


def saved(own_run, **changes):
    """A fine-tuned checkpoint that is the original but for some changes."""
    checkpoint = load_checkpoint(own_run[1] / "model" / "checkpoint")
    training = module.TrainingConfig(**checkpoint.training)
    save_checkpoint(
        own_run[1] / "model" / FOLDER,
        **{"model": checkpoint.model, "spec": checkpoint.spec, "training": training, "step": STEP} | changes,
        history=[{"step": STEP, "source": weights_sha256(own_run[1] / "model" / "checkpoint")}],
    )


def test_fine_tuned_from_another_checkpoint_is_refused(own_run, monkeypatch):
    saved(own_run)
    assert export(monkeypatch, own_run, *FP8_WORDS)[0] == "error: far enough"
    checkpoint = load_checkpoint(own_run[1] / "model" / "checkpoint")
    with torch.no_grad():  # trained again: same step, same shape, other weights
        checkpoint.model.bos.add_(1.0)
    save_checkpoint(
        own_run[1] / "model" / "checkpoint",
        model=checkpoint.model,
        spec=checkpoint.spec,
        training=module.TrainingConfig(**checkpoint.training),
        step=STEP,
        history=checkpoint.history,
    )
    error, handed = export(monkeypatch, own_run, *FP8_WORDS)
    assert error.startswith("error: ")
    assert "expected a model fine-tuned from RUN/model/checkpoint as it is now, it was made from" in error
    assert "run `make quantize-aware` again" in error
    assert not handed


def test_fine_tuned_for_another_tokenizer_is_refused(own_run, monkeypatch):
    saved(own_run)
    file = own_run[1] / "model" / FOLDER / "checkpoint.json"
    content = json.loads(file.read_text())
    content["spec"]["tokenizer_id"] = "another"
    file.write_text(json.dumps(content))
    error, handed = export(monkeypatch, own_run, *FP8_WORDS)
    assert "run `make quantize-aware` again" in error
    assert not handed


def test_fine_tuned_that_is_not_there(own_run, monkeypatch):
    error, handed = export(monkeypatch, own_run, *FP8_WORDS)
    assert error.startswith(f"error: {own_run[1] / 'model' / FOLDER}: not a readable checkpoint")
    assert not handed


def test_fine_tuned_is_for_fp8_only(own_run, monkeypatch):
    saved(own_run)
    error, handed = export(monkeypatch, own_run, "--precision", "int8", "--fine-tuned")
    assert error == "error: --fine-tuned: expected precision fp8, got int8"
    assert not handed


def test_another_tokenizer_is_refused(run, own_run, monkeypatch):
    (own_run[1] / "model" / "checkpoint").unlink()
    checkpoint = load_checkpoint(run[1] / "model" / "checkpoint")
    folder = own_run[1] / "model" / "checkpoint"
    save_checkpoint(
        folder,
        model=checkpoint.model,
        spec=checkpoint.spec,
        training=module.TrainingConfig(**checkpoint.training),
        step=STEP,
    )
    content = json.loads((folder / "checkpoint.json").read_text())
    content["spec"]["tokenizer_id"] = "another"
    (folder / "checkpoint.json").write_text(json.dumps(content))
    monkeypatch.setattr(module, "fine_tune", lambda *_, **__: pytest.fail("fine-tuned"))
    with pytest.raises(SystemExit, match="error: .*expected tokenizer another .*train again"):
        command(monkeypatch, own_run, *QUICK)


def test_missing_modelopt_says_what_to_run(own_run, monkeypatch):
    for name in ("modelopt", "modelopt.torch", "modelopt.torch.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match="error: FP8 needs nvidia-modelopt .*make precision-setup"):
        command(monkeypatch, own_run, *QUICK)
    assert not (own_run[1] / "model" / FOLDER).exists()


def test_stopped_or_failed_nothing_is_written(own_run, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fine_tune", stop)
    with pytest.raises(SystemExit, match="stopped; nothing was written"):
        command(monkeypatch, own_run, *QUICK)
    with pytest.raises(SystemExit, match=r"error: .*unknown key 'step'"):
        command(monkeypatch, own_run, "--set", "fine_tune_fp8.step=3")
    assert [p.name for p in (own_run[1] / "model").iterdir()] == ["checkpoint"]
