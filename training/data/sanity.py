"""What makes a log unfit for training although each of its tables is right."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from serving.model.features import BEHAVIORS
from training.data.checks import date_of
from training.data.log import EventLog, Int64
from training.data.parts import Parts
from training.data.split import DAY, PARTS

_FAR_SHARE = 0.005  # of the events, at most, on either side


def far_times(events: pl.LazyFrame) -> str:
    """Name events that lie further from the others than those are apart; nothing where there are none."""
    time = pl.col("timestamp")
    bounds = time.quantile(_FAR_SHARE, "higher"), time.quantile(1 - _FAR_SHARE, "lower").alias("high")
    low, high = map(int, events.select(bounds).collect(engine="streaming").row(0))
    span = max(high - low, DAY)
    near = time.is_between(low - span, high + span)
    rest = time.filter(near)
    found = events.select(rest.min(), rest.max().alias("last"), (~near).sum().alias("far"))
    first, last, count = found.collect(engine="streaming").row(0)
    if not count:
        return ""
    far = events.filter(~near).sort((time - low).abs(), descending=True, maintain_order=True).head(1)
    event = far.select("timestamp", "user_id", "ad_id").collect(engine="streaming").row(0, named=True)
    more = f" (and {count - 1} more such events)" if count > 1 else ""
    return (
        f"column 'timestamp': far from the rest, which lies in {date_of(first)} .. {date_of(last)}: "
        f"{date_of(event['timestamp'])} ({event['timestamp']}) of user {event['user_id']}, "
        f"ad {event['ad_id']}{more}"
    )


def check_targets(behaviors: Mapping[str, int], *, target_behaviors: Sequence[str]) -> None:
    """Refuse a log without a target.

    Args:
        behaviors: number of events of each behavior.
        target_behaviors: of the preset.

    Raises:
        ValueError: says which behaviors there are.
    """
    if not any(behaviors.get(name) for name in target_behaviors):
        raise ValueError(
            f"data.target_behaviors: expected events of {' or '.join(target_behaviors)}, got none among "
            + ", ".join(f"{behaviors[name]:,} {name}" for name in BEHAVIORS if behaviors.get(name))
        )


def targets_of_parts(log: EventLog, parts: Parts, *, target_behaviors: Sequence[str]) -> Int64:
    """Events of the target behaviors that are known in the part of their request, int64 [parts]."""
    part = parts.request[log.exposures.request]
    known = np.isin(log.behavior, [BEHAVIORS[name] for name in target_behaviors]) & (parts.event <= part)
    return np.bincount(part[known], minlength=len(PARTS))


def check_parts(targets: Int64, *, target_behaviors: Sequence[str], far: str = "") -> None:
    """Refuse parts without a request.

    Args:
        targets: `targets_of_parts` of the whole log.
        target_behaviors: of the preset.
        far: `far_times` of it.

    Raises:
        ValueError: names the empty parts, and times that may be the reason.
    """
    empty = [name for name, count in zip(PARTS, targets, strict=True) if not count]
    if empty:
        raise ValueError(
            f"expected requests with {' or '.join(target_behaviors)} in each of {', '.join(PARTS)}, got none "
            f"in {', '.join(empty)}" + (f"; {far}" if far else "") + "; see data.split"
        )
