"""Answers with at most so many ads of an account: searched on without the accounts that are full.

The answer is the greedy one (`serving.search.per_account`). Where the first search has too few accounts for
it, all that is missing is of others: one more search without the full accounts finds the best of them, and
every search fills another account or is the last. Letters: n beams, T SID levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from serving.batch import SearchAnswer, SearchRequest
from serving.index.keys import pack_valid
from serving.index.snapshot import Snapshot
from serving.search.beams import Beams
from serving.search.per_account import full, within_cap
from serving.search.rank import RankBy, beam_worth


def with_enough_accounts(
    answer: SearchAnswer,
    request: SearchRequest,
    snapshot: Snapshot,
    *,
    again: Callable[..., Beams],
) -> SearchAnswer:
    """The answer with beams for `num_ads` ads, at most `max_per_account` of each account, or all there are.

    Args:
        answer: of a search.
        request: what it answers.
        snapshot: index that was searched.
        again: searches for this request alone, with other `terms` (a list of one).
    """
    most, left = request.max_per_account, request.terms
    while True:
        accounts = _accounts(answer, request, snapshot)
        kept = within_cap(accounts, most)
        done = set(left.excluded_accounts).issuperset(more := full(accounts[kept], most))
        if np.count_nonzero(kept) >= request.num_ads or done:
            return answer
        left = replace(left, excluded_accounts=tuple(sorted({*left.excluded_accounts, *more})))
        answer = _joined(answer, again(terms=[left]), level_sizes=snapshot.level_sizes)


def _accounts(answer: SearchAnswer, request: SearchRequest, snapshot: Snapshot) -> np.ndarray:
    """Of the ads that the answer would have without a cap, best first, int64."""
    by: RankBy = "value" if request.by_value else "probability"
    order = np.argsort(-beam_worth(answer.scores, answer.expected_value, by=by), kind="stable")
    _, ads = snapshot.ads_of_sids(answer.sids[order])
    ads = ads[~np.isin(ads, request.exclude) & snapshot.shown(ads, request.terms)]
    return snapshot.traits_of(ads)[1]


def _joined(answer: SearchAnswer, found: Beams, *, level_sizes: tuple[int, ...]) -> SearchAnswer:
    """With the beams of one more search, each SID once, best first."""
    sids = np.concatenate([answer.sids, found.sids[0]])
    scores = np.concatenate([answer.scores, found.scores[0]])
    values = np.concatenate([answer.expected_value, found.expected_value[0]])
    # Of two of a SID the one with a value; padding has no score.
    order = np.lexsort((np.isnan(values), -scores))
    order = order[scores[order] > -np.inf]
    first = np.unique(pack_valid(sids[order], level_sizes), return_index=True)[1]
    kept = order[np.sort(first)]
    return replace(answer, sids=sids[kept], scores=scores[kept], expected_value=values[kept])
