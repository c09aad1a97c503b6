"""Locust users: an open loop, which is the default, and a closed one. Importing this patches the process.

Open loop: one dispatcher greenlet follows the arrival times and starts a greenlet for every request, so a
slow server slows no arrival. Latency counts from the intended start: what a request waited because the client
was busy, or because others stood before it, is part of what its sender would have seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent.pool import Group
from locust import User, task
from locust.exception import StopUser

from loadtest import answers
from loadtest.clients import MODEL, Client
from loadtest.mix import Key, Mix
from loadtest.outcomes import OK, SATURATED, UNANSWERED, WRONG, LoadError, classify

Planned = tuple[float, Key, bool]


@dataclass
class Plan:
    """What the users of a process do; hangs on the locust environment as `environment.gr4ad_plan`.

    Attributes:
        mix: requests.
        make_client: connects; called once a user.
        own_clients: each user has a client of its own and closes it; else they share one, which stays open.
        protocol: grpc or http, for the report.
        arrivals: for the open loop: makes the requests of one dispatcher, with their seconds from the start.
        max_outstanding: of one dispatcher; what comes beyond it is not sent, and counted.
        parameters: request parameters.
        drain_s: how long answers may still come after the last request.
        start: `time.monotonic()` at which the test starts; None: when the user does.
    """

    mix: Mix
    make_client: Callable[[], Client]
    protocol: str
    arrivals: Callable[[int], Iterator[Planned]]
    max_outstanding: int = 512
    parameters: dict[str, Any] | None = None
    drain_s: float = 10.0
    own_clients: bool = True
    start: float | None = None
    dispatchers: int = field(default=0, init=False)


class Gr4adUser(User):
    """What both loops share: one request, checked, recorded with locust's request event."""

    abstract = True

    def on_start(self) -> None:
        """Connect."""
        self.plan: Plan = self.environment.gr4ad_plan
        self.client = self.plan.make_client()
        self.number = self.plan.dispatchers
        self.plan.dispatchers += 1
        self.start_time = time.monotonic() if self.plan.start is None else self.plan.start
        self.ended = False

    def send(self, key: Key, repeat: bool, intended: float) -> None:
        """Send one request, meant for `intended` (monotonic), and record what came of it."""
        plan, sent, length = self.plan, time.monotonic(), 0
        facts: dict[str, Any] = {}
        error: BaseException | None = None
        try:
            answer, length = self.client.infer(plan.mix.tensors(key), plan.parameters)
            ended = time.monotonic()
            error, facts = self._check(answer, key)
        except Exception as caught:  # whatever it is, it counts
            ended, error = time.monotonic(), caught
        self.record(intended, ended, error, repeat=repeat, late_s=sent - intended, length=length, facts=facts)

    def record(
        self,
        intended: float,
        ended: float,
        error: BaseException | None,
        *,
        repeat: bool,
        late_s: float = 0.0,
        length: int = 0,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Fire locust's request event; after the end of the test there is nothing to record any more."""
        if self.ended:
            return
        self.environment.events.request.fire(
            request_type=self.plan.protocol,
            name=MODEL,
            response_time=(ended - intended) * 1e3,
            response_length=length,
            exception=error,
            context=self.context(),
            record={
                "intended_s": round(intended - self.start_time, 6),
                "late_ms": round(late_s * 1e3, 3),
                "outcome": OK if error is None else classify(error),
                "repeat": int(repeat),
                "error": "" if error is None else f"{error}".replace("\n", " ")[:300],
                **(facts or {}),
            },
        )

    def end(self) -> None:
        """Nothing is recorded any more."""
        self.ended = True
        if self.plan.own_clients:
            self.client.close()

    def _check(self, answer: dict[str, Any], key: Key) -> tuple[LoadError | None, dict[str, Any]]:
        try:
            num_ads = int(self.plan.mix.users[key[0]]["num_ads"].flat[0])
            by = (self.plan.parameters or {}).get("rank_by")
            live_ads = self.plan.mix.live_ads
            wrong = answers.problems(answer, num_ads=num_ads, live_ads=live_ads, rank_by=by)
            facts = answers.facts(answer)
        except (IndexError, TypeError, ValueError) as error:  # shapes that no answer has
            wrong, facts = [f"{type(error).__name__}: {error}"], {}
        return (LoadError(WRONG, "; ".join(wrong)) if wrong else None), facts


class OpenLoopUser(Gr4adUser):
    """One dispatcher: offers its plan's arrivals, whatever the server does."""

    def on_start(self) -> None:
        """Connect."""
        super().on_start()
        self._requests = Group()
        self._waiting: dict[int, tuple[float, bool]] = {}

    @task
    def dispatch(self) -> None:
        """Send every request of the plan at its time."""
        for number, (at, key, repeat) in enumerate(self.plan.arrivals(self.number)):
            intended = self.start_time + at
            gevent.sleep(0)  # also when late: answers must be read
            while (early := intended - time.monotonic()) > 0:
                gevent.sleep(early)
            if len(self._waiting) >= self.plan.max_outstanding:
                bound = LoadError(SATURATED, f"{self.plan.max_outstanding} requests were outstanding")
                late = time.monotonic() - intended
                self.record(intended, intended + late, bound, repeat=repeat, late_s=late)
                continue
            self._waiting[number] = (intended, repeat)
            self._requests.start(gevent.Greenlet(self._one, number, key, repeat, intended))
        raise StopUser

    def on_stop(self) -> None:
        """Give outstanding answers their time; those that do not come are failures, with their age."""
        self._requests.join(timeout=self.plan.drain_s)
        now = time.monotonic()
        for intended, repeat in self._waiting.values():
            age = LoadError(UNANSWERED, "no answer when the test ended")
            self.record(intended, now, age, repeat=repeat)
        self.ended = True
        self._requests.kill(timeout=1.0)  # calls that are left would hold the process
        self.end()

    def _one(self, number: int, key: Key, repeat: bool, intended: float) -> None:
        try:
            self.send(key, repeat, intended)
        finally:
            self._waiting.pop(number, None)


class ClosedLoopUser(Gr4adUser):
    """Sends the next request when the answer to the last is there, so a slow server is offered less."""

    @task
    def again(self) -> None:
        """One request after the other, until the plan ends."""
        for at, key, repeat in self.plan.arrivals(self.number):
            self._current = (max(time.monotonic(), self.start_time + at), repeat)
            while (early := self._current[0] - time.monotonic()) > 0:
                gevent.sleep(early)
            self.send(key, repeat, self._current[0])
            self._current = None
        raise StopUser

    _current: tuple[float, bool] | None = None

    def on_stop(self) -> None:
        """A request that was cut off is a failure, with its age."""
        if self._current is not None:
            age = LoadError(UNANSWERED, "no answer when the test ended")
            self.record(self._current[0], time.monotonic(), age, repeat=self._current[1])
        self.end()
