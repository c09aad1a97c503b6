"""For locust itself, with its web page or without.

    locust -f loadtest/locustfile.py --host 127.0.0.1:8001 --qps 5 --shape diurnal --period 300 -u 1

A locust user is one dispatcher that offers `--qps`, in the shape, over and over, until locust stops it: two
users offer twice as much. With `--closed` a locust user sends one request after the other.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # locust puts only this folder into the path

import gevent  # noqa: E402
from locust import events  # noqa: E402
from locust.env import Environment  # noqa: E402

from loadtest import users  # noqa: E402
from loadtest.arrivals import poisson_arrivals  # noqa: E402
from loadtest.clients import Client  # noqa: E402
from loadtest.mix import Key, build_mix  # noqa: E402
from loadtest.shapes import CURVES, Shape  # noqa: E402


class OpenLoop(users.OpenLoopUser):
    """The default."""


class ClosedLoop(users.ClosedLoopUser):
    """With `--closed`."""


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Our options beside locust's; those of the same name mean what they mean in `python -m loadtest`."""
    add = parser.add_argument_group("gr4ad").add_argument
    add("--closed", action="store_true", help="closed loop")
    add("--shape", choices=tuple(CURVES), default="steady")
    add("--qps", type=float, default=10.0, help="base rate of one locust user")
    add("--peak", type=float, default=4.0)
    add("--period", type=float, default=60.0, help="seconds until the shape starts again")
    add("--protocol", choices=("grpc", "http"), default="grpc")
    add("--run", type=Path, default=Path("build/demo"))
    add("--num-ads", type=int, default=10)
    add("--sample-users", type=int, default=500)
    add("--synthetic-ads", type=int)
    add("--repeats", type=float, default=0.278)
    add("--deadline-ms", type=float, default=10_000.0)
    add("--max-outstanding", type=int, default=512)


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Read the requests and say what users do."""
    options: Any = environment.parsed_options
    environment.user_classes = [ClosedLoop if options.closed else OpenLoop]
    url = (environment.host or "127.0.0.1:8001").split("://")[-1].rstrip("/")
    mix = build_mix(
        options.run,
        users=options.sample_users,
        num_ads=options.num_ads,
        repeats=options.repeats,
        window_s=60.0,
        synthetic_ads=options.synthetic_ads,
    )
    shape = Shape(options.shape, options.qps, options.period, options.peak)
    seed = random.SystemRandom().getrandbits(32)  # processes of a distributed test must differ

    def times(number: int) -> Iterator[float]:
        for turn in itertools.count():
            for at in poisson_arrivals(shape, seed=seed + turn, worker=number):
                yield turn * shape.duration_s + float(at)

    def arrivals(number: int) -> Iterator[tuple[float, Key, bool]]:
        source = itertools.repeat(0.0) if options.closed else times(number)
        return mix.draw(source, seed=seed, stream=number)

    # Reading took the loop seconds that it has not seen: without this, locust's timers would ring early.
    gevent.get_hub().loop.update_now()
    environment.gr4ad_plan = users.Plan(  # type: ignore[attr-defined]
        mix,
        make_client=lambda: Client(
            url,
            protocol=options.protocol,
            deadline_s=options.deadline_ms / 1e3,
            connections=options.max_outstanding,
        ),
        protocol=options.protocol,
        arrivals=arrivals,
        max_outstanding=options.max_outstanding,
    )
