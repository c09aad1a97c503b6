"""Semantic IDs that the model was not trained on: what a search takes for their probability.

The vector codes of a new ad are those of ads like it, and the model knows how to get there. Its hash code is
as good as random: the model gives it what it gives to any code that it never saw there, next to nothing, and
the ad is in no answer. The search knows better, for it sees that such an ad exists. Letters: B requests, n
beams, C children of the beam that has most, T SID levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.bundle import BundleError, Manifest
from serving.index.keys import pack_valid

SEEN_SIDS = "seen_sids.npy"  # of a bundle: packed SIDs of the ads of the training events, ascending
_NO_BEAM = np.float32(-np.inf)


@dataclass(frozen=True)
class ColdStart:
    """Gives an unseen SID its part of the probability of its prefix.

    Attributes:
        seen: int64 ascending, packed SIDs that the model was trained on.
        level_sizes: codebook size of each level.
        share: what an unseen SID gets, as a multiple of 1 / (live SIDs of its prefix); never more than the
            whole probability of the prefix. The others keep what the model says.
    """

    seen: np.ndarray
    level_sizes: tuple[int, ...]
    share: float

    @classmethod
    def load(cls, bundle: str | Path, manifest: Manifest, *, share: float) -> ColdStart | None:
        """Of a bundle; None where the bundle does not say what the model saw, or with a share of 0.

        Raises:
            BundleError: the file is not what it should be.
        """
        path = Path(bundle) / SEEN_SIDS
        if not share or not path.is_file():
            return None
        try:
            seen = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BundleError(f"{path}: not readable: {error}") from error
        if seen.dtype != np.int64 or seen.ndim != 1 or (seen[1:] <= seen[:-1]).any():
            raise BundleError(f"{path}: expected ascending int64 [n], got {seen.dtype} {list(seen.shape)}")
        return cls(seen, manifest.level_sizes, share)

    def lift(
        self, candidates: np.ndarray, *, scores: np.ndarray, prefixes: np.ndarray, codes: np.ndarray
    ) -> np.ndarray:
        """Scores float32 [B, n, C] with those of unseen SIDs lifted.

        Args:
            candidates: float32 [B, n, C], log-probabilities; -inf is no candidate.
            scores: float32 [B, n], of the prefixes.
            prefixes: int32 [B, n, T - 1]; what is there for padded beams does not matter.
            codes: int32 [B, n, C], last codes; -1 is no candidate.
        """
        count = (codes >= 0).sum(axis=2, dtype=np.float32)  # [B, n]
        part = np.minimum(self.share / np.maximum(count, 1), 1).astype(np.float32)
        lifted = np.where(count > 0, scores + np.log(part), _NO_BEAM)
        below = (candidates < lifted[:, :, None]) & (codes >= 0)
        at = np.flatnonzero(below)  # few of many are live at all
        beam = at // candidates.shape[2]
        sids = np.column_stack([prefixes.reshape(lifted.size, -1)[beam], codes.ravel()[at]])
        keys = pack_valid(sids, self.level_sizes)
        position = np.minimum(np.searchsorted(self.seen, keys), len(self.seen) - 1)
        unseen = self.seen[position] != keys if len(self.seen) else np.ones(len(keys), bool)
        out = candidates.copy()
        out.ravel()[at[unseen]] = lifted.ravel()[beam[unseen]]
        return out
