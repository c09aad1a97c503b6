"""Balanced residual k-means: every code of a level serves about the same share of the ads.

Balanced k-means asks for codes of equal mass: minimise sum_i w_i |r_i - C[a_i]|^2 with sum_{a_i = k} w_i = m
for every code. Its Lagrangian has one price b_k a code, and for given prices each point just takes

    a_i = argmin_k |r_i - C[k]|^2 + b_k

so a code is still a function of its vector alone: a new ad needs no look at the others. Prices are found by
dual ascent: a code with too much mass becomes dearer, one with too little cheaper, each with a step of its
own that grows while the sign stays and halves when it turns (Rprop; Riedmiller & Braun 1993). The last step
is not the best one, so the most even prices seen are kept.

Two things cannot be even. A vector with more weight than m has a code of its own at best. And where points
lie in tight, distant heaps, prices alone would send many of them far away: so before that, centroids go where
the mass is, the lightest codes moving into the heaviest cells between steps of Lloyd's algorithm. Centroids
of older codes lie there already and stay: prices come at once.

Products are on the grid and sums have one order, so a fit does not depend on threads.

Letters: N points, D dimensions, K codes of a level, m = total weight / K.
"""

import numpy as np
from scipy.sparse import csr_matrix

from training.tokenizer.quantizers.candidates import Candidates
from training.tokenizer.quantizers.grid import on_grid
from training.tokenizer.quantizers.residual import MAX_PRICE, Level, ResidualQuantizer

SAMPLE = 32  # points a code that centroids and first prices are learnt from; all where there are fewer than
MIN_SAMPLE = 2**16  # these
MOVED = 0.1  # of the codes, at most, in one step of Lloyd's algorithm
LIGHT = 0.5  # of m: a code with less may move
ROUNDS = 4  # of prices, after each of which centroids go to the means of the cells that prices made
OLDER_ROUNDS = 1  # where codes should stay what they are: each one takes them further
ROUND_STEPS = 30
LAST_STEPS = 100  # of the prices of the last centroids
ALL_STEPS = 20  # and, where there was a sample, on all points
FIRST_STEP = 0.02  # of the mean squared distance
GROW, SHRINK = 1.2, 0.5


class Balanced(ResidualQuantizer):
    """Residual k-means with a price for each code."""

    @staticmethod
    def fit_level(
        points: np.ndarray,
        weights: np.ndarray,
        *,
        begin: np.ndarray,
        older: bool,
        iterations: int,
        seed: int,
    ) -> Level:
        """See `ResidualQuantizer`."""
        random = np.random.default_rng(seed)
        mass = weights.astype(np.float64)
        size = max(SAMPLE * len(begin), MIN_SAMPLE)
        some = np.arange(len(points))
        if size < len(points):
            some = np.sort(random.choice(len(points), size, replace=False, p=mass / mass.sum()))
        # A point is drawn by its weight, so in a sample all count the same.
        sample, share = points[some], np.ones(size) if size < len(points) else mass
        if not older:  # a code that moves would be another one
            begin = _centroids(sample, share, begin=begin, iterations=iterations, random=random)
        level = Level.of(begin)
        for _ in range(OLDER_ROUNDS if older else ROUNDS):
            level = _priced(sample, share, level=level, steps=ROUND_STEPS)
            codes = level.nearest(sample)
            codebook = _means(sample, share, codes=codes, codebook=level.codebook)
            level = Level.of(codebook, level.price)
        level = _priced(sample, share, level=level, steps=LAST_STEPS)
        return level if size >= len(points) else _priced(points, mass, level=level, steps=ALL_STEPS)


def _centroids(
    points: np.ndarray,
    weights: np.ndarray,
    *,
    begin: np.ndarray,
    iterations: int,
    random: np.random.Generator,
) -> np.ndarray:
    """Centroids [K, D] of Lloyd's algorithm; in its first 70 % codes move from light to heavy cells."""
    codebook = on_grid(begin)
    for iteration in range(iterations):
        codes = Level.of(codebook).nearest(points)
        mass, target = _mass(codes, weights, size=len(codebook))
        codebook = _means(points, weights, codes=codes, codebook=codebook)
        if iteration < 0.7 * iterations:
            light = np.flatnonzero(mass < LIGHT * mass.mean())
            light = light[np.argsort(mass[light], kind="stable")]
            # How many codes more a cell has mass for.
            more = np.rint((mass - target) / mass.mean() - 0.2).astype(int).clip(min=0)
            heavy = np.repeat(np.arange(len(mass)), more)
            heavy = heavy[np.argsort(-mass[heavy], kind="stable")]
            count = min(len(light), len(heavy), max(1, int(MOVED * len(mass))))
            for code, cell in zip(light[:count], heavy[:count], strict=True):
                inside = np.flatnonzero(codes == cell)
                share = weights[inside] / weights[inside].sum()
                codebook[code] = points[random.choice(inside, p=share)]
    return codebook


def _priced(points: np.ndarray, weights: np.ndarray, *, level: Level, steps: int) -> Level:
    """The level with the prices, of `steps` tried, that leave no code dead and masses the most even."""
    price, best = level.price, level
    near = Candidates(points, level)
    least = (np.inf, np.inf)
    step, before = np.zeros(len(price)), np.zeros(len(price))
    for number in range(steps):
        level = Level.of(level.codebook, price)
        codes = near.nearest(level)
        mass, target = _mass(codes, weights, size=len(price))
        uneven = (int((mass == 0).sum()), float((mass * mass).sum()))
        if uneven < least:
            best, least = level, uneven
        if number == 0:
            error = points - level.codebook[codes]
            scale = float((weights * (error * error).sum(axis=1)).sum() / weights.sum())
            step[:] = FIRST_STEP * scale
        excess = np.clip((mass - target) / mass.mean(), -1.0, 1.0)
        turned = np.sign(excess * before)
        step = np.clip(step * np.where(turned > 0, GROW, np.where(turned < 0, SHRINK, 1)), 1e-6, 0.5 * scale)
        price = price + step * excess
        price = np.minimum(price - price.min(), MAX_PRICE)  # only differences count
        before = excess
    return best


def _mass(codes: np.ndarray, weights: np.ndarray, *, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mass of each code [K], and what it should be: m, or the weight of its heaviest point if more."""
    mass = np.bincount(codes, weights=weights, minlength=size)
    heaviest = np.zeros(size)
    np.maximum.at(heaviest, codes, weights)
    return mass, np.maximum(mass.mean(), heaviest)


def _means(points: np.ndarray, weights: np.ndarray, *, codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Mean of the points of each code on the grid, [K, D]; a code without any keeps its centroid."""
    row = np.arange(len(points))
    cells = csr_matrix((weights, (codes, row)), shape=(len(codebook), len(points)))
    mass = np.asarray(cells.sum(axis=1))  # [K, 1]
    means = (cells @ points.astype(np.float64)) / np.maximum(mass, np.finfo(np.float64).tiny)
    return on_grid(np.where(mass > 0, means, codebook))
