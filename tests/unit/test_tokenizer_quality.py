"""Quality figures against an example counted by hand."""

import numpy as np
import pytest

from training.tokenizer.quality import DEFINITIONS, sid_quality

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


def test_unique_sids_have_no_collision():
    quality = sid_quality(np.array([[0, 1], [1, 0]]), (2, 2))
    assert (quality.compression, quality.collision, quality.utilisation) == (1, 0, 0.5)


def test_table_shows_figures_with_their_definitions():
    table = sid_quality(SIDS, (4, 2, 5)).format_table()
    assert "1.500" in table
    assert "50.00%" in table
    assert DEFINITIONS in table


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
