"""Base folders: written before the transaction that names them, removed when nobody needs them."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Self

from serving.files import number_of
from serving.index.base import write_base
from serving.index.layout import BASE, IndexStoreError, base_folder
from serving.index.snapshot import IndexSnapshot


class place_base:  # noqa: N801, a context manager that reads like a function
    """`write` the base of a transaction to come; it is removed again where the transaction does not."""

    def __init__(self, path: Path, tokenizer_id: str, *, sequence: int) -> None:
        """Of the index at `path`."""
        self._folder = base_folder(path, tokenizer_id, sequence=sequence)
        self._written = False

    def write(self, snapshot: IndexSnapshot) -> None:
        """Write.

        Raises:
            IndexStoreError: the disk is full or not writable.
        """
        try:
            write_base(snapshot, self._folder)
        except OSError as error:
            raise IndexStoreError(f"{self._folder}: cannot write the base: {error}") from error
        self._written = True

    def __enter__(self) -> Self:
        """Before the transaction."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After it."""
        if kind is not None and self._written:
            shutil.rmtree(self._folder, ignore_errors=True)


def remove_bases(path: Path, tokenizer_id: str, *, keep: Collection[int]) -> None:
    """Remove base folders of a generation but these; what a reader has mapped stays until it lets go.

    A folder above all of those to keep may be one that a compaction is about to hand over: it stays.
    """
    folder = path / BASE / tokenizer_id
    for old in folder.iterdir() if folder.is_dir() else ():
        number = number_of(old.name)
        if number is not None and number not in keep and number < max(keep, default=1 << 63):
            shutil.rmtree(old, ignore_errors=True)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
