"""Every quantizer against plain formulas, and what all of them promise."""

import numpy as np
import pytest

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.quantizers import QUANTIZERS
from training.tokenizer.quantizers.balanced import Balanced
from training.tokenizer.quantizers.residual import Level
from training.tokenizer.quantizers.rq_kmeans import RqKmeans

RESIDUAL = [RqKmeans, Balanced]


def config(*sizes, iterations=5, seed=3):
    return TokenizerConfig(codebook_sizes=sizes, kmeans_iterations=iterations, seed=seed)


def unit_points(count, dim=8, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def points():
    return unit_points(600)


@pytest.fixture(scope="module", params=sorted(QUANTIZERS))
def quantizer(request, points):
    return QUANTIZERS[request.param].fit(points, config(16, 8, 4, iterations=10, seed=1))


@pytest.fixture(scope="module", params=RESIDUAL, ids=lambda kind: kind.__name__)
def residual(request, points):
    return request.param.fit(points, config(16, 8, 4, iterations=10, seed=1))


def test_reconstruction_error_falls_level_by_level(points, quantizer):
    codes = quantizer.encode(points)
    errors = [float(((points - quantizer.decode(codes[:, :n])) ** 2).sum(axis=1).mean()) for n in (1, 2, 3)]
    nothing = float((points**2).sum(axis=1).mean())
    assert nothing > errors[0] > errors[1] > errors[2] > 0
    # A level must earn its bits, not just move: 16 codes in 8 dimensions halve the error comfortably.
    assert errors[0] < 0.6 * nothing


def test_codes_are_int32_in_range_and_of_the_row_alone(points, quantizer):
    codes = quantizer.encode(points)
    assert codes.dtype == np.int32
    assert codes.shape == (600, 3)
    assert quantizer.level_sizes == (16, 8, 4)
    assert (codes >= 0).all()
    assert (codes < [16, 8, 4]).all()
    alone = np.concatenate([quantizer.encode(points[i : i + 1]) for i in range(len(points))])
    np.testing.assert_array_equal(alone, codes)
    np.testing.assert_array_equal(quantizer.encode(points[::-1]), codes[::-1])
    assert quantizer.encode(points[:0]).shape == (0, 3)


def test_state_gives_the_same_quantizer_back(points, quantizer):
    again = type(quantizer).from_state(quantizer.state())
    codes = quantizer.encode(points)
    np.testing.assert_array_equal(again.encode(points), codes)
    np.testing.assert_array_equal(again.decode(codes), quantizer.decode(codes))
    assert {n: a.dtype for n, a in again.state().items()} == {
        n: a.dtype for n, a in quantizer.state().items()
    }


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_order_of_points_changes_nothing_and_weights_count_as_copies(points, name):
    kind, settings = QUANTIZERS[name], config(16, 8)
    copies = np.random.default_rng(2).integers(1, 5, size=len(points))
    order = np.random.default_rng(5).permutation(len(points))
    repeated = np.repeat(points, copies, axis=0)
    one = kind.fit(points, settings, weights=copies).state()
    two = kind.fit(points[order], settings, weights=copies[order]).state()
    three = kind.fit(repeated, settings).state()
    plain = kind.fit(points, settings).state()
    for key, array in one.items():
        np.testing.assert_array_equal(two[key], array)
        np.testing.assert_array_equal(three[key], array)
    assert any(not np.array_equal(plain[key], array) for key, array in one.items())


def test_codes_are_the_cheapest_centroids_by_brute_force(points, residual):
    codes = residual.encode(points)
    for x, row in zip(points[:100].astype(np.float64), codes, strict=False):
        for code, level in zip(row, residual.levels, strict=True):
            book = level.codebook.astype(np.float64)
            costs = [np.sum((x - c) ** 2) + b for c, b in zip(book, level.price, strict=True)]
            assert costs[code] <= min(costs) + 1e-5
            x = x - book[code]


def test_exact_ties_go_to_the_lowest_code_in_any_batch():
    quantizer = RqKmeans([Level.of(np.array([[1, 0], [0, 1], [-1, 0]], np.float32))])
    tied = np.array([[0.3, 0.3]], np.float32)  # as far from code 0 as from code 1
    assert quantizer.encode(tied).tolist() == [[0]]
    assert (quantizer.encode(np.repeat(tied, 1001, axis=0)) == 0).all()


def test_a_price_moves_the_border_by_its_share():
    """Two codes at -1 and 1: the border lies where (t + 1)^2 + 0.4 = (t - 1)^2, at t = -0.1."""
    level = Level.of(np.array([[-1, 0], [1, 0]], np.float32), np.array([0.4, 0.0]))
    quantizer = Balanced([level])
    t = np.array([[-0.101, 0.5], [-0.099, 0.5]], np.float32)
    assert quantizer.encode(t).tolist() == [[0], [1]]


def test_more_codes_than_distinct_points_is_an_error(residual):
    x = np.repeat(unit_points(7), 100, axis=0)
    with pytest.raises(ValueError, match="level 1: expected at least 8 distinct vectors .* got 7 among 700"):
        type(residual).fit(x, config(8))


def test_too_few_distinct_residuals_names_the_level(residual):
    # 8 codes for 8 points leave one residual: zero.
    with pytest.raises(ValueError, match="level 2: expected at least 2 distinct vectors .* got 1 among 8"):
        type(residual).fit(unit_points(8), config(8, 2))


def test_equal_vectors_are_an_error(residual):
    with pytest.raises(ValueError, match="level 1: expected at least 8 distinct vectors .* got 1 among 50"):
        type(residual).fit(np.repeat(unit_points(1), 50, axis=0), config(8))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3.0])
def test_unusable_vector_is_refused_with_its_row(quantizer, bad):
    x = unit_points(50)
    x[3, 2] = bad
    with pytest.raises(ValueError, match="row 3: expected a finite vector"):
        quantizer.encode(x)
    with pytest.raises(ValueError, match="row 3: expected a finite vector"):
        type(quantizer).fit(x, config(4))


def test_wrong_shapes_and_codes_are_refused(points, quantizer):
    with pytest.raises(ValueError, match=r"expected vectors \[N, 8\], got \[2, 5\]"):
        quantizer.encode(np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"level 2: expected codes 0\.\.7, got -1\.\.0"):
        quantizer.decode(np.array([[0, 0], [0, -1]]))
    with pytest.raises(ValueError, match=r"expected codes \[N, 1\.\.3\]"):
        quantizer.decode(np.zeros((2, 4), int))
    with pytest.raises(ValueError, match="positive weights"):
        type(quantizer).fit(points, config(4), weights=np.zeros(len(points)))
    with pytest.raises(KeyError):
        type(quantizer).from_state({name: a for name, a in list(quantizer.state().items())[1:]})


@pytest.mark.parametrize("price", [[0.0], [0.0, -1.0], [0.0, np.nan], [0.0, 65.0]])
def test_prices_that_do_not_fit_are_refused(price):
    with pytest.raises(ValueError, match=r"expected a price in 0\.\.64"):
        Level.of(np.eye(2, dtype=np.float32), np.array(price))


def test_begins_with_the_means_of_older_codes():
    """Older codes that are right already keep their names, in either kind."""
    x = unit_points(400, seed=3)
    older = RqKmeans.fit(x, config(8, iterations=30))
    names = np.random.default_rng(0).permutation(8)
    start = names[older.encode(x)]
    again = RqKmeans.fit(x, config(8, iterations=1), start=start)
    assert (again.encode(x) == start).mean() > 0.98
    assert (Balanced.fit(x, config(8, iterations=1), start=start).encode(x) == start).mean() > 0.5
