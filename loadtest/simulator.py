"""Discrete-event simulation of replicas under load, driving the policies that serve.

A replica is a Triton server: a bounded first-in-first-out queue, n scheduler instances, each takes what
waits, up to the largest batch, and is busy for batch + k * request + k * rows * row seconds, times noise.
Every instance has a policy of its own, as processes have; queue readings are as old as the metrics thread
leaves them.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from serving.load.admission import Admission
from serving.load.arrivals import LoadView, Waiting
from serving.load.cost_model import BatchCost
from serving.load.ladder import plan_rows
from serving.load.policy import Policy, QueueLimit
from serving.load.queue_depth import QueueReading

IN_FLIGHT, DONE, TURNED_AWAY, REFUSED = range(4)  # the last two: at the entry, by the scheduler


@dataclass(frozen=True)
class Service:
    """True time of a search.

    Attributes:
        batch_s: a search.
        request_s: a request.
        row_s: a beam that a tail sees.
        noise: standard deviation of a factor of mean 1 (gamma distributed).
        slow_at: moment from which everything takes `slow_by` times as long.
        slow_by: see there.
    """

    batch_s: float
    request_s: float
    row_s: float
    noise: float = 0.1
    slow_at: float = math.inf
    slow_by: float = 1.0

    @classmethod
    def of(
        cls, full_batch_s: float, *, rows: int, max_batch: int, fixed: float, once: float, noise: float = 0.1
    ) -> Service:
        """From the time of a full batch of the base plan.

        Args:
            full_batch_s: its seconds.
            rows: of the base plan.
            max_batch: its requests.
            fixed: share of it that does not depend on the rows.
            once: part of that share that is paid once a search, the rest once a request.
            noise: see the attributes.
        """
        still = fixed * full_batch_s
        return cls(
            once * still,
            (1 - once) * still / max_batch,
            (1 - fixed) * full_batch_s / (max_batch * rows),
            noise,
        )

    def seconds(self, requests: int, rows: float) -> float:
        """Mean time of a search."""
        return self.batch_s + requests * (self.request_s + rows * self.row_s)


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


class _Replica:
    def __init__(self, policies: list[Policy], admission: Admission | None) -> None:
        self.waiting: deque[int] = deque()
        self.policies, self.admission = policies, admission
        self.idle = list(range(len(policies) - 1, -1, -1))  # the first instance is taken first
        self.total = self.outstanding = 0
        self.reading: QueueReading | None = None
        self.limit: QueueLimit | None = None


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
        admission: whether the entry turns requests away on the policy's limit; the bounded queue always does.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    replicas = [
        _Replica([make_policy() for _ in range(cluster.instances)], Admission() if admission else None)
        for _ in range(cluster.replicas)
    ]
    times = arrivals.tolist()
    count = len(times)
    finished, rows_of, status = [math.nan] * count, [math.nan] * count, bytearray(count)
    searches: list[tuple[float, int, int, float, int]] = []
    queue: list[tuple[float, int]] = []
    events: list[tuple[float, int, int, int, list[int], float, float]] = []
    noise = _factors(rng, service.noise)
    order = 0
    push, pop = heapq.heappush, heapq.heappop

    def start(at: int, now: float) -> None:
        """Let idle instances of a replica take what waits."""
        nonlocal order
        replica = replicas[at]
        while replica.waiting and replica.idle:
            taken = [replica.waiting.popleft() for _ in range(min(len(replica.waiting), cluster.max_batch))]
            instance = replica.idle[-1]
            reading = replica.reading
            decision = replica.policies[instance].decide(
                now,
                LoadView(
                    [Waiting(times[i]) for i in taken] if cluster.stamps else [Waiting()] * len(taken),
                    None if reading is None else reading.pending,
                    None if reading is None else reading.total,
                ),
            )
            replica.limit = decision.limit
            if decision.rejected:
                for position, _ in decision.rejected:
                    status[taken[position]], finished[taken[position]] = REFUSED, now
                refused = {p for p, _ in decision.rejected}
                replica.outstanding -= len(refused)
                taken = [i for p, i in enumerate(taken) if p not in refused]
            if not taken:
                continue
            replica.idle.pop()
            rows = plan_rows(decision.plan)
            seconds = service.seconds(len(taken), rows) * next(noise)
            if now >= service.slow_at:
                seconds *= service.slow_by
            searches.append((now, at * cluster.instances + instance, len(taken), rows, decision.above_base))
            order += 1
            push(events, (now + seconds, order, at, instance, taken, rows, seconds))

    def complete(event: tuple[float, int, int, int, list[int], float, float]) -> None:
        now, _, at, instance, taken, rows, seconds = event
        replica = replicas[at]
        for i in taken:
            status[i], finished[i], rows_of[i] = DONE, now, rows
        replica.outstanding -= len(taken)
        replica.policies[instance].observe(now, BatchCost(len(taken), rows, seconds))
        replica.idle.append(instance)
        if replica.waiting:
            start(at, now)

    def poll(now: float) -> None:
        queue.append((now, sum(len(r.waiting) for r in replicas)))
        if cluster.metrics:
            for r in replicas:
                r.reading = QueueReading(len(r.waiting), r.total, now)

    next_poll, turn = 0.0, 0
    for i in range(count + 1):
        now = times[i] if i < count else duration_s
        while True:  # everything that happens before the request comes
            done = events[0][0] if events else math.inf
            if min(done, next_poll) > now:
                break
            if next_poll <= done:
                poll(next_poll)
                next_poll += cluster.poll_s
            else:
                complete(pop(events))
        if i == count:
            break
        if cluster.balancer == "round-robin":
            turn = (turn + 1) % len(replicas)
        else:
            turn = min(range(len(replicas)), key=lambda r: replicas[r].outstanding)
        replica = replicas[turn]
        refused = replica.admission and replica.admission.admit(
            now, reading=replica.reading, limit=replica.limit
        )
        if refused or len(replica.waiting) >= cluster.max_queue:
            status[i], finished[i] = TURNED_AWAY, now
            continue
        replica.waiting.append(i)
        replica.total += 1
        replica.outstanding += 1
        if replica.idle:
            start(turn, now)
    return Run(
        arrived=arrivals,
        finished=np.array(finished),
        status=np.frombuffer(bytes(status), np.uint8).astype(np.int64),
        rows=np.array(rows_of),
        searches=np.array(searches, np.float64).reshape(-1, 5),
        queue=np.array(queue, np.float64).reshape(-1, 2),
        duration_s=duration_s,
    )


def _factors(rng: np.random.Generator, noise: float):
    """Endless factors of mean 1, drawn in blocks."""
    while True:
        if noise <= 0:
            yield from [1.0] * 4096
        else:
            yield from rng.gamma(1 / noise**2, noise**2, 4096).tolist()
