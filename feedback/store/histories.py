"""Histories of users as feedback makes them: what each did, newest kept; for clients that ask a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from feedback.store.layout import EVENT, StoreReader, number_key


def with_event(history: np.ndarray, event: tuple[int, int, int, bytes], *, most: int) -> np.ndarray:
    """A history with an event in its place, and not where the same event was said to be before.

    Args:
        history: `EVENT` [N], by time, ad and behavior.
        event: a row of it.
        most: newest events that are kept.
    """
    row = np.array([event], EVENT)
    same = np.all([history[name] == row[name] for name in ("ad_id", "behavior", "request")], axis=0)
    history = history[~same]
    first, last = np.searchsorted(history["timestamp"], [event[0], event[0] + 1]).tolist()
    second = history[first:last]  # of one second in the order of a log: by ad and behavior
    earlier = (second["ad_id"] < event[1]) | (
        (second["ad_id"] == event[1]) & (second["behavior"] <= event[2])
    )
    at = first + int(earlier.sum())
    return np.concatenate([history[:at], row, history[at:]])[-most:]


class Histories(StoreReader):
    """Reads the histories of a store."""

    def __init__(self, folder: str | Path) -> None:
        """As `StoreReader`."""
        super().__init__(folder, "histories")

    def of(self, user: int) -> np.ndarray:
        """Events of a user as of now, `EVENT` [N], oldest first; none of one that nothing is known of."""
        with self.begin() as txn:
            raw = txn.get(number_key(user), db=self.tables["histories"])
            return np.frombuffer(raw or b"", EVENT).copy()
