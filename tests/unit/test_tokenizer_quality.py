"""Quality figures against an example counted by hand."""

import numpy as np
import pytest

from training.tokenizer.definitions import DEFINITIONS
from training.tokenizer.quality import Vectors, gini, sid_quality

# Six ads, four SIDs: (0,0,0) three times, the others once.
SIDS = np.array([[0, 0, 0], [1, 0, 2], [0, 0, 0], [1, 1, 2], [0, 0, 0], [3, 1, 1]], np.int32)


def test_equals_hand_count():
    quality = sid_quality(SIDS, (4, 2, 5))
    assert quality.ads == 6
    assert quality.distinct_sids == 4
    assert quality.compression == pytest.approx(6 / 4)
    assert quality.collision == pytest.approx(3 / 6)
    assert quality.utilisation == pytest.approx(4 / 40)
    assert quality.level_use == pytest.approx((3 / 4, 2 / 2, 3 / 5))
    assert quality.dead_codes == (1, 0, 2)
    assert quality.largest == pytest.approx((3 / 1.5, 4 / 3, 3 / 1.2))
    # Of 0, 1, 2, 3 ads: the mean difference of two codes is 20 / 16, twice their mean 3.
    assert quality.gini[0] == pytest.approx(20 / 16 / 3)
    assert (quality.collision_floor, quality.reconstruction, quality.path_similarity) == (None, None, None)


def test_gini_is_the_mean_difference():
    counts = np.random.default_rng(0).integers(0, 50, 40)
    differences = [abs(a - b) for a in counts.tolist() for b in counts.tolist()]
    assert gini(counts) == pytest.approx(np.mean(differences) / (2 * counts.mean()))
    assert gini(np.full(7, 3)) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 9])) == pytest.approx(3 / 4)


def test_figures_of_vectors_equal_plain_loops():
    random = np.random.default_rng(4)
    content = random.integers(0, 12, 40)
    vectors = random.normal(size=(12, 3))
    prefixes = random.integers(0, 2, (12, 2))  # a prefix belongs to a content
    sids = np.concatenate([prefixes[content], random.integers(0, 4, (40, 1))], axis=1)
    x = vectors[content]
    decoded = x + random.normal(size=x.shape) * 0.3
    quality = sid_quality(sids, (2, 2, 4), vectors=Vectors(content, x=x, decoded=decoded))

    pairs = list(zip(content.tolist(), sids[:, -1].tolist(), strict=True))
    assert quality.collision_floor == pytest.approx(np.mean([pairs.count(pair) > 1 for pair in pairs]))
    missed = sum(((a - b) ** 2).sum() for a, b in zip(x, decoded, strict=True))
    spread = sum(((a - x.mean(axis=0)) ** 2).sum() for a in x)
    assert quality.reconstruction == pytest.approx(missed / spread)
    means = []
    for prefix in {tuple(p) for p in prefixes[np.unique(content)].tolist()}:
        inside = [i for i in np.unique(content) if tuple(prefixes[i]) == prefix]
        cosines = [
            vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b])
            for a in inside
            for b in inside
            if a < b
        ]
        means += [np.mean(cosines)] if cosines else []
    assert quality.path_similarity == pytest.approx(np.mean(means))


def test_vectors_without_length_or_company_have_no_similarity():
    zero = Vectors(np.array([0, 1]), x=np.zeros((2, 3)), decoded=np.zeros((2, 3)))
    quality = sid_quality(np.zeros((2, 2), int), (2, 2), vectors=zero)
    assert (quality.reconstruction, quality.path_similarity) == (None, None)
    assert "path similarity  not known" in quality.format_table()


def test_unique_sids_have_no_collision():
    quality = sid_quality(np.array([[0, 1], [1, 0]]), (2, 2))
    assert (quality.compression, quality.collision, quality.utilisation) == (1, 0, 0.5)


def test_table_shows_figures_with_their_definitions():
    table = sid_quality(SIDS, (4, 2, 5)).format_table()
    assert "1.500" in table
    assert "50.00%" in table
    said = " ".join(table.split())
    for name, definition in DEFINITIONS.items():
        assert f"{name} {definition.meaning}" in said
        assert definition.papers in said
    assert max(map(len, table.splitlines())) <= 110


@pytest.mark.parametrize(
    ("sids", "message"),
    [
        (np.zeros((0, 3), np.int32), r"got \[0, 3\]"),
        (np.zeros((4, 2), np.int32), r"got \[4, 2\]"),
        (np.array([[0, 0, 0], [0, 2, 0]]), r"row 1, level 2: expected a code in 0\.\.1, got 2"),
        (np.array([[0, 0, -1]]), r"row 0, level 3: expected a code in 0\.\.4, got -1"),
    ],
)
def test_bad_sids_are_refused(sids, message):
    with pytest.raises(ValueError, match=message):
        sid_quality(sids, (4, 2, 5))
