"""What users and a load balancer see of a deployment while something is done to it.

Requests are sent at a steady rate, whether or not the last one was answered; each answer is held against the
one that was given before anything was done. Health is asked beside them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Outcome = Literal["ok", "failed", "wrong"]
Answer = dict[str, np.ndarray]

TOLERANCE = 1e-4  # of scores, which depend a little on the batch
QUIET_S = 1.5  # of right answers and true health without a gap: then a deployment has recovered
PROMPT_S = 1.0
MOMENT_S = 0.3
SLACK_S = 2.0  # that health may lag behind what requests see: it asks once a second, with a time-out


@dataclass(frozen=True)
class Asked:
    """One request; seconds of `time.monotonic`."""

    began: float
    ended: float
    outcome: Outcome
    text: str = ""


@dataclass
class Seen:
    """All that was seen while a block ran."""

    asked: list[Asked] = field(default_factory=list)
    health: list[tuple[float, bool]] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """What a fault came to.

    Attributes:
        requests: sent from the fault on.
        failed: of these, not answered.
        wrong: of these, answered otherwise than before.
        recovery_s: from the end of the fault to the first of the right answers that were not interrupted
            again, with health true; None where that did not come. 0 where nothing was seen of it.
        false_health: looks at which health was true while every request around failed, or not true while
            every request around was answered.
        texts: of different failures, the first five.
    """

    requests: int
    failed: int
    wrong: int
    recovery_s: float | None
    false_health: int
    texts: tuple[str, ...] = ()


class Observer:
    """Sends requests and looks at health, in threads of its own."""

    def __init__(
        self,
        ask: Callable[[int], Answer],
        healthy: Callable[[], bool],
        *,
        expected: Sequence[Answer],
        every_s: float = 0.05,
    ) -> None:
        """Prepare.

        Args:
            ask: sends request number i % len(expected); raises where there is no answer within its time-out.
            healthy: whether the deployment says that it is ready; False where it says nothing.
            expected: answers of each request, by tensor.
            every_s: between two requests.
        """
        self._ask, self._healthy, self._expected, self._every_s = ask, healthy, expected, every_s

    @contextmanager
    def watching(self) -> Iterator[Seen]:
        """Requests and looks go on while the block runs; those in hand at its end are waited for."""
        seen, over = Seen(), threading.Event()
        with ThreadPoolExecutor(64, thread_name_prefix="ask") as pool:
            threads = [
                threading.Thread(target=self._send, args=(seen, over, pool)),
                threading.Thread(target=self._look, args=(seen, over)),
            ]
            for thread in threads:
                thread.start()
            try:
                yield seen
            finally:
                over.set()
                for thread in threads:
                    thread.join()

    def _send(self, seen: Seen, over: threading.Event, pool: ThreadPoolExecutor) -> None:
        number, due = 0, time.monotonic()
        while not over.wait(max(0.0, due - time.monotonic())):
            pool.submit(self._one, seen, number)
            number, due = number + 1, due + self._every_s

    def _one(self, seen: Seen, number: int) -> None:
        began = time.monotonic()
        try:
            found = self._ask(number)
        except Exception as error:  # noqa: BLE001  (whatever it is, the user has no answer)
            seen.asked.append(Asked(began, time.monotonic(), "failed", str(error)[:200]))
            return
        difference = differs(found, self._expected[number % len(self._expected)])
        outcome: Outcome = "wrong" if difference else "ok"
        seen.asked.append(Asked(began, time.monotonic(), outcome, difference))

    def _look(self, seen: Seen, over: threading.Event) -> None:
        while not over.wait(0.1):
            began = time.monotonic()
            seen.health.append((began, self._healthy()))


def differs(found: Answer, expected: Answer) -> str:
    """Where an answer is not the expected one; empty where it is."""
    for name, want in expected.items():
        got = found.get(name)
        if got is None or got.shape != want.shape:
            return f"{name}: expected shape {want.shape}, got {None if got is None else got.shape}"
        close: Any = np.abs(got - want) <= TOLERANCE if want.dtype.kind == "f" else got == want
        if not close.all():
            at = int(np.flatnonzero(~close.ravel())[0])
            return f"{name}[{at}]: expected {want.ravel()[at]}, got {got.ravel()[at]}"
    return ""


def judge(seen: Seen, *, at: float, over: float | None = None) -> Verdict:
    """What was seen from the fault on, which was done `at` and lasted until `over` (None: no longer)."""
    over = at if over is None else over
    everything = list(seen.asked)  # threads may still add to it
    asked = sorted((a for a in everything if a.ended >= at), key=lambda a: a.ended)
    health = sorted(h for h in list(seen.health) if h[0] >= at)
    bad = [a for a in asked if a.outcome != "ok"]
    last_bad = max([at, *(a.ended for a in bad), *(t for t, true in health if not true)])
    good = [a.ended for a in asked if a.began > last_bad and a.outcome == "ok"]
    disturbed = bool(bad) or any(not true for _, true in health)
    recovered = bool(good) and good[-1] - good[0] >= QUIET_S
    recovery_s = (max(0.0, good[0] - over) if disturbed else 0.0) if recovered else None
    texts = tuple(dict.fromkeys(a.text for a in bad))[:5]
    return Verdict(
        requests=len(asked),
        failed=sum(a.outcome == "failed" for a in bad),
        wrong=sum(a.outcome == "wrong" for a in bad),
        recovery_s=recovery_s,
        false_health=sum(_is_false(everything, t, true) for t, true in health),
        texts=texts,
    )


def _is_false(asked: list[Asked], when: float, healthy: bool) -> bool:
    """Whether health says the opposite of every request that was sent around then, of some.

    One that was sent a moment later counts as well: health is right to say yes as soon as all is well, and
    the requests before were sent when they were not. An answer that took as long as a look at health may
    take is no sign that it should have said yes.
    """
    near = [a for a in asked if when - SLACK_S <= a.began <= when]
    if len(near) < 5 or all(a.began >= when - SLACK_S for a in asked):
        return False
    if healthy:
        return all(a.outcome != "ok" for a in asked if when - SLACK_S <= a.began <= when + MOMENT_S)
    return all(a.outcome == "ok" and a.ended - a.began < PROMPT_S for a in near)
