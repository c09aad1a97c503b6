"""What a ranker is: features in, the log-odds of an outcome and the value then expected out.

Letters: n candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from serving.ranking.features import Features


@dataclass(frozen=True, eq=False)
class Predicted:
    """Of n candidates.

    Attributes:
        logit: float64 [n], log-odds that a target behavior comes.
        ratio: float64 [n], value expected then, over the ad's mean value.
    """

    logit: np.ndarray
    ratio: np.ndarray


class Ranker(Protocol):
    """A fitted model of one fold."""

    def predict(self, features: Features) -> Predicted:
        """Of candidates; each depends on its own features alone."""

    def save(self, folder: Path, name: str) -> list[str]:
        """Write files that begin with `name`; their names."""
