"""The loop, played: `make loop` (python -m benchmarks.closed_loop) writes build/loop/loop.json, loop.png.

Simulated users whose tastes drift ask a real server; what they do with its ads comes back as feedback, a
trainer learns from it, and its weights are published into that server. A server that keeps the first weights
answers the same requests. docs/loop.md
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from benchmarks.closed_loop.deployment import Deployment, LoopError
from benchmarks.closed_loop.live import Live
from benchmarks.closed_loop.play import Player
from benchmarks.closed_loop.report import Result, plot, result, together
from benchmarks.closed_loop.settings import Settings
from benchmarks.closed_loop.world import World
from benchmarks.report import stamp
from examples.client import Catalogue
from feedback.store.histories import Histories
from launcher.indexer_process import IndexerError
from launcher.server_files import ServerError
from serving.files import write_file
from training.preset.preset import ConfigError, Preset, add_preset_arguments

QUICK_MINUTES = 2.0
_SHOWN = (
    "requests",
    "days",
    "versions",
    "publishes_refused",
    "failed_requests",
    "feedback_to_weights_p50_s",
)


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.closed_loop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_preset_arguments(made, default="configs/demo.yaml")
    add = made.add_argument
    add("--run", type=Path, default=Path("build/demo"), help="run folder with a trained model [%(default)s]")
    add("--out", type=Path, default=Path("build/loop"), help="folder to write and work in [%(default)s]")
    add("--minutes", type=float, help=f"of each seed [10; {QUICK_MINUTES:g} with --quick]")
    add("--quick", action="store_true", help="shows that it runs, not what it brings")
    add("--seed", type=int, nargs="+", default=[0], help="one loop after the other, of each seed [0]")
    add("--qps", type=float, default=Settings.qps, help="requests a second of each model [%(default)s]")
    add("--users", type=int, default=Settings.users, help="simulated users [%(default)s]")
    add("--drift", type=float, default=1.0, help="of tastes: 1 as in the logs, 0 none [1]")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0 played, 1 failed, 130 stopped by Ctrl-C or SIGTERM."""
    made = parser()
    options = made.parse_args(arguments)
    minutes = options.minutes or (QUICK_MINUTES if options.quick else 10.0)
    for name, value in (("minutes", minutes), ("qps", options.qps), ("users", options.users)):
        if not value > 0:
            made.error(f"--{name}: expected more than 0, got {value:g}")
    if not options.drift >= 0:
        made.error(f"--drift: expected 0 or more, got {options.drift:g}")
    torch.set_num_threads(1)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    results: list[Result] = []
    try:
        for seed in options.seed:
            settings = Settings(
                config=options.config,
                overrides=tuple(options.overrides),
                run=options.run,
                work=options.out / "run",
                cache=options.out / "cache",
                minutes=minutes,
                qps=options.qps,
                users=options.users,
                drift=options.drift,
                seed=seed,
            )
            stopped = loop(settings, results, say=_say)
            _write(results, options.out)
            if stopped:
                return 130
    except (LoopError, ServerError, IndexerError, ConfigError, OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", flush=True)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def loop(settings: Settings, results: list[Result], *, say: Callable[[str], None]) -> bool:
    """Play one seed and add what came of it; whether it was stopped before its end.

    Raises:
        LoopError, ServerError, IndexerError: a process does not start.
        ValueError: the run does not fit the preset, or its logs have nobody to simulate.
    """
    say(f"seed {settings.seed}: users and their tastes (the first time some minutes), export, index, servers")
    world = World.open(
        settings.run,
        Preset.load(settings.config, settings.overrides),
        cache=settings.cache,
        users=settings.users,
        new_ads=settings.new_ads,
        days=settings.days,
        drift=settings.drift,
        seed=settings.seed,
    )
    with Deployment(settings) as deployment:
        say(
            f"to look: python -m console --run {settings.work} --url {deployment.online.grpc_url} "
            f"--metrics-url {deployment.online.metrics_url} --indexer {deployment.sidecar.url}"
        )
        player = Player(
            world,
            settings,
            Catalogue.load(deployment.run),
            urls=(deployment.online.grpc_url, deployment.frozen.grpc_url),
            sidecar=deployment.sidecar.url,
            feedback=deployment.feedback.url,
            histories=lambda: Histories(deployment.store),
        )
        deployment.learn()
        stopped = False
        with closing(player):
            try:
                player.play(Live(deployment, seed=settings.seed, say=say))
            except KeyboardInterrupt:
                say("stopped: what there is is reported")
                stopped = True
        results.append(result(settings, player.played, deployment))
    return stopped


def _write(results: Sequence[Result], out: Path) -> None:
    figures: list[dict[str, Any]] = [r.figures for r in results]
    whole = together(results)
    content = {**whole, **stamp(), "by_seed": figures}
    write_file(out / "loop.json", json.dumps(content, indent=1) + "\n")
    plot(figures, out / "loop.png")
    for of in figures:
        print(f"seed {of['seed']}: " + ", ".join(f"{name} {of[name]}" for name in _SHOWN))
        print(f"  last third, online : frozen: {_interval(of)}")
    print(
        f"all: {_interval(whole)}, of a simulation\nreport: {out / 'loop.json'}, {out / 'loop.png'}",
        flush=True,
    )


def _interval(of: dict[str, Any]) -> str:
    return f"revenue_ratio {of['revenue_ratio']} [{of['revenue_ratio_low']}, {of['revenue_ratio_high']}]"


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
