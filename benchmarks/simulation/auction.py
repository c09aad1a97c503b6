"""Generalised second-price auction of a few slots with a reserve, and what users buy of what it shows.

An ad is scored by bid x estimate, the platform's estimate of the purchase probability (Varian, 2007; Edelman
et al., 2007). The slots go to the highest scores, the first slot to the best. The ad in slot i pays for a
purchase the least bid that keeps its place: score of the next ad / own estimate, at least its reserve.

Letters: N auctions, n candidates, k slots, R requests, D rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.simulation.bids import PriceShape, multiples
from benchmarks.simulation.draws import PURCHASES, uniform
from training.reward.reward_model import Scores

NOBODY = -1


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What does not depend on who is shown.

    Attributes:
        attention: of each of the k slots, share of users that look at it.
        reserve: lowest bid that takes part, as a multiple of the ad's value.
        rounds: D, times that each request is replayed with other bids and other purchases.
        seed: of all draws.
    """

    attention: tuple[float, ...]
    reserve: float
    rounds: int
    seed: int


def hold(
    bids: np.ndarray, estimates: np.ndarray, *, reserves: np.ndarray, slots: int
) -> tuple[np.ndarray, np.ndarray]:
    """Who gets the slots of N auctions, and the price of a purchase.

    A candidate takes part with a score above 0 and a bid of at least its reserve; of equal scores the earlier
    candidate wins.

    Args:
        bids: float64 [N, n], most that is paid for a purchase.
        estimates: float64 [N, n], purchase probability as the platform sees it.
        reserves: float64 [N, n], least that is paid.
        slots: k.

    Returns:
        Candidates int64 [N, k], `NOBODY` where a slot stays empty, and prices float64 [N, k], 0 there.
    """
    score = np.where(bids >= reserves, bids * estimates, 0.0)
    score = np.pad(score, ((0, 0), (0, max(0, slots + 1 - score.shape[1]))))
    order = np.argsort(-score, axis=1, kind="stable")[:, : slots + 1]
    best = np.take_along_axis(score, order, 1)  # [N, k + 1]
    shown = best[:, :slots] > 0
    winners = np.where(shown, order[:, :slots], NOBODY)
    at = np.where(shown, winners, 0)
    own = np.where(shown, np.take_along_axis(estimates, at, 1), 1.0)
    price = np.maximum(best[:, 1:] / own, np.take_along_axis(reserves, at, 1))
    return winners, np.where(shown, price, 0.0)


def revenue(
    ads: np.ndarray,
    estimates: np.ndarray,
    *,
    true: Scores,
    requests: np.ndarray,
    rules: Rules,
    shape: PriceShape,
) -> np.ndarray:
    """What auctions among the candidates of R requests earn, mean over rounds, float64 [R].

    Args:
        ads: int64 [R, n], candidates; -1 is padding.
        estimates: float64 [R, n], of the platform.
        true: float64 [R, n] each: probability of a purchase where the user looks, and its value, which bids
            are multiples of.
        requests: int64 [R], which requests they are: names of the draws.
        rules: of the auction.
        shape: of bids.
    """
    there = np.where(ads >= 0, estimates, 0.0)
    attention, earned = np.array(rules.attention), np.zeros(len(ads))
    for turn in range(rules.rounds):
        bids = multiples(ads, turn, shape=shape, seed=rules.seed) * true.value
        winners, price = hold(bids, there, reserves=rules.reserve * true.value, slots=len(attention))
        at = np.maximum(winners, 0)
        shown = np.take_along_axis(ads, at, 1)
        draw = uniform(requests[:, None], shown, turn, stream=PURCHASES, seed=rules.seed)
        bought = draw < np.take_along_axis(true.p, at, 1) * attention
        earned += np.where(bought & (winners != NOBODY), price, 0.0).sum(axis=1)
    return earned / rules.rounds
