"""Expected value against the unsplit model; its calibration against plain loops."""

import json
import math

import numpy as np
import pytest
import torch

from serving.model.value_correction import ValueCorrection
from tests.tiny_log import open_run, write_run
from training.evaluation.calibration import TargetValues, calibration, fit_correction, target_values
from training.evaluation.correct_values import correct, main
from training.loop.checkpoint import CONTENT, Checkpoint, load_checkpoint, weights_sha256, write_checkpoint
from training.plots import plot_reliability
from training.rollout.executor import TorchExecutor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("calibration"))


def test_expected_values_are_those_of_the_unsplit_model_for_every_target(run):
    preset, spec, dataset = open_run(run)
    torch.manual_seed(3)
    model = spec.build().eval()
    with torch.no_grad():  # heads start so small that any target would have nearly the same value
        model.heads[-1].weight.mul_(40)
    groups = dataset.groups("test", target_behaviors=preset.logs.target_behaviors, min_history=3)
    rows, means = np.arange(len(groups)), spec.value_buckets.means
    found = target_values(
        TorchExecutor(model), dataset, groups=groups, rows=rows, value_table=means, batch_size=5
    )
    expected, realised = [], []
    for row in rows:
        slots, profile = dataset.context(groups, rows[row : row + 1])
        for event in dataset.targets(groups, int(row)):
            sid = dataset.ad_sids[dataset.ad_ids == dataset.log.ad_ids[event]]
            with torch.no_grad():
                logits, *_ = model(*map(torch.tensor, (slots, profile)), torch.tensor(sid[None]))
            expected.append(float(logits[-1].softmax(-1)[0, 0].double() @ torch.tensor(means).double()))
            realised.append(float(dataset.log.value[event]))
    assert len({len(dataset.targets(groups, int(row))) for row in rows}) > 1  # requests of unequal lengths
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(found.predicted, expected, rtol=1e-5)
    np.testing.assert_allclose(found.realised, realised)


def plain(pairs):
    predicted, realised = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    rest = [r - p for p, r in pairs]
    mean = sum(rest) / len(rest)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in rest) / len(rest))
    return {
        "targets": len(pairs),
        "predicted": pytest.approx(predicted),
        "realised": pytest.approx(realised),
        "error": pytest.approx(abs(predicted - realised) / realised),
        "noise": pytest.approx(1.96 * deviation / math.sqrt(len(rest)) / realised),
    }


@pytest.mark.parametrize("count", [1, 7, 10, 997])
def test_calibration_equals_a_plain_loop(count):
    random = np.random.default_rng(count)
    predicted = random.exponential(3, count) + 0.1
    realised = predicted * random.exponential(1, count) + 0.01
    got = calibration(TargetValues(predicted, realised))
    pairs = sorted(zip(predicted.tolist(), realised.tolist(), strict=True))
    parts, at = min(count, 10), 0
    for i, part in enumerate(got["by_decile"]):
        size = count // parts + (i < count % parts)  # the first ones are larger by one
        assert part == plain(pairs[at : at + size])
        at += size
    assert at == count
    assert {name: value for name, value in got.items() if name != "by_decile"} == plain(pairs)


def test_values_that_are_a_fifth_too_high_are_off_by_a_fifth_everywhere():
    realised = np.repeat(np.arange(1.0, 21.0), 5)
    got = calibration(TargetValues(1.2 * realised, realised))
    assert [p["error"] for p in (got, *got["by_decile"])] == pytest.approx([0.2] * 11)
    perfect = calibration(TargetValues(realised, realised))
    assert {p["error"] for p in (perfect, *perfect["by_decile"])} == {0.0}


def test_a_fault_of_the_top_tenth_shows_there_and_not_only_on_average():
    realised = np.arange(1.0, 101.0)
    predicted = np.where(realised > 90, 1.5 * realised, realised)
    got = calibration(TargetValues(predicted, realised))
    assert [p["error"] for p in got["by_decile"]] == pytest.approx([0.0] * 9 + [0.5])
    assert got["error"] == pytest.approx(0.5 * realised[90:].sum() / realised.sum())


def test_values_of_nothing_have_no_relative_error(tmp_path):
    got = calibration(TargetValues(np.ones(30), np.zeros(30)))
    assert got["error"] is None
    assert got["noise"] is None
    assert got["predicted"] == 1.0
    plot_reliability(got["by_decile"], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="expected at least one target, got none"):
        calibration(TargetValues(np.zeros(0), np.zeros(0)))


def test_a_correction_is_linear_between_its_points_and_constant_beyond():
    correction = ValueCorrection(((1.0, 0.5), (3.0, -0.5)))
    found = correction.of(np.array([0.0, 1.0, 2.0, 3.0, 10.0, np.nan], np.float32))
    np.testing.assert_array_equal(found, np.array([0.5, 1.5, 2.0, 2.5, 9.5, np.nan], np.float32))
    assert found.dtype == np.float32
    values = np.random.default_rng(0).exponential(3, (4, 5))
    np.testing.assert_array_equal(ValueCorrection().of(values), values.astype(np.float32))


@pytest.mark.parametrize(
    "points", [((1.0, 0.0), (1.0, 0.1)), ((2.0, 0.0), (1.0, 0.0)), ((1.0, 0.0), (2.0, -1.1))]
)
def test_a_correction_that_turns_values_around_is_refused(points):
    with pytest.raises(
        ValueError, match="value_correction: expected ascending values that stay in their order"
    ):
        ValueCorrection(points)


