"""What encoders share that compute codes with a graph: the folder they are read from, and the hash level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from indexer.encode.settings import graph_metadata, open_graph, read_settings
from indexer.events.content import Content
from serving.index.hashing import hash_level


class GraphEncoder(ABC):
    """The encoder of one bundle, in ONNX Runtime.

    Attributes:
        analysis: what `encoder.json` calls its kind.
        from_content: see `Encoder`.
        tokenizer_id: tokenizer whose SIDs it gives.
        level_sizes: V_1 .. V_T, the hash level last.
    """

    analysis: ClassVar[str]
    from_content = True
    _feature_count: int  # of the graph

    def __init__(self, folder: str | Path, *, threads: int = 1) -> None:
        """Open the encoder's own folder.

        Args:
            folder: holds `encoder.onnx` and `encoder.json`.
            threads: of ONNX Runtime.

        Raises:
            BundleError: a file is missing, unreadable or of another format, or they are of two tokenizers.
        """
        folder = Path(folder)
        read_settings(folder, analyses=(self.analysis,), read=self._read)
        metadata = graph_metadata(
            self.tokenizer_id,
            self.level_sizes,
            features=self._feature_count,
            dim=self._dim,
            hash_salt=self._hash_salt,
        )
        self._session = open_graph(folder, threads=threads, metadata=metadata)

    def _read(self, content: dict[str, Any]) -> None:
        self.tokenizer_id = str(content["tokenizer_id"])
        self.level_sizes = tuple(int(size) for size in content["level_sizes"])
        self._dim = int(content["embedding_dim"])
        self._hash_salt = str(content.get("hash_salt", ""))  # bundles of before have none

    def encode(self, ad_ids: Sequence[int] | np.ndarray, contents: Sequence[Content]) -> np.ndarray:
        """See `Encoder`."""
        hashed = hash_level(
            [content["account_id"] for content in contents],
            [content["conversion_type"] for content in contents],
            ad_ids,
            size=self.level_sizes[-1],
            salt=self._hash_salt,
        )
        return np.concatenate([self._codes(contents), hashed[:, None]], axis=1)  # [N, T - 1] + [N, 1]

    @abstractmethod
    def _codes(self, contents: Sequence[Content]) -> np.ndarray:
        """All levels but the last, int32 [N, T - 1]."""

    def _run(self, blocks: Iterable[dict[str, np.ndarray]]) -> np.ndarray:
        """Codes of the inputs of one block after the other."""
        codes = [np.empty((0, len(self.level_sizes) - 1), np.int32)]
        for inputs in blocks:
            codes += self._session.run(["codes"], inputs)
        return np.concatenate(codes)
