"""Fine-tuning for FP8: what it learns, what it hands back, and which checkpoints an export takes."""

import itertools
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import export.__main__ as export_module
from tests.processes import in_processes
from tests.tiny_log import open_run, write_run
from training.loop.device import Device
from training.loop.retention import find_checkpoint, open_checkpoint, save_checkpoint
from training.loop.trainer import Trainer
from training.model.fp8 import quantized_copy
from training.model.gr4ad import Generator
from training.objectives.distill import Distill
from training.preset.preset import Preset
from training.recipes import fine_tune_fp8 as module
from training.recipes.fine_tune_fp8 import FOLDER, prepare_fine_tuning
from training.recipes.pretrain import prepare_training
from training.recipes.requests import CatalogueRequests, LoggedRequests
from training.run import SpecError

STEP = 100
SETTINGS = {
    "steps": 40,
    "validate_every": 20,
    "batch_size": 8,
    "validation_requests": 48,
    "calibration_batches": 3,
    "learning_rate": 3e-5,
    "threads": 1,
}
QUICK = SETTINGS | {"steps": 3, "batch_size": 4, "calibration_batches": 2, "validation_requests": 8}


@pytest.fixture(scope="module")
def modelopt():
    return pytest.importorskip(
        "modelopt", reason="FP8 fine-tuning needs nvidia-modelopt (make precision-setup)"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, no_curves):
    """Preset and run folder with data, tokenizer and a trained model."""
    torch.set_num_threads(1)
    run = write_run(tmp_path_factory.mktemp("log"))
    preset = Preset.load(run[0], [f"training.steps={STEP}", f"training.validate_every={STEP}"])
    prepare_training(preset, run[1], folder=run[1] / "model", device=Device()).run()
    return run


def preset_of(run, **settings):
    return Preset.load(run[0], [f"fine_tune_fp8.{k}={v}" for k, v in settings.items()])


def trainer(run, folder, *, device=None, fresh=False, **settings) -> Trainer:
    preset = preset_of(run, **(SETTINGS | settings))
    return prepare_fine_tuning(preset, run[1], folder=folder, device=device or Device(), fresh=fresh)


def original(run):
    return open_checkpoint(run[1] / "model")


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def tuned(modelopt, run, tmp_path_factory):
    """Folder and trainer of a whole fine-tuning."""
    folder = tmp_path_factory.mktemp("tuned")
    one = trainer(run, folder)
    one.record()
    one.run()
    return folder, one


# Learning.


def quantized_divergence(student: Generator, teacher: Generator, batches) -> float:
    """KL of the teacher in FP32 to a student in FP8, quantized anew, as an export does."""
    inputs = [Device().put(batch) for batch in batches]
    quantized = quantized_copy(student, [(x.slots, x.profile, x.tokens) for x in inputs[:2]])
    with torch.no_grad():
        losses = [Distill(teacher)(quantized, x).total for x in inputs[2:]]
    return float(sum(loss.sum for loss in losses) / sum(loss.weight for loss in losses))


def test_it_learns_to_answer_in_fp8_as_in_fp32(tuned, run):
    folder, one = tuned
    before, *_, after = (r["validation_total"] for r in one.history)
    assert [r["step"] for r in one.history] == [0, 20, 40]
    assert 0 < after < 0.9 * before  # measured: 0.0096 -> 0.0070
    # And not only by its own account.
    teacher = original(run).model.eval()
    batches = [*itertools.islice(one.source.batches(0), 2), *one.source.validation()]
    was = quantized_divergence(teacher, teacher, batches)
    assert was == pytest.approx(before, rel=0.5)
    now = quantized_divergence(open_checkpoint(folder).model.eval(), teacher, batches)
    assert 0 < now < 0.95 * was, (was, now)


def test_what_is_saved_is_a_plain_model(tuned, run):
    folder, _ = tuned
    found, trained = open_checkpoint(folder), original(run)
    assert (found.step, found.settings["steps"]) == (40, 40)
    assert found.spec.to_json() == trained.spec.to_json()
    np.testing.assert_array_equal(found.seen_sids, trained.seen_sids)
    state, before = found.model.state_dict(), trained.model.state_dict()
    assert list(state) == list(before)
    assert all(state[k].dtype == torch.float32 and state[k].shape == before[k].shape for k in state)
    changed = {k.split(".")[0] for k in state if not torch.equal(state[k], before[k])}
    assert {"codes", "fuse", "layers", "context_kv", "heads", "norm"} <= changed


