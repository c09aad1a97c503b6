"""What streams lost, as readiness and metrics tell it; kept in the index, so a restart forgets nothing."""

from __future__ import annotations

from indexer.store.file import StoreFile
from indexer.store.gaps import Gap, SourceGaps, acknowledge_gaps, read_gaps, record_gap


class Gaps:
    """Of one store. `record` and `acknowledge` run in the writer's thread; all may read.

    Attributes:
        known: by source.
    """

    def __init__(self, file: StoreFile) -> None:
        """What is on record.

        Raises:
            IndexStoreError: a record is unreadable.
        """
        self._file = file
        with file.read() as reading:
            self.known: dict[str, SourceGaps] = read_gaps(reading)

    def record(self, source: str, gap: Gap) -> None:
        """See `record_gap`."""
        self.known = self.known | {source: record_gap(self._file, source, gap)}

    def acknowledge(self, source: str) -> SourceGaps:
        """See `acknowledge_gaps`."""
        seen = acknowledge_gaps(self._file, source)
        self.known = self.known | {source: seen}
        return seen

    def problems(self) -> list[str]:
        """Gaps that nobody has acknowledged."""
        return [
            f"{name}: {gaps.latest}; send these events again or build the index anew from tables, then "
            "acknowledge (docs/index.md)"
            for name, gaps in self.known.items()
            if gaps.unseen
        ]
