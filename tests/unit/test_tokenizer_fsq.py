"""FSQ on principal axes, against its formula."""

import numpy as np
import pytest

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.quantizers.fsq import Fsq, _factors

SIZES = (24, 7)


@pytest.fixture(scope="module")
def points():
    """Spread most along a few axes; within |x| <= 2."""
    x = np.random.default_rng(1).normal(size=(4000, 6)) * [0.3, 0.25, 0.2, 0.1, 0.05, 0.02]
    return (x / np.maximum(1, np.linalg.norm(x, axis=1, keepdims=True))).astype(np.float32)


def test_codes_are_the_rounded_bounded_coordinates(points):
    quantizer = Fsq.fit(points, TokenizerConfig(codebook_sizes=SIZES))
    x = points.astype(np.float64)
    axes = quantizer.axes.astype(np.float64)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    along = (x - x.mean(axis=0)) @ axes
    assert (np.diff(along.std(axis=0)) < 0).all()  # leading axes first
    digits = []
    for p, values in zip(along.T, (8, 3, 7), strict=True):
        q = (values - 1) / 2 * np.tanh(p / p.std())
        digits.append(np.floor(q + (values - 1) / 2 + 0.5).astype(int))
    wanted = np.stack([digits[0] + 8 * digits[1], digits[2]], axis=1)
    agreement = (quantizer.encode(points) == wanted).all(axis=1).mean()
    assert agreement > 0.999  # borders are on the grid


def test_decodes_to_the_mean_of_each_value(points):
    quantizer = Fsq.fit(points, TokenizerConfig(codebook_sizes=(4, 4)))
    codes = quantizer.encode(points)
    axis = quantizer.axes[:, 0].astype(np.float64)
    for code in range(4):
        inside = codes[:, 0] == code
        mean = (points[inside] @ axis).mean()
        np.testing.assert_allclose(quantizer.decode(np.array([[code]]))[0], mean * axis, atol=1e-5)


def test_sizes_are_products_of_few_values():
    for size in (2, 7, 8, 12, 97, 128, 360, 512, 1024):
        assert np.prod(_factors(size)) == size
    assert _factors(512) == [8, 8, 8]
    assert _factors(128) == [8, 8, 2]


def test_too_few_axes_are_an_error(points):
    flat = points * np.array([1, 1, 0, 0, 0, 0], np.float32)
    with pytest.raises(ValueError, match=r"expected vectors that spread over 3 axes .* got 2 among"):
        Fsq.fit(flat, TokenizerConfig(codebook_sizes=SIZES))
    with pytest.raises(ValueError, match="got 0 among 1 distinct"):
        Fsq.fit(np.repeat(points[:1], 9, axis=0), TokenizerConfig(codebook_sizes=SIZES))
