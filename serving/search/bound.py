"""Exact pruning: what a beam must reach to have anything to do with the answer.

log p never grows along a beam: a level adds a log-probability, with a copy path that of the mixture, and
`ColdStart` lifts a child to its prefix at most. So a beam's score bounds all that is below it, and where the
answer is made of the n best SIDs, whatever lies below the n-th of any n live SIDs is not in it. A narrow
search finds such n; the search itself then leaves out what lies below.

That changes no answer. A level keeps the first candidates in order of their scores, as many as its width (and
`needed`) say. What is left out are the last ones, so what comes before stays what it was, and nothing is
let in that was not there. It must only be true of the n SIDs that the search itself would find them. Where
a level keeps one of their prefixes, it does. Where it does not, it has kept beams that are all better than a
prefix above the bound, so all of its own: what was left out before would not have come among them, and from
there on nothing is left out.

With a copy path a level keeps beams by more than their score (`MixedLevel.favour`): by log (m + h SHARE^-l)
with l levels left, where a prefix has m of the model and h of habits. Neither m nor h grows along a beam, so
that does not either; it is never below the score, and at the last level it is the score. So all of this holds
with it in the score's place. Of what the level before the last has kept, a beam whose score is below the
bound is left out, too: the last level goes by scores, which are lower still below it. Where levels are live,
m and h are scaled anew at each, and nothing is left out.

Where the answer is the n SIDs of a pool that are worth most (p x value), what lies below the n-th best worth
over the largest value there is, is not in it either: no value would make it worth as much. The same argument
holds, and if one of the n SIDs is not in the pool, all of the pool is better than what was left out.

Letters: B requests, m candidates, n beams, t a level, counted from 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from serving.index.rows import take_rows
from serving.search.beams import Beams

SLACK = np.float32(1e-4)
"""Log-probabilities of the same beam differ by rounding between two calls of different shapes."""

SPARE = 8
"""Beams behind those of the answer, for ads that are paused after the search. They have no value, and may
be others than those of an unpruned search."""

_WORTH = 16  # SIDs of the pool for each of the answer's, from which on their worth leaves out more than p
_FIRST = 54  # beams of the first levels beside as many as the answer has; fewest rows on the demo's model
_LAST = 4  # beams of the last level that has a tail, beside two for each of the answer's


@dataclass(frozen=True)
class Bound:
    """What a beam of each request must reach.

    Attributes:
        least: float32 [B], log-probability; -inf where nothing is left out.
        paths: for each level but the last, int [B, n]: nodes on the way to the SIDs that set it; -1 is
            padding.
        at_leaves: whether SIDs below it are left out, too.
    """

    least: np.ndarray
    paths: list[np.ndarray]
    at_leaves: bool = False

    @classmethod
    def of(cls, scores: np.ndarray, *, paths: list[np.ndarray], pool: np.ndarray) -> Bound:
        """Of a search that found SIDs.

        Args:
            scores: float32 [B, n], best first; -inf is padding.
            paths: nodes of each SID at every level but the last, int [B, n] each.
            pool: int [B], SIDs that the answer is made of.
        """
        found = scores.shape[1]
        last = take_rows(scores, np.minimum(pool, found)[:, None] - 1)[:, 0]
        setting = np.arange(found) < pool[:, None]
        return cls(
            least=np.where(pool <= found, last - SLACK, -np.inf).astype(np.float32),
            paths=[np.where(setting, nodes, -1) for nodes in paths],
        )

    @classmethod
    def of_worth(cls, beams: Beams, *, paths: list[np.ndarray], count: np.ndarray, top_value: float) -> Bound:
        """Of SIDs with values, for an answer of those that are worth most.

        Args:
            beams: SIDs that were found [B, n].
            paths: nodes of each at every level but the last, int [B, n] each.
            count: int [B], SIDs of an answer.
            top_value: no SID has a larger value.
        """
        worth = np.exp(beams.scores.astype(np.float64)) * beams.expected_value
        worth = np.where(np.isnan(worth), -np.inf, worth)
        order, found = np.argsort(-worth, axis=1, kind="stable"), worth.shape[1]
        last = take_rows(order, np.minimum(count, found)[:, None] - 1)
        of_last = take_rows(worth, last)[:, 0]
        known = (count <= found) & (of_last > 0) & (top_value > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            least = np.log(of_last / top_value) - SLACK
        setting = np.arange(found) < count[:, None]
        return cls(
            least=np.where(known, least, -np.inf).astype(np.float32),
            paths=[np.where(setting, take_rows(nodes, order), -1) for nodes in paths],
            at_leaves=True,
        )

    def cut(self, candidates: np.ndarray) -> np.ndarray:
        """Candidates float32 [B, m], those below the bound as none (-inf)."""
        return np.where(candidates >= self.least[:, None], candidates, np.float32(-np.inf))

    def above(self, kept: np.ndarray, *, scores: np.ndarray) -> np.ndarray:
        """Those of what a level kept, int [B, n] (-1 is padding), whose scores [B, n] reach it, [B, n']."""
        left = np.where(scores >= self.least[:, None], kept, -1)
        order = np.argsort(left < 0, axis=1, kind="stable")
        most = max(int((left >= 0).sum(axis=1).max()), 1)
        return take_rows(left, order[:, :most])

    def after(self, t: int, nodes: np.ndarray) -> Bound:
        """Once level t has kept nodes [B, n]: none where the search does not find the SIDs that set it."""
        path = self.paths[t]
        kept = (path[:, :, None] == nodes[:, None, :]).any(axis=2)
        lost = (~kept & (path >= 0)).any(axis=1)
        return replace(self, least=np.where(lost, np.float32(-np.inf), self.least))


def settled_by_worth(pool: np.ndarray, count: np.ndarray) -> bool:
    """Whether worth leaves out more than probability: answers of `count` int [B] of a `pool` int [B]."""
    return int(pool.min()) > _WORTH * int(count.max())


def valued_first(count: int) -> int:
    """SIDs of a narrow search that get a value, for an answer of `count`."""
    return 2 * count + _LAST


def narrow_widths(widths: tuple[int, ...], *, pool: int) -> tuple[int, ...]:
    """Of the search that finds the bound: beams after each level, for `pool` SIDs of an answer."""
    wanted = [pool + _FIRST] * (len(widths) - 2) + [2 * pool + _LAST, pool]
    return tuple(min(w, p) for w, p in zip(wanted, widths, strict=True))
