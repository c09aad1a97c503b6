"""Vectors of the texts that were met last, without the texts."""

import sys

import numpy as np

from indexer.encode.remembered import Remembered


def counted(*, most):
    asked = []

    def make(text):
        asked.append(text[:1])
        return np.array([len(text)], np.int64)

    return Remembered(make, most=most), asked


def test_the_texts_met_last_are_known():
    remembered, asked = counted(most=2)
    assert [int(remembered(text)[0]) for text in ("a", "bb", "a", "ccc", "a", "bb")] == [1, 2, 1, 3, 1, 2]
    assert asked == ["a", "b", "c", "b"]  # c took the place of bb, which was met before a


def test_texts_are_not_kept():
    remembered, _ = counted(most=100)
    texts = [str(i) * 100_000 for i in range(9)]
    for text in texts:
        before = sys.getrefcount(text)
        remembered(text)
        assert sys.getrefcount(text) == before
