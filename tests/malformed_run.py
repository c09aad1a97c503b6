"""Malformed requests, one after the other, with good ones in between: what came of them, counted."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

from tests.malformed_sender import Outcome, Sender
from tests.malformed_tensors import Case

_SLOW = b"POST /v2/models/gr4ad/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\nX: "


@dataclass
class Found:
    """Counts of a run.

    Attributes:
        requests: sent.
        deaths: times that another process stood where one stood before, or none.
        hangs: requests without an answer in time.
        wrong: what was wrong with other answers, and with those to good requests.
        kinds: outcomes by kind.
        codes: outcomes by protocol and status.
        slowest_s: longest time of a request, and its fault.
    """

    requests: int = 0
    deaths: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    slowest_s: tuple[float, str] = (0.0, "")


def run(
    cases: Iterable[Case],
    sender: Sender,
    *,
    processes: Callable[[], Hashable],
    check: Callable[[Case, Outcome], None],
    check_good: Callable[[], None],
    good_every: int = 50,
    slow_to: tuple[str, int] | None = None,
    slow: int = 50,
) -> Found:
    """Send all cases.

    Args:
        cases: see `tests.malformed.generate`.
        sender: to one server.
        processes: what must stay the same, e.g. process ids; asked after each case.
        check: asserts on an answer with status OK: a fault need not make a request invalid.
        check_good: sends good requests and asserts on their answers.
        good_every: cases between two of these.
        slow_to: host and port to which, all the while, slow clients send a header byte by byte.
        slow: how many of them.
    """
    found, before = Found(), processes()
    crowd: list[socket.socket] = []
    for i, case in enumerate(cases):
        if slow_to is not None:
            crowd = _dribble(crowd, slow_to, slow)
        began = time.monotonic()
        outcome = sender.send(case)
        for _ in range(3):
            if outcome.kind != "closed" or not case.complete:
                break
            # A server that refuses before it has read the whole request resets the connection, and its answer
            # is lost with what was sent meanwhile. Sent in pieces, the same request must be answered.
            outcome = sender.send(case, piecewise=True)
        name = f"case {i} ({case.fault}, {case.protocol})"
        found.requests += 1
        found.slowest_s = max(found.slowest_s, (time.monotonic() - began, name))
        found.kinds[outcome.kind] += 1
        found.codes[f"{case.protocol} {outcome.code or outcome.kind}"] += 1
        _judge(found, name, case, outcome, check=check)
        if (now := processes()) != before:
            found.deaths.append(f"{name}: {before} became {now}")
            before = now
        if i % good_every == 0:
            _attempt(found, f"good request after {name}", check_good)
    _attempt(found, "good request at the end", check_good)
    for connection in crowd:
        connection.close()
    return found


def _judge(
    found: Found, name: str, case: Case, outcome: Outcome, *, check: Callable[[Case, Outcome], None]
) -> None:
    if outcome.kind == "hang":
        found.hangs.append(name)
    elif outcome.kind == "error" and outcome.code == "connect":
        found.wrong.append(f"{name}: no connection, {outcome.text}")
    elif outcome.kind == "error" and not outcome.text.strip():
        found.wrong.append(f"{name}: error {outcome.code} without a text")
    elif outcome.kind == "valid":
        _attempt(found, name, lambda: check(case, outcome))
    elif outcome.kind == "closed" and case.complete:  # right only where the message never ends, or is no HTTP
        found.wrong.append(f"{name}: connection closed without an answer")


def _attempt(found: Found, name: str, call: Callable[[], None]) -> None:
    try:
        call()
    except Exception as error:  # noqa: BLE001
        found.wrong.append(f"{name}: {type(error).__name__}: {str(error)[:500]}")


def _dribble(crowd: list[socket.socket], address: tuple[str, int], count: int) -> list[socket.socket]:
    """One more byte from every slow client; those that were cut off come again."""
    kept = []
    for connection in crowd:
        try:
            connection.send(b"y")
            kept.append(connection)
        except OSError:
            connection.close()
    while len(kept) < count:
        connection = socket.create_connection(address, timeout=10)
        with contextlib.suppress(OSError):
            connection.sendall(_SLOW)
        kept.append(connection)
    return kept