def test_the_original_is_not_changed(tuned, run):
    """Neither the teacher in memory nor the checkpoint."""
    _, one = tuned
    teacher, saved = one.objective.teacher, original(run).model
    assert equal(teacher.state_dict(), saved.state_dict())
    assert not any("quantizer" in name for name, _ in teacher.named_modules())
    shared = {p.data_ptr() for p in one.model.parameters()} & {p.data_ptr() for p in teacher.parameters()}
    assert not shared


def test_a_copy_quantizes_products_and_tied_heads(tuned, run):
    _, one = tuned
    model = original(run).model.eval()
    batch = Device().put(next(one.source.batches(0)))
    inputs = (batch.slots, batch.profile, batch.tokens)
    student = quantized_copy(model, [inputs])
    assert not any("quantizer" in name for name, _ in model.named_modules())
    quantizers = {n: m for n, m in student.named_modules() if n.endswith("input_quantizer")}
    measured = {n.removesuffix(".input_quantizer") for n, m in quantizers.items() if m.amax is not None}
    products = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert measured == products | {f"tied_heads.{t}" for t in range(3)}
    with torch.no_grad():
        exact, rounded = model(*inputs)[0], student(*inputs)[0]
    for a, b in zip(exact, rounded, strict=True):
        assert 0 < float((a - b).abs().mean()) < 0.1 * float(a.std())


def test_a_seed_decides(modelopt, run, tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (3, 3, 4), strict=True):
        trainer(run, folder, **(QUICK | {"seed": seed})).run()
    a, b, c = (open_checkpoint(folder).model.state_dict() for folder in folders)
    assert equal(a, b)
    assert not equal(a, c)


# Going on


def test_it_resumes_where_it_was(modelopt, run, tuned, tmp_path):
    """Ranges of activations are measured again, of the original: the same ones."""
    folder, whole = tuned
    first = trainer(run, tmp_path)
    first.record()
    first.config = first.config.model_copy(update={"validate_every": 1000})
    steps = iter(range(100))
    step = first._train_step

    def stop_at_12(*arguments, stop):
        return step(*arguments, stop=next(steps) == 11)

    first._train_step = stop_at_12
    with pytest.raises(KeyboardInterrupt, match="stopped at step 13 of 40"):
        first.run()
    torch.manual_seed(99)  # nothing may come from the state of the process
    second = trainer(run, tmp_path)
    assert second.step == 13
    second.run()
    once, twice = open_checkpoint(folder), open_checkpoint(tmp_path)
    assert equal(once.model.state_dict(), twice.model.state_dict())
    strip = [[{k: v for k, v in r.items() if k != "seconds"} for r in c.history] for c in (once, twice)]
    assert strip[0] == strip[1]


def test_two_processes_are_as_one(modelopt, run, tmp_path, monkeypatch):
    *_, dataset = open_run(run)  # here: Polars does not survive a fork
    loaded = SimpleNamespace(check_tokenizer=lambda _: None, dataset=lambda _: dataset)
    monkeypatch.setattr(module.RunData, "load", lambda _: loaded)

    def work(rank):
        with Device.join("cpu") as device:
            one = trainer(run, tmp_path / "two", device=device, **QUICK)
            one.record()
            one.run()
            return one.history

    mine, other = in_processes(2, work)
    alone = trainer(run, tmp_path / "one", **QUICK)
    alone.record()
    alone.run()
    assert [r["step"] for r in mine] == [0, 3]
    for a, b, c in zip(alone.history, mine, other, strict=True):
        assert b | {"seconds": 0} == c | {"seconds": 0}
        for name in a.keys() - {"seconds"}:
            assert a[name] == pytest.approx(b[name], rel=1e-4)
    one, two = (open_checkpoint(tmp_path / n).model.state_dict() for n in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=0)


def test_a_finished_run_is_up_to_date_or_says_why_not(tuned, run, capsys):
    folder, _ = tuned
    assert trainer(run, folder, threads=2) is None
    assert capsys.readouterr().out == f"{folder}: up to date (step 40 of 40)\n"
    with pytest.raises(
        SpecError, match=r"fine_tune_fp8.batch_size \d+ -> 3; raise fine_tune_fp8.steps to go"
    ):
        trainer(run, folder, batch_size=3)


