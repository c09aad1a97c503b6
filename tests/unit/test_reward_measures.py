"""AUC against all pairs, log loss and calibration against sums, the line against one that is known."""

import math

import numpy as np
import pytest

from serving.ranking.features import NUMBERS, Features
from training.reward.calibration import Calibration
from training.reward.measures import auc, auc_by_request, base_loss, calibration, log_loss
from training.reward.ranker import Predicted
from training.reward.rows import Rows


def rows_with(had, value=None, weight=None, mean=None):
    n = len(had)
    features = Features(
        np.zeros((n, len(NUMBERS)), np.float32),
        np.zeros((n, 0), np.int32),
        value=np.ones(n, np.float32) if mean is None else np.asarray(mean, np.float32),
    )
    return Rows(
        features,
        np.asarray(had, bool),
        value=np.asarray(had if value is None else value, np.float32),
        weight=np.ones(n) if weight is None else weight,
        request=np.zeros(n, np.int64),
        fold=np.zeros(n, np.int8),
    )


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_pairs_in_order(seed):
    random = np.random.default_rng(seed)
    score, had, weight = random.integers(0, 8, 40), random.random(40) < 0.4, random.random(40)
    won = pairs = 0.0
    for i in np.flatnonzero(had):
        for j in np.flatnonzero(~had):
            both = weight[i] * weight[j]
            pairs += both
            won += both * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
    assert auc(score, had, weight) == pytest.approx(won / pairs)


def test_auc_of_one_kind_is_none_and_such_requests_do_not_count():
    score, request = np.array([0.1, 0.9, 0.3, 0.2, 0.7]), np.array([0, 0, 1, 1, 2])
    had = np.array([False, True, False, False, True])
    assert math.isnan(auc(score[2:4], had[2:4], np.ones(2)))
    assert auc_by_request(score, had, request) == 1.0
    assert math.isnan(auc_by_request(score[2:4], had[2:4], request[2:4]))


def test_log_loss_is_the_mean_surprise_and_of_the_base_rate_its_entropy():
    p, had, weight = np.array([0.5, 0.25, 0.9]), np.array([True, False, True]), np.array([1.0, 2.0, 1.0])
    surprise = [-math.log(0.5), -math.log(0.75), -math.log(0.9)]
    assert log_loss(p, had, weight) == pytest.approx((surprise[0] + 2 * surprise[1] + surprise[2]) / 4)
    assert base_loss(had, weight) == pytest.approx(-math.log(0.5))


def test_calibration_by_decile_of_what_is_expected():
    random = np.random.default_rng(0)
    p = random.random(1000)
    came = (random.random(1000) < p).astype(float)
    found = calibration(p, came, np.ones(1000))
    tenths = np.sort(p).reshape(10, 100).mean(axis=1)
    np.testing.assert_allclose([d["expected"] for d in found["deciles"]], tenths)
    by_tenth = came[np.argsort(p)].reshape(10, 100).mean(axis=1)
    np.testing.assert_allclose([d["came"] for d in found["deciles"]], by_tenth)
    assert found["error"] == pytest.approx((p.mean() - came.mean()) / came.mean())
    assert found["mean_error"] == pytest.approx(abs(tenths - by_tenth).mean() / came.mean())
    doubled = calibration(np.repeat(p, 2), np.repeat(came, 2), np.full(2000, 0.5))
    assert doubled["mean_error"] == pytest.approx(found["mean_error"])


def test_the_line_is_found_and_values_get_the_right_sum():
    random = np.random.default_rng(1)
    logit = random.normal(-2, 1.5, 200_000)
    had = random.random(200_000) < 1 / (1 + np.exp(-(0.7 * logit - 0.4)))
    value = np.where(had, random.exponential(3, 200_000), 0)
    mean = random.uniform(1, 2, 200_000)
    predicted, rows = Predicted(logit, np.full(200_000, 1.3)), rows_with(had, value, mean=mean)
    line = Calibration.fit(predicted, rows)
    assert line.slope == pytest.approx(0.7, abs=0.02)
    assert line.offset == pytest.approx(-0.4, abs=0.03)
    # The line's optimum: what is expected in all is what came in all.
    assert line.probability(predicted).sum() == pytest.approx(had.sum(), rel=1e-4)
    expected = line.value(predicted, rows.features.value.astype(float))
    assert expected[had].sum() == pytest.approx(rows.value.astype(float).sum(), rel=1e-6)


def test_weights_stand_for_rows():
    random = np.random.default_rng(2)
    logit, had = random.normal(0, 2, 500), random.random(500) < 0.3
    weight = np.where(had, 1.0, 3.0)
    copies = np.repeat(np.arange(500), weight.astype(int))
    once = Calibration.fit(Predicted(logit, np.ones(500)), rows_with(had, weight=weight))
    thrice = Calibration.fit(Predicted(logit[copies], np.ones(len(copies))), rows_with(had[copies]))
    assert (once.slope, once.offset) == pytest.approx((thrice.slope, thrice.offset))


@pytest.mark.parametrize("had", [[True] * 4, [False] * 4])
def test_one_kind_alone_leaves_the_line_as_it_is(had):
    line = Calibration.fit(Predicted(np.array([-50.0, 0.0, 1.0, 80.0]), np.ones(4)), rows_with(had))
    assert (line.slope, line.offset) == (1.0, 0.0)


def test_kinds_that_a_line_parts_leave_it_finite():
    logit = np.array([-90.0, -80.0, 80.0, 90.0])
    line = Calibration.fit(Predicted(logit, np.ones(4)), rows_with([False, False, True, True]))
    assert np.isfinite([line.slope, line.offset]).all()
    assert line.slope > 0
