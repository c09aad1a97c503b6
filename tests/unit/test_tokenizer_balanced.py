"""Balanced residual k-means: shares of the codes, against plain k-means and against what is possible."""

import numpy as np
import pytest

import training.tokenizer.quantizers.balanced as module
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.quantizers.balanced import Balanced
from training.tokenizer.quantizers.rq_kmeans import RqKmeans

CONFIG = TokenizerConfig(codebook_sizes=(32, 16), seed=1)


@pytest.fixture(scope="module")
def heaps():
    """Tight heaps of very different size on a sphere, as texts of shelves are."""
    random = np.random.default_rng(7)
    centres = random.normal(size=(40, 12))
    sizes = np.maximum(3000 / np.arange(1, 41) ** 1.2, 5).astype(int)
    x = np.repeat(centres, sizes, axis=0) + 0.25 * random.normal(size=(sizes.sum(), 12))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def shares(codes, size, weights=None):
    mass = np.bincount(codes, weights=weights, minlength=size)
    return mass / mass.mean()


def gini(mass):
    return float(np.abs(mass[:, None] - mass).mean() / (2 * mass.mean()))


def test_codes_have_equal_shares_where_plain_ones_have_not(heaps):
    balanced, plain = Balanced.fit(heaps, CONFIG).encode(heaps), RqKmeans.fit(heaps, CONFIG).encode(heaps)
    for level, size in enumerate(CONFIG.codebook_sizes):
        even, uneven = shares(balanced[:, level], size), shares(plain[:, level], size)
        assert gini(uneven) > 0.15
        assert gini(even) < 0.04
        assert even.max() < 1.25
        assert even.min() > 0


def test_unseen_vectors_are_as_even(heaps):
    half = np.random.default_rng(0).random(len(heaps)) < 0.5
    codes = Balanced.fit(heaps[half], CONFIG).encode(heaps[~half])
    assert gini(shares(codes[:, 0], 32)) < 0.12


def test_a_vector_heavier_than_a_share_keeps_a_code_of_its_own(heaps):
    weights = np.ones(len(heaps))
    weights[17] = 1000  # m is about 350
    codes = Balanced.fit(heaps, CONFIG, weights=weights).encode(heaps)[:, 0]
    mass = shares(codes, 32, weights)
    m = weights.sum() / 32
    assert mass[codes[17]] * m < 1000 + 0.2 * m
    others = np.delete(mass, codes[17])
    assert gini(others) < 0.05


def test_a_sample_gives_even_shares_too(heaps, monkeypatch):
    monkeypatch.setattr(module, "MIN_SAMPLE", 0)
    monkeypatch.setattr(module, "SAMPLE", 32)
    assert len(heaps) > 4 * 32 * 32
    codes = Balanced.fit(heaps, CONFIG).encode(heaps)
    for level, size in enumerate(CONFIG.codebook_sizes):
        assert gini(shares(codes[:, level], size)) < 0.05


def test_as_many_codes_as_points_gives_each_its_own():
    x = np.random.default_rng(0).normal(size=(24, 4))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    codes = Balanced.fit(x, TokenizerConfig(codebook_sizes=(24,))).encode(x)
    assert len(np.unique(codes)) == 24


def test_a_refit_from_older_codes_keeps_them_and_is_as_even(heaps):
    """What was balanced needs no codes that move: those would be other codes."""
    older = Balanced.fit(heaps, CONFIG).encode(heaps)
    again = Balanced.fit(heaps, CONFIG.model_copy(update={"seed": 9}), start=older).encode(heaps)
    kept = again == older
    assert kept[:, 0].mean() > 0.9
    assert kept.all(axis=1).mean() > 0.75
    for level, size in enumerate(CONFIG.codebook_sizes):
        assert gini(shares(again[:, level], size)) < 0.04


def test_a_refit_from_uneven_codes_becomes_even(heaps):
    older = RqKmeans.fit(heaps, CONFIG).encode(heaps)
    codes = Balanced.fit(heaps, CONFIG, start=older).encode(heaps)
    for level, size in enumerate(CONFIG.codebook_sizes):
        assert gini(shares(older[:, level], size)) > 0.15
        assert gini(shares(codes[:, level], size)) < 0.05
