"""Value buckets of equal frequency."""

import numpy as np
import pytest

from training.data.values import ValueBuckets


def test_value_buckets_are_equal_frequency_and_know_their_mean():
    values = np.random.default_rng(0).permutation(np.arange(1, 801)).astype(np.float32) ** 2
    buckets = ValueBuckets.fit(values, buckets=8)
    code = buckets.encode(values)
    assert len(buckets.means) == 8
    assert np.abs(np.bincount(code) - 100).max() <= 1
    for b in range(8):
        assert buckets.means[b] == pytest.approx(values[code == b].mean(), rel=1e-5)
    assert (np.diff(buckets.encode(np.sort(values))) >= 0).all()
    assert buckets.encode(np.array([-1.0, 1e9])).tolist() == [0, 7]


@pytest.mark.parametrize("values", [[2.0] * 50, [1.0] * 40 + [3.0] * 10, [0.0, 1.0], [5.0]])
def test_ties_leave_fewer_buckets_and_none_is_empty(values):
    values = np.array(values, np.float32)
    buckets = ValueBuckets.fit(values, buckets=8)
    counts = np.bincount(buckets.encode(values), minlength=len(buckets.means))
    assert len(buckets.means) <= len(np.unique(values))
    assert (counts > 0).all()
    assert (buckets.means * counts).sum() == pytest.approx(values.sum())


def test_no_values_is_an_error():
    with pytest.raises(ValueError, match="expected at least one training target with a value, got none"):
        ValueBuckets.fit(np.zeros(0, np.float32), buckets=4)
