"""A semantic ID as one number: 8 bytes however many levels it has, and in the order of the SIDs.

Letters: n SIDs, T levels.
"""

from __future__ import annotations

import math

import numpy as np


def pack(sids: np.ndarray, level_sizes: tuple[int, ...]) -> np.ndarray:
    """Mixed-radix int64 [n] of SIDs [n, T]; order of the numbers is lexicographic order of the SIDs.

    Raises:
        ValueError: SIDs of these level sizes do not fit into 64 bits, or a code is not of its level.
    """
    if math.prod(level_sizes) >= 1 << 63:
        raise ValueError(f"expected level sizes whose product is below 2**63, got {level_sizes}")
    keys = np.zeros(len(sids), np.int64)
    for level, size in enumerate(level_sizes):
        codes = sids[:, level]
        if len(codes) and (codes.min() < 0 or codes.max() >= size):
            row = np.flatnonzero((codes < 0) | (codes >= size))[0]
            raise ValueError(
                f"SID {row}: expected one code a level below {level_sizes}, got {sids[row].tolist()}"
            )
        keys *= size
        keys += codes
    return keys


def pack_valid(sids: np.ndarray, level_sizes: tuple[int, ...]) -> np.ndarray:
    """As `pack`; -1 for SIDs with a code that is not of its level, such as padding."""
    valid = ((sids >= 0) & (sids < np.array(level_sizes))).all(axis=1)
    keys = np.full(len(sids), -1, np.int64)
    keys[valid] = pack(sids[valid], level_sizes)
    return keys


def unpack(keys: np.ndarray, level_sizes: tuple[int, ...]) -> np.ndarray:
    """SIDs int32 [n, T] of their mixed-radix numbers [n]."""
    sids = np.empty((len(keys), len(level_sizes)), np.int32)
    for level in reversed(range(len(level_sizes))):
        keys, sids[:, level] = np.divmod(keys, level_sizes[level])
    return sids


def run_starts(values: np.ndarray) -> np.ndarray:
    """Positions int64 at which a run of equal values [n] begins."""
    new = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return np.flatnonzero(new)
