"""The files of a data set: `user item item ..`, and what is known of items beside it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ENDINGS = {
    "sequences": ".txt",
    "titles": ".titles.json",
    "attributes": "_item2attributes.json",
    "sids": ".index.letter.json",
}


@dataclass(frozen=True)
class DataFiles:
    """Paths; only the sequences must be there. See `examples.sequences` for what each holds.

    Where titles are found, attributes count only if they are given.
    """

    sequences: Path
    titles: Path | None = None
    attributes: Path | None = None
    sids: Path | None = None

    @classmethod
    def find(cls, folder: Path | None, name: str, *, given: argparse.Namespace) -> Self:
        """Those that were given, and others by their names in a folder, Beauty.txt or Beauty.txt.gz.

        Args:
            folder: None for none.
            name: of the data set, in any case of letters.
            given: an attribute a kind of file, None where it is to be found.

        Raises:
            ValueError: there are no sequences.
        """
        paths = {path.name.lower(): path for path in sorted(folder.iterdir())} if folder else {}
        found = {}
        for kind, ending in ENDINGS.items():
            names = (f"{name.lower()}{ending.lower()}{packed}" for packed in ("", ".gz"))
            found[kind] = getattr(given, kind) or next((paths[n] for n in names if n in paths), None)
        if found["titles"] and not given.attributes:
            found["attributes"] = None
        if found["sequences"] is None:
            raise ValueError(
                f"expected sequences of {name}, a file {name}.txt or {name}.txt.gz in "
                f"{folder or 'DATA_DIR'}, or SEQUENCES=file, got none"
            )
        return cls(**found)
