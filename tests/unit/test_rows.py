"""Positions of a request's own row."""

import numpy as np
import pytest

from serving.index.rows import take_rows


@pytest.mark.parametrize("shape", [(1, 7), (4, 7), (4, 7, 3), (0, 7)])
def test_it_takes_what_take_along_axis_takes(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    array = random.random(shape).astype(np.float32)
    at = random.integers(0, 7, (shape[0], 5))
    expected = np.take_along_axis(array, at.reshape(*at.shape, *[1] * (len(shape) - 2)), 1)
    found = take_rows(array, at)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)
