"""Synthetic bids: what an advertiser pays at most for a purchase, in the price shape of a real exchange.

An advertiser bids a multiple of what a purchase of his ad is worth. The multiple is drawn by ad and round
from the prices that `fit_bids` was fitted to, scaled to a mean of 1. It knows no user and no other ad, so
bids tell nothing about taste. Letters: N any shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from scipy.special import ndtri

from benchmarks.simulation.draws import BIDS, uniform
from serving.files import read_object

PATH = Path(__file__).with_name("ipinyou.json")  # what `fit_bids` wrote


@dataclass(frozen=True)
class PriceShape:
    """Mixture of log-normals within limits; C components.

    Attributes:
        weights: float64 [C], sum 1.
        means: float64 [C], of log(price).
        deviations: float64 [C], of log(price).
        limits: lowest and highest price.
        floor_share: mean floor / mean price.
    """

    weights: np.ndarray
    means: np.ndarray
    deviations: np.ndarray
    limits: tuple[float, float]
    floor_share: float

    @classmethod
    def load(cls) -> Self:
        """The parameters that are shipped."""
        found = read_object(PATH)
        return cls(
            weights=np.array(found["weights"]),
            means=np.array(found["means"]),
            deviations=np.array(found["deviations"]),
            limits=(found["lowest"], found["highest"]),
            floor_share=found["floor_share"],
        )

    def prices(self, component: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Prices of two uniform draws each: which component, and the place in its distribution."""
        c = np.minimum(np.searchsorted(np.cumsum(self.weights), component), len(self.weights) - 1)
        return np.clip(np.exp(self.means[c] + self.deviations[c] * ndtri(place)), *self.limits)

    @cached_property
    def mean(self) -> float:
        """Mean price, at ten thousand places of each component."""
        places = (np.arange(10_000) + 0.5) / 10_000
        middles = np.cumsum(self.weights) - self.weights / 2
        return float(self.weights @ [self.prices(middle, places).mean() for middle in middles])


def multiples(ads: np.ndarray, turn: int | np.ndarray, *, shape: PriceShape, seed: int) -> np.ndarray:
    """What ads bid in round `turn`, as a multiple of their value; float64, mean 1 over ads.

    Args:
        ads: int64 ids, any shape.
        turn: number of the round, or numbers of a shape that broadcasts with it.
        shape: of the prices.
        seed: of the simulation.
    """
    component, place = (uniform(ads, turn, half, stream=BIDS, seed=seed) for half in (0, 1))
    return shape.prices(component, place) / shape.mean
