"""Targets and candidate lists side by side: padding, optional parts, and lists that do not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.data.batch import Sample, collate
from training.data.lists import CandidateFlag, CandidateList, pad_lists

OWN, LOGGED, SAMPLED = CandidateFlag.OWN, CandidateFlag.LOGGED, CandidateFlag.SAMPLED


def candidates(*rows, log_p=None, **changes):
    """Rows of (SID, ad, reward, flags)."""
    sids, ads, reward, flags = zip(*rows, strict=True) if rows else ((),) * 4
    columns = {
        "sids": np.array(sids, np.int32).reshape(-1, 2),
        "ads": np.array(ads, np.int64),
        "reward": np.array(reward, np.float32),
        "flags": np.array(flags, np.uint8),
        "log_p_ref": None if log_p is None else np.array(log_p, np.float32),
    }
    return CandidateList(**columns | changes)


def sample(fill, targets, *, found=None):
    return Sample(
        slots=np.full((3, 5), fill, np.int32),
        profile=np.array([fill], np.int32),
        tokens=np.array(targets, np.int64).reshape(-1, 2),
        value=np.arange(len(targets)),
        weight=np.full(len(targets), 0.5, np.float32),
        candidates=found,
        slot_ads=np.array([70 + fill, -1, 9]),
        ads=np.arange(len(targets)) + 100 * fill,
    )


def test_impressions_without_a_click_beside_positive_targets():
    clicked = sample(1, [(4, 5), (6, 7)])
    # Nothing was clicked: no target, but what was shown is a candidate of no worth; the model found another.
    ignored = sample(
        2,
        [],
        found=candidates(((4, 5), 70, 0.0, LOGGED), ((8, 9), -1, 1.5, OWN | SAMPLED), log_p=[-1.0, -2.5]),
    )
    batch = collate(
        [clicked, ignored, sample(3, [(1, 2)], found=candidates(((1, 2), 9, 3.0, OWN), log_p=[0]))]
    )
    assert batch.slots[:, 0, 0].tolist() == batch.profile[:, 0].tolist() == [1, 2, 3]
    assert batch.tokens.tolist() == [[[4, 5], [6, 7]], [[0, 0], [0, 0]], [[1, 2], [0, 0]]]
    assert batch.weight.tolist() == [[0.5, 0.5], [0, 0], [0.5, 0]]
    assert batch.value.tolist() == [[0, 1], [0, 0], [0, 0]]
    assert batch.slot_ads.tolist() == [[71, -1, 9], [72, -1, 9], [73, -1, 9]]
    assert batch.ads.tolist() == [[100, 101], [-1, -1], [300, -1]]
    lists = batch.lists
    assert lists.flags.tolist() == [[0, 0], [2, 5], [1, 0]]  # 0: nothing there
    assert lists.sids.tolist() == [[[0, 0], [0, 0]], [[4, 5], [8, 9]], [[1, 2], [0, 0]]]
    assert lists.ads.tolist() == [[-1, -1], [70, -1], [9, -1]]
    assert lists.reward.tolist() == [[0, 0], [0, 1.5], [3, 0]]
    assert lists.log_p_ref.tolist() == [[0, 0], [-1, -2.5], [0, 0]]
    dtypes = [a.dtype for a in (lists.sids, lists.ads, lists.reward, lists.flags, lists.log_p_ref)]
    assert dtypes == [np.int64, np.int64, np.float32, np.uint8, np.float32]


def test_lists_are_optional_and_so_is_the_reference():
    assert collate([sample(1, [(4, 5)]), sample(2, [(4, 5)])]).lists is None
    shown = collate([sample(1, [], found=candidates(((4, 5), 70, 0.0, LOGGED))), sample(2, [(4, 5)])])
    assert shown.lists.log_p_ref is None
    assert shown.lists.flags.tolist() == [[2], [0]]
    nothing = collate([sample(1, [], found=candidates())])  # asked for, and none found
    assert (nothing.tokens.shape, nothing.lists.sids.shape) == ((1, 0, 2), (1, 0, 2))


def test_every_array_reaches_the_device():
    batch = collate([sample(1, [(4, 5)], found=candidates(((4, 5), 70, 0.0, LOGGED)))]).map(torch.from_numpy)
    for part in (batch, batch.lists):
        arrays = {k: v for k, v in vars(part).items() if k not in ("lists", "log_p_ref")}
        assert all(isinstance(array, torch.Tensor) for array in arrays.values())
    assert batch.lists.log_p_ref is None
    assert collate([sample(1, [(4, 5)])]).map(torch.from_numpy).lists is None
    without = collate([sample(1, [(4, 5)]), replace(sample(1, [(4, 5)]), slot_ads=None, ads=None)])
    assert without.map(torch.from_numpy).ads is without.slot_ads is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sids": np.zeros(2, np.int32)}, r"expected sids \[n, T\], got \[2\]"),
        ({"reward": np.zeros(3, np.float32)}, r"expected reward \[2\], got \[3\]"),
        ({"log_p_ref": np.zeros((2, 1))}, r"expected log_p_ref \[2\], got \[2, 1\]"),
        ({"sids": np.array([[0, 0], [0, -1]])}, r"candidate 1, sids: expected codes >= 0, got \[ 0 -1\]"),
        ({"reward": np.array([0, np.nan])}, "candidate 1, reward: expected a finite number, got nan"),
        ({"flags": np.array([0, 1])}, r"candidate 0, flags: expected flags 1\.\.15, got 0"),
        ({"flags": np.array([15, 16])}, r"candidate 1, flags: expected flags 1\.\.15, got 16"),
        ({"ads": np.array([-1, -2])}, "candidate 1, ads: expected an ad or -1, got -2"),
        ({"log_p_ref": np.array([0, 0.1])}, "candidate 1, log_p_ref: expected a log-probability, got 0.1"),
        (
            {"log_p_ref": np.array([-np.inf, 0])},
            "candidate 0, log_p_ref: expected a log-probability, got -inf",
        ),
    ],
)
def test_candidates_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        candidates(((1, 2), 3, 0.0, OWN), ((1, 3), 4, 1.0, LOGGED), **changes)


def test_lists_that_do_not_fit_together():
    with_p, without = (candidates(((1, 2), 3, 0.0, OWN), log_p=p) for p in ([-1.0], None))
    some = pad_lists([with_p, None, without, with_p, candidates()], levels=2)
    np.testing.assert_array_equal(some.log_p_ref, np.array([[-1], [0], [np.nan], [-1], [0]], np.float32))
    assert pad_lists([without, None], levels=2).log_p_ref is None
    with pytest.raises(ValueError, match="context 1: expected SIDs of 3 levels, got 2"):
        pad_lists([None, with_p], levels=3)
    with pytest.raises(ValueError, match="expected at least one sample of a batch, got none"):
        collate([])
