"""What a page of ads earns: an auction for its slots, and what the user does with what it shows.

Both models answer the same user at the same time; bids and choices are drawn by (request, ad), so whoever
shows an ad meets the same bid and the same user. A model proposes candidates; the platform's ranker judges
them (auction `ranked` of `make simulate`), and here it is right: its probabilities are the true ones. So what
is compared is what the candidates are worth. Letters: n candidates, k slots, r rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.simulation.auction import NOBODY, hold
from benchmarks.simulation.bids import PriceShape, multiples
from benchmarks.simulation.draws import PURCHASES, uniform
from training.reward.reward_model import Scores

SLOTS = 8
ATTENTION = 1 / np.log2(np.arange(SLOTS) + 2)  # share of users that look at each slot
ROUNDS = 8
"""Bids that a page is judged on. The first round is what happens; the others only count in the mean."""
CLICKS = 4.0  # clicks a purchase, among those who look; at most everybody clicks


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        expected: revenue, over the rounds of bids and over what the user may do.
        worth: value of what is bought, likewise.
        alone: revenue as `expected`, were the auction held by the model's own probabilities (`alone`).
        paid: revenue of what happened.
        ads: int64, shown, the first slot first.
        clicked, bought: bool, of them.
        value: float64, of a purchase of each.
    """

    expected: float
    worth: float
    alone: float
    paid: float
    ads: np.ndarray
    clicked: np.ndarray
    bought: np.ndarray
    value: np.ndarray


def page(
    ads: np.ndarray, own: np.ndarray, *, true: Scores, request: int, shape: PriceShape, seed: int
) -> Page:
    """Hold the auctions of one answer.

    Args:
        ads: int64 [n], candidates.
        own: float64 [n], their probabilities by the model.
        true: float64 [n] each: as they are where the user looks, and the value of a purchase.
        request: its number, names the draws.
        shape: of bids.
        seed: of all draws.
    """
    if not len(ads):
        none = np.zeros(0, bool)
        return Page(0.0, 0.0, 0.0, 0.0, ads=ads, clicked=none, bought=none, value=true.value)
    turns = request * ROUNDS + np.arange(ROUNDS)
    bids = multiples(ads, turns[:, None], shape=shape, seed=seed) * true.value  # [r, n]
    reserves = np.broadcast_to(shape.floor_share * true.value, bids.shape)

    def held(estimates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Winners, prices and chances of a purchase, [r, k] each."""
        winners, price = hold(bids, np.broadcast_to(estimates, bids.shape), reserves=reserves, slots=SLOTS)
        found = np.where(winners == NOBODY, 0.0, true.p[np.maximum(winners, 0)] * ATTENTION)
        return winners, price, found

    _, own_price, own_chance = held(own)
    winners, price, chance = held(true.p)
    shown = winners[0] != NOBODY
    first = winners[0][shown]
    draw = uniform(ads[first], request, stream=PURCHASES, seed=seed)
    bought = draw < chance[0][shown]
    return Page(
        expected=float((chance * price).sum(axis=1).mean()),
        worth=float((chance * true.value[np.maximum(winners, 0)]).sum(axis=1).mean()),
        alone=float((own_chance * own_price).sum(axis=1).mean()),
        paid=float(price[0][shown][bought].sum()),
        ads=ads[first],
        clicked=draw < np.minimum(CLICKS * chance[0][shown], ATTENTION[shown]),
        bought=bought,
        value=true.value[first],
    )
