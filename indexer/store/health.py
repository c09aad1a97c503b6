"""Whether an index on disk is what was written, and can be read; for a process that may crash over it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from indexer.store.digests import digest_problems
from indexer.store.transaction import read_store
from serving.index.base import check_base
from serving.index.layout import IndexStoreError, base_folder
from serving.index.reader import IndexReader


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
