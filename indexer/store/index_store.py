"""The one writer of the index: takes events and bulk loads, and says what it holds of an ad."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from indexer.encode.encoder import Encoder
from indexer.store.ad_columns import AdColumns, Content
from indexer.store.batch import Batch
from indexer.store.bulk_load import bulk_load
from indexer.store.dead_letters import (
    DeadLetter,
    DeadLetters,
    dead_letter_records,
    get_dead_letter,
    iterate_dead_letters,
)
from indexer.store.file import StoreFile
from indexer.store.generations import add_generation, check_encoder
from indexer.store.incoming import Incoming, Outcome
from indexer.store.upgrade import upgrade
from indexer.store.views import AdView, Neighbour, find_neighbours, view_ad
from serving.index.audience import Columns
from serving.index.layout import StoreMeta

_REPLAYED = 64  # dead letters of one transaction; each may have a megabyte


class IndexStore:
    """An index open for writing; a second writer, in this process or another, is refused.

    Not for several threads at once.

    Attributes:
        file: the store.
        encoders: by tokenizer id; `add_encoder` adds one.
        accounts: account ids that events may name; None for any.
        columns: columns that audiences of events may name, with their values; None for any.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        encoders: Iterable[Encoder] = (),
        accounts: Collection[str] | None = None,
        map_size: int = 1 << 36,
        max_dead_letters: int = 100_000,
        now: Callable[[], float] = time.time,
        sync: bool = True,
    ) -> None:
        """Open or create.

        Args:
            path: folder of the index.
            encoders: content events need that of a ready generation.
            accounts: account ids that events may name; None for any.
            map_size: most bytes that the store may take.
            max_dead_letters: the oldest make room for new ones.
            now: unix seconds.
            sync: False for tests only: a crash of the machine may then lose or damage the store.

        Raises:
            IndexStoreError: another writer holds it, it is damaged or of another format, or an encoder has
                other levels than its generation.
        """
        self.file = StoreFile(path, map_size=map_size, now=now, sync=sync)
        self.encoders = {encoder.tokenizer_id: encoder for encoder in encoders}
        self.accounts, self._max_dead_letters = accounts, max_dead_letters
        self.columns: Columns | None = None
        try:
            upgrade(self.file)
            for encoder in self.encoders.values():
                check_encoder(self.file, encoder)
        except BaseException:
            self.close()
            raise

    @property
    def meta(self) -> StoreMeta:
        """Sequence number and generations, as committed last."""
        return self.file.meta

    def apply(
        self, items: Sequence[Incoming], *, offsets: Mapping[str, bytes] | None = None
    ) -> list[Outcome]:
        """Apply events in order, in one transaction with the offsets of their sources.

        Raises:
            IndexStoreError: the disk or the map is full, the store is damaged, or an encoder failed; nothing
                of the call is in the index then, so the same events may be given again.
        """
        with self._batch(offsets or {}) as batch:
            for item in items:
                batch.take(item)
            return batch.finish()

    def replay(self, numbers: Sequence[int] | None = None) -> list[Outcome]:
        """Try dead letters (all where None) once more, oldest first; those that take effect leave the table.

        All of them are tried in several transactions, so that they need not be in memory at once.

        Raises:
            ValueError: no such dead letter.
            IndexStoreError: as `apply`.
        """
        if numbers is not None:
            with self.file.read() as reading:
                return self._again([get_dead_letter(reading, number) for number in sorted(set(numbers))])
        outcomes: list[Outcome] = []
        after = -1
        while letters := self.dead_letters(after=after, limit=_REPLAYED):
            outcomes += self._again(letters)
            after = letters[-1].number
        return outcomes

    def dead_letters(self, *, after: int = -1, limit: int | None = None) -> list[DeadLetter]:
        """Dead letters in order of their numbers, at most `limit` of those above `after`."""
        with self.file.read() as reading:
            return list(islice(iterate_dead_letters(reading, after=after), limit))

    def dead_letter_records(
        self, *, after: int, limit: int, max_bytes: int
    ) -> tuple[list[tuple[int, bytes]], bool]:
        """See `dead_letters.dead_letter_records`."""
        with self.file.read() as reading:
            return dead_letter_records(reading, after=after, limit=limit, max_bytes=max_bytes)

    def drop_dead_letters(self, numbers: Iterable[int] | None = None) -> int:
        """Forget them (all where None); they are not tried again. Returns how many they were.

        Raises:
            ValueError: no such dead letter.
        """
        with self.file.write() as writing:
            letters = DeadLetters(writing, most=self._max_dead_letters)
            wanted = set(letters.numbers() if numbers is None else numbers)
            for number in wanted:
                letters.remove(get_dead_letter(writing, number))
        return len(wanted)

    def offset(self, source: str) -> bytes | None:
        """Offset of the last event of a source that was committed."""
        with self.file.read() as reading:
            value = reading.txn.get(_source_key(source), db=reading.tables.offsets)
        return None if value is None else bytes(value)

    def ad(self, ad_id: int) -> AdView | None:
        """What the index has of an ad."""
        with self.file.read() as reading:
            return view_ad(reading, ad_id)

    def neighbours(self, ad_id: int, tokenizer_id: str, *, limit: int = 20) -> list[Neighbour]:
        """Active ads with the same SID, then those that share ever shorter prefixes, at most `limit`."""
        with self.file.read() as reading:
            return find_neighbours(reading, ad_id, tokenizer_id=tokenizer_id, limit=limit)

    def add_encoder(self, encoder: Encoder) -> None:
        """Take an encoder; a tokenizer without a generation gets one, for `generations.fill` to complete.

        Raises:
            IndexStoreError: as `generations.add_generation`.
        """
        add_generation(self.file, encoder)
        self.encoders[encoder.tokenizer_id] = encoder

    def build(
        self,
        tokenizer_id: str,
        level_sizes: tuple[int, ...],
        *,
        ad_ids: np.ndarray,
        sids: np.ndarray,
        statuses: np.ndarray,
        content: Content | None = None,
        keys: Any = None,
        versions: np.ndarray | int = 0,
        audiences: Sequence[object] | None = None,
        replace_all: bool = False,
    ) -> int:
        """Bulk load of a generation (see `bulk_load`), after which events that waited are tried again.

        Args:
            tokenizer_id: of the generation.
            level_sizes: codebook sizes V_1 .. V_T.
            ad_ids: int64 [N], distinct.
            sids: int32 [N, T].
            statuses: str [N], one of `STATUSES` each.
            content: columns of N strings; without it, partial updates of the ads are refused.
            keys: the user's own keys of the ads, N strings as list or polars Series; None where ids are
                numbers.
            versions: of both registers of the ads, int64 [N] or one for all.
            audiences: of the ads, N objects or JSON texts, None for everybody; None where all are for
                everybody.
            replace_all: drop all ads and generations first.

        Returns:
            The sequence number of the load.

        Raises:
            ValueError: values that do not fit; the old content stays.
            IndexStoreError: as `apply`.
        """
        sizes = tuple(level_sizes)
        ads = AdColumns.checked(
            sizes,
            ad_ids=ad_ids,
            sids=sids,
            statuses=statuses,
            versions=versions,
            content=content,
            keys=keys,
            audiences=audiences,
        )
        sequence = bulk_load(self.file, tokenizer_id, level_sizes=sizes, ads=ads, replace_all=replace_all)
        with self.file.read() as reading:
            waiting = [letter.number for letter in iterate_dead_letters(reading) if letter.waiting]
        for at in range(0, len(waiting), _REPLAYED):
            with self.file.read() as reading:
                part = [get_dead_letter(reading, number) for number in waiting[at : at + _REPLAYED]]
            self._again(part)
        return sequence

    def close(self) -> None:
        """Release the file and the writer's lock."""
        self.file.close()

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _again(self, letters: Sequence[DeadLetter]) -> list[Outcome]:
        with self._batch({}) as batch:
            for letter in letters:
                batch.again(letter)
            return batch.finish()

    @contextmanager
    def _batch(self, offsets: Mapping[str, bytes]) -> Iterator[Batch]:
        with self.file.write() as writing:
            yield Batch(
                writing,
                encoders=self.encoders,
                accounts=self.accounts,
                columns=self.columns,
                now=int(self.file.now()),
                max_dead_letters=self._max_dead_letters,
            )
            for source, offset in offsets.items():
                writing.txn.put(_source_key(source), offset, db=writing.tables.offsets)


def _source_key(source: str) -> bytes:
    key = source.encode()
    if not 0 < len(key) <= 500:
        raise ValueError(f"source: expected a name of 1 to 500 bytes, got {len(key)}")
    return key
