"""From feedback that is accepted to the first answer by weights that learnt from it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loop.stack import Stack, copied

WINDOW_S = 1.0
EVERY_S = 1.0  # between two requests
_TIMEOUT_S = 120.0
_START_S = 600.0  # longest time to the first version

Say = Callable[[str], None]


def learning(run: Path, *, demo: Path, config: str, count: int, say: Say) -> dict[str, Any]:
    """A trained run serves a request a second and learns from what its users buy.

    Args:
        run: folder to work in.
        demo: trained, exported and indexed run.
        config: its preset.
        count: reports that are followed, once a version has learnt from those before.
        say: is told how it goes.

    Returns:
        `feedback_to_weights_p50_s` and `_p99_s`, from a report that is on disk to the first answer by weights
        that learnt from its sample; `reports`, and of how many no such answer came in time (`not_learnt`).
    """
    copied(demo, run)
    settings = ("serving.load_control=fixed", "serving.cache='off'")
    accepted: dict[str, float] = {}
    seen: list[tuple[int, float]] = []  # of each version: samples behind it, its first answer
    version, last = 0, 0.0
    with Stack(run, config=config, settings=settings, window_s=WINDOW_S) as stack:
        users, began = stack.users, time.monotonic()
        while len(accepted) < count or (
            not _all_learnt(stack, accepted, offset=seen[-1][0]) and time.monotonic() - last < _TIMEOUT_S
        ):
            due = time.monotonic() + EVERY_S
            name, answer, at = users.ask()
            if answer["model_version"][0, 0] != version:
                version = int(answer["model_version"][0, 0])
                seen.append((stack.learnt_by(version), time.monotonic()))
            if len(accepted) < count:
                users.report(name, answer["ad_ids"][0], at, bought=users.number % 5)
                last = time.monotonic()
                if len(seen) > 1:  # the first version is waited for: trainer and publisher read their data
                    accepted[name] = last
                elif last - began > _START_S:
                    raise TimeoutError(f"expected a version by the trainer within {_START_S:g} s, got none")
                if accepted and len(accepted) % 20 == 0:
                    say(f"learning: {len(accepted)} reports, version {version}")
            stack.learning.require()
            time.sleep(max(0.0, due - time.monotonic()))
        seconds = time.monotonic() - began
        sequences = stack.sequences()
    taken = []
    for name, when in accepted.items():
        by = [first for offset, first in seen if offset >= sequences[name]]
        taken += [min(by) - when] if by else []
    return {
        "feedback_to_weights_p50_s": round(statistics.median(taken), 2) if taken else None,
        "feedback_to_weights_p99_s": round(float(np.percentile(taken, 99)), 2) if taken else None,
        "feedback_to_weights_s": [round(min(taken), 2), round(max(taken), 2)] if taken else None,
        "reports": len(accepted),
        "not_learnt": len(accepted) - len(taken),
        "versions_that_learnt": len(seen) - 1,
        "learning_seconds": round(seconds),
    }


def _all_learnt(stack: Stack, accepted: dict[str, float], *, offset: int) -> bool:
    sequences = stack.sequences()
    return all(name in sequences and sequences[name] <= offset for name in accepted)
