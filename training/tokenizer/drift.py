"""Whether the ads have moved away from what a tokenizer was fitted on, so that it should be fitted again.

Two figures, each divided by that of the ads that the tokenizer was fitted on:

    error   of the ads that came since: mean of |x - y|^2, y what the codes before the hash say of a vector x
    pairs   of all ads as they are now: chance that two have the same codes up to a level,
            sum_c n_c (n_c - 1) / (N (N - 1)), which is Simpson's index; it doubles when the ads fall into
            half as many codes

Neither grows with the number of ads alone. Letters: N ads, D dimensions, T levels.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from serving.files import write_file

DRIFT = "drift.json"
MIN_ADS = 200  # fewer say too little: 200 ads give `error` within about 10 %
# The demo's ads: error 1.0 to 1.3 for ads that the fit did not see, 3 for a quarter of them from a department
# that it did not know, 5 to 13 for a whole one (docs/decisions.md).
MAX_ERROR, MAX_PAIRS = 1.5, 1.5


@dataclass(frozen=True)
class Spread:
    """How ads lie in a tokenizer's codes.

    Attributes:
        ads: N.
        error: mean of |x - y|^2.
        pairs: chance that two ads share their codes up to each level before the hash.
        unknown: share of the ads whose vector is zero, since the embedder knows nothing of them.
    """

    ads: int
    error: float
    pairs: tuple[float, ...]
    unknown: float

    @classmethod
    def of(cls, vectors: np.ndarray, codes: np.ndarray, *, decoded: np.ndarray) -> Self:
        """Measure.

        All figures are 0 where there are fewer than two ads.

        Args:
            vectors: float32 [N, D].
            codes: int [N, T - 1], hash level left out.
            decoded: float32 [N, D], the vectors that the codes stand for.
        """
        if len(vectors) < 2:
            return cls(len(vectors), 0.0, (0.0,) * codes.shape[1], 0.0)
        apart = vectors - decoded
        lost = np.einsum("nd,nd->n", apart, apart, dtype=np.float64)  # [N]
        unknown = float((~vectors.any(axis=1)).mean())
        return cls(len(vectors), float(lost.mean()), same_codes(codes), unknown)


@dataclass(frozen=True)
class Drift:
    """New ads beside those of the fit.

    Attributes:
        fitted: ads that the tokenizer was fitted on.
        new: ads that came since.
        error: ratio of the errors, new : fitted.
        pairs: ratio of the chances, all ads now : fitted, level by level.
        due: whether to fit again.
        why: a sentence.
    """

    fitted: Spread
    new: Spread
    error: float
    pairs: tuple[float, ...]
    due: bool
    why: str

    @classmethod
    def between(cls, fitted: Spread, new: Spread, *, codes: np.ndarray) -> Self:
        """Compare, and judge: due where a ratio is above its limit and at least `MIN_ADS` ads came.

        Args:
            fitted: ads that the tokenizer was fitted on.
            new: ads that came since.
            codes: int [N, T - 1], of all ads as they are now, hash level left out.
        """
        if new.ads < MIN_ADS:
            why = f"not known: expected {MIN_ADS} new ads to judge by, got {new.ads}"
            return cls(fitted, new, 1.0, (1.0,) * len(fitted.pairs), False, why)
        error = _ratio(new.error, fitted.error)
        pairs = tuple(_ratio(now, then) for now, then in zip(same_codes(codes), fitted.pairs, strict=True))
        above = [f"error {error:.2f} > {MAX_ERROR}"] if error > MAX_ERROR else []
        above += [
            f"pairs up to level {level} {ratio:.2f} > {MAX_PAIRS}"
            for level, ratio in enumerate(pairs, start=1)
            if ratio > MAX_PAIRS
        ]
        figures = f"error {error:.2f}, pairs {', '.join(f'{ratio:.2f}' for ratio in pairs)} times the fit's"
        why = f"due: {', '.join(above)} times the fit's" if above else f"not due: {figures}"
        return cls(fitted, new, error, pairs, bool(above), why)

    def save(self, folder: Path) -> None:
        """Write it beside the tokenizer.

        Raises:
            OSError: the disk is full or not writable.
        """
        write_file(folder / DRIFT, json.dumps(asdict(self), indent=2) + "\n")


def same_codes(codes: np.ndarray) -> tuple[float, ...]:
    """Chance that two different ads of at least two share their codes up to each level; codes int [N, L]."""
    return tuple(_same(codes[:, : level + 1]) for level in range(codes.shape[1]))


def _same(codes: np.ndarray) -> float:
    counts = np.unique(codes, axis=0, return_counts=True)[1].astype(np.float64)
    return float((counts * (counts - 1)).sum() / (len(codes) * (len(codes) - 1)))


def _ratio(now: float, then: float) -> float:
    """Quotient, finite for JSON; 1 where both are nothing."""
    return 1.0 if now == then else now / max(then, 1e-12)
