"""A server about to stop: it takes nothing new, and finishes what it has in hand.

Triton itself refuses the inner steps of an ensemble from the moment it is told to exit: of 48 requests in
hand 33 failed. So the entry, the first model of the ensemble, turns new requests away before that. It reads
in a file from when on it is to do so (`serving.backend.entry`); whoever asks for health reads the file too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from launcher.server_files import ServerError
from launcher.stubs import SHM
from launcher.triton_admin import Admin

_EVERY_S = 0.1
_STUCK_S = 5.0


def drain_file(shm_prefix: str) -> Path:
    """Where the time lies from which on a server takes no new requests, in seconds of the monotonic clock."""
    return SHM / f"{shm_prefix}draining"


def drain(admin: Admin, *, shm_prefix: str, lame_duck_s: float, grace_s: float) -> int:
    """Turns new requests away and waits for those in hand; returns how many are left.

    Args:
        admin: Of the server.
        shm_prefix: Of the server.
        lame_duck_s: Seconds during which health says no and requests are still taken: until those who send
            them know, and until what came before has passed the entry.
        grace_s: Seconds after that for the requests in hand.
    """
    path = drain_file(shm_prefix)
    partial = path.with_name(f"{path.name}.new")
    partial.write_text(repr(time.monotonic() + lame_duck_s))
    partial.replace(path)
    time.sleep(lame_duck_s)
    deadline = time.monotonic() + grace_s
    last, moved = None, time.monotonic()
    try:
        firsts = first_steps(admin)
        while (counts := _counts(admin)) and (left := in_hand(counts, firsts)) > 0:
            now = time.monotonic()
            if counts != last:
                last, moved = counts, now
            # Whoever calls an inner model past its ensemble disturbs the count: then nothing moves any more.
            if now > deadline or now - moved > _STUCK_S:
                return left
            time.sleep(_EVERY_S)
    except ServerError:  # it died
        return 0
    return 0


def first_steps(admin: Admin) -> dict[str, str]:
    """Ensembles and the model that each request of theirs meets first."""
    configs = {v.model: admin.config(v.model) for v in admin.versions() if v.state == "READY"}
    steps = {name: config.get("ensemble_scheduling", {}).get("step") for name, config in configs.items()}
    return {name: step[0]["model_name"] for name, step in steps.items() if step}


def in_hand(counts: Mapping[str, tuple[int, int]], firsts: Mapping[str, str]) -> int:
    """Requests of ensembles that have passed their first step and have no answer yet.

    Every request of an ensemble is one of its first model; one that failed there failed in the ensemble.

    Args:
        counts: answered and failed requests of each model.
        firsts: from `first_steps`.
    """
    passed = sum(sum(counts.get(first, (0, 0))) for first in set(firsts.values()))
    return max(passed - sum(sum(counts.get(ensemble, (0, 0))) for ensemble in firsts), 0)


def _counts(admin: Admin) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for model in admin.statistics():
        answered, failed = found.get(model.name, (0, 0))
        stats = model.inference_stats
        found[model.name] = (answered + stats.success.count, failed + stats.fail.count)
    return found
