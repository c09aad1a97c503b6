"""From feedback to answers by weights that learnt it; what trainer and publisher did.

The trainer's checkpoints say behind which sample their weights stand, the bundles of which checkpoint they
are. A request's sample is learnt by the first version that answers and stands at or behind it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from feedback.store.samples import Samples

_SERVES = re.compile(r"version (\d+) serves: .*step-0*(\d+), ([\d.]+) s")
_REFUSED = re.compile(r"is not published: (.*)")


@dataclass(frozen=True)
class Publishes:
    """What the publisher's log says.

    Attributes:
        steps: of the checkpoint, by version.
        seconds: that each took.
        refused: why, of each that was.
    """

    steps: dict[int, int]
    seconds: list[float]
    refused: list[str]

    @classmethod
    def read(cls, log: str) -> Publishes:
        """Of its lines."""
        found = [(int(v), int(step), float(s)) for v, step, s in _SERVES.findall(log)]
        return cls({v: step for v, step, _ in found}, [s for *_, s in found], _REFUSED.findall(log))


def trainer_history(folder: Path) -> list[dict[str, Any]]:
    """Records of the newest whole checkpoint, one a checkpoint, oldest first; none before there is any."""
    paths = sorted((folder / "checkpoints").glob("step-*/checkpoint.json"), reverse=True)
    for path in paths:
        try:
            return list(json.loads(path.read_text())["history"])
        except (OSError, ValueError, KeyError):
            continue  # removed meanwhile
    return []


def sequences(store: Path, *, accepted: dict[str, float]) -> dict[int, float]:
    """By sequence number of a request's first sample with feedback, when that was accepted."""
    found: dict[int, float] = {}
    with Samples(store) as samples:
        after = 0
        while rows := samples.read(after=after):
            after = rows[-1].sequence
            for sample in rows:
                when = accepted.get(sample.record.request_id or "")
                if when is not None and sample.facts and not sample.revision:
                    found[sample.sequence] = when
    return found


def delays(
    accepted: dict[int, float], *, offsets: dict[int, int], first_answer: dict[int, float]
) -> np.ndarray:
    """Seconds float64 from feedback to the first answer by a version that learnt it.

    Of what no version has learnt yet there is none.

    Args:
        accepted: when, by sequence number.
        offsets: last sequence number that each version has learnt.
        first_answer: when each answered first.
    """
    known = sorted((offset, first_answer[v]) for v, offset in offsets.items() if v in first_answer)
    if not known:
        return np.zeros(0)
    learnt = np.array([offset for offset, _ in known])
    when = np.array([at for _, at in known])
    numbers = np.array(sorted(accepted), np.int64)
    place = np.searchsorted(learnt, numbers)
    told = np.array([accepted[n] for n in numbers.tolist()])[place < len(learnt)]
    seconds: np.ndarray = np.maximum(when[place[place < len(learnt)]] - told, 0.0)
    return seconds