def test_a_run_from_another_original_stays_unless_told_to_start_over(modelopt, own_run):
    folder = own_run[1] / FOLDER
    trainer(own_run, folder, **QUICK).run()
    trained = original(own_run)
    with torch.no_grad():  # trained again: other weights
        trained.model.bos.add_(1.0)
    save_checkpoint(own_run[1] / "model", replace(trained, step=STEP + 1), keep=1)
    with pytest.raises(SpecError, match="a run that began from the weights .* start over with --fre"):
        trainer(own_run, folder, **QUICK)
    assert open_checkpoint(folder).step == QUICK["steps"]
    assert trainer(own_run, folder, fresh=True, **QUICK).step == 0


# Batches


def test_batches_hold_targets_and_catalogue(run):
    """Targets of requests first, then SIDs of any ad, drawn of (seed, epoch, request) alone."""
    preset, spec, dataset = open_run(run)

    def requests(kind, *, count=5, device=None):
        changed = preset.fine_tune_fp8.model_copy(
            update={"catalogue_targets": count, "batch_size": 8, "validation_requests": 20}
        )
        options = {"preset": preset, "config": changed, "device": device or Device()}
        return kind(dataset, spec, **options)

    catalogue = {tuple(s) for s in dataset.ad_sids.tolist()}
    seen: set[tuple[int, ...]] = set()
    both = zip(requests(CatalogueRequests).batches(0), requests(LoggedRequests).batches(0), strict=True)
    for _ in range(20):
        batch, plain = next(both)
        for name in ("tokens", "value", "weight"):
            np.testing.assert_array_equal(getattr(batch, name)[:, :-5], getattr(plain, name))
            assert getattr(batch, name).dtype == getattr(plain, name).dtype
        assert (batch.weight[:, -5:] == 1).all()
        drawn = {tuple(s) for s in batch.tokens[:, -5:].reshape(-1, 3).tolist()}
        assert drawn <= catalogue
        seen |= drawn
    assert len(seen) > 0.9 * len(catalogue)
    none = next(requests(CatalogueRequests, count=0).batches(0))
    np.testing.assert_array_equal(none.tokens, next(requests(LoggedRequests).batches(0)).tokens)
    # The same of a request in whichever process.
    whole = next(requests(CatalogueRequests).batches(3))
    for rank in (0, 1):
        half = next(requests(CatalogueRequests, device=Device(rank=rank, world=2)).batches(3))
        np.testing.assert_array_equal(half.tokens[:, -5:], whole.tokens[rank::2, -5:])


# The command line.


def command(monkeypatch, run, *words):
    preset, folder = run
    settings = [w for k, v in QUICK.items() for w in ("--set", f"fine_tune_fp8.{k}={v}")]
    arguments = ["--config", preset, "--run", folder, *settings, *words]
    monkeypatch.setattr(sys, "argv", ["fine_tune_fp8", *map(str, arguments)])
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
    folder.mkdir()
    for name in ("data", "tokenizer"):
        (folder / name).symlink_to(run[1] / name)
    save_checkpoint(folder / "model", original(run), keep=1)
    return run[0], folder


def saved(own_run, **changes):
    """A fine-tuned checkpoint that is the original but for some changes."""
    trained = original(own_run)
    source = module.weights_sha256(find_checkpoint(own_run[1] / "model"))
    made = replace(trained, settings={"steps": STEP}, source=source)
    save_checkpoint(own_run[1] / FOLDER, replace(made, **changes), keep=1)


def test_checkpoint_that_export_takes(modelopt, own_run, monkeypatch, capsys):
    command(monkeypatch, own_run)
    folder = own_run[1] / FOLDER
    assert f"{folder}: KL to the FP32 model " in capsys.readouterr().out
    trained, tuned = original(own_run), open_checkpoint(folder)
    assert not equal(trained.model.state_dict(), tuned.model.state_dict())
    assert [r["step"] for r in tuned.history] == [0, 3]

    error, handed = export(monkeypatch, own_run, *FP8_WORDS)
    assert error == "error: far enough"
    lowering = handed["lowering"]
    assert lowering.precision == "fp8"
    assert equal(lowering.fine_tuned.state_dict(), tuned.model.state_dict())
    assert equal(handed["checkpoint"].model.state_dict(), trained.model.state_dict())
    calibration, gate = lowering.calibration, lowering.gate.requests
    assert len(calibration.slots) == 9
    # Calibrated on training weeks, judged on validation weeks.
    assert not {s.tobytes() for s in calibration.slots} & {s.tobytes() for s in gate.slots}


