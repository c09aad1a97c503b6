"""The path of an answer's semantic IDs: log p of every level, by the graphs and the search that serve.

The search over a tree that holds nothing but the prefixes of length t of some SIDs gives each of them
log p(s_1 .. s_t | X), history's part included; differences of neighbouring t are the levels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from serving.backend.request import request_features
from serving.engines.ort import OrtExecutor
from serving.index.reader import IndexReader
from serving.index.trie import Trie
from serving.model.bundle import read_manifest
from serving.model.features import fill_slots
from serving.search.beam_search import beam_search
from serving.search.executor import Executor
from serving.search.widths import WidthPlan


class Unfolder:
    """Graphs of the version that answered last, and the index of its tokenizer."""

    def __init__(self, run: Path) -> None:
        """Of a run folder; opened when somebody asks."""
        self._run, self._version = run, 0
        self._executor: Executor | None = None

    def scores(self, tensors: dict[str, np.ndarray], sids: np.ndarray, *, version: int) -> np.ndarray:
        """Log-probability of each code of SIDs given the codes before it.

        Args:
            tensors: the request, one row.
            sids: int32 [n, T].
            version: of the model that answered.

        Returns:
            float32 [n, T], see `level_scores`. Their sum is the score of the answer but for what serving
            adds: levels over live children, and the share of SIDs that the model never saw.

        Raises:
            BundleError, IndexStoreError, OSError: the run folder no longer has that version or its index.
        """
        bundle = self._run / "bundles" / str(version)
        manifest = read_manifest(bundle, verify=False)
        if self._executor is None or self._version != version:
            fuse = manifest.precision != "fp8"
            self._executor = OrtExecutor(bundle, levels=manifest.levels, fuse=fuse)
            self._version = version
        reader = IndexReader(self._run / "index", search=False)
        try:
            snapshot = reader.snapshot_of(manifest.tokenizer_id)
            row = {name: tensor[0] for name, tensor in tensors.items()}
            features = request_features(
                manifest.features,
                snapshot,
                ad_ids=row["history_ad_ids"],
                behaviors=row["history_behaviors"],
                timestamps=row["history_timestamps"],
                profile=row.get("profile", np.zeros(0, np.int32)),
                now=int(row["timestamp"][0]),
                given={f.name: row[f.name][0] for f in manifest.features.request_features if f.name in row},
            )
            slots = fill_slots(snapshot, features.slot_ads[None], features.slots[None])
        finally:
            reader.close()
        return level_scores(self._executor, slots, features.profile[None], sids)


def level_scores(executor: Executor, slots: np.ndarray, profile: np.ndarray, sids: np.ndarray) -> np.ndarray:
    """Log-probability of each code of some SIDs given the codes before it, in one request.

    Args:
        executor: engine.
        slots: int32 [1, S, T + 3].
        profile: int32 [1, P].
        sids: int32 [n, T].

    Returns:
        float32 [n, T].
    """
    lengths = range(1, sids.shape[1] + 1)
    total = np.stack([_scores(executor, slots, profile, sids[:, :t]) for t in lengths], axis=1)
    return np.diff(total, axis=1, prepend=np.float32(0))


def _scores(executor: Executor, slots: np.ndarray, profile: np.ndarray, prefixes: np.ndarray) -> np.ndarray:
    """Log p float32 [n] of prefixes int32 [n, t]."""
    tree, place = np.unique(prefixes, axis=0, return_inverse=True)
    trie, count = Trie.from_sorted(tree.astype(np.int32)), len(tree)
    beams = beam_search(
        executor,
        trie,
        slots,
        profile,
        plan=WidthPlan((count,) * trie.levels, 1),
        num_results=np.array([1]),
        value_table=np.zeros(1, np.float32),
    )
    found = np.full(count, -np.inf, np.float32)
    kept = beams.leaves[0] >= 0
    found[beams.leaves[0][kept]] = beams.scores[0][kept]
    return found[place.reshape(-1)]
