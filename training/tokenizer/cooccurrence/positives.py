"""What an embedder learns from: contents that are bought together, and baskets that say when to stop.

Letters: B baskets, N contents.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from training.preset.tokenizer import CooccurrenceConfig
from training.tokenizer.cooccurrence.baskets import Baskets
from training.tokenizer.cooccurrence.held_out import HeldOut
from training.tokenizer.cooccurrence.swing import swing
from training.workers import Workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Positives:
    """What is bought with each of N contents.

    Attributes:
        strength: float32 [N, N], Swing of the earlier baskets; a row's strongest are its positives, the
            others that Swing keeps are no negatives.
        held_out: pairs of the last baskets of the training part, which say when to stop.
        seen: int64, contents of the earlier baskets; of others nobody knows what they are not bought with.
    """

    strength: csr_matrix
    held_out: HeldOut
    seen: np.ndarray


@dataclass(frozen=True, eq=False)
class Cooccurrence:
    """Baskets of the training part, and who counts them.

    Attributes:
        baskets: in the order of time.
        workers: see `training.workers`; None for this process.
        scratch: folder that all workers see by this path, for temporary files; None for the system's own.
    """

    baskets: Baskets
    workers: Workers | None = None
    scratch: Path | None = None

    def positives(
        self, ad_ids: np.ndarray, content: np.ndarray, *, count: int, settings: CooccurrenceConfig
    ) -> Positives:
        """Of N = `count` contents.

        Args:
            ad_ids: int64 [A], the known ads.
            content: int64 [A], content 0..N-1 of each of them.
            count: N.
            settings: how strength is counted.
        """
        found = self.baskets.contents(ad_ids, content, count=count)
        return find_positives(found, settings=settings, workers=self.workers, scratch=self.scratch)


def find_positives(
    baskets: csr_matrix,
    *,
    settings: CooccurrenceConfig,
    workers: Workers | None = None,
    scratch: Path | None = None,
) -> Positives:
    """Count the earlier baskets, ones [B, N] in the order of time, and keep the last for `held_out`."""
    first = round(baskets.shape[0] * (1 - settings.held_out))
    strength = swing(
        baskets[:first],
        baskets_per_content=settings.baskets_per_ad,
        popularity_power=settings.popularity_power,
        workers=workers,
        scratch=scratch,
    )
    known = int((np.diff(strength.indptr) > 0).sum())
    logger.info("%d of %d contents are bought together with another", known, baskets.shape[1])
    return Positives(strength, HeldOut.to_stop_by(baskets[first:]), seen=np.unique(baskets[:first].indices))
