"""Discrete-event simulation of replicas under load, driving the policies that serve.

A replica is a Triton server: an entry that takes requests one after the other, a bounded
first-in-first-out queue, n scheduler instances, each takes what waits, up to the largest batch, and is busy
for batch + k * request + k * rows * row seconds, times noise (`loadtest.service`). Every instance has a
policy of its own, as processes have; queue readings are as old as the metrics thread leaves them.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from loadtest.service import Durations, Service
from serving.load.admission import Admission
from serving.load.arrivals import LoadView, Waiting
from serving.load.cost_model import BatchCost
from serving.load.ladder import plan_rows
from serving.load.outlook import Outlook
from serving.load.policy import Policy
from serving.load.queue_depth import QueueReading

IN_FLIGHT, DONE, TURNED_AWAY, REFUSED = range(4)  # the last two: at the entry, by the scheduler


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    Attributes:
        replicas: Triton servers behind the balancer.
        instances: scheduler processes of each.
        max_batch: largest batch.
        max_queue: requests that may wait in a replica.
        balancer: "round-robin" or "least-outstanding".
        metrics: whether the queue's metrics can be read.
        stamps: whether requests carry their time of arrival.
        poll_s: pause between two readings of the metrics.
    """

    replicas: int = 4
    instances: int = 2
    max_batch: int = 16
    max_queue: int = 1024
    balancer: str = "least-outstanding"
    metrics: bool = True
    stamps: bool = True
    poll_s: float = 0.1

    def __post_init__(self) -> None:
        """Reject a cluster that serves nothing."""
        if min(self.replicas, self.instances, self.max_batch, self.max_queue) < 1:
            raise ValueError(f"cluster: expected counts >= 1, got {self}")
        if self.balancer not in ("round-robin", "least-outstanding"):
            raise ValueError(f"balancer: expected round-robin or least-outstanding, got {self.balancer!r}")


@dataclass(frozen=True)
class Run:
    """What happened. N requests, M searches.

    Attributes:
        arrived: float [N], seconds, rising.
        finished: float [N], when the answer or the refusal came; NaN in flight.
        status: int [N], IN_FLIGHT, DONE, TURNED_AWAY or REFUSED.
        rows: float [N], beams that the tails saw; NaN where none was searched.
        searches: float [M, 5]: start, instance (of all replicas), requests, rows, rungs above the base.
        queue: float [P, 2], time and waiting requests of all replicas.
        duration_s: simulated time.
    """

    arrived: np.ndarray
    finished: np.ndarray
    status: np.ndarray
    rows: np.ndarray
    searches: np.ndarray
    queue: np.ndarray
    duration_s: float


@dataclass
class _Search:
    start: float
    end: float
    requests: list[int]
    rows: int


@dataclass
class _Replica:
    policies: list[Policy]
    admission: Admission | None
    waiting: deque[tuple[int, float]] = field(default_factory=deque)  # request, stamp of the entry
    running: dict[int, _Search] = field(default_factory=dict)  # by instance
    outlooks: dict[int, Outlook] = field(default_factory=dict)
    idle: list[int] = field(default_factory=list)  # the last one is taken first
    total: int = 0  # that came to the entry
    outstanding: int = 0
    entry_free: float = 0.0  # when the entry has done what it has
    answers_free: float = 0.0
    reading: QueueReading | None = None


def simulate(
    arrivals: np.ndarray,
    *,
    duration_s: float,
    cluster: Cluster,
    service: Service,
    make_policy: Callable[[], Policy],
    admission: bool = True,
    seed: int = 0,
) -> Run:
    """Run the arrivals through the cluster.

    Args:
        arrivals: float [N], seconds, rising.
        duration_s: the end; what is in flight then stays so.
        cluster: servers.
        service: true costs; the policies do not see them.
        make_policy: one for every instance.
        admission: whether the entry turns requests away by the policy's outlook; the bounded queue always
            does.
        seed: of the noise.
    """
    made = _Simulation(
        arrivals, cluster=cluster, service=service, make_policy=make_policy, admission=admission, seed=seed
    )
    made.run(duration_s)
    return Run(
        arrived=arrivals,
        finished=np.array(made.finished),
        status=np.frombuffer(bytes(made.status), np.uint8).astype(np.int64),
        rows=np.array(made.rows),
        searches=np.array(made.searches, np.float64).reshape(-1, 5),
        queue=np.array(made.queue, np.float64).reshape(-1, 2),
        duration_s=duration_s,
    )


