"""Keys of ads, read from the index: what an answer calls its ads where their ids are texts.

They are looked up in the store when an answer asks for them, so they take no memory and no time of a
snapshot. That is as live as a snapshot: an ad has one key as long as it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lmdb

from serving.index.layout import KEYS, IndexStoreError, ad_key, open_environment


class AdKeys:
    """Reads keys of an index on disk. One a process, since LMDB does not open a store twice in one."""

    def __init__(self, path: str | Path) -> None:
        """Open the index.

        Raises:
            IndexStoreError: missing or corrupted.
        """
        self._path = Path(path)
        self._environment = open_environment(self._path, readonly=True)

    def of(self, ad_ids: Sequence[int]) -> list[bytes]:
        """Key of each ad in UTF-8; empty for an ad that has none or is not known, and for padding (-1).

        Raises:
            IndexStoreError: the store cannot be read.
        """
        try:
            with self._environment.begin() as transaction:
                try:
                    table = self._environment.open_db(KEYS, txn=transaction, create=False)
                except lmdb.NotFoundError:  # of an index from before there were keys, till it is written to
                    return [b""] * len(ad_ids)
                found = (transaction.get(ad_key(ad), db=table) if ad >= 0 else None for ad in ad_ids)
                return [bytes(key or b"") for key in found]
        except lmdb.Error as error:
            raise IndexStoreError(f"index {self._path}: keys cannot be read: {error}") from error

    def close(self) -> None:
        """Release the file."""
        self._environment.close()
