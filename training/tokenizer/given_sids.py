"""SIDs that the ads come with: another system made them, and nothing is learnt here.

Letters: N ads, T levels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from pydantic import ValidationError

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.columns import given_sids
from training.tokenizer.storage import TokenizerError, content_id, read_folder, write_folder


class GivenSids:
    """The SIDs of the ads it was made with, behind the interface of `Tokenizer`.

    It keeps them: its id says what the codes mean, and an ad whose SID changes later is noticed.
    """

    def __init__(
        self,
        config: TokenizerConfig,
        *,
        ad_ids: np.ndarray,
        sids: np.ndarray,
        stored: dict[str, Any] | None = None,
    ) -> None:
        """Put parts together; `fit` and `load` are the usual ways in.

        Args:
            config: every size is set.
            ad_ids: int64 [N], ascending.
            sids: int32 [N, T].
            stored: the settings as they lie in its folder; those of an earlier release hold keys that play no
                part, and its id is made from them too.

        Raises:
            ValueError: the shapes do not agree.
        """
        if sids.shape != (len(ad_ids), config.levels):
            raise ValueError(f"expected SIDs {[len(ad_ids), config.levels]}, got {list(sids.shape)}")
        self.config = config
        self._arrays = {"ad_ids": ad_ids, "sids": sids}
        self._stored = config.to_json() if stored is None else stored
        self._id = content_id(self._stored, {}, arrays=self._arrays)

    @classmethod
    def fit(cls, ads: pl.DataFrame, config: TokenizerConfig) -> Self:
        """Take the SIDs of the columns sid_0, ..; a size that the config leaves open is what they need.

        Raises:
            ValueError: see `given_sids`; or no ad.
        """
        if not ads.height:
            raise ValueError("expected at least one ad with a SID, got an empty table")
        ads = ads.sort("ad_id")
        sids = given_sids(ads, config.given_sizes)
        needed = np.maximum(sids.max(axis=0) + 1, 2).tolist()
        sizes = tuple(size or n for size, n in zip(config.given_sizes, needed, strict=True))
        resolved = config.model_copy(update={"given_sizes": sizes})
        return cls(resolved, ad_ids=ads["ad_id"].cast(pl.Int64).to_numpy(), sids=sids)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of each level, length T."""
        return self.config.level_sizes

    @property
    def tokenizer_id(self) -> str:
        """16 hex digits of the sha256 over level sizes, ads and SIDs; equal ids give equal SIDs."""
        return self._id

    def encode(self, ads: pl.DataFrame) -> np.ndarray:
        """Return SIDs int32 [N, T].

        Raises:
            ValueError: see `given_sids`; or an ad has another SID than the tokenizer was made with.
        """
        sids = given_sids(ads, self.config.given_sizes)
        known, ids = self._arrays["ad_ids"], ads["ad_id"].cast(pl.Int64).to_numpy()
        at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        changed = (known[at] == ids) & (self._arrays["sids"][at] != sids).any(axis=1)
        if changed.any():
            row = int(changed.argmax())
            raise ValueError(
                f"ad {ids[row]}: expected the SID {self._arrays['sids'][at[row]].tolist()} that it had, got "
                f"{sids[row].tolist()} (and {int(changed.sum()) - 1} more such ads): a model knows ads by "
                "their SIDs; train a new one with --fresh or in another folder"
            )
        return sids

    def save(self, folder: Path) -> None:
        """Write to `folder`, replacing an older tokenizer there in one step.

        Raises:
            TokenizerError: `folder` holds something that is not a tokenizer.
        """
        write_folder(Path(folder), self._stored, embedder={}, arrays=self._arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote and check it.

        Raises:
            TokenizerError: a file is missing or corrupted, or was written by a newer version.
        """
        stated_id, config, _, arrays = read_folder(Path(folder))
        try:
            tokenizer = cls(TokenizerConfig.from_json(config), **arrays, stored=config)
        except (ValidationError, ValueError, TypeError) as error:
            raise TokenizerError(f"{folder}: content does not fit together ({error})") from error
        if tokenizer.tokenizer_id != stated_id:
            raise TokenizerError(f"{folder}: expected tokenizer id {stated_id}, got {tokenizer.tokenizer_id}")
        return tokenizer