class _Simulation:
    """State and events of one run; an event is what comes next to a request or a search."""

    def __init__(
        self,
        arrivals: np.ndarray,
        *,
        cluster: Cluster,
        service: Service,
        make_policy: Callable[[], Policy],
        admission: bool,
        seed: int,
    ) -> None:
        self.cluster, self.service = cluster, service
        self.times = arrivals.tolist()
        self.finished, self.rows = [math.nan] * len(self.times), [math.nan] * len(self.times)
        self.status = bytearray(len(self.times))
        self.searches: list[tuple[float, int, int, float, int]] = []
        self.queue: list[tuple[float, int]] = []
        self._durations = Durations(service, np.random.default_rng(seed))
        self._replicas = [
            _Replica(
                [make_policy() for _ in range(cluster.instances)],
                Admission(max_queue=cluster.max_queue) if admission else None,
                idle=list(range(cluster.instances - 1, -1, -1)),
            )
            for _ in range(cluster.replicas)
        ]
        # time, order of making, replica, and the request at the entry or the instance that ends its search
        self._events: list[tuple[float, int, int, int, bool]] = []
        self._order = self._turn = 0

    def run(self, duration_s: float) -> None:
        """All requests, and what happens until the end."""
        next_poll = 0.0
        for i in range(len(self.times) + 1):
            now = self.times[i] if i < len(self.times) else duration_s
            while True:  # everything that happens before the request comes
                event = self._events[0][0] if self._events else math.inf
                if min(event, next_poll) > now:
                    break
                if next_poll <= event:
                    self._poll(next_poll)
                    next_poll += self.cluster.poll_s
                else:
                    at, _, replica, which, enters = heapq.heappop(self._events)
                    (self._enter if enters else self._end)(at, replica, which)
            if i < len(self.times):
                self._arrive(i, now)

    def _push(self, time: float, *, replica: int, which: int, enters: bool) -> None:
        self._order += 1
        heapq.heappush(self._events, (time, self._order, replica, which, enters))

    def _arrive(self, request: int, now: float) -> None:
        """A request comes to the entry of a replica and waits for its turn there."""
        if self.cluster.balancer == "round-robin":
            self._turn = (self._turn + 1) % len(self._replicas)
        else:
            self._turn = min(range(len(self._replicas)), key=lambda r: self._replicas[r].outstanding)
        replica = self._replicas[self._turn]
        replica.outstanding += 1
        replica.total += 1
        if self.service.entry_s <= 0:
            self._enter(now, self._turn, request)
            return
        replica.entry_free = max(replica.entry_free, now) + self.service.entry_s
        self._push(replica.entry_free, replica=self._turn, which=request, enters=True)

    def _enter(self, now: float, at: int, request: int) -> None:
        """The entry is done with a request: it waits, or is turned away."""
        replica, service = self._replicas[at], self.service
        self._take_time(replica, service.entry_s)
        stamp = now - service.entry_s  # the entry takes the time before it works
        refused = None
        if replica.admission and replica.outlooks:  # a policy that predicts nothing has none
            refused = replica.admission.admit(stamp, list(replica.outlooks.values()))
        if refused or len(replica.waiting) >= self.cluster.max_queue:
            self.status[request], self.finished[request] = TURNED_AWAY, now
            replica.outstanding -= 1
            return
        replica.waiting.append((request, stamp))
        if replica.idle:
            self._start(now, at)

    def _start(self, now: float, at: int) -> None:
        """Let idle instances of a replica take what waits."""
        replica, cluster = self._replicas[at], self.cluster
        while replica.waiting and replica.idle:
            count = min(len(replica.waiting), cluster.max_batch)
            taken = [replica.waiting.popleft() for _ in range(count)]
            instance = replica.idle[-1]
            decision = replica.policies[instance].decide(
                now,
                LoadView([Waiting(stamp if cluster.stamps else None) for _, stamp in taken], replica.reading),
            )
            if decision.outlook is not None:
                replica.outlooks[instance] = decision.outlook
            refused = {position for position, _ in decision.rejected}
            for position in refused:
                request = taken[position][0]
                self.status[request], self.finished[request] = REFUSED, now
            replica.outstanding -= len(refused)
            requests = [request for p, (request, _) in enumerate(taken) if p not in refused]
            if not requests:
                continue
            replica.idle.pop()
            rows = plan_rows(decision.plan)
            seconds = self._durations.next(now, requests=len(requests), rows=rows)
            replica.running[instance] = _Search(now, now + seconds, requests, rows)
            self._push(now + seconds, replica=at, which=instance, enters=False)
            whose = at * cluster.instances + instance
            self.searches.append((now, whose, len(requests), rows, decision.above_base))

    def _end(self, now: float, at: int, instance: int) -> None:
        """A search has ended, unless something took time from it."""
        replica = self._replicas[at]
        search = replica.running[instance]
        if search.end > now:
            self._push(search.end, replica=at, which=instance, enters=False)
            return
        del replica.running[instance]
        replica.answers_free = max(replica.answers_free, now)
        for request in search.requests:
            replica.answers_free += self.service.answer_s
            self.status[request], self.finished[request] = DONE, replica.answers_free
            self.rows[request] = search.rows
        replica.outstanding -= len(search.requests)
        policy = replica.policies[instance]
        policy.observe(now, BatchCost(len(search.requests), search.rows, now - search.start))
        if instance in replica.outlooks:
            replica.outlooks[instance] = replica.outlooks[instance]._replace(began=now, search_s=0.0)
        replica.idle.append(instance)
        if replica.waiting:
            self._start(now, at)
        self._take_time(replica, self.service.answer_s * len(search.requests))

    def _take_time(self, replica: _Replica, seconds: float) -> None:
        """Of the searches that run on the core of entry and answers."""
        if seconds > 0 and self.service.shared_core:
            for search in replica.running.values():
                search.end += seconds

    def _poll(self, now: float) -> None:
        self.queue.append((now, sum(len(r.waiting) for r in self._replicas)))
        if self.cluster.metrics:
            for r in self._replicas:
                r.reading = QueueReading(len(r.waiting), r.total, now)
