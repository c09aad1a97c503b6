"""The files of a data set: `user item item ..`, and what is known of items beside it."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from examples.sequences import write_tables
from serving.inputs import Inputs, is_up_to_date

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

    def write(self, tables: Path) -> None:
        """Write their tables into a folder, unless those that are there were made from the same files.

        Raises:
            OSError: a file cannot be read, or the disk is full.
            ValueError: one is not of the form that it should have.
        """
        record = tables.with_name(f"{tables.name}.inputs.json")
        files = {kind: path for kind, path in vars(self).items() if path is not None}
        inputs = Inputs.now({}, files=files, before=Inputs.load(record))
        outputs = [tables / f"{name}.parquet" for name in ("ads", "users", "events")]
        if record.exists() and is_up_to_date(record, inputs, outputs=outputs):
            return
        record.unlink(missing_ok=True)
        if tables.exists():
            shutil.rmtree(tables)
        write_tables(self.sequences, tables, titles=self.titles, attributes=self.attributes, sids=self.sids)
        inputs.save(record)
