"""A stream of ad events as an ad platform sends them, and what must come of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.live_index.deployment import text

Event = dict[str, Any]

_MIX = (("create", 0.4), ("update", 0.2), ("pause", 0.2), ("resume", 0.15), ("delete", 0.05))


def ad_events(
    *, seed: int, first_new: int, known: tuple[int, int], untouched: frozenset[int] = frozenset()
) -> Iterator[Event]:
    """Endless valid events; versions of an ad rise.

    Args:
        seed: of the draws.
        first_new: id of the first ad that is created.
        known: first and last id of ads that exist already and may be touched.
        untouched: ids left alone.
    """
    random = np.random.default_rng(seed)
    versions: dict[int, int] = {}
    status: dict[int, str] = {}
    created: list[int] = []
    kinds, shares = zip(*_MIX, strict=True)
    while True:
        for kind in random.choice(kinds, 256, p=shares):
            if kind == "create":
                ad = first_new + len(created)
                created.append(ad)
            elif created and random.random() < 0.5:
                ad = created[int(random.integers(len(created)))]
            else:
                ad = int(random.integers(known[0], known[1] + 1))
            if ad in untouched or status.get(ad) == "deleted":
                continue
            versions[ad] = versions.get(ad, 0) + 1
            status[ad] = {"pause": "paused", "delete": "deleted", "update": status.get(ad, "active")}.get(
                str(kind), "active"
            )
            event: Event = {"kind": str(kind), "ad_id": ad, "version": versions[ad]}
            if kind in ("create", "update"):
                event |= {"account_id": f"a{ad % 97}", "conversion_type": "plain", "text": text(random)}
            yield event
