"""Whether an index on disk is what was written, and can be read; for a process that may crash over it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from indexer.store.digests import digest_problems
from indexer.store.transaction import read_store
from serving.index.base import check_base
from serving.index.layout import STORE, IndexStoreError, base_folder
from serving.index.reader import IndexReader

# Of the first two pages: size of a page, and the transaction that wrote it (MDB_meta in LMDB's mdb.c).
_PAGE_SIZE, _TRANSACTION = struct.Struct("<40xI"), struct.Struct("<144xQ")
_TRIES = 5  # a writer may be between the two


@dataclass(frozen=True)
class IndexHealth:
    """What is wrong with an index.

    Attributes:
        store: problems of the store and of whoever reads it.
        bases: by tokenizer id, the number of its base arrays and what is wrong with them; the store can make
            them anew.
    """

    store: list[str] = field(default_factory=list)
    bases: dict[str, tuple[int, str]] = field(default_factory=dict)


def check_index(path: str) -> IndexHealth:
    """Compare every record and array with its checksum, and open the index as servers do.

    For another process than the writer's: a damaged page may end whoever reads it.
    """
    health = IndexHealth()
    try:
        _check_meta_pages(Path(path) / STORE / "data.mdb")
        with read_store(path) as reading:
            health.store.extend(digest_problems(reading.tables, reading.txn, where=path))
            generations = reading.meta.generations
    except IndexStoreError as error:
        return IndexHealth([str(error)])
    for name, generation in generations.items():
        if not generation.ready:
            continue
        if generation.base is not None:
            try:
                check_base(base_folder(Path(path), name, sequence=generation.base))
            except IndexStoreError as error:
                health.bases[name] = generation.base, str(error)
                continue
        try:
            IndexReader(path, tokenizer_id=name, search=False).close()
        except IndexStoreError as error:
            health.store.append(f"servers cannot open it: {error}")
    return health


def _check_meta_pages(file: Path) -> None:
    """The transactions that wrote the two meta pages follow each other, the even one on the first.

    LMDB takes the page with the higher number. If that is damaged, the transaction before is back, which is
    whole in itself.
    """
    for _ in range(_TRIES):
        try:
            with file.open("rb") as opened:
                (size,) = _PAGE_SIZE.unpack(opened.read(_PAGE_SIZE.size))
                opened.seek(0)
                pages = opened.read(size + _TRANSACTION.size)
            (even,), (odd,) = _TRANSACTION.unpack_from(pages), _TRANSACTION.unpack_from(pages, size)
        except (OSError, struct.error) as error:
            raise IndexStoreError(f"{file}: cannot be read: {error}") from error
        if (even, odd) == (0, 0) or (even % 2 == 0 and abs(even - odd) == 1):
            return
    raise IndexStoreError(f"{file}: damaged: its meta pages are of transactions {even} and {odd}")
