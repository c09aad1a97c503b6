"""Semantic IDs that the model was not trained on: what a search takes for their probability.

The vector codes of a new ad are those of ads like it, and the model knows how to get there. Its hash code is
as good as random: the model gives it what it gives to any code that it never saw there, next to nothing, and
the ad is in no answer. The search knows better, for it sees that such an ad exists. Letters: B requests, n
beams, C children of the beam that has most, T SID levels.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from serving.index.keys import pack_valid
from serving.model.bundle import BundleError
from serving.model.manifest import Manifest

logger = logging.getLogger(__name__)

SEEN_SIDS = "seen_sids.npy"  # of a checkpoint and of a bundle
_NO_BEAM = np.float32(-np.inf)


@dataclass(frozen=True)
class ColdStart:
    """Gives an unseen SID its part of the probability of its prefix.

    Attributes:
        seen: int64 ascending, packed SIDs with an event in the training weeks, as target or in a history.
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
        if not share:
            return None
        if not path.is_file():
            logger.warning("%s: not there, so cold_start is off: train and export again", path)
            return None
        try:
            return cls(read_seen(path), manifest.level_sizes, share)
        except ValueError as error:
            raise BundleError(str(error)) from error

    def lift(
        self,
        candidates: np.ndarray,
        *,
        scores: np.ndarray,
        prefixes: np.ndarray,
        codes: np.ndarray,
        within: int,
    ) -> np.ndarray:
        """Scores float32 [B, n, C] with those of unseen SIDs lifted.

        Args:
            candidates: float32 [B, n, C], log-probabilities; -inf is no candidate.
            scores: float32 [B, n], of the prefixes; with a copy path what habits give them is in it.
            prefixes: int32 [B, n, T - 1]; what is there for padded beams does not matter.
            codes: int32 [B, n, C], last codes of all live SIDs; -1 is none.
            within: what would not come among so many best ones is left as it is, which saves most of the
                time.
        """
        batch, beams, columns = candidates.shape
        count = np.count_nonzero(codes >= 0, axis=2)  # [B, n]
        live = candidates > _NO_BEAM  # without those that a request may not be shown
        part = np.minimum(self.share / np.maximum(count, 1), 1).astype(np.float32)
        lifted = np.where(count > 0, scores + np.log(part), _NO_BEAM)
        for row in range(batch):
            values = candidates[row][live[row]]  # few of many
            if len(values) > within:
                lifted[row, lifted[row] <= np.partition(values, -within)[-within]] = _NO_BEAM
        owner = np.flatnonzero(lifted > _NO_BEAM)  # of B * n beams, those whose unseen SIDs would come in
        some, some_codes = candidates.reshape(-1, columns)[owner], codes.reshape(-1, columns)[owner]
        beam, column = np.nonzero((some < lifted.ravel()[owner][:, None]) & live.reshape(-1, columns)[owner])
        sids = np.column_stack([prefixes.reshape(batch * beams, -1)[owner[beam]], some_codes[beam, column]])
        keys = pack_valid(sids, self.level_sizes)
        unseen = np.ones(len(keys), bool)
        if len(self.seen):
            unseen = self.seen[np.minimum(np.searchsorted(self.seen, keys), len(self.seen) - 1)] != keys
        out = candidates.copy()
        at = owner[beam[unseen]]
        out.reshape(-1, columns)[at, column[unseen]] = lifted.ravel()[at]
        return out


def read_seen(path: Path) -> np.ndarray:
    """Packed SIDs of the training weeks' events, int64 [n] ascending, of a checkpoint or bundle.

    Raises:
        ValueError: the file is not that.
    """
    try:
        seen = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path}: not readable: {error}") from error
    if not isinstance(seen, np.ndarray):
        raise ValueError(f"{path}: not readable: expected one array, got several")
    if seen.dtype != np.int64 or seen.ndim != 1 or (seen[1:] <= seen[:-1]).any():
        raise ValueError(f"{path}: expected ascending int64 [n], got {seen.dtype} {list(seen.shape)}")
    return seen
