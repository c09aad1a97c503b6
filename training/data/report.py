"""What `make data` says about a log: its exposures, its parts, what rules drop, what looks wrong."""

from collections.abc import Sequence

import numpy as np

from serving.model.features import BEHAVIORS
from training.data.checks import date_of
from training.data.leak import EARLIER_S, LAST_EVENTS, Leak, measure_leak
from training.data.log import EventLog
from training.data.parts import TRAIN, Parts
from training.data.sanity import targets_of_parts
from training.data.split import PARTS, WEEK, Split
from training.preset.recipes import TrainingConfig

_TITLES = ("part", "from", "to", "events", "requests", "users", "requests dropped", "users dropped")
_NEVER = np.iinfo(np.int64).max


class LogCounts:
    """Counts over a log, taken from whole users at a time.

    Attributes:
        targets: see `targets_of_parts`.
    """

    def __init__(self, split: Split, *, target_behaviors: Sequence[str], rules: TrainingConfig) -> None:
        """Start with nothing.

        Args:
            split: of the log.
            target_behaviors: of the preset.
            rules: `min_history` and `recent_weeks` of the preset.
        """
        self._split, self._targets, self._rules = split, target_behaviors, rules
        self.targets = np.zeros(len(PARTS), np.int64)
        self._events, self._requests, self._kept, self._users, self._users_kept = np.zeros(
            (5, len(PARTS)), np.int64
        )
        self._first, self._last = np.full(len(PARTS), _NEVER), np.full(len(PARTS), -_NEVER)
        self._outcomes = np.zeros(len(BEHAVIORS) + 1, np.int64)
        self._unseen = self._old = self._late = 0
        self._leaks: list[tuple[Leak, int]] = []

    def add(self, log: EventLog, parts: Parts) -> None:
        """Count the events of some users."""
        self._add_exposures(log)
        self.targets += targets_of_parts(log, parts, target_behaviors=self._targets)
        self._events += np.bincount(parts.event, minlength=len(PARTS))
        late = parts.event > parts.request[log.exposures.request]
        self._late += int((late & np.isin(log.behavior, [BEHAVIORS[name] for name in self._targets])).sum())
        for part in range(len(PARTS)):
            found = parts.groups(log, part, target_behaviors=self._targets, min_history=0)
            if not len(found):
                continue
            kept = found.history >= self._rules.min_history
            self._requests[part] += len(found)
            self._kept[part] += kept.sum()
            self._users[part] += len(np.unique(found.user_row))
            self._users_kept[part] += len(np.unique(found.user_row[kept]))
            self._first[part] = min(self._first[part], found.now.min())
            self._last[part] = max(self._last[part], found.now.max())
            if part == TRAIN:
                self._leaks.append((measure_leak(log, found), len(found.target_events)))
                if self._rules.recent_weeks is not None:
                    begin = self._split.train_end - self._rules.recent_weeks * WEEK
                    self._old += int((found.now[kept] < begin).sum())

    def _add_exposures(self, log: EventLog) -> None:
        events = log.outcomes(np.ones(len(log.behavior), bool))
        self._outcomes += np.bincount(log.behavior[events], minlength=len(self._outcomes))
        shown = np.zeros(len(log.behavior), bool)
        shown[log.exposures.exposure[log.behavior == BEHAVIORS["impression"]]] = True
        self._unseen += int((~shown[log.exposures.exposure[events]]).sum())

    def lines(self) -> list[str]:
        """Exposures, the parts, and the share that each rule drops."""
        lines = [*self._exposures(), _row(_TITLES)]
        for part, name in enumerate(PARTS):
            span = (date_of(int(times[part])) for times in (self._first, self._last))
            counts = (f"{every[part]:,}" for every in (self._events, self._requests, self._users))
            dropped = (
                f"{1 - kept[part] / every[part]:.1%}"
                for kept, every in ((self._kept, self._requests), (self._users_kept, self._users))
            )
            lines.append(_row((name, *span, *counts, *dropped)))
        lines.append(
            f"requests are those with a target ({', '.join(self._targets)}); dropped are those with fewer "
            f"than training.min_history {self._rules.min_history} earlier events of their user"
        )
        if self._rules.recent_weeks is not None:
            share = self._old / max(self._kept[TRAIN], 1)
            weeks = self._rules.recent_weeks
            lines.append(f"training.recent_weeks {weeks} drops {share:.1%} of those left to train on")
        if self._late:
            lines.append(
                f"{self._late:,} outcomes come after the end of their request's part and are not known in it"
            )
        return lines

    def _exposures(self) -> list[str]:
        counts, events = self._outcomes, int(self._events.sum())
        came = ", ".join(f"{counts[code]:,} {name}" for name, code in BEHAVIORS.items())
        lines = [f"{counts.sum():,} exposures of {events:,} events, by what came of them: {came}"]
        if self._unseen < counts.sum():
            lines.append(f"{self._unseen:,} of them have a click or a conversion and no impression")
        return lines

    def leak(self) -> Leak:
        """Of all training targets, as `measure_leak`."""
        targets = sum(count for _, count in self._leaks)
        now, earlier = (
            sum(getattr(leak, name) * count for leak, count in self._leaks) / targets
            for name in ("now", "earlier")
        )
        return Leak(now, earlier)


def leak_warning(leak: Leak, *, attribution_window_s: int) -> str:
    """What to do about targets' own rows in their histories; nothing where there seem to be none."""
    if not leak.suspicious:
        return ""
    return (
        f"the answer seems to be in the question: the ad of {leak.now:.1%} of the training targets is "
        f"among the {LAST_EVENTS} events before the request, of {leak.earlier:.1%} {EARLIER_S // 60} "
        "minutes earlier. Give events of one exposure the same request_id, or set "
        f"data.attribution_window (now {attribution_window_s} s) to more than lies between its "
        "impression and its conversion"
    )


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    widths = (16, 16, 13, 11, 11, 16, 13)
    return f"{first:<10}" + "".join(f"  {cell:>{width}}" for cell, width in zip(others, widths, strict=True))
