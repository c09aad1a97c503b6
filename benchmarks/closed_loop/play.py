"""Plays a loop: who asks when, both answers, what comes of the page that is shown, and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from benchmarks.closed_loop.page import Page, page
from benchmarks.closed_loop.settings import CANDIDATES, SESSION_S, Settings
from benchmarks.closed_loop.world import User, World
from benchmarks.feedback_client import send_feedback
from benchmarks.simulation.bids import PriceShape
from benchmarks.simulation.draws import uniform
from examples.client import Catalogue, connect, infer_inputs, requested_outputs, with_later
from examples.new_ad import post
from feedback.store.histories import Histories
from serving.model.features import BEHAVIORS

_USERS, _DELAYS = 3, 4  # streams of draws, beside those of bids and purchases
_OUTPUTS = ("ad_ids", "scores", "model_version")
_TIMEOUT_S = 20.0
_DAY = 86_400.0

Answer = dict[str, np.ndarray]


@dataclass(frozen=True)
class Asked:
    """One request that both models answered.

    Attributes:
        number: of the request.
        day: simulated.
        at: seconds since the loop began.
        user: place in the world.
        version: of the online model.
        online, frozen: pages of the two.
        seconds: until both had answered.
    """

    number: int
    day: float
    at: float
    user: int
    version: int
    online: Page
    frozen: Page
    seconds: float


@dataclass
class Played:
    """What came of a loop.

    Attributes:
        began: unix seconds.
        asked: in order.
        failures: of requests, what was said.
        rejected: feedback that was not taken.
        accepted: by request id, when its feedback was accepted, unix seconds.
        first_answer: by version, likewise, when it answered first.
        new_ads: that were created.
        new_ads_shown: impressions of them on online pages.
    """

    began: float = field(default_factory=time.time)
    asked: list[Asked] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    rejected: int = 0
    accepted: dict[str, float] = field(default_factory=dict)
    first_answer: dict[int, float] = field(default_factory=dict)
    new_ads: int = 0
    new_ads_shown: int = 0


class Player:
    """Asks both servers, one user after the other."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        catalogue: Catalogue,
        *,
        urls: tuple[str, str],
        sidecar: str,
        feedback: str,
        histories: Callable[[], Histories],
    ) -> None:
        """Nobody asks yet.

        Args:
            world: who asks.
            settings: of the loop.
            catalogue: of the run.
            urls: gRPC of the online and of the frozen server.
            sidecar: its URL.
            feedback: URL of the service.
            histories: opens those of its store.
        """
        self._world, self._settings, self._catalogue = world, settings, catalogue
        self._sidecar, self._feedback = sidecar, feedback
        self._clients = [connect(url, protocol="grpc", timeout_s=_TIMEOUT_S) for url in urls]
        self._outputs = requested_outputs(_OUTPUTS)
        self._histories, self._shape = histories(), PriceShape.load()
        self._requests: dict[int, Answer] = {}
        self._new = {ad.ad_id for ad in world.new_ads}
        self.played = Played()

    def play(self, each: Callable[[Played], None]) -> None:
        """Until all requests were asked or the time is over; `each` is called after every one.

        Raises:
            KeyboardInterrupt: stopped; `played` has what was.
            RuntimeError: the sidecar refuses a new ad.
            OSError: the feedback service is gone.
        """
        settings, began = self._settings, time.monotonic()
        with ThreadPoolExecutor(2, thread_name_prefix="ask") as pool:
            for number in range(settings.requests):
                time.sleep(max(0.0, began + number / settings.qps - time.monotonic()))
                if time.monotonic() - began > 60 * settings.minutes:
                    return
                self._create_due(number)
                self._one(number, pool)
                each(self.played)

    def close(self) -> None:
        """Let go of servers and store."""
        for client in self._clients:
            client.close()
        self._histories.close()

    def _create_due(self, number: int) -> None:
        """New ads whose time has come."""
        due = int(len(self._world.new_ads) * (number + 1) / self._settings.requests)
        while self.played.new_ads < due:
            ad = self._world.new_ads[self.played.new_ads]
            event: dict[str, object] = {"kind": "create", "ad_id": ad.ad_id, "version": 1, "text": ad.text}
            event |= {"account_id": ad.account_id, "conversion_type": ad.conversion_type}
            post(self._sidecar, event)
            self.played.new_ads += 1

    def _one(self, number: int, pool: ThreadPoolExecutor) -> None:
        settings, world, played = self._settings, self._world, self.played
        place = int(uniform(number, stream=_USERS, seed=settings.seed) * len(world.users))
        user, now = world.users[place], world.start + int((number + 1) * settings.spacing_s)
        tensors, name = self._tensors(user, now=now), f"{settings.seed}-{number}"
        began = time.monotonic()
        asked = [pool.submit(self._ask, client, tensors, user=user, name=name) for client in self._clients]
        try:
            online, frozen = (answer.result() for answer in asked)
        except InferenceServerException as error:
            played.failures.append(str(error)[:300])
            return
        taken = time.monotonic() - began
        pages = [self._page(answer, user, number=number, now=now) for answer in (online, frozen)]
        version = int(online["model_version"].ravel()[0])
        played.first_answer.setdefault(version, time.time())
        self._tell(pages[0], name, number=number, now=now)
        world.buy(user, pages[0].ads[pages[0].bought], now=now)
        played.new_ads_shown += int(np.isin(pages[0].ads, list(self._new)).sum())
        row = Asked(
            number,
            day=(now - world.start) / _DAY,
            at=time.time() - played.began,
            user=place,
            version=version,
            online=pages[0],
            frozen=pages[1],
            seconds=taken,
        )
        played.asked.append(row)

    def _tensors(self, user: User, *, now: int) -> Answer:
        """Of what he has bought: other events of the feedback store are nothing that the logs have, too."""
        if user.user_id not in self._requests:
            self._requests[user.user_id] = self._catalogue.request(user.user_id, num_ads=CANDIDATES)
        since = self._histories.of(user.user_id)
        since = since[np.isin(since["behavior"], self._world.response.behaviors)]
        return with_later(self._requests[user.user_id], since, now=now)

    def _ask(self, client: Any, tensors: Answer, *, user: User, name: str) -> Answer:
        result = client.infer(
            "gr4ad",
            infer_inputs(tensors),
            parameters={"user_id": user.user_id},
            request_id=name,
            outputs=self._outputs,
            client_timeout=_TIMEOUT_S,
        )
        return {output: result.as_numpy(output) for output in _OUTPUTS}

    def _page(self, answer: Answer, user: User, *, number: int, now: int) -> Page:
        there = answer["ad_ids"][0] >= 0
        ads, own = answer["ad_ids"][0][there], np.exp(answer["scores"][0][there].astype(np.float64))
        true = self._world.respond(user, ads, now=now)
        return page(ads, own, true=true, request=number, shape=self._shape, seed=self._settings.seed)

    def _tell(self, shown: Page, name: str, *, number: int, now: int) -> None:
        """Feedback on what was shown."""
        events = []
        delays = uniform(shown.ads, number, stream=_DELAYS, seed=self._settings.seed) * SESSION_S
        for i, ad in enumerate(shown.ads.tolist()):
            kinds = {"impression": True, "click": shown.clicked[i], "conversion": shown.bought[i]}
            for behavior, happened in kinds.items():
                if happened:
                    when = now + int(delays[i]) * (BEHAVIORS[behavior] > BEHAVIORS["impression"])
                    event = {"request_id": name, "ad_id": ad, "behavior": behavior, "timestamp": when}
                    value = {"value": round(float(shown.value[i]), 4)} if behavior == "conversion" else {}
                    events.append(event | value)
        if not events:
            return
        self.played.rejected += int(send_feedback(self._feedback, events)["rejected"])
        self.played.accepted[name] = time.time()