def test_fine_tuned_from_another_checkpoint_is_refused(own_run, monkeypatch):
    saved(own_run)
    assert export(monkeypatch, own_run, *FP8_WORDS)[0] == "error: far enough"
    trained = original(own_run)
    with torch.no_grad():
        trained.model.bos.add_(1.0)
    save_checkpoint(own_run[1] / "model", replace(trained, step=STEP + 1), keep=2)
    error, handed = export(monkeypatch, own_run, *FP8_WORDS)
    assert "fine_tuned_fp8: expected a model fine-tuned from " in error
    assert error.endswith("it was made from other weights; run `make fine-tune-fp8` again")
    assert not handed
    # The one that it was made from is still there.
    named = export(monkeypatch, own_run, *FP8_WORDS, "--checkpoint", f"step-{STEP:06d}")
    assert named[0] == "error: far enough"


def test_fine_tuned_that_is_not_finished_is_refused(own_run, monkeypatch):
    saved(own_run, settings={"steps": STEP + 2})
    error, handed = export(monkeypatch, own_run, *FP8_WORDS)
    assert f"expected a finished model, it stopped at step {STEP} of {STEP + 2}; run `make" in error
    assert not handed


def test_fine_tuned_that_is_not_there(own_run, monkeypatch):
    error, handed = export(monkeypatch, own_run, *FP8_WORDS)
    assert error == f"error: {own_run[1] / FOLDER}/checkpoints: expected a checkpoint (latest), found none"
    assert not handed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--precision", "int8"), "expected precision fp8, got int8"),
        (
            ("--precision", "fp8", "--seeded-weights", "--target", "onnxruntime"),
            "expected a trained model, got --seeded-weights",
        ),
    ],
)
def test_fine_tuned_is_for_fp8_of_a_trained_model(own_run, monkeypatch, words, message):
    saved(own_run)
    error, handed = export(monkeypatch, own_run, *words, "--fine-tuned")
    assert error == f"error: --fine-tuned: {message}"
    assert not handed


def test_another_tokenizer_is_refused(own_run, monkeypatch):
    trained = original(own_run)
    other = replace(trained, step=STEP + 1, spec=replace(trained.spec, tokenizer_id="another"))
    save_checkpoint(own_run[1] / "model", other, keep=1)
    monkeypatch.setattr(module, "quantized_copy", lambda *_: pytest.fail("quantized"))
    with pytest.raises(SystemExit, match="error: .*expected tokenizer another .*train a new model"):
        command(monkeypatch, own_run)


def test_missing_modelopt_says_what_to_run(own_run, monkeypatch):
    for name in ("modelopt", "modelopt.torch", "modelopt.torch.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match="error: FP8 needs nvidia-modelopt .*make precision-setup"):
        command(monkeypatch, own_run)
    assert not (own_run[1] / FOLDER).exists()


def test_an_unknown_setting_writes_nothing(own_run, monkeypatch):
    with pytest.raises(SystemExit, match=r"error: .*unknown key 'step'"):
        command(monkeypatch, own_run, "--set", "fine_tune_fp8.step=3")
    assert [p.name for p in (own_run[1] / "model").iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("words", [(), ("--fresh",)])
@pytest.mark.parametrize("out", ["model", "other"])
def test_the_folder_of_a_pre_trained_model_is_refused(own_run, monkeypatch, out, words):
    """Before any work: not a checkpoint of it is lost."""
    folder = own_run[1] / out
    if out == "other":
        save_checkpoint(folder, replace(original(own_run), step=STEP + 1), keep=1)
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(module, "quantized_copy", lambda *_: pytest.fail("quantized"))
    with pytest.raises(
        SystemExit, match=r"error: .*checkpoints of this run alone, got .*; give another --out"
    ):
        command(monkeypatch, own_run, "--out", folder, *words)
    assert sorted(folder.rglob("*")) == before


def test_without_a_trained_model(run, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"error: .*expected a checkpoint \(latest\), found none"):
        command(monkeypatch, (run[0], tmp_path))