def wrong_at_the_top(count=20_000, *, seed=0):
    """Predictions right on average: a quarter too low in the top tenth, too high in the next two."""
    random = np.random.default_rng(seed)
    predicted = np.sort(random.exponential(3, count) + 0.5)
    truth = predicted * np.interp(np.arange(count) / count, [0.6, 0.75, 0.95], [1.0, 0.88, 1.25])
    return TargetValues(predicted, truth * random.gamma(4, 1 / 4, count))


def test_a_correction_holds_on_targets_it_was_not_fitted_on_and_leaves_the_level():
    fitted, fresh = wrong_at_the_top(), wrong_at_the_top(seed=1)
    correction = fit_correction(fitted)
    corrected = TargetValues(correction.of(fresh.predicted).astype(float), fresh.realised)
    before, after = (
        max(abs(p["predicted"] / p["realised"] - f["predicted"] / f["realised"]) for p in f["by_decile"])
        for f in map(calibration, (fresh, corrected))
    )
    assert before > 0.15
    assert after < 0.05
    kept = correction.of(fitted.predicted).mean()
    assert kept == pytest.approx(fitted.predicted.mean(), rel=0.02)
    assert (np.diff(correction.of(fresh.predicted)) >= 0).all()
    dearer = fit_correction(TargetValues(fitted.predicted, 1.3 * fitted.realised))  # weeks that are dearer
    np.testing.assert_allclose(dearer.points, correction.points, atol=1e-6)


def test_values_that_do_not_grow_with_the_prediction_are_pooled():
    predicted = np.arange(2_000.0) + 1
    correction = fit_correction(TargetValues(predicted, predicted[::-1].copy()))
    assert len(set(np.round(correction.of(np.array([100.5, 900.0, 1_900.5])), 3))) == 1
    equal = fit_correction(TargetValues(np.full(2_000, 2.0), np.arange(2_000.0)))
    assert equal.points == ((2.0, pytest.approx(0.0)),)


def test_pooled_values_are_taken_although_they_are_not_equal_to_the_last_digit():
    """Values independent of the prediction are pooled: a fit on them ends in a correction."""
    for seed in range(50):
        random = np.random.default_rng(seed)
        predicted = random.gamma(1, 2, 2_000)
        correction = fit_correction(TargetValues(predicted, random.gamma(1, 2, 2_000) * 3))
        corrected = [value + added for value, added in correction.points]
        assert len(corrected) == 10
        assert (np.diff(corrected) >= -1e-9 * max(corrected)).all()
        assert np.mean(corrected) == pytest.approx(predicted.mean())
    with pytest.raises(ValueError, match="value_correction: expected ascending values that stay in their"):
        ValueCorrection(((1.0, 0.0), (2.0, -1.000001)))


@pytest.mark.parametrize("values", [np.ones(999), np.zeros(5_000)])
def test_too_little_to_fit_on_is_refused(values):
    with pytest.raises(ValueError, match="expected 1,000 targets or more with a mean value above 0, got"):
        fit_correction(TargetValues(np.linspace(1, 2, len(values)), values))


def test_a_checkpoint_is_corrected_and_what_learns_on_is_not(run, tmp_path, monkeypatch):
    preset, spec, dataset = open_run(run)
    monkeypatch.setattr("training.evaluation.calibration.LEAST_TARGETS", 100)
    torch.manual_seed(0)
    folder = tmp_path / "step-000001"
    write_checkpoint(folder, Checkpoint(model=spec.build(), spec=spec, settings={}))
    weights = weights_sha256(folder)
    said = correct(preset, run[1], checkpoint=folder, requests=1_000)
    found = load_checkpoint(folder)
    assert "expected values corrected by" in said
    assert len(found.spec.value_correction.points) == 10
    assert weights_sha256(folder) == weights
    groups = dataset.groups("train", target_behaviors=preset.logs.target_behaviors, min_history=3)
    values = target_values(
        TorchExecutor(found.model.eval()),
        dataset,
        groups=groups,
        rows=np.arange(len(groups)),
        value_table=spec.value_buckets.means,
        batch_size=16,
    )
    assert found.spec.value_correction == fit_correction(values)
    assert correct(preset, run[1], checkpoint=folder, requests=1_000) == said  # fitted on what is uncorrected
    content = json.loads((folder / CONTENT).read_text())
    del content["spec"]["value_correction"]  # a checkpoint of before there were any
    (folder / CONTENT).write_text(json.dumps(content))
    assert load_checkpoint(folder).spec.to_json() == spec.to_json()


def test_a_log_with_too_few_targets_is_warned_of_and_left_as_it_is(run, tmp_path, monkeypatch, capsys):
    preset, spec, _ = open_run(run)
    torch.manual_seed(0)
    folder = tmp_path / "model" / "checkpoints" / "step-000001"
    folder.parent.mkdir(parents=True)
    write_checkpoint(folder, Checkpoint(model=spec.build(), spec=spec, settings={}))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    config, run_folder = run
    monkeypatch.setattr(
        "sys.argv",
        ["", "--config", str(config), "--run", str(run_folder), "--model", str(tmp_path / "model")],
    )
    main()
    assert "warning: value correction: expected 1,000 targets" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
