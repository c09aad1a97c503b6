"""The slots of a history, by a plain loop over its events."""

from __future__ import annotations

import bisect

import numpy as np

from serving.model.features import FeatureSpec

Event = tuple[int, tuple[int, ...], int, int]
"""Ad, SID, behavior, time."""


def events_of(ads, sids, *, behaviors, timestamps) -> list[Event]:
    """Arrays [N] and SIDs [N, T] as events."""
    return [
        (int(ad), tuple(sid), int(behavior), int(time))
        for ad, sid, behavior, time in zip(ads, np.asarray(sids).tolist(), behaviors, timestamps, strict=True)
    ]


def plain_slots(spec: FeatureSpec, events: list[Event], now: int) -> tuple[np.ndarray, int]:
    """Slots and habits int32 [S + H, T + 3] as one would say it, and the number of events left out."""
    past = sorted((e for e in events if e[3] <= now), key=lambda e: e[3])[-spec.max_history :]
    left_out = len(events) - len(past)
    if spec.attribution_window_s:
        past = plain_exposures(past, spec.attribution_window_s)
    newest_first = past[::-1]
    count = {ad: sum(e[0] == ad for e in past) for ad in {e[0] for e in past}}

    def row(event):
        ad, sid, behavior, time = event
        gap = bisect.bisect_left(spec.gap_edges_s, now - time)
        return [*(c + 1 for c in sid), behavior, gap, bisect.bisect_left(spec.count_edges, count[ad])]

    latest = {}
    for rank, event in enumerate(newest_first):
        latest.setdefault(event[0], (rank, event))
    frequent = [e for _, e in sorted(latest.values(), key=lambda x: (-count[x[1][0]], x[0]))]
    rows = []
    for of, most in ((newest_first, spec.short_slots), (frequent, spec.long_slots), (frequent, spec.habits)):
        shown = [row(e) for e in of[:most]]
        rows += shown + [[0] * (spec.levels + 3)] * (most - len(shown))
    return np.array(rows, np.int32), left_out


def plain_exposures(past: list[Event], window_s: int) -> list[Event]:
    """Of events, oldest first, those that open an exposure, each with its highest behavior."""
    opened: list[list] = []
    last: dict[int, list] = {}
    for ad, sid, behavior, time in past:
        exposure = last.get(ad)
        if exposure is None or time - exposure[3] > window_s:
            exposure = last[ad] = [ad, sid, behavior, time]
            opened.append(exposure)
        exposure[2] = max(exposure[2], behavior)
    return [tuple(exposure) for exposure in opened]
