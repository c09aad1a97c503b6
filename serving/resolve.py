"""From beams to ads: live look-up, exclusion, one row a request.

Letters: n beams, T SID levels, k ads asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.index.snapshot import IndexSnapshot

NO_AD = -1


@dataclass(frozen=True)
class Ads:
    """Ads of one request, best first, padded to k.

    Attributes:
        ad_ids: int64 [k], -1 is padding.
        scores: float32 [k], log-probability of the ad's SID; 0 in padding.
        expected_value: float32 [k], eCPM; 0 in padding and where the search gave none.
        sids: int32 [k, T]; -1 is padding.
    """

    ad_ids: np.ndarray
    scores: np.ndarray
    expected_value: np.ndarray
    sids: np.ndarray


def resolve(
    snapshot: IndexSnapshot,
    sids: np.ndarray,
    *,
    scores: np.ndarray,
    expected_value: np.ndarray,
    num_ads: int,
    exclude: np.ndarray,
) -> Ads:
    """Active ads of the beams in the order of the beams; ads that share a SID follow each other by ad id.

    Args:
        snapshot: index as of now; a beam whose SID is no longer live yields nothing.
        sids: int32 [n, T], -1 rows are padding.
        scores: float32 [n].
        expected_value: float32 [n].
        num_ads: k.
        exclude: int64, ads not to return.
    """
    rows, ads = snapshot.ads_of_leaves(snapshot.leaves_of(sids))
    if len(exclude):
        kept = ~np.isin(ads, exclude)
        rows, ads = rows[kept], ads[kept]
    rows, ads = rows[:num_ads], ads[:num_ads]
    count = len(ads)
    # Padding is finite: an answer as JSON knows no infinity.
    out = Ads(
        np.full(num_ads, NO_AD, np.int64),
        np.zeros(num_ads, np.float32),
        np.zeros(num_ads, np.float32),
        np.full((num_ads, sids.shape[1]), -1, np.int32),
    )
    out.ad_ids[:count], out.scores[:count] = ads, scores[rows]
    # A beam behind the value width has none; it is reached when the index changed after the search.
    out.expected_value[:count], out.sids[:count] = np.nan_to_num(expected_value[rows]), sids[rows]
    return out
