"""Expected value against the unsplit model; its calibration against plain loops."""

import math

import numpy as np
import pytest
import torch

from tests.tiny_log import open_run, write_run
from training.evaluation.calibration import TargetValues, calibration, target_values
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
                logits, _ = model(*map(torch.tensor, (slots, profile)), torch.tensor(sid[None]))
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
