"""Which SIDs a request's list has: the best beams, some drawn of the others, and what the log led to.

Letters: n candidates, T SID levels, A ads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.index.keys import pack
from serving.index.snapshot import IndexSnapshot
from training.data.lists import CandidateFlag
from training.data.samples import RequestDataset
from training.rollout.sampling import draw


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What the log has of a request, ads int64.

    Attributes:
        impressions: those whose impression the log has, in its order: shown whatever came of it.
        shown: all that was shown; without impressions, a log knows only those that something came of.
        targets: what it led to.
    """

    impressions: np.ndarray
    shown: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The candidates of a request, those of the search first.

    Attributes:
        sids: int32 [n, T].
        ads: int64 [n].
        flags: uint8 [n].
        bought: bool [n], whether the request led to this very ad.
        log_p: float32, of those of the search; the others have none yet.
    """

    sids: np.ndarray
    ads: np.ndarray
    flags: np.ndarray
    bought: np.ndarray
    log_p: np.ndarray


def choose(log_p: np.ndarray, *, best: int, sampled: int, random: np.random.Generator) -> np.ndarray:
    """Positions int64 of the beams of a list, ascending: the `best` first ones, `sampled` of the others.

    Args:
        log_p: float32 [n], descending.
        best: how many of the first.
        sampled: how many of the others.
        random: of the draw.
    """
    first = np.arange(min(best, len(log_p)))
    return np.concatenate([first, len(first) + draw(log_p[len(first) :], sampled, random=random)])


def candidates_of(
    sids: np.ndarray,
    log_p: np.ndarray,
    *,
    best: int,
    log: Logged,
    dataset: RequestDataset,
    snapshot: IndexSnapshot,
    hidden: np.ndarray,
) -> Candidates:
    """The list of a request: what was chosen of its beams, and targets whose SIDs are not among them.

    The ad of a beam is, of the ads of its SID, the first whose impression the request has, else the first
    that is live. What came of the request has no say: a reward must not know it. So a purchase of another ad
    of such a SID is told by `LOGGED` alone, which is of the SID.

    Args:
        sids: int32 [n, T], the chosen beams; live all.
        log_p: float32 [n].
        best: the first so many of them are the model's best, the others were drawn.
        log: what the log has of the request.
        dataset: SIDs of all ads.
        snapshot: the index that was searched.
        hidden: ads of the index that the request may not be shown.
    """
    sizes = snapshot.level_sizes

    def of_ads(ads: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Packed SIDs of ads, each once; an ad and the SID of each."""
        codes = dataset.ad_sids[np.searchsorted(dataset.ad_ids, ads)]
        keys, first = np.unique(pack(codes, sizes), return_index=True)
        return keys, ads[first], codes[first]

    own = pack(sids, sizes)
    target_keys, target_ads, target_sids = of_ads(log.targets)
    shown_keys, _, _ = of_ads(log.shown)
    known_keys, known_ads, _ = of_ads(log.impressions)
    ads = _first_ads(snapshot, sids, hidden=hidden)
    if len(known_keys):
        at = np.minimum(np.searchsorted(known_keys, own), len(known_keys) - 1)
        ads = np.where(known_keys[at] == own, known_ads[at], ads)
    flags = np.full(len(own), CandidateFlag.OWN, np.uint8)
    flags[best:] |= CandidateFlag.EXPLORED
    flags[np.isin(own, shown_keys)] |= CandidateFlag.LOGGED
    left = ~np.isin(target_keys, own)
    return Candidates(
        sids=np.concatenate([sids, target_sids[left]]).astype(np.int32),
        ads=np.concatenate([ads, target_ads[left]]),
        flags=np.concatenate([flags, np.full(int(left.sum()), CandidateFlag.LOGGED, np.uint8)]),
        bought=np.concatenate([np.isin(ads, log.targets), np.ones(int(left.sum()), bool)]),
        log_p=log_p,
    )


def _first_ads(snapshot: IndexSnapshot, sids: np.ndarray, *, hidden: np.ndarray) -> np.ndarray:
    """The first ad of each live SID that is not hidden, int64 [n]."""
    rows, ads = snapshot.ads_of_sids(sids)
    there = ~np.isin(ads, hidden)
    at, first = np.unique(rows[there], return_index=True)
    found = np.full(len(sids), -1, np.int64)
    found[at] = ads[there][first]
    return found
