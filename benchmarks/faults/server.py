"""Faults of a server's processes and files: what launcher, gateway and scheduler must mend."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.faults.deployment import Deployment
from benchmarks.faults.inject import away, truncated
from benchmarks.faults.trial import Fault, Row, trial

STANDS_S = 6.0  # Triton 24.10 aborts when a process that stood still for 4 to 14 s goes on
AWAY_S = 5.0


def kill(kind: str) -> Fault:
    """SIGKILL to one process of a kind (`Deployment.processes`)."""

    def do(deployment: Deployment) -> None:
        deployment.processes()[kind][0].kill()

    return do


def suspend(kind: str) -> Fault:
    """SIGSTOP to one process of a kind, and SIGCONT when the block ends, if it still lives."""

    @contextmanager
    def do(deployment: Deployment) -> Iterator[None]:
        process = deployment.processes()[kind][0]
        process.suspend()
        try:
            yield
        finally:
            if process.is_running():
                process.send_signal(signal.SIGCONT)

    return do


def hang(kind: str) -> Fault:
    """SIGSTOP to one process of a kind, for good."""

    def do(deployment: Deployment) -> None:
        deployment.processes()[kind][0].suspend()

    return do


def index_away(deployment: Deployment) -> object:
    """The index is gone while the model that opens it dies."""

    @contextmanager
    def do() -> Iterator[None]:
        with away(deployment.run / "index"):
            deployment.processes()["ad_resolver"][0].kill()
            yield

    return do()


def base_truncated(deployment: Deployment) -> object:
    """A base array loses its second half while readers have it mapped."""
    arrays = sorted((deployment.run / "index").rglob("*.npy"), key=lambda path: path.stat().st_size)
    return truncated(arrays[-1])


def current(content: str) -> Fault:
    """CURRENT holds something else for a while."""

    @contextmanager
    def do(deployment: Deployment) -> Iterator[None]:
        path = deployment.run / "bundles" / "CURRENT"
        before = path.read_text()
        path.write_text(content)
        try:
            yield
        finally:
            path.write_text(before)

    return do


def server_faults(deployment: Deployment, *, quick: bool, say: Callable[[str], None]) -> list[Row]:
    """Every one of them in turn, on one deployment."""
    models = ["request_features", "beam_scheduler", "ad_resolver", "lazyar_prefix"]
    faults: list[tuple[str, object, float]] = [(f"kill {model}", kill(model), 0.0) for model in models]
    faults += [(f"suspend {model}", suspend(model), STANDS_S) for model in models[: 2 if quick else None]]
    faults += [
        ("kill tritonserver", kill("tritonserver"), 0.0),
        ("kill gateway", kill("gateway"), 0.0),
        ("suspend tritonserver", suspend("tritonserver"), STANDS_S),
        ("suspend gateway", suspend("gateway"), STANDS_S),
        ("hang tritonserver", hang("tritonserver"), 0.0),
        ("index away while ad_resolver dies", index_away, AWAY_S),
        ("base array truncated", base_truncated, AWAY_S),
        ("CURRENT of 5,000 digits", current("1" * 5000), 2.0),
        ("CURRENT is no ASCII digit", current("\u00b2"), 2.0),
        ("CURRENT empty", current(""), 2.0),
    ]
    rows = []
    for name, fault, lasts_s in faults:
        rows.append(trial(deployment, name, fault, lasts_s=lasts_s))  # type: ignore[arg-type]
        say(f"{name}: {rows[-1]}")
    return rows
