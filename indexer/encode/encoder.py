"""What the index wants of an encoder; `bundle_encoder` opens the one of a bundle's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from indexer.events.content import Content
from serving.index.layout import IndexStoreError


class Encoder(Protocol):
    """Content of ads -> semantic IDs, one tokenizer's. A pure function: the same ad gets the same SID."""

    @property
    def tokenizer_id(self) -> str:
        """Tokenizer whose SIDs it gives."""

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codebook size of each of the T levels."""

    @property
    def from_content(self) -> bool:
        """Whether SIDs follow from content alone, so that ads of another tokenizer's day get one too."""

    def refusal(self, content: Content) -> str | None:
        """Why an ad of this content gets no SID, what was expected and what came; None if it gets one."""

    def encode(self, ad_ids: np.ndarray, contents: Sequence[Content]) -> np.ndarray:
        """SIDs int32 [N, T] of ads int64 [N]; a row depends on that ad alone, not on its neighbours.

        Args:
            ad_ids: N ids.
            contents: of the same N ads, of which `refusal` refuses none.
        """

    def knows(self, text: str) -> bool:
        """Whether it knows anything of a text; all others share one prefix."""


def encode_contents(encoder: Encoder, ad_ids: Sequence[int], *, contents: Sequence[Content]) -> np.ndarray:
    """SIDs int32 [N, T] of ads with content as the index stores it.

    Raises:
        IndexStoreError: the encoder refuses a content, failed, or gave what is not N SIDs of its levels.
    """
    for ad_id, content in zip(ad_ids, contents, strict=True):
        if (why := encoder.refusal(content)) is not None:
            raise IndexStoreError(f"encoder {encoder.tokenizer_id}: ad {ad_id}: {why}")
    sizes = tuple(encoder.level_sizes)
    try:
        sids = np.asarray(encoder.encode(np.asarray(ad_ids, np.int64), contents))
    except Exception as error:
        raise IndexStoreError(
            f"encoder {encoder.tokenizer_id}: failed on {len(ad_ids)} ads, first ad {ad_ids[0]}: {error!r}"
        ) from error
    if sids.shape != (len(ad_ids), len(sizes)) or not np.issubdtype(sids.dtype, np.integer):
        raise IndexStoreError(
            f"encoder {encoder.tokenizer_id}: expected integers {(len(ad_ids), len(sizes))}, got "
            f"{sids.dtype} {sids.shape}"
        )
    bad = np.flatnonzero(((sids < 0) | (sids >= np.array(sizes))).any(axis=1))
    if len(bad):
        raise IndexStoreError(
            f"encoder {encoder.tokenizer_id}: expected codes below {sizes} for ad {ad_ids[bad[0]]}, got "
            f"{sids[bad[0]].tolist()}"
        )
    return sids.astype(np.int32)
