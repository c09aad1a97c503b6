"""Check one request and turn it into the prefix graph's features.

Letters: N history events, E excluded ads, S history slots, H habits, T SID levels, P profile columns, Q
request features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.index.snapshot import Snapshot
from serving.model.features import BEHAVIORS, FeatureSpec, select_events
from serving.search.widths import WidthPlan

PADDING = -1  # an ad id that stands for nothing, so that rows of a batch can have one length


class RequestError(ValueError):
    """A request is malformed; the message is for the client."""


@dataclass(frozen=True)
class RequestLimits:
    """What a request may ask for."""

    max_num_ads: int = 200
    max_exclude: int = 1000

    def __post_init__(self) -> None:
        """Reject limits that allow nothing."""
        if self.max_num_ads < 1 or self.max_exclude < 0:
            raise ValueError(f"request limits: expected max_num_ads >= 1 and max_exclude >= 0, got {self}")


@dataclass(frozen=True)
class Features:
    """Features of one request.

    Attributes:
        slot_ads: int64 [S + H], ad that each slot shows, then habits; -1 is an empty row.
        slots: int32 [S + H, 3], see `serving.model.features.History`. The SIDs are filled in where the model
            version is known, see `serving.model.features.fill_slots`.
        profile: int32 [P + Q], codes of the profile, then of the request features.
        ignored: history events left out: unknown ads, later than the request, older than the newest
            max_history.
        past_ads: int64 [h], of the events that count, see `serving.model.features.History`.
        past_behaviors: int32 [h].
        past_times: int64 [h].
        unknown: request features that came with a value that the model does not know.
    """

    slot_ads: np.ndarray
    slots: np.ndarray
    profile: np.ndarray
    ignored: int
    past_ads: np.ndarray
    past_behaviors: np.ndarray
    past_times: np.ndarray
    unknown: tuple[str, ...] = ()


def request_features(
    spec: FeatureSpec,
    snapshot: Snapshot,
    *,
    ad_ids: np.ndarray,
    behaviors: np.ndarray,
    timestamps: np.ndarray,
    profile: np.ndarray,
    now: int,
    given: Mapping[str, Any] | None = None,
) -> Features:
    """Features of a request; an empty history is a legal cold-start user.

    Args:
        spec: context of the model.
        snapshot: index of any generation: which ads are known.
        ad_ids: int64 [N]; -1 is padding.
        behaviors: int32 [N].
        timestamps: int64 [N], unix seconds.
        profile: int32 [P].
        now: time of the request, unix seconds.
        given: values of request features by name; those left out are unknown.

    Raises:
        RequestError: lengths that differ, values out of range.
    """
    for name, values in (("history_behaviors", behaviors), ("history_timestamps", timestamps)):
        if len(values) != len(ad_ids):
            raise RequestError(
                f"{name}: expected {len(ad_ids)} values (one for each of history_ad_ids), got {len(values)}"
            )
    _check_ids("history_ad_ids", ad_ids)
    present = ad_ids != PADDING
    ad_ids, behaviors, timestamps = ad_ids[present], behaviors[present], timestamps[present]
    _check_range(
        "history_behaviors",
        behaviors,
        low=1,
        high=len(BEHAVIORS),
        meaning=", ".join(f"{v} {k}" for k, v in BEHAVIORS.items()),
    )
    _check_range("history_timestamps", timestamps, low=0, high=1 << 40, meaning="unix seconds")
    _check_range("timestamp", np.array([now]), low=0, high=1 << 40, meaning="unix seconds")
    if len(profile) != len(spec.profile_sizes):
        raise RequestError(f"profile: expected {len(spec.profile_sizes)} codes, got {len(profile)}")
    for column, (code, size) in enumerate(zip(profile.tolist(), spec.profile_sizes, strict=True)):
        if not 0 <= code < size:
            raise RequestError(f"profile[{column}]: expected 0..{size - 1} (0 = unknown), got {code}")
    _, known = snapshot.sids_of(ad_ids)
    ad_ids, behaviors, timestamps = ad_ids[known], behaviors[known], timestamps[known]
    history = select_events(spec, ad_ids, behaviors=behaviors, timestamps=timestamps, now=now)
    slot_ads, shown = np.full(spec.rows, PADDING, np.int64), history.events >= 0
    slot_ads[shown] = ad_ids[history.events[shown]]
    ignored = history.ignored + int((~known).sum())
    given = given or {}
    codes = {f.name: f.code(given[f.name]) for f in spec.request_features if f.name in given}
    columns = np.array([codes.get(f.name, 0) for f in spec.request_features], np.int32)
    return Features(
        slot_ads,
        history.columns,
        profile=np.concatenate([profile.astype(np.int32), columns]),
        ignored=ignored,
        past_ads=ad_ids[history.past],
        past_behaviors=behaviors[history.past],
        past_times=timestamps[history.past],
        unknown=tuple(name for name, code in codes.items() if code == 0),
    )


def check_present(**inputs: np.ndarray | None) -> None:
    """Inputs by name; None is one that the client left out.

    Raises:
        RequestError: names the missing ones.
    """
    missing = [name for name, values in inputs.items() if values is None]
    if missing:
        raise RequestError(f"expected the inputs {', '.join(inputs)}; missing: {', '.join(missing)}")


def check_num_ads(num_ads: np.ndarray, limits: RequestLimits) -> None:
    """num_ads int, of any shape, of a request.

    Raises:
        RequestError: out of range.
    """
    _check_range("num_ads", num_ads.ravel(), low=1, high=limits.max_num_ads, meaning="ads to return")


def parse_widths(text: str, *, levels: int) -> WidthPlan:
    """Request parameter `widths`.

    Raises:
        RequestError: it is no width plan.
    """
    try:
        return WidthPlan.parse(text, levels=levels)
    except ValueError as error:
        raise RequestError(f"parameter widths: {error}") from error


def check_exclude(exclude: np.ndarray, limits: RequestLimits) -> np.ndarray:
    """Excluded ads int64 [E] without padding, sorted and distinct.

    Raises:
        RequestError: too many, or negative ids.
    """
    _check_ids("exclude_ad_ids", exclude)
    exclude = np.unique(exclude[exclude != PADDING])
    if len(exclude) > limits.max_exclude:
        raise RequestError(f"exclude_ad_ids: expected at most {limits.max_exclude} ads, got {len(exclude)}")
    return exclude


def _check_ids(name: str, ids: np.ndarray) -> None:
    bad = np.flatnonzero(ids < PADDING)
    if len(bad):
        raise RequestError(f"{name}[{bad[0]}]: expected an ad id >= 0 (or -1 for padding), got {ids[bad[0]]}")


def _check_range(name: str, values: np.ndarray, *, low: int, high: int, meaning: str) -> None:
    bad = np.flatnonzero((values < low) | (values > high))
    if len(bad):
        raise RequestError(
            f"{name}: expected {low}..{high} ({meaning}), got {values[bad[0]]} at position {bad[0]}"
        )
