"""Shapes against quadrature and hand-made figures; arrivals against what a Poisson process must look like."""

import math

import numpy as np
import pytest

from loadtest.arrivals import poisson_arrivals
from loadtest.shapes import CURVES, Shape


@pytest.mark.parametrize("kind", CURVES)
def test_the_integral_is_that_of_the_rate(kind):
    shape = Shape(kind, qps=3.0, duration_s=40.0, peak=5.0)
    edges = np.linspace(0, 40, 400_001)
    middle = (edges[1:] + edges[:-1]) / 2
    counted = np.concatenate([[0.0], np.cumsum(shape.rate(middle) * np.diff(edges))])
    np.testing.assert_allclose(shape.expected(edges), counted, atol=2e-3)


@pytest.mark.parametrize(
    ("kind", "expected"),  # requests of 10 / s for 60 s with a peak of 4
    [
        ("steady", 600),
        ("ramp", 600 * 2.5),
        ("step", 600 * 2.5),
        ("spike", 600 + 30 * 12),  # three times more for a fifth of the time
        ("diurnal", 600 * 2.5),
        # up within 3 s, then down with a time constant of 9 s for the 42 s that are left
        ("flash-crowd", 600 + 30 * (1.5 + 9 * (1 - math.exp(-42 / 9)))),
    ],
)
def test_expected_counts(kind, expected):
    assert Shape(kind, 10, 60).expected(60) == pytest.approx(expected)
    assert Shape(kind, 10, 60).expected(1e9) == pytest.approx(expected)  # nothing comes after the end


@pytest.mark.parametrize("kind", CURVES)
def test_rates_stay_between_base_and_peak(kind):
    shape = Shape(kind, qps=2.0, duration_s=100.0, peak=6.0)
    rates = shape.rate(np.linspace(0, 99.999, 50_000))
    assert rates.min() == pytest.approx(2.0, rel=0.02)
    assert rates.max() == pytest.approx(2.0 if kind == "steady" else 12.0, rel=1e-3)
    assert shape.rate([-1.0, 100.0]).tolist() == [0.0, 0.0]


def test_rates_at_given_times():
    def at(kind, *times):
        return Shape(kind, 10, 100, peak=3).rate(times).tolist()

    assert at("ramp", 0, 50) == [10, 20]
    assert at("step", 0, 19.9, 20, 45, 99) == [10, 10, 15, 20, 30]
    assert at("spike", 39.9, 40, 59.9, 60) == [10, 30, 30, 10]
    assert at("flash-crowd", 24, 27.5, 30) == pytest.approx([10, 20, 30])
    assert at("diurnal", 0, 25, 50, 75) == pytest.approx([10, 20, 30, 20])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("square", 1, 1), "expected one of steady, ramp"),
        (("steady", 0, 1), "qps: expected a number above 0, got 0"),
        (("steady", 1, math.inf), "duration_s: expected a number above 0, got inf"),
        (("ramp", 1, 1, 0.5), "peak: expected a multiple of the base rate, >= 1, got 0.5"),
    ],
)
def test_what_is_no_load_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Shape(*settings)


def test_arrivals_are_seeded():
    shape = Shape("spike", 20, 50)
    first = poisson_arrivals(shape, seed=1)
    np.testing.assert_array_equal(first, poisson_arrivals(shape, seed=1))
    assert not np.array_equal(first[:50], poisson_arrivals(shape, seed=2)[:50])
    assert not np.array_equal(first[:50], poisson_arrivals(shape, seed=1, worker=1)[:50])
    assert (np.diff(first) >= 0).all()
    assert 0 <= first[0] < first[-1] < 50


def test_gaps_of_a_steady_rate_are_exponential():
    gaps = np.sort(np.diff(poisson_arrivals(Shape("steady", 25, 800), seed=3)))
    assert len(gaps) == pytest.approx(20_000, abs=4 * math.sqrt(20_000))
    # Kolmogorov-Smirnov distance to 1 - exp(-25 t); 1.63 / sqrt(n) is its 1 % point.
    steps = np.arange(1, len(gaps) + 1) / len(gaps)
    assert np.abs(steps - (1 - np.exp(-25 * gaps))).max() < 1.63 / math.sqrt(len(gaps))


@pytest.mark.parametrize("kind", CURVES)
@pytest.mark.parametrize("workers", [1, 3])
def test_counts_follow_the_shape_and_vary_like_poisson(kind, workers):
    shape = Shape(kind, 30, 60)
    edges = np.linspace(0, 60, 31)
    mean = np.diff(shape.expected(edges))
    deviations = []
    for seed in range(40):
        times = [poisson_arrivals(shape, seed=seed, worker=w, workers=workers) for w in range(workers)]
        counts = np.histogram(np.concatenate(times), edges)[0]
        deviations.append((counts - mean) / np.sqrt(mean))
    # 1,200 standard scores: mean 0 +- 0.03, variance 1 +- 0.04. An even spacing would have variance ~ 0.
    assert np.mean(deviations) == pytest.approx(0, abs=0.12)
    assert np.var(deviations) == pytest.approx(1, abs=0.17)
    assert np.abs(np.mean(deviations, axis=0)).max() < 4.5 / math.sqrt(40)  # in no part too many
