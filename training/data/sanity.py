"""What makes a log unfit for training although each of its tables is right.

Letters: E events.
"""

from collections.abc import Sequence

import numpy as np

from serving.model.features import BEHAVIORS
from training.data.checks import date_of
from training.data.log import EventLog
from training.data.parts import Parts
from training.data.split import DAY, PARTS

_FAR_SHARE = 0.005  # of the events, at most, on either side


def far_times(log: EventLog) -> str:
    """Name events that lie further from the others than those are apart; nothing where there are none."""
    times = log.timestamp
    low = int(np.quantile(times, _FAR_SHARE, method="higher"))
    high = int(np.quantile(times, 1 - _FAR_SHARE, method="lower"))
    span = max(high - low, DAY)
    near = (times >= low - span) & (times <= high + span)
    if near.all():
        return ""
    first, last = int(times[near].min()), int(times[near].max())
    far = np.flatnonzero(~near)
    event = int(far[np.argmax(np.abs(times[far] - low))])
    user = log.user_ids[np.searchsorted(log.user_ptr, event, side="right") - 1]
    more = f" (and {len(far) - 1} more such events)" if len(far) > 1 else ""
    return (
        f"column 'timestamp': far from the rest, which lies in {date_of(first)} .. {date_of(last)}: "
        f"{date_of(int(times[event]))} ({times[event]}) of user {user}, ad {log.ad_ids[event]}{more}"
    )


def check_targets(log: EventLog, *, target_behaviors: Sequence[str]) -> None:
    """Refuse a log without a target.

    Raises:
        ValueError: says which behaviors there are.
    """
    counts = {name: int((log.behavior == code).sum()) for name, code in BEHAVIORS.items()}
    if not any(counts[name] for name in target_behaviors):
        raise ValueError(
            f"data.target_behaviors: expected events of {' or '.join(target_behaviors)}, got none among "
            + ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        )


def check_parts(log: EventLog, parts: Parts, *, target_behaviors: Sequence[str]) -> None:
    """Refuse parts without a request.

    Raises:
        ValueError: names the empty parts, and times that may be the reason.
    """
    part = parts.request[log.exposures.request]
    known = np.isin(log.behavior, [BEHAVIORS[name] for name in target_behaviors]) & (parts.event <= part)
    targets = np.bincount(part[known], minlength=len(PARTS))
    empty = [name for name, count in zip(PARTS, targets, strict=True) if not count]
    if empty:
        far = far_times(log)
        raise ValueError(
            f"expected requests with {' or '.join(target_behaviors)} in each of {', '.join(PARTS)}, got none "
            f"in {', '.join(empty)}" + (f"; {far}" if far else "") + "; see data.split"
        )
