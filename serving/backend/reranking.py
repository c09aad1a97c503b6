"""The ranking stage as the ad resolver runs it: which of a batch's answers are ordered once more, and how.

Letters: h past events, P columns of profile and request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from serving.backend.resolve import Ads
from serving.backend.served import Asked
from serving.index.snapshot import Snapshot
from serving.model.bundle import read_manifest
from serving.model.manifest import Manifest
from serving.ranking.ranker import Ranker, RankRequest, best_first

_KEPT = 2  # versions: between two of them requests are under way


class VersionRankers:
    """Rankers by model version: ads are ordered by that of the version that found them."""

    def __init__(self, bundles: str | Path, make: Callable[[Manifest], Ranker]) -> None:
        """Nothing is opened yet."""
        self._bundles, self._make = Path(bundles), make
        self._open: dict[int, Ranker] = {}  # the last one asked for at the end

    def of(self, version: int) -> Ranker:
        """Of a version.

        Raises:
            BundleError: there is no such version, it has no ranker, or one that is not what it should be.
        """
        ranker = self._open.pop(version, None)
        if ranker is None:
            ranker = self._make(read_manifest(self._bundles / str(version), verify=False))
        self._open[version] = ranker
        while len(self._open) > _KEPT:
            del self._open[next(iter(self._open))]
        return ranker


@dataclass(frozen=True, kw_only=True)
class Past:
    """What is known of a request that is to be ranked, as `request_features` hands it over.

    Attributes:
        ads: int64 [h], oldest first; -1 is padding.
        behaviors: int32 [h].
        times: int64 [h], unix seconds.
        now: unix seconds.
        profile: int32 [P].
    """

    ads: np.ndarray
    behaviors: np.ndarray
    times: np.ndarray
    now: int
    profile: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """One row of a request before it becomes an answer.

    Attributes:
        ads: found, at least as many as were asked for, where there are.
        num_ads: asked for.
        version: model version that searched.
        index_version: what is at least in it.
        snapshot: index that the ads were looked up in.
        past: None where the order stays.
        asked: what the served log says of the request; None where it says nothing.
    """

    ads: Ads
    num_ads: int
    version: int
    index_version: int
    snapshot: Snapshot
    past: Past | None = None
    asked: Asked | None = None


def rerank(rows: list[Resolved], rankers: VersionRankers) -> list[Resolved | Exception]:
    """Rows with the ads asked for, padded; those of one version are ranked by one call of its graph.

    Rows that cannot be ranked together are ranked one by one: what is wrong with one is not the others'.
    """
    answers: list[Resolved | Exception] = [replace(r, ads=r.ads.padded(r.num_ads)) for r in rows]
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        if row.past is not None and len(row.ads.ad_ids) > 1:
            groups.setdefault(row.version, []).append(i)
    for version, members in groups.items():
        for i, found in zip(members, _worth([rows[i] for i in members], rankers, version), strict=True):
            if isinstance(found, Exception):
                answers[i] = found
            else:
                row = rows[i]
                answers[i] = replace(row, ads=row.ads.take(best_first(found)).padded(row.num_ads))
    return answers


def _worth(rows: list[Resolved], rankers: VersionRankers, version: int) -> list[np.ndarray | Exception]:
    """Of the ads of each row, or why there is none."""
    try:
        return list(rankers.of(version).worth([_asked(row) for row in rows]))
    except Exception as error:  # noqa: BLE001  (one row must not take the others, or the server, down)
        if len(rows) == 1:
            return [error]
        return [found for row in rows for found in _worth([row], rankers, version)]


def _asked(row: Resolved) -> RankRequest:
    past = row.past
    assert past is not None
    sids, known = row.snapshot.sids_of(past.ads)  # not padding, nor what was deleted a moment ago
    return RankRequest(
        ads=row.ads.ad_ids,
        sids=row.ads.sids,
        log_p=row.ads.scores,
        past_ads=past.ads[known],
        past_sids=sids[known],
        past_behaviors=past.behaviors[known],
        past_times=past.times[known],
        now=past.now,
        profile=past.profile,
    )
