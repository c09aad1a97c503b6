"""The copy path in a search: habits that speak beside the model, exact at every level.

A model with a copy path gives each request a mixture, log(1 - g) for itself and log(g w_h) for each habit of
the user (`training.model.copy_path`), of which a SID has

    p(y | X) = (1 - g) p_model(y | X) + g sum_h w_h [sid_h = y]

Going down a level is Bayes' rule: the mixture given a prefix is the one before, each part times the
probability that it gave the last code, divided by their sum, which is the probability of that code given the
codes before it. A habit gives 1 to the next code of its SID and 0 to others, so it stands with one beam at
most, and what does not stand with a beam has nothing left to say of it. A habit whose SID is not live says
nothing from the start: what it would give a prefix no child gets.

Letters: B requests, n beams, C children of the beam that has most, H habits, T SID levels, t a level, counted
from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.index.rows import take_rows
from serving.index.trie import PrefixTree

NOWHERE = -1  # of a habit that stands with no beam
SHARE = 0.3  # of a prefix that a good child has, as a rule


@dataclass(frozen=True)
class CopyBeams:
    """The mixture of every beam, given its codes.

    Attributes:
        codes: int32 [B, H, T], SIDs of the habits.
        model: float32 [B, n], log of the model's part.
        habits: float32 [B, H], log of each habit's part of the mixture of the beam it stands with.
        beam: int [B, H], that beam, or `NOWHERE`.
    """

    codes: np.ndarray
    model: np.ndarray
    habits: np.ndarray
    beam: np.ndarray

    @classmethod
    def start(cls, copy_logprob: np.ndarray, slots: np.ndarray, *, trie: PrefixTree) -> CopyBeams:
        """Before the first level: one beam a request, without a code.

        Args:
            copy_logprob: float32 [B or more, 1 + H], of model and habits; rows past B are padding.
            slots: int32 [B, S + H, T + 3], the last H of them habits.
            trie: live SIDs.
        """
        own = copy_logprob[: len(slots)]
        habits = slots[:, slots.shape[1] + 1 - own.shape[1] :]
        codes = habits[..., : trie.levels] - np.int32(1)  # -1 in an empty row, which is no SID
        live = trie.find(codes.reshape(-1, trie.levels)).reshape(codes.shape[:2]) >= 0
        return cls(codes=codes, model=own[:, :1], habits=own[:, 1:], beam=np.where(live, 0, NOWHERE))

    def mix(self, t: int, logprob: np.ndarray, *, allowed: np.ndarray) -> MixedLevel:
        """What children get from the mixture.

        Args:
            t: level.
            logprob: float32 [B, n, C], of the model given a beam's codes; -inf is no child.
            allowed: int32 [B, n, C], their codes; -1 is no child.
        """
        of_model = self.model[:, :, None] + logprob
        row, habit = np.nonzero(self.beam != NOWHERE)
        at = self.beam[row, habit]
        same = allowed[row, at] == self.codes[row, habit, t][:, None]  # [habits that stand somewhere, C]
        column = same.argmax(axis=1)
        there = same[np.arange(len(column)), column]
        row, habit, at, column = row[there], habit[there], at[there], column[there]
        mixed = of_model.copy()
        np.logaddexp.at(mixed, (row, at, column), self.habits[row, habit])
        child = np.full(self.beam.shape, NOWHERE)
        child[row, habit] = at * logprob.shape[2] + column
        return MixedLevel(before=self, of_model=of_model, logprob=mixed, child=child)


@dataclass(frozen=True)
class MixedLevel:
    """A level's children under the mixture.

    Attributes:
        before: mixture of their beams.
        of_model: float32 [B, n, C], log of what the model adds to each child.
        logprob: float32 [B, n, C], log-probability of each child given its beam's codes: model and habits.
        child: int [B, H], the child (beam * C + column) that each habit goes on to, or `NOWHERE`.
    """

    before: CopyBeams
    of_model: np.ndarray
    logprob: np.ndarray
    child: np.ndarray

    def favour(self, candidates: np.ndarray, *, levels: int) -> np.ndarray:
        """What beams are chosen by where levels are left: scores, and more where habits speak, [B, n, C].

        A habit's part h of a prefix is all of one SID, the model's part m is yet to be shared out among many.
        So it is set beside m SHARE^levels, and what has no habit keeps its score:

            score + log(m SHARE^levels + h) - log(m + h) - levels log SHARE

        Args:
            candidates: float32 [B, n, C], scores.
            levels: that are left.
        """
        row, habit = np.nonzero(self.child != NOWHERE)
        at = np.unravel_index(self.child[row, habit], self.logprob.shape[1:])
        of_model = np.exp(self.of_model[row, *at] - self.logprob[row, *at])  # m / (m + h)
        favoured = candidates.copy()
        favoured[row, *at] += np.log(of_model + (1 - of_model) * SHARE**-levels)
        return favoured

    def follow(self, at: np.ndarray, *, kept: np.ndarray) -> CopyBeams:
        """The mixture of the beams that a level kept.

        Args:
            at: int [B, n'], children (beam * C + column); that of padding does not matter.
            kept: bool [B, n'], False for padding.
        """
        batch = len(at)
        mixed = self.logprob.reshape(batch, -1)  # [B, n * C]
        beam_of = np.full(mixed.shape, NOWHERE)
        row, beam = np.nonzero(kept)
        beam_of[row, at[row, beam]] = beam
        goes_on = self.child != NOWHERE
        child = np.where(goes_on, self.child, 0)
        # Padding stands at child 0, as what goes no further does. It may be none (-inf), and a difference of
        # two such is no number.
        of_kept = np.where(kept, take_rows(mixed, at), np.float32(0.0))
        of_child = np.where(goes_on, take_rows(mixed, child), np.float32(0.0))
        return CopyBeams(
            codes=self.before.codes,
            model=take_rows(self.of_model.reshape(batch, -1), at) - of_kept,
            habits=self.before.habits - of_child,
            beam=np.where(goes_on, take_rows(beam_of, child), NOWHERE),
        )
