"""What a trained model answers, in PyTorch and in this process: what a server must say too."""

from __future__ import annotations

import numpy as np

from serving.backend.resolve import Ads, resolve
from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.pipeline import WIDTHS
from training.loop.checkpoint import Checkpoint
from training.rollout.executor import TorchExecutor


def best_ads(
    checkpoint: Checkpoint, snapshot: IndexSnapshot, *, slots: np.ndarray, profile: np.ndarray, num_ads: int
) -> Ads:
    """Best ads for one context: slots int32 [S, C] and profile int32 [P]."""
    beams = beam_search(
        TorchExecutor(checkpoint.model.eval()),
        snapshot.trie,
        slots[None],
        profile[None],
        plan=WidthPlan.parse(WIDTHS, levels=len(checkpoint.spec.level_sizes)),
        num_results=np.array([num_ads]),
        value_table=checkpoint.spec.value_buckets.means,
    )
    return resolve(
        snapshot,
        beams.sids[0],
        scores=beams.scores[0],
        expected_value=beams.expected_value[0],
        num_ads=num_ads,
        exclude=np.zeros(0, np.int64),
    )
