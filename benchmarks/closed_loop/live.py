"""What is seen of a loop while it is played: a line on the terminal, and a file that the console reads."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.closed_loop.deployment import Deployment
from benchmarks.closed_loop.play import Played
from benchmarks.simulation.measures import PER

FILE = "loop.jsonl"
LATE = 200  # requests that the live figures are of
_FILE_EVERY_S, _LINE_EVERY_S = 1.0, 10.0


class Live:
    """Called after every request; says something now and then."""

    def __init__(self, deployment: Deployment, *, seed: int, say: Callable[[str], None]) -> None:
        """Begin the file anew."""
        self._deployment, self._seed, self._say = deployment, seed, say
        self._path = deployment.run / FILE
        self._path.write_bytes(b"")
        self._written = self._said = time.monotonic()
        self._version, self._since = 0, time.monotonic()
        self._ended: set[str] = set()

    def __call__(self, played: Played) -> None:
        """After a request."""
        now = time.monotonic()
        if played.asked and played.asked[-1].version != self._version:
            self._version, self._since = played.asked[-1].version, now
        if now - self._written >= _FILE_EVERY_S and played.asked:
            self._written = now
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.figures(played)) + "\n")
        if now - self._said >= _LINE_EVERY_S and played.asked:
            self._said = now
            self._say(self.line(played))
            for name, code in self._deployment.ended().items():
                if name not in self._ended:
                    self._ended.add(name)
                    self._say(f"the {name} ended with status {code}: {self._deployment.said(name)[-500:]}")

    def figures(self, played: Played) -> dict[str, Any]:
        """Of the last requests, per 1,000; `at` in unix seconds."""
        late, last = played.asked[-LATE:], played.asked[-1]
        online, frozen = (
            PER * float(np.mean([getattr(one, model).expected for one in late]))
            for model in ("online", "frozen")
        )
        return {
            "at": round(time.time(), 3),
            "seed": self._seed,
            "day": round(last.day, 2),
            "requests": len(played.asked),
            "failed": len(played.failures),
            "version": last.version,
            "revenue_online": round(online, 1),
            "revenue_frozen": round(frozen, 1),
        }

    def line(self, played: Played) -> str:
        """For a reader."""
        of = self.figures(played)
        ahead = of["revenue_online"] / of["revenue_frozen"] - 1 if of["revenue_frozen"] else 0.0
        minutes, seconds = divmod(int(played.asked[-1].at), 60)
        return (
            f"[{minutes:02}:{seconds:02}] day {of['day']:.0f}, {of['requests']:,} requests, "
            f"{of['failed']} failed; revenue per {PER:,} of the last {LATE}: online "
            f"{of['revenue_online']:,.0f}, frozen {of['revenue_frozen']:,.0f} ({100 * ahead:+.1f} %); "
            f"version {of['version']} for {time.monotonic() - self._since:.0f} s"
        )
