"""Numbers of a batch at positions of their own row."""

import numpy as np


def take_rows(array: np.ndarray, at: np.ndarray) -> np.ndarray:
    """array[b, at[b, i]], [B, k, ..] of [B, n, ..] and int [B, k]: `take_along_axis` without what it checks.

    A search asks for it fifty times, and that takes twice as long.
    """
    return array[np.arange(len(at))[:, None], at]
