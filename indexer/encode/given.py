"""SIDs of new ads that come with an embedding or numbers, or with the SID itself.

Letters: N ads, D dimensions, F numeric columns, T levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from indexer.encode.graph_encoder import GraphEncoder
from indexer.encode.settings import read_settings
from indexer.events.content import Content, unpack_vector

GIVEN_VECTORS, GIVEN_SIDS = "given_vectors", "given_sids"
_BLOCK = 1024  # ads: bounds every matrix of a call of the graph


class GivenInputs:
    """Embeddings and numbers of ads as a graph takes them."""

    def __init__(self, settings: Mapping[str, Any], *, optional: bool = False) -> None:
        """Take `columns`, names of F numbers, `embedding_dim` D and, of several modalities, their `widths`.

        Args:
            settings: of the encoder.
            optional: whether an ad may come without an embedding, which counts as zero.
        """
        self._dim = int(settings["embedding_dim"])
        self._columns = tuple(map(str, settings["columns"]))
        self._widths = [int(width) for width in settings.get("widths", ())]
        self._optional = optional

    @property
    def width(self) -> int:
        """D + F."""
        return self._dim + len(self._columns)

    def refusal(self, content: Content) -> str | None:
        """Another width of the embedding, or a number of an unknown name."""
        given = content.get("embedding")
        found = 0 if given is None else len(unpack_vector(given))
        if found != self._dim and not (given is None and self._optional):
            parts = f" ({' + '.join(map(str, self._widths))})" if len(self._widths) > 1 else ""
            return f"expected an embedding of {self._dim} numbers{parts}, got {found}"
        unknown = sorted(content.get("numbers", {}).keys() - set(self._columns))
        if unknown:
            names = ", ".join(self._columns) or "none"
            return f"expected numbers of the names {names}, got {unknown[0][:80]!a}"
        return None

    def inputs(self, contents: Sequence[Content]) -> dict[str, np.ndarray]:
        """`vectors` float32 [N, D] and `numbers` float64 [N, F] (one left out is NaN), if there are any."""
        found = {}
        if self._dim:
            none = np.zeros(self._dim, np.float32)
            found["vectors"] = np.stack(
                [unpack_vector(c["embedding"]) if "embedding" in c else none for c in contents]
            )
        if self._columns:
            rows = [[c.get("numbers", {}).get(name, np.nan) for name in self._columns] for c in contents]
            found["numbers"] = np.array(rows, np.float64)
        return found


class VectorEncoder(GraphEncoder):
    """Given embeddings and numbers -> codes, and the hash level."""

    analysis = GIVEN_VECTORS

    def _read(self, content: dict[str, Any]) -> None:
        super()._read(content)
        self._given = GivenInputs(content)
        self._feature_count = len(content["columns"])

    def refusal(self, content: Content) -> str | None:
        """See `Encoder`: another width of the embedding, or a number of an unknown name."""
        return self._given.refusal(content)

    def knows(self, text: str) -> bool:
        """See `Encoder`; no text is read."""
        return True

    def _codes(self, contents: Sequence[Content]) -> np.ndarray:
        starts = range(0, len(contents), _BLOCK)
        return self._run(self._given.inputs(contents[start : start + _BLOCK]) for start in starts)


class SidEncoder:
    """SIDs as the ads bring them.

    Attributes:
        tokenizer_id: tokenizer whose SIDs they are.
        level_sizes: V_1 .. V_T.
        from_content: see `Encoder`; a SID that an event brought is one of the tokenizer of its day.
    """

    from_content = False

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        """Open the encoder's own folder; it runs nothing, so `threads` are for nothing.

        Raises:
            BundleError: a file is missing, unreadable or of another format.
        """
        read_settings(folder, analyses=(GIVEN_SIDS,), read=self._read)

    def _read(self, content: dict[str, Any]) -> None:
        self.tokenizer_id = str(content["tokenizer_id"])
        self.level_sizes = tuple(int(size) for size in content["level_sizes"])

    def refusal(self, content: Content) -> str | None:
        """See `Encoder`: no SID, or codes that its levels do not have."""
        sid = content.get("sid")
        if sid is None or len(sid) != len(self.level_sizes):
            got = "none" if sid is None else f"{len(sid)} codes"
            return f"expected a sid of {len(self.level_sizes)} codes, got {got}"
        if any(not 0 <= code < size for code, size in zip(sid, self.level_sizes, strict=True)):
            return f"expected a sid of codes below {self.level_sizes}, got {sid}"
        return None

    def knows(self, text: str) -> bool:
        """See `Encoder`; no text is read."""
        return True

    def encode(self, ad_ids: np.ndarray, contents: Sequence[Content]) -> np.ndarray:
        """See `Encoder`."""
        return np.array([c["sid"] for c in contents], np.int32).reshape(len(contents), len(self.level_sizes))
