"""Versions of a running server: `python -m export versions | publish | rollback | pin`.

versions   lists them: step, precision, what it is a refit of, recall, which one serves, which are pinned
publish    lets the newest bundle serve, or --version; with --checkpoint the running version gets the weights
           of a trained model first, in seconds; with --follow those of every checkpoint to come
rollback   lets the version that served before serve again, or --version
pin        keeps the version that serves, or --version, serving: publishes and rollbacks are refused;
           --off ends it

A publish that fails changes nothing, and neither does one that is killed.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from export.calibrate import CalibrationError
from export.engines import EngineError
from export.gate import GateError
from export.graph_config import GraphConfigError
from export.int8 import QuantizeError
from export.kept import TARGETS
from export.parity import ParityError
from export.pbtxt import RenderError
from export.publish import Place, PublishError, publish
from export.publisher import Publisher
from export.refit import RefitError
from export.render import ENGINES, SOURCE
from export.skeleton import SkeletonError
from export.versions import listed, pin, remove_superseded, table, version_before
from serving.index.layout import IndexStoreError
from serving.model.bundle import BundleError, versions
from serving.model.current import current_version
from serving.model.pinned import pinned_version
from training.loop.checkpoint import CheckpointError, NonFiniteError, load_checkpoint
from training.loop.retention import find_checkpoint
from training.preset.preset import Preset, add_preset_arguments

COMMANDS = ("versions", "publish", "rollback", "pin")
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
        elif options.command == "rollback":
            version = options.version or version_before(bundles)
            publish(version, _place(options), load=_load(options), roll_back=True)
            print(f"version {version} serves")
        else:
            _pin(options, bundles)
    except REFUSALS as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt as stop:
        raise SystemExit("\nstopped") from stop


def _publish(options: argparse.Namespace, bundles: Path) -> None:
    place, load = _place(options), _load(options)
    if options.checkpoint or options.follow:
        preset = Preset.load(options.config, options.overrides)
        publisher = Publisher.of(options.run, place, preset, load=load)
        model = options.model or options.run / "model"
        if options.follow:
            publisher.follow(model, say=_say, errors=REFUSALS)
        path = find_checkpoint(model, options.checkpoint)
        print(f"version {publisher.publish(load_checkpoint(path))} serves: {path}")
        return
    version = options.version or max(versions(bundles), default=0)
    if not publish(version, place, load=load):
        print(f"version {version} is not the latest: nothing to do")
        return
    kept = Preset.load(options.config, options.overrides).publish.kept
    gone = remove_superseded(bundles, index=place.index, kept=kept)
    print(f"version {version} serves" + (f"; removed {', '.join(map(str, gone))}" if gone else ""))


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
        subprocess.run([*shlex.split(options.load), name], check=True)

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
    text = "lets a version serve; --checkpoint and --follow make one of new weights"
    publishing = commands.add_parser("publish", parents=[moving], help=text, description=text)
    add = publishing.add_argument
    add("--checkpoint", help="latest, best (by validation) or a name: step-000400")
    add("--follow", action="store_true", help="publish every checkpoint to come, until it is stopped")
    add("--model", type=Path, help="folder with checkpoints/ (default: RUN/model)")
    text = "lets the version that served before serve again"
    commands.add_parser("rollback", parents=[moving], help=text, description=text)
    text = "keeps a version serving: publishes and rollbacks to others are refused"
    pinning = commands.add_parser("pin", parents=[moving], help=text, description=text)
    pinning.add_argument("--off", action="store_true", help="no version is pinned any more")
    return parser
