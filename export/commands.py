"""Versions of a running server: `python -m export versions | publish | canary | rollback | pin`.

versions   lists them: step, precision, what it is a refit of, recall, which one serves, which are pinned
publish    lets the newest bundle serve that was not rolled back, or --version; with --checkpoint the running
           version gets the weights of a trained model first, in seconds; with --follow those of every
           checkpoint to come. With publish.canary_share it answers that share until it is judged
canary     watches the version that answers a share, until it is promoted or rolled back by what came of its
           answers, with --follow every one to come; or does either at once: --promote, --end
rollback   ends the canary, if there is one; or lets the version that served before serve again, or --version
pin        keeps the version that serves, or --version, serving: publishes and rollbacks are refused, a canary
           ends; --off ends it

A publish that fails changes nothing, and neither does one that is killed.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from export.calibrate import CalibrationError
from export.canary_watch import CanaryWatch, promote, roll_back_canary
from export.engines import EngineError
from export.gate import GateError
from export.graph_config import GraphConfigError
from export.int8 import QuantizeError
from export.kept import TARGETS
from export.parity import ParityError
from export.pbtxt import RenderError
from export.publish import Place, PublishError, begin_canary, publish
from export.publisher import POLL_S, Publisher
from export.refit import RefitError
from export.render import ENGINES, SOURCE
from export.skeleton import SkeletonError
from export.verdicts import rolled_back
from export.versions import listed, pin, remove_superseded, table, version_before
from serving.backend.priority import yield_to_servers
from serving.index.layout import IndexStoreError
from serving.model.bundle import BundleError, versions
from serving.model.canary import read_canary
from serving.model.current import current_version
from serving.model.pinned import pinned_version
from training.loop.checkpoint import CheckpointError, NonFiniteError, load_checkpoint
from training.loop.retention import find_checkpoint
from training.preset.preset import Preset, add_preset_arguments

COMMANDS = ("versions", "publish", "canary", "rollback", "pin")
REFUSALS = (
    BundleError,
    CalibrationError,
    CheckpointError,
    EngineError,
    GateError,
    GraphConfigError,
    IndexStoreError,
    NonFiniteError,
    ParityError,
    PublishError,
    QuantizeError,
    RefitError,
    RenderError,
    SkeletonError,
    ValueError,
    OSError,
)
"""What a command tells in one line."""


def main(arguments: Sequence[str]) -> None:
    """Command line; `arguments` begin with the command."""
    options = _parser().parse_args(arguments)
    bundles: Path = options.run / "bundles"
    try:
        if options.command == "versions":
            rows = listed(bundles)
            print(table(rows) if rows else f"{bundles}: no versions; `make export` makes one")
        elif options.command == "publish":
            _publish(options, bundles)
        elif options.command == "canary":
            _canary(options, bundles)
        elif options.command == "rollback":
            _rollback(options, bundles)
        else:
            _pin(options, bundles)
    except REFUSALS as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt as stop:
        raise SystemExit("\nstopped") from stop


def _publish(options: argparse.Namespace, bundles: Path) -> None:
    place, load = _place(options), _load(options)
    preset = Preset.load(options.config, options.overrides)
    share = preset.publish.canary_share
    if options.checkpoint or options.follow:
        publisher = Publisher.of(options.run, place, preset, load=load)
        model = options.model or options.run / "model"
        if options.follow:
            yield_to_servers()
            publisher.follow(model, say=_say, errors=REFUSALS, watch=_watch(options, preset))
        path = find_checkpoint(model, options.checkpoint)
        print(f"version {publisher.publish(load_checkpoint(path))} {_does(share)}: {path}")
        return
    version = options.version or max(set(versions(bundles)) - rolled_back(bundles), default=0)
    done = begin_canary(version, place, share=share) if share else publish(version, place, load=load)
    if not done:
        print(f"version {version} is not the latest: nothing to do")
        return
    gone = remove_superseded(bundles, index=place.index, kept=preset.publish.kept)
    print(f"version {version} {_does(share)}" + (f"; removed {', '.join(map(str, gone))}" if gone else ""))


def _does(share: float) -> str:
    return f"answers {share:.3g} of the requests until it is judged" if share else "serves"


def _canary(options: argparse.Namespace, bundles: Path) -> None:
    if options.follow:
        _judge(_watch(options, Preset.load(options.config, options.overrides)))
    canary = read_canary(bundles)
    if canary is None:
        print("no version is a canary")
        return
    if options.promote:
        verdict = promote(canary, _place(options), load=_load(options), reason="by command")
    elif options.end:
        verdict = roll_back_canary(bundles, canary, reason="by command")
    else:
        watch = _watch(options, Preset.load(options.config, options.overrides))
        while (verdict := watch.look()) is None and watch.running() is not None:
            time.sleep(POLL_S)
        watch.close()
    print(f"canary {verdict.version} {verdict.verdict}: {verdict.reason}" if verdict else "it has ended")


def _judge(watch: CanaryWatch) -> NoReturn:
    """Every canary to come."""
    while True:
        try:
            if (verdict := watch.look()) is not None:
                _say(f"canary {verdict.version} {verdict.verdict}: {verdict.reason}")
        except REFUSALS as error:
            _say(f"canary: {error}")
        time.sleep(POLL_S)


def _watch(options: argparse.Namespace, preset: Preset) -> CanaryWatch:
    return CanaryWatch(
        _place(options),
        preset.publish,
        load=_load(options),
        say=_say,
        feedback=options.feedback,
        metrics=options.metrics,
    )


def _rollback(options: argparse.Namespace, bundles: Path) -> None:
    canary = None if options.version else read_canary(bundles)
    if canary is not None:
        roll_back_canary(bundles, canary, reason="by command")
        print(f"canary {canary.version} has ended, version {canary.beside} serves")
        return
    version = options.version or version_before(bundles)
    publish(version, _place(options), load=_load(options), roll_back=True)
    print(f"version {version} serves")


def _pin(options: argparse.Namespace, bundles: Path) -> None:
    if options.off:
        pinned = pinned_version(bundles)
        pin(bundles, None)
        print("no version was pinned" if pinned is None else f"version {pinned} is not pinned any more")
        return
    serving = current_version(bundles)
    version = options.version or serving
    if version != serving:
        publish(version, _place(options), load=_load(options), roll_back=True)
    pin(bundles, version)
    print(f"version {version} serves and is pinned")


def _place(options: argparse.Namespace) -> Place:
    return Place(
        bundles=options.run / "bundles",
        repository=options.repository,
        index=options.index or options.run / "index",
        config=Preset.load(options.config, options.overrides).serving,
        target=options.target,
        engines=options.engines,
    )


def _load(options: argparse.Namespace) -> Callable[[str], object]:
    def load(name: str) -> None:
        if not options.load:
            raise PublishError(f"--load: expected the command that makes the server load {name}, got none")
        status = subprocess.run([*shlex.split(options.load), name], check=False).returncode
        if status:
            raise PublishError(
                f"`{options.load} {name}` ended with status {status} (what it said stands above); "
                f"where no server runs, --load true moves CURRENT alone"
            )

    return load


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--run", required=True, type=Path, help="run folder with bundles/")
    commands.add_parser("versions", parents=[common], help="which versions there are, which one serves")
    moving = argparse.ArgumentParser(add_help=False, parents=[common])
    add_preset_arguments(moving)
    add = moving.add_argument
    add(
        "--version",
        type=int,
        help="(publish: the newest; rollback: the one before; pin: the one that serves)",
    )
    add("--repository", type=Path, default=SOURCE, help="of the running server (model_repository)")
    add("--index", type=Path, help="index that is served (default: RUN/index)")
    add("--target", choices=TARGETS, default="cpu", help="engine of the graphs [cpu]")
    add("--engines", type=Path, help=f"target tensorrt: folder of engines (default: RUN/{ENGINES})")
    add(
        "--load",
        metavar="COMMAND",
        help="loads one model, whose name is added to it (`make publish` has one); not needed with "
        "serving.graph_calls: in_process, where the schedulers follow by themselves",
    )
    watching = argparse.ArgumentParser(add_help=False)
    add = watching.add_argument
    add("--feedback", type=Path, metavar="STORE", help="what came of answers: folder of python -m feedback")
    add(
        "--metrics", metavar="URL", help="metrics page of the server: a canary that it refuses is rolled back"
    )
    text = "lets a version serve; --checkpoint and --follow make one of new weights"
    publishing = commands.add_parser("publish", parents=[moving, watching], help=text, description=text)
    add = publishing.add_argument
    add("--checkpoint", help="latest, best (by validation) or a name: step-000400")
    add("--follow", action="store_true", help="publish every checkpoint to come, until it is stopped")
    add("--model", type=Path, help="folder with checkpoints/ (default: RUN/model)")
    text = "watches the version that answers a share of the requests, until it is promoted or rolled back"
    judging = commands.add_parser("canary", parents=[moving, watching], help=text, description=text)
    now = judging.add_mutually_exclusive_group()
    now.add_argument("--follow", action="store_true", help="watch every canary to come, until it is stopped")
    now.add_argument("--promote", action="store_true", help="it answers all requests, now")
    now.add_argument("--end", action="store_true", help="it answers none any more, now")
    text = "lets the version that served before serve again; where there is a canary, ends it"
    commands.add_parser("rollback", parents=[moving], help=text, description=text)
    text = "keeps a version serving: publishes and rollbacks to others are refused"
    pinning = commands.add_parser("pin", parents=[moving], help=text, description=text)
    pinning.add_argument("--off", action="store_true", help="no version is pinned any more")
    return parser
