"""A policy that shows ads to RecoGym's users: events as they come, actions as they are asked for."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from serving.model.features import BEHAVIORS

PYTHON = Path(".venv-recogym/bin/python")
KINDS = {"shown": "impression", "view": "click", "click": "conversion"}
"""What of RecoGym is which behavior of ours: to view a product is less than to click its ad."""
STEP = 60  # seconds of a step of RecoGym's clock, which has no unit
APART = 4000  # seconds between two users' first steps, so that a log is weeks long


class WorldError(RuntimeError):
    """RecoGym is not installed, or its process failed."""


@dataclass
class History:
    """What a user did so far, the oldest first.

    Attributes:
        ads: products.
        behaviors: see `BEHAVIORS`.
        times: seconds.
    """

    ads: list[int] = field(default_factory=list)
    behaviors: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)

    @property
    def now(self) -> int:
        """When the next ad is shown: a step later."""
        return self.times[-1] + STEP


class Policy(Protocol):
    """Chooses the ad of each of some users."""

    def __call__(self, histories: Sequence[History]) -> Sequence[int]:
        """A product for each."""
        ...


@dataclass(frozen=True)
class Played:
    """Events of all users, columns of one length.

    Attributes:
        user: int64.
        time: int64, seconds.
        product: int64.
        behavior: int32, see `BEHAVIORS`.
        chance: float64, RecoGym's probability of a click, of impressions and clicks.
    """

    user: np.ndarray
    time: np.ndarray
    product: np.ndarray
    behavior: np.ndarray
    chance: np.ndarray


def play(
    policy: Policy, settings: dict[str, Any], *, first: int, users: int, python: Path = PYTHON
) -> Played:
    """Show ads to users until all have left.

    Args:
        policy: chooses them.
        settings: of RecoGym's environment.
        first: number of the first user.
        users: how many.
        python: interpreter with RecoGym.

    Raises:
        WorldError: RecoGym is not installed, its process failed, or said what it should not.
    """
    if not python.exists():
        raise WorldError(f"{python}: expected a virtual environment with RecoGym, got none: make recogym")
    command = [str(python), "-m", "benchmarks.simulation.recogym.world", "--settings", json.dumps(settings)]
    command += ["--users", str(first), str(users)]
    histories: dict[int, History] = defaultdict(History)
    events: list[list[Any]] = []
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            while True:
                new, asks = _read(process.stdout.readline(), said)
                for user, time, product, kind, chance in new:
                    history, behavior = histories[user], BEHAVIORS[KINDS[kind]]
                    history.ads.append(product)
                    history.behaviors.append(behavior)
                    history.times.append(user * APART + time * STEP)
                    events.append([user, history.times[-1], product, behavior, chance])
                if not asks:
                    break
                chosen = [int(product) for product in policy([histories[user] for user in asks])]
                process.stdin.write(json.dumps(chosen) + "\n")
                process.stdin.flush()
        finally:
            process.kill()
    columns = zip(*events, strict=True)
    types = (np.int64, np.int64, np.int64, np.int32, np.float64)
    return Played(*(np.array(column, kind) for column, kind in zip(columns, types, strict=True)))


def _read(line: str, said: IO[str]) -> tuple[list[list[Any]], list[int]]:
    """Events and who asks."""
    if not line:
        said.seek(0)
        words = said.read().strip().splitlines()
        raise WorldError(f"RecoGym ended before its users did: {words[-1] if words else 'without a word'}")
    try:
        content = json.loads(line)
        return content["events"], content["asks"]
    except (ValueError, LookupError, TypeError) as error:
        raise WorldError(f"RecoGym: expected a line of events and asks, got {line[:80]!r}") from error
