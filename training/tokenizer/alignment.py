"""The record of an alignment: which code of an older tokenizer each code of a new one goes on from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from serving.files import read_object, write_file

ALIGNMENT = "alignment.json"
NONE = -1


@dataclass(frozen=True)
class Alignment:
    """From the codes of one tokenizer to those of an older one.

    Attributes:
        tokenizer_id: whose codes these are.
        aligned_to: id of the older tokenizer.
        sources: for each level, hash level included, the old code of each of its codes, int64 [K]; `NONE`
            where there is none. A level without any is empty.
        agreement: share of the ads whose codes up to each level go on from those they had, length L.
    """

    tokenizer_id: str
    aligned_to: str
    sources: tuple[np.ndarray, ...]
    agreement: tuple[float, ...]

    def save(self, folder: Path) -> None:
        """Write it into the folder of the tokenizer.

        Raises:
            OSError: the disk is full or not writable.
        """
        content = {
            "tokenizer_id": self.tokenizer_id,
            "aligned_to": self.aligned_to,
            "agreement": list(self.agreement),
            "sources": [source.tolist() for source in self.sources],
        }
        write_file(folder / ALIGNMENT, json.dumps(content) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read what `save` wrote; None where the tokenizer in the folder was aligned to none.

        Raises:
            ValueError: the file is no alignment.
        """
        path = folder / ALIGNMENT
        if not path.exists():
            return None
        content = read_object(path)
        try:
            return cls(
                tokenizer_id=str(content["tokenizer_id"]),
                aligned_to=str(content["aligned_to"]),
                sources=tuple(np.asarray(source, np.int64) for source in content["sources"]),
                agreement=tuple(float(share) for share in content["agreement"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected an alignment of two tokenizers, got {error!r}") from error
