"""From a user's history to the integer tensors the prefix graph reads; training and serving share it.

Letters: N history events, S history slots (short + long), H habits, T SID levels, P profile columns.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from serving.index.snapshot import Snapshot
from serving.model.exposures import join_exposures
from serving.model.request_features import RequestFeature

BEHAVIORS = {"impression": 1, "click": 2, "conversion": 3}  # 0 marks an empty slot
EVENT_COLUMNS = 3  # columns of a row beside the codes: behavior, gap bucket, count bucket

_HOUR, _DAY, _WEEK = 3_600, 86_400, 604_800
GAP_EDGES_S = (
    _HOUR,
    _DAY,
    3 * _DAY,
    _WEEK,
    2 * _WEEK,
    3 * _WEEK,
    4 * _WEEK,
    6 * _WEEK,
    9 * _WEEK,
    13 * _WEEK,
    26 * _WEEK,
)
"""Of a log of purchases, weeks apart."""


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """What a context looks like. Stored in the bundle so that the server builds what training built.

    Attributes:
        levels: SID levels T.
        short_slots: newest events, newest first.
        long_slots: distinct ads of the whole history, most frequent first.
        max_history: events kept of a longer history (the newest).
        profile_sizes: cardinality of each profile column, category 0 = unknown included.
        gap_edges_s: upper edges in seconds of the buckets of the time since an event.
        count_edges: upper edges of the buckets of how often the ad occurs in the history.
        attribution_window_s: events of one ad so soon after its first one are one exposure and take one slot,
            with the time of the first and the highest behavior; 0 gives every event its own.
        request_features: what is known of a request besides its user.
        habits: distinct ads of the whole history that only a copy path sees, most frequent first; 0 without
            one.
    """

    levels: int = 3
    short_slots: int = 24
    long_slots: int = 36
    max_history: int = 1024
    profile_sizes: tuple[int, ...] = ()
    gap_edges_s: tuple[int, ...] = GAP_EDGES_S
    count_edges: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 18, 30)
    attribution_window_s: int = 0
    request_features: tuple[RequestFeature, ...] = ()
    habits: int = 0

    def __post_init__(self) -> None:
        """Reject settings that no history can fill."""
        for name in ("levels", "short_slots", "long_slots", "max_history"):
            if getattr(self, name) < (0 if name.endswith("slots") else 1):
                raise ValueError(f"features.{name}: expected a positive number, got {getattr(self, name)}")
        if self.slots == 0:
            raise ValueError("features: expected short_slots + long_slots >= 1, got 0")
        if self.habits < 0:
            raise ValueError(f"features.habits: expected a number >= 0, got {self.habits}")
        if self.attribution_window_s < 0:
            raise ValueError(
                f"features.attribution_window_s: expected seconds >= 0, got {self.attribution_window_s}"
            )
        for name in ("gap_edges_s", "count_edges"):
            edges = getattr(self, name)
            if list(edges) != sorted(set(edges)):
                raise ValueError(f"features.{name}: expected strictly increasing edges, got {edges}")
        names = [feature.name for feature in self.request_features]
        if len(set(names)) != len(names):
            raise ValueError(f"features.request_features: expected distinct names, got {names}")

    @property
    def slots(self) -> int:
        """History slots S."""
        return self.short_slots + self.long_slots

    @property
    def rows(self) -> int:
        """Rows of a context: its slots, then the habits, S + H."""
        return self.slots + self.habits

    @property
    def column_sizes(self) -> tuple[int, ...]:
        """Cardinality of each column that a context has once: the profile's, then those of the request."""
        return (*self.profile_sizes, *(feature.codes for feature in self.request_features))

    @property
    def columns(self) -> int:
        """Columns of a row: T codes + 1, and `EVENT_COLUMNS`."""
        return self.levels + EVENT_COLUMNS

    @property
    def gap_buckets(self) -> int:
        """Number of gap buckets."""
        return len(self.gap_edges_s) + 1

    @property
    def count_buckets(self) -> int:
        """Number of count buckets."""
        return len(self.count_edges) + 1

    def to_json(self) -> dict:
        """Plain values for the manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> FeatureSpec:
        """Inverse of `to_json`."""
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        features = [
            RequestFeature(**feature | {"values": tuple(feature["values"])})
            for feature in arguments.pop("request_features", ())
        ]
        return cls(**arguments, request_features=tuple(features))


@dataclass(frozen=True)
class History:
    """One user's history slots and habits before the SIDs are filled in.

    Attributes:
        past: int64, positions of the events that count, oldest first: none newer than `now`, and of those the
            newest `max_history`. Events of one second keep the order of the request.
        events: int64 [S + H], position in the history of the event that each row shows; -1 is an empty row.
        columns: int32 [S + H, 3]: behavior, gap bucket, count bucket; an all-zero row is empty.
        ignored: events left out: newer than `now`, or older than the newest `max_history`.
    """

    past: np.ndarray
    events: np.ndarray
    columns: np.ndarray
    ignored: int


def select_events(
    spec: FeatureSpec, ad_ids: np.ndarray, *, behaviors: np.ndarray, timestamps: np.ndarray, now: int
) -> History:
    """Which events of a history get a slot or are habits, and all of a row that does not depend on SIDs.

    Args:
        spec: what to build.
        ad_ids: int64 [N] ads in any order.
        behaviors: int32 [N], values of `BEHAVIORS`.
        timestamps: int64 [N], unix seconds.
        now: time of the request, unix seconds. Events after it are left out and counted.
    """
    events, columns = np.full(spec.rows, -1), np.zeros((spec.rows, EVENT_COLUMNS), np.int32)
    past = np.flatnonzero(timestamps <= now)
    past = past[np.argsort(timestamps[past], kind="stable")][-spec.max_history :]
    ignored = len(ad_ids) - len(past)
    if not len(past):
        return History(past, events, columns, ignored)
    order = past
    outcomes = behaviors[order]
    if spec.attribution_window_s:
        first, outcomes = join_exposures(
            ad_ids[order], outcomes, times=timestamps[order], window_s=spec.attribution_window_s
        )
        order = order[first]
    last_seen, counts, group = _distinct(ad_ids[order])
    short = np.arange(len(order))[::-1][: spec.short_slots]
    # Most frequent first; of equals the most recently seen.
    bits = len(order).bit_length()
    frequent = np.sort(counts << bits | last_seen)[::-1] & (1 << bits) - 1
    long, habits = frequent[: spec.long_slots], frequent[: spec.habits]
    shown = np.concatenate([short, long, habits])
    rows = np.concatenate(
        [
            np.arange(len(part)) + first
            for part, first in ((short, 0), (long, spec.short_slots), (habits, spec.slots))
        ]
    )
    events[rows] = order[shown]
    columns[rows, 0] = outcomes[shown]
    columns[rows, 1] = np.searchsorted(spec.gap_edges_s, now - timestamps[order[shown]])
    columns[rows, 2] = np.searchsorted(spec.count_edges, counts)[group[shown]]
    return History(past, events, columns, ignored)


def _distinct(ads: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of int64 [N], N > 0: last position and count of each distinct ad [G], and which of them each is [N]."""
    bits = len(ads).bit_length()
    if ads.min() < 0 or int(ads.max()) >> (63 - bits):  # no room beside a position: ranks instead of ids
        ads = np.unique(ads, return_inverse=True)[1]
    # Ad and position in one number, because sorting numbers is several times faster than finding an order.
    packed = np.sort(ads << bits | np.arange(len(ads)))
    ads, positions = packed >> bits, packed & (1 << bits) - 1
    ends = np.append(np.flatnonzero(ads[1:] != ads[:-1]), len(ads) - 1)  # [G]
    counts = np.diff(ends, prepend=-1)
    group = np.empty(len(ads), np.int64)
    group[positions] = np.repeat(np.arange(len(ends)), counts)
    return positions[ends], counts, group


def join_codes(codes: np.ndarray, columns: np.ndarray, *, shown: np.ndarray) -> np.ndarray:
    """Rows int32 [.., R, T + 3] of codes [.., R, T] and columns [.., R, 3], empty where not shown."""
    return np.concatenate([codes + np.int32(1), columns], axis=-1) * shown[..., None]


def fill_slots(snapshot: Snapshot, slot_ads: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Slots and habits int32 [B, S + H, T + 3] for a model of the snapshot's tokenizer, see `select_events`.

    Args:
        snapshot: index of the model's generation; an ad that it does not know gets an empty row.
        slot_ads: int64 [B, S + H].
        slots: int32 [B, S + H, 3].
    """
    sids, known = snapshot.sids_of(slot_ads.ravel())
    return join_codes(sids.reshape(*slot_ads.shape, -1), slots, shown=known.reshape(slot_ads.shape))
