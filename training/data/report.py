"""What `make data` says about a log: its exposures, its parts, what rules drop, what looks wrong."""

from collections.abc import Sequence

import numpy as np

from serving.model.features import BEHAVIORS
from training.data.checks import date_of
from training.data.leak import EARLIER_S, LAST_EVENTS, measure_leak
from training.data.log import EventLog
from training.data.parts import TRAIN, Parts
from training.data.prepared import Prepared
from training.data.sanity import far_times
from training.data.split import PARTS, WEEK
from training.preset.recipes import TrainingConfig

_TITLES = ("part", "from", "to", "events", "requests", "users", "requests dropped", "users dropped")


def report(prepared: Prepared, *, target_behaviors: Sequence[str], rules: TrainingConfig) -> list[str]:
    """Lines about exposures, the parts, and the share that each rule drops.

    Args:
        prepared: the prepared data.
        target_behaviors: of the preset.
        rules: `min_history` and `recent_weeks` of the preset.
    """
    log, parts = prepared.log, prepared.parts
    lines, recent = [*_exposures(log), _row(_TITLES)], []
    for part, name in enumerate(PARTS):
        found = parts.groups(log, part, target_behaviors=target_behaviors, min_history=0)
        kept = found.history >= rules.min_history
        users, users_kept = (len(np.unique(rows)) for rows in (found.user_row, found.user_row[kept]))
        span = (date_of(int(time)) for time in (found.now.min(), found.now.max()))
        counts = (f"{count:,}" for count in ((parts.event == part).sum(), len(found), users))
        dropped = (
            f"{1 - kept / every:.1%}" for kept, every in ((kept.sum(), len(found)), (users_kept, users))
        )
        lines.append(_row((name, *span, *counts, *dropped)))
        if part == TRAIN and rules.recent_weeks is not None:
            old = found.now[kept] < prepared.split.train_end - rules.recent_weeks * WEEK
            share = old.sum() / max(kept.sum(), 1)
            recent.append(
                f"training.recent_weeks {rules.recent_weeks} drops {share:.1%} of those left to train on"
            )
    lines.append(
        f"requests are those with a target ({', '.join(target_behaviors)}); dropped are those with fewer "
        f"than training.min_history {rules.min_history} earlier events of their user"
    )
    return [*lines, *recent, *_late(log, parts, target_behaviors)]


def warnings(prepared: Prepared, *, target_behaviors: Sequence[str]) -> list[str]:
    """What looks wrong with a log: times far from the rest, targets' own rows in their histories."""
    groups = prepared.parts.groups(prepared.log, TRAIN, target_behaviors=target_behaviors, min_history=0)
    far, leak = far_times(prepared.log), measure_leak(prepared.log, groups)
    found = [far] if far else []
    if leak.suspicious:
        found.append(
            f"the answer seems to be in the question: the ad of {leak.now:.1%} of the training targets is "
            f"among the {LAST_EVENTS} events before the request, of {leak.earlier:.1%} {EARLIER_S // 60} "
            "minutes earlier. Give events of one exposure the same request_id, or set "
            f"data.attribution_window (now {prepared.attribution_window_s} s) to more than lies between its "
            "impression and its conversion"
        )
    return found


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    widths = (16, 16, 13, 11, 11, 16, 13)
    return f"{first:<10}" + "".join(f"  {cell:>{width}}" for cell, width in zip(others, widths, strict=True))


def _exposures(log: EventLog) -> list[str]:
    events = log.outcomes(np.ones(len(log.behavior), bool))
    outcomes = log.behavior[events]
    came = ", ".join(f"{int((outcomes == code).sum()):,} {name}" for name, code in BEHAVIORS.items())
    lines = [f"{len(outcomes):,} exposures of {len(log.behavior):,} events, by what came of them: {came}"]
    impressions = log.behavior == BEHAVIORS["impression"]
    if impressions.any():
        shown = np.zeros(len(log.behavior), bool)
        shown[log.exposures.exposure[impressions]] = True
        unseen = int((~shown[log.exposures.exposure[events]]).sum())
        lines.append(f"{unseen:,} of them have a click or a conversion and no impression")
    return lines


def _late(log: EventLog, parts: Parts, target_behaviors: Sequence[str]) -> list[str]:
    late = parts.event > parts.request[log.exposures.request]
    count = int((late & np.isin(log.behavior, [BEHAVIORS[name] for name in target_behaviors])).sum())
    text = f"{count:,} outcomes come after the end of their request's part and are not known in it"
    return [text] if count else []
