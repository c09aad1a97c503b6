"""Residual k-means against plain formulas."""

import numpy as np
import pytest

from training.tokenizer.quantizers.residual_kmeans import ResidualKMeans


def unit_points(count, dim=8, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def points():
    return unit_points(600)


@pytest.fixture(scope="module")
def quantizer(points):
    return ResidualKMeans.fit(points, (16, 8, 4), iterations=10, seed=1)


def test_reconstruction_error_falls_level_by_level(points, quantizer):
    codes = quantizer.encode(points)
    errors = [float(((points - quantizer.decode(codes[:, :n])) ** 2).sum(axis=1).mean()) for n in (1, 2, 3)]
    nothing = float((points**2).sum(axis=1).mean())
    assert nothing > errors[0] > errors[1] > errors[2] > 0
    # A level must earn its bits, not just move: 16 codes in 8 dimensions halve the error comfortably.
    assert errors[0] < 0.6 * nothing


def test_codes_are_nearest_centroids_by_brute_force(points, quantizer):
    codes = quantizer.encode(points)
    for x, row in zip(points[:100].astype(np.float64), codes, strict=False):
        for level, book in enumerate(quantizer.codebooks):
            distances = [np.linalg.norm(x - c) for c in book.astype(np.float64)]
            assert distances[row[level]] <= min(distances) + 1e-5
            x = x - book[row[level]]


def test_codes_are_int32_and_all_in_range(points, quantizer):
    codes = quantizer.encode(points)
    assert codes.dtype == np.int32
    assert codes.shape == (600, 3)
    assert (codes >= 0).all()
    assert (codes < [16, 8, 4]).all()


def test_exact_ties_go_to_the_lowest_code_in_any_batch():
    quantizer = ResidualKMeans([np.array([[1, 0], [0, 1], [-1, 0]], np.float32)])
    tied = np.array([[0.3, 0.3]], np.float32)  # as far from code 0 as from code 1
    assert quantizer.encode(tied).tolist() == [[0]]
    assert (quantizer.encode(np.repeat(tied, 1001, axis=0)) == 0).all()


def test_order_of_points_does_not_change_the_codebooks(points):
    shuffled = points[np.random.default_rng(5).permutation(len(points))]
    one = ResidualKMeans.fit(points, (16, 8), iterations=5, seed=3)
    two = ResidualKMeans.fit(shuffled, (16, 8), iterations=5, seed=3)
    for left, right in zip(one.codebooks, two.codebooks, strict=True):
        np.testing.assert_array_equal(left, right)


def test_weights_count_as_copies(points):
    copies = np.random.default_rng(2).integers(1, 5, size=len(points))
    weighted = ResidualKMeans.fit(points, (16, 8), iterations=5, seed=3, weights=copies)
    repeated = ResidualKMeans.fit(np.repeat(points, copies, axis=0), (16, 8), iterations=5, seed=3)
    plain = ResidualKMeans.fit(points, (16, 8), iterations=5, seed=3)
    for left, right in zip(weighted.codebooks, repeated.codebooks, strict=True):
        np.testing.assert_array_equal(left, right)
    assert not np.array_equal(weighted.codebooks[0], plain.codebooks[0])


def test_more_codes_than_distinct_points_is_an_error():
    x = np.repeat(unit_points(7), 100, axis=0)
    with pytest.raises(ValueError, match="level 1: expected at least 8 distinct vectors .* got 7 among 700"):
        ResidualKMeans.fit(x, (8,), iterations=2, seed=0)


def test_too_few_distinct_residuals_names_the_level():
    # 8 codes for 8 points leave one residual: zero.
    with pytest.raises(ValueError, match="level 2: expected at least 2 distinct vectors .* got 1 among 8"):
        ResidualKMeans.fit(unit_points(8), (8, 2), iterations=2, seed=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3.0])
def test_unusable_vector_is_refused_with_its_row(quantizer, bad):
    x = unit_points(5)
    x[3, 2] = bad
    with pytest.raises(ValueError, match="row 3: expected a finite vector"):
        quantizer.encode(x)


def test_wrong_shapes_and_codes_are_refused(points, quantizer):
    with pytest.raises(ValueError, match=r"expected vectors \[N, 8\], got \[2, 5\]"):
        quantizer.encode(np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"level 2: expected codes 0\.\.7, got -1\.\.0"):
        quantizer.decode(np.array([[0, 0], [0, -1]]))
    with pytest.raises(ValueError, match=r"expected codes \[N, 1\.\.3\]"):
        quantizer.decode(np.zeros((2, 4), int))
    with pytest.raises(ValueError, match="positive weights"):
        ResidualKMeans.fit(points, (4,), iterations=1, seed=0, weights=np.zeros(len(points)))
