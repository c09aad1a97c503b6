"""Over what the probabilities of a SID level add up to 1: all its codes, or the live children of a beam."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Normalise = Literal["codebook", "live"]
"""All codes of the level, or the live children of the beam."""

NORMALISE: tuple[Normalise, ...] = get_args(Normalise)


def parse_normalise(text: str, *, levels: int) -> tuple[Normalise, ...]:
    """Read "codebook-codebook-live", one word a SID level.

    Raises:
        ValueError: not of that form, or not one word a level.
    """
    words = text.split("-")
    found = tuple(known for word in words for known in NORMALISE if word == known)
    if len(words) != levels or len(found) != levels:
        raise ValueError(f"normalise: expected {levels} of {NORMALISE} (a SID level each), got {text!r}")
    return found


def over_live(logprob: np.ndarray) -> np.ndarray:
    """Log-probabilities [.., C] shifted so that those of live children add up to 1; -inf is not live."""
    top = logprob.max(axis=-1, keepdims=True)
    top = np.where(top > -np.inf, top, np.float32(0.0))
    total = np.exp(logprob - top).sum(axis=-1, keepdims=True)
    # A beam without live children is padding: nothing to shift, and no logarithm of 0.
    return logprob - (top + np.log(np.where(total > 0, total, np.float32(1.0))))
