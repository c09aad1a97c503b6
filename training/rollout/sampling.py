"""Drawing beams by their probability, without replacement."""

from __future__ import annotations

import numpy as np


def draw(log_p: np.ndarray, count: int, *, random: np.random.Generator) -> np.ndarray:
    """Positions int64 of `count` distinct beams, ascending; all of them where there are no more.

    The Gumbel top-k trick: the largest of log p plus independent Gumbel noise are a sample without
    replacement from p, normalised over these beams (Vieira 2014; Kool, van Hoof and Welling 2019, section
    2.3). The noise is added once, to whole beams: what the search has not found cannot be drawn.

    Args:
        log_p: float [n], not normalised.
        count: how many.
        random: source of the noise.
    """
    noisy = log_p + random.gumbel(size=len(log_p))
    return np.sort(np.argsort(-noisy, kind="stable")[:count])
