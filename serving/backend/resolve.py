"""From beams to ads: live look-up, exclusion, one row a request.

Letters: n beams, T SID levels, k ads asked for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.index.eligible import NO_TERMS, Terms
from serving.index.reader import IndexReader
from serving.index.snapshot import Snapshot
from serving.model.bundle import read_manifest
from serving.search.per_account import within_cap
from serving.search.rank import RankBy, beam_worth

NO_AD = -1
FORGET_S = 60.0  # after which a generation that nobody asks for any more is no longer followed


class VersionSnapshots:
    """Snapshots by model version: beams are looked up in the generation that they were searched in."""

    def __init__(self, reader: IndexReader, bundles: str | Path) -> None:
        """Wire up."""
        self._reader, self._bundles = reader, Path(bundles)
        self._tokenizers: dict[int, str] = {}
        self._asked: dict[str, float] = {}

    def of(self, version: int) -> Snapshot:
        """Snapshot of the generation of a version's tokenizer.

        Raises:
            BundleError: there is no such version.
            IndexStoreError: its generation is not ready.
        """
        if version not in self._tokenizers:
            manifest = read_manifest(self._bundles / str(version), verify=False)
            self._tokenizers[version] = manifest.tokenizer_id
        name, now = self._tokenizers[version], time.monotonic()
        snapshot = self._reader.snapshot_of(name)
        self._asked[name] = now
        for other, asked in list(self._asked.items()) if len(self._asked) > 1 else ():
            if now - asked > FORGET_S:
                self._reader.forget(other)
                del self._asked[other]
        return snapshot


@dataclass(frozen=True)
class Ads:
    """Ads of one request, best first.

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

    def take(self, rows: np.ndarray) -> Ads:
        """Some of the ads, int64 [k], in that order."""
        return Ads(self.ad_ids[rows], self.scores[rows], self.expected_value[rows], self.sids[rows])

    def padded(self, count: int) -> Ads:
        """The first `count` ads, filled up with padding where there are fewer."""
        kept = min(count, len(self.ad_ids))
        # Padding is finite: an answer as JSON knows no infinity.
        out = Ads(
            np.full(count, NO_AD, np.int64),
            np.zeros(count, np.float32),
            np.zeros(count, np.float32),
            np.full((count, self.sids.shape[1]), -1, np.int32),
        )
        for name, array in vars(out).items():
            array[:kept] = getattr(self, name)[:kept]
        return out


def resolve(
    snapshot: Snapshot,
    sids: np.ndarray,
    *,
    scores: np.ndarray,
    expected_value: np.ndarray,
    num_ads: int,
    exclude: np.ndarray,
    rank_by: RankBy = "probability",
    terms: Terms = NO_TERMS,
    max_per_account: int = 0,
) -> Ads:
    """Active ads of the beams, best beam first, padded to `num_ads`; see `find_ads`."""
    found = find_ads(
        snapshot,
        sids,
        scores=scores,
        expected_value=expected_value,
        num_ads=num_ads,
        exclude=exclude,
        rank_by=rank_by,
        terms=terms,
        max_per_account=max_per_account,
    )
    return found.padded(num_ads)


def find_ads(
    snapshot: Snapshot,
    sids: np.ndarray,
    *,
    scores: np.ndarray,
    expected_value: np.ndarray,
    num_ads: int,
    exclude: np.ndarray,
    rank_by: RankBy,
    pool: int = 0,
    terms: Terms = NO_TERMS,
    max_per_account: int = 0,
) -> Ads:
    """Active ads of the beams that a request may be shown, best beam first; those of a SID follow by ad id.

    Args:
        snapshot: index as of now; a beam whose SID is no longer live yields nothing.
        sids: int32 [n, T], -1 rows are padding.
        scores: float32 [n].
        expected_value: float32 [n].
        num_ads: asked for.
        exclude: int64, ads not to return.
        rank_by: what makes a beam better, see `serving.search.rank`.
        pool: so many instead, where that is more, of those whose beams have a value.
        terms: of the request.
        max_per_account: most ads of one account, the best ones; 0 for any number.
    """
    # Equals stay in the order of the search; so do, by probability, all.
    order = np.argsort(-beam_worth(scores, expected_value, by=rank_by), kind="stable")
    sids, scores, expected_value = sids[order], scores[order], expected_value[order]
    rows, ads = snapshot.ads_of_sids(sids)
    if len(exclude):
        kept = ~np.isin(ads, exclude)
        rows, ads = rows[kept], ads[kept]
    if snapshot.audiences is not None or terms.excluded_accounts:
        kept = snapshot.shown(ads, terms)
        rows, ads = rows[kept], ads[kept]
    if max_per_account:
        kept = within_cap(snapshot.traits_of(ads)[1], max_per_account)
        rows, ads = rows[kept], ads[kept]
    valued = int(np.count_nonzero(~np.isnan(expected_value[rows])))  # the first ones, in every order
    rows, ads = (a[: max(num_ads, min(pool, valued))] for a in (rows, ads))
    # A beam behind the value width has none; it is reached when the index changed after the search.
    return Ads(ads, scores[rows], np.nan_to_num(expected_value[rows]), sids[rows])
