"""Events that a stream lost before they were applied: on record until somebody says that they were seen to.

A record lies in `meta` under gap/<source>: JSON of the fields of `SourceGaps`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from indexer.store.file import StoreFile
from indexer.store.transaction import ReadTransaction
from serving.index.layout import IndexStoreError

_PREFIX = b"gap/"


@dataclass(frozen=True)
class Gap:
    """Events behind the position of the index that a stream holds no more.

    Attributes:
        after: the position.
        resumes: where the stream goes on.
        lost: how many there were; None where the broker does not tell.
    """

    after: str
    resumes: str
    lost: int | None

    def is_same(self, other: Gap | None) -> bool:
        """Whether it is that one, not grown; the stream may hold events behind it by now."""
        return other is not None and (self.after, self.lost) == (other.after, other.lost)

    def __str__(self) -> str:
        """What is to be said of it."""
        count = "an unknown number of" if self.lost is None else f"{self.lost:,}"
        return f"{count} events after {self.after} are gone from the stream, which goes on at {self.resumes}"


@dataclass(frozen=True)
class SourceGaps:
    """Gaps of one source.

    Attributes:
        source: its name; of Kafka with the partition.
        gaps: how many there were.
        lost: events lost in those whose number is known.
        acknowledged: gaps that somebody has seen to.
        time: unix seconds of the latest.
        latest: the latest.
    """

    source: str
    gaps: int
    lost: int
    acknowledged: int
    time: int
    latest: Gap

    @property
    def unseen(self) -> int:
        """Gaps that nobody has seen to."""
        return self.gaps - self.acknowledged


def read_gaps(reading: ReadTransaction) -> dict[str, SourceGaps]:
    """By source.

    Raises:
        IndexStoreError: a record is unreadable.
    """
    found = {}
    with reading.txn.cursor(db=reading.tables.meta) as cursor:
        for key, value in cursor.iternext() if cursor.set_range(_PREFIX) else ():
            if not bytes(key).startswith(_PREFIX):
                break
            try:
                values = json.loads(bytes(value))
                one = SourceGaps(**values | {"latest": Gap(**values["latest"])})
            except (ValueError, TypeError, KeyError) as error:
                where = f"index {reading.path}: {bytes(key)!r}"
                raise IndexStoreError(f"{where}: unreadable: {error!r}") from error
            found[one.source] = one
    return found


def record_gap(file: StoreFile, source: str, gap: Gap) -> SourceGaps:
    """Put a gap on record. One after the same position is the same gap, seen again, perhaps grown.

    Raises:
        IndexStoreError: the store cannot be written.
    """
    with file.read() as reading:
        before = read_gaps(reading).get(source)
    now = int(file.now())
    if before is None:
        after = SourceGaps(source, 1, gap.lost or 0, acknowledged=0, time=now, latest=gap)
    elif before.latest.after != gap.after:
        lost = before.lost + (gap.lost or 0)
        after = replace(before, gaps=before.gaps + 1, lost=lost, time=now, latest=gap)
    elif (more := (gap.lost or 0) - (before.latest.lost or 0)) > 0:
        gaps = before.gaps + (before.unseen == 0)  # what was acknowledged was less
        after = replace(before, gaps=gaps, lost=before.lost + more, time=now, latest=gap)
    else:
        return before
    _put(file, after)
    return after


def acknowledge_gaps(file: StoreFile, source: str) -> SourceGaps:
    """Somebody has seen to all gaps of a source.

    Raises:
        ValueError: it has none.
        IndexStoreError: the store cannot be written.
    """
    with file.read() as reading:
        known = read_gaps(reading)
    if source not in known:
        raise ValueError(f"expected a source with gaps ({', '.join(known) or 'there is none'}), got {source}")
    after = replace(known[source], acknowledged=known[source].gaps)
    _put(file, after)
    return after


def _put(file: StoreFile, gaps: SourceGaps) -> None:
    with file.write() as writing:
        key = _PREFIX + gaps.source.encode()
        writing.txn.put(key, json.dumps(asdict(gaps)).encode(), db=writing.tables.meta)
