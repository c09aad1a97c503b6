"""Nearest codes from lists while prices move, against a comparison with every code."""

import numpy as np
import pytest

import training.tokenizer.quantizers.candidates as module
from training.tokenizer.quantizers.candidates import Candidates
from training.tokenizer.quantizers.grid import on_grid
from training.tokenizer.quantizers.residual import Level

CODES = 60


@pytest.fixture
def points():
    return on_grid(np.random.default_rng(0).normal(size=(700, 5)) / 4)


@pytest.fixture
def codebook(points):
    book = points[:CODES] + np.float32(0.125)
    book[7] = book[3]  # equal codes: the lower one counts
    return book


@pytest.fixture
def listings(monkeypatch):
    """Points compared with all codes, a number a call."""
    counts = []
    inner = Candidates._list
    monkeypatch.setattr(Candidates, "_list", lambda self, rows: (counts.append(len(rows)), inner(self, rows)))
    return counts


def brute_force(points, level):
    """float64 is exact here: all are on the grid."""
    difference = points.astype(np.float64)[:, None] - level.codebook
    return ((difference * difference).sum(axis=2) + level.price).argmin(axis=1)


@pytest.mark.parametrize("step", [1e-5, 0.01, 0.3])
@pytest.mark.parametrize("listed", [1, 6, CODES, 2 * CODES])
def test_codes_are_those_of_all_codes_compared(points, codebook, monkeypatch, listed, step):
    monkeypatch.setattr(module, "LISTED", listed)
    monkeypatch.setattr(module, "LIST_ROWS", 300)
    random = np.random.default_rng(1)
    level = Level.of(codebook)
    near = Candidates(points, level)
    for _ in range(12):
        np.testing.assert_array_equal(near.nearest(level), brute_force(points, level))
        price = level.price + step * random.normal(size=CODES)
        level = Level.of(codebook, price - price.min())


def test_one_code_that_falls_from_the_end_of_all_lists(points, codebook, monkeypatch):
    monkeypatch.setattr(module, "LISTED", 4)
    dear, cheap = np.full(CODES, 5.0), np.full(CODES, 5.0)
    dear[11], cheap[11] = 20.0, 0.0
    near = Candidates(points, Level.of(codebook, dear))
    assert not (near.nearest(Level.of(codebook, dear)) == 11).any()
    level = Level.of(codebook, cheap)
    assert (near.nearest(level) == 11).all()
    assert (brute_force(points, level) == 11).all()


def test_small_steps_leave_most_lists_as_they_are(points, codebook, listings):
    level = Level.of(codebook)
    near = Candidates(points, level)
    for number in range(1, 11):
        near.nearest(Level.of(codebook, 1e-4 * number * (np.arange(CODES) % 3)))
    assert listings[0] == len(points)
    assert sum(listings[1:]) < len(points) / 10
