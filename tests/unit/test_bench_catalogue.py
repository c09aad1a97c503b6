"""The seeded catalogue of the benchmarks and the requests of its users."""

import numpy as np
import pytest

from benchmarks import catalogue
from serving.model.features import FeatureSpec

SIZES = (64, 32, 16)


@pytest.mark.parametrize("count", [1, 500, 16_384])
def test_distinct_sorted_and_within_range(count):
    sids = catalogue.seeded_sids(count, SIZES)
    assert sids.shape == (count, 3)
    assert sids.dtype == np.int32
    assert (sids >= 0).all()
    assert (sids < SIZES).all()
    rows = [tuple(row) for row in sids.tolist()]
    assert rows == sorted(set(rows))


def test_the_seed_decides():
    first = catalogue.seeded_sids(1_000, SIZES, seed=3)
    np.testing.assert_array_equal(first, catalogue.seeded_sids(1_000, SIZES, seed=3))
    assert (first != catalogue.seeded_sids(1_000, SIZES, seed=4)).any()


def test_first_levels_are_skewed_and_the_hash_level_is_not():
    sids = catalogue.seeded_sids(200_000, (256, 256, 64))
    first, hashed = (np.bincount(sids[:, level], minlength=size) for level, size in ((0, 256), (2, 64)))
    below = np.bincount(sids[sids[:, 0] == first.argmax(), 1], minlength=256)
    # Log-normal shares with sigma 1: the standard deviation is 1.31 times the mean.
    assert 0.9 < first.std() / first.mean() < 2.0
    assert 0.6 < below.std() / below.mean() < 2.0
    assert hashed.std() / hashed.mean() < 0.05


@pytest.mark.parametrize(("count", "sizes"), [(0, SIZES), (16_385, SIZES), (5, (16,))])
def test_sizes_that_cannot_be_are_refused(count, sizes):
    with pytest.raises(ValueError, match="expected two levels or more"):
        catalogue.seeded_sids(count, sizes)


def test_snapshot_has_an_ad_for_every_sid():
    snapshot = catalogue.snapshot(700, SIZES, seed=1)
    assert snapshot.tokenizer_id == catalogue.TOKENIZER_ID
    assert snapshot.ad_ids.tolist() == list(range(1, 701))
    assert snapshot.trie.leaves == 700
    sids, known = snapshot.sids_of(snapshot.ad_ids)
    assert known.all()
    np.testing.assert_array_equal(sids, catalogue.seeded_sids(700, SIZES, seed=1))


def test_requests_are_good_ones():
    spec = FeatureSpec(levels=3, profile_sizes=(4, 9))
    snapshot = catalogue.snapshot(700, SIZES)
    requests = catalogue.requests(20, spec, snapshot, seed=5)
    for tensors in requests:
        assert catalogue.HISTORY[0] <= tensors["history_ad_ids"].shape[1] <= catalogue.HISTORY[1]
        features = catalogue.features(spec, snapshot, tensors)
        assert features.ignored == 0
        assert (features.slots[: spec.short_slots, 0] > 0).all()
    again = catalogue.requests(20, spec, snapshot, seed=5)
    assert all((a[name] == b[name]).all() for a, b in zip(requests, again, strict=True) for name in a)
