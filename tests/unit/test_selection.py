"""Top-k pre-cut against the full sort."""

import numpy as np
import pytest

from serving.search.selection import top_k


def full_sort(scores, k):
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(scores, order, 1) > -np.inf, order, -1)


@pytest.mark.parametrize(
    ("count", "k"),
    [
        (1, 1),
        (3, 7),  # fewer candidates than asked for
        (1000, 512),  # too few for groups
        (64, 7),  # 32 groups of 2
        (1000, 7),  # 28 of 35, and 20 candidates in none
        (4097, 1),  # 4 of 1024, and one in none
        (4097, 64),
    ],
)
@pytest.mark.parametrize("kind", ["distinct", "ties", "padding", "few", "none"])
def test_equals_the_full_sort(kind, count, k):
    random = np.random.default_rng([count, k])
    scores = random.normal(size=(5, count)).astype(np.float32)
    if kind == "ties":
        scores = np.round(scores)
    elif kind == "padding":
        scores[random.random(scores.shape) < 0.6] = -np.inf
    elif kind == "few":
        scores[:, 2:] = -np.inf
    elif kind == "none":
        scores[::2] = -np.inf
    np.testing.assert_array_equal(top_k(scores, k), full_sort(scores, k))


def test_sorted_input_of_every_kind_of_row():
    """Candidates in ascending and descending order, and all equal: groups whose maxima say little."""
    ascending = np.arange(4096, dtype=np.float32)
    scores = np.stack([ascending, ascending[::-1], np.zeros(4096, np.float32)])
    np.testing.assert_array_equal(top_k(scores, 100), full_sort(scores, 100))
