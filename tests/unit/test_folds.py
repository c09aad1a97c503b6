"""Folds of users against SplitMix64 in whole numbers of any size."""

import numpy as np
import pytest

from training.data.folds import user_fold

WORD = (1 << 64) - 1


def plain_mixed(word):
    word = (word + 0x9E3779B97F4A7C15) & WORD
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31


@pytest.mark.parametrize(("folds", "seed"), [(1, 0), (2, 0), (5, 7), (127, (1 << 63) - 1)])
def test_a_fold_is_the_hash_of_seed_and_id(folds, seed):
    ids = np.array([0, 1, 2, 17, 1 << 40, (1 << 63) - 1])
    expected = [plain_mixed(int(i) ^ plain_mixed(seed)) % folds for i in ids]
    found = user_fold(ids, folds=folds, seed=seed)
    assert found.dtype == np.int8
    assert found.tolist() == expected


def test_the_hash_is_the_published_one():
    assert plain_mixed(0) == 0xE220A8397B1DCDAF  # first output of SplitMix64 from state 0


def test_folds_are_even_and_those_of_two_seeds_have_nothing_to_do_with_each_other():
    ids = np.arange(20_000)
    table = np.zeros((4, 4))
    np.add.at(table, (user_fold(ids, folds=4, seed=0), user_fold(ids, folds=4, seed=1)), 1)
    assert abs(table / 20_000 - 1 / 16).max() < 0.006  # four standard deviations are 0.0068


def test_a_user_keeps_the_fold_whoever_else_is_there():
    ids = np.random.default_rng(0).integers(0, 1 << 62, 100)
    every = user_fold(ids, folds=3, seed=5)
    np.testing.assert_array_equal(user_fold(ids[50:], folds=3, seed=5), every[50:])
    assert user_fold(np.zeros(0, np.int64), folds=3, seed=5).shape == (0,)


@pytest.mark.parametrize("folds", [0, 128])
def test_folds_that_cannot_be(folds):
    with pytest.raises(ValueError, match=f"expected 1 to 127 folds of users, got {folds}"):
        user_fold(np.arange(3), folds=folds, seed=0)


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_seeds_that_cannot_be(seed):
    with pytest.raises(ValueError, match=f"expected a seed of folds from 0 to .*, got {seed}"):
        user_fold(np.arange(3), folds=2, seed=seed)
