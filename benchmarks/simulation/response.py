"""Ground truth of the simulation: how probable it is that a user buys an ad, and what the purchase is worth.

A log-linear Poisson model with factors. The rate at which request (u, t) buys ad a is

    log rate = b_a + x(u, t) . e_a + s size(u, t)                                       ad new to the user
    log rate = o + g_b b_a + g_x x(u, t) . e_a + c . own(u, t, a) + s size(u, t)        ad of his past
    P(buy) = 1 - exp(-rate)

b_a: how often others bought the ad, and a free part. x: mean of the factors q of the ads of the user's past,
two decays, each with its gates g. e_a, q_a: factors of the ad and of the words of its text, so that ads with
few purchases borrow from others. own: in which share of his
past requests the user bought the ad, by decay. Nothing is a tree, nothing
is a semantic ID, and nothing is shared with the reward model. `response_fit` fits it on users and weeks that
are not judged. The value of a purchase is the ad's mean there, shrunk to that of ads with the same text, and
that to the mean of all.

Letters: A ads, W words, F factors, k kernels, n candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.simulation.history import Past
from serving.files import new_file
from training.data.groups import TargetGroups
from training.data.samples import RequestDataset
from training.reward.reward_model import Scores

MOST_LOG_RATE = 2.0  # P(buy) = .9994


@dataclass(frozen=True)
class ResponseModel:
    """Fitted arrays, float32; rows are those of a dataset's `ad_ids`.

    Attributes:
        ad_ids: int64 [A], whose rows they are.
        behaviors: int64, codes of the behaviors that count as a purchase.
        bias: [A], b.
        candidate: [A, F], e_a.
        past: [A, F], q_a.
        gates: [2, F], g of each decay.
        own: [k], c.
        own_gates: [3], o, g_b and g_x.
        size: [1], s.
        value: [A], value of a purchase.
    """

    ad_ids: np.ndarray
    behaviors: np.ndarray
    bias: np.ndarray
    candidate: np.ndarray
    past: np.ndarray
    gates: np.ndarray
    own: np.ndarray
    own_gates: np.ndarray
    size: np.ndarray
    value: np.ndarray

    def score(self, dataset: RequestDataset, groups: TargetGroups, row: int, ads: np.ndarray) -> Scores:
        """Of ads, ids int64 [n], in request `row`.

        Raises:
            ValueError: the model was fitted on other ads.
        """
        if not np.array_equal(dataset.ad_ids, self.ad_ids):
            raise ValueError(
                f"response model: expected the {len(self.ad_ids)} ads it was fitted on, got a dataset of "
                f"{len(dataset.ad_ids)} others"
            )
        past = Past.of(dataset, groups, row, behaviors=self.behaviors)
        return self.score_after(past, np.searchsorted(self.ad_ids, ads))

    def taste(self, past: Past) -> np.ndarray:
        """X of a user, [F]."""
        return (past.taste.T @ self.past[past.ads] * self.gates).sum(axis=0)

    def score_after(self, past: Past, rows: np.ndarray, *, shift: np.ndarray | float = 0.0) -> Scores:
        """Of ads, rows int64 [n], after a past; `shift` [n] is added to the log rates."""
        taste = self.taste(past)
        bias, liking = self.bias[rows], self.candidate[rows] @ taste
        log_rate = bias + liking
        if len(past.ads):
            at = np.minimum(np.searchsorted(past.ads, rows), len(past.ads) - 1)
            offset, of_bias, of_liking = self.own_gates
            own = offset + of_bias * bias + of_liking * liking + past.own[at] @ self.own
            log_rate = np.where(past.ads[at] == rows, own, log_rate)
        log_rate = log_rate + self.size[0] * past.size + shift
        p = -np.expm1(-np.exp(np.minimum(log_rate, MOST_LOG_RATE)))
        return Scores(p.astype(np.float64), self.value[rows].astype(np.float64))

    def save(self, path: Path) -> None:
        """Write, whole or not."""
        with new_file(path) as partial:
            save_file({f.name: getattr(self, f.name) for f in fields(self)}, partial)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        return cls(**load_file(path))
