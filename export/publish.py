"""Hand a version to a running server: `python -m export.publish --config ... --run ... --load COMMAND`.

In an order in which nobody misses anything: the repository gets the new version beside the one in use, the
server loads its graphs, and CURRENT moves last. What servers cannot use any more goes in the same load.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from export.engines import Device, EngineError
from export.graph_config import GraphConfigError
from export.kept import TARGETS, Target
from export.pbtxt import RenderError
from export.render import ADAPTERS, ENGINES, SOURCE, render
from export.rendered import RECORD
from serving.backend.settings import ServingConfig
from serving.files import write_file
from serving.index.layout import IndexStoreError
from serving.model.bundle import BundleError, check_file, read_manifest, versions
from serving.model.current import point_current, read_current
from serving.model.manifest import Manifest
from serving.model.placed import placed_files
from training.preset.preset import ConfigError, Preset, add_preset_arguments

logger = logging.getLogger(__name__)

LOCK = ".publish.lock"  # in the folder of bundles


class PublishError(RuntimeError):
    """A version cannot be handed to a running server; the one that served still does."""


@dataclass(frozen=True)
class Place:
    """Where versions are published from and to.

    Attributes:
        bundles: folder of bundles.
        repository: of the running server.
        index: folder of its index.
        config: what the repository is rendered with.
        target: engine of the graphs.
        engines: see `render`.
        device: see `render`.
    """

    bundles: Path
    repository: Path
    index: Path
    config: ServingConfig
    target: Target = "cpu"
    engines: Path | None = None
    device: Device | None = None


def publish(version: int, place: Place, *, load: Callable[[str], object], roll_back: bool = False) -> bool:
    """Make a version the one that serves. Of several publishers at once, each waits for the one before.

    Args:
        version: has a complete bundle.
        place: from where to where.
        load: makes the server load what is new of a model, by name; returns when that is done, raises when
            it failed.
        roll_back: also to a version that is older than the one that serves.

    Returns:
        False where a newer version has been published meanwhile: the latest wins.

    Raises:
        PublishError: the server did not load it, or it cannot lie beside the one that serves.
        BundleError, EngineError, GraphConfigError, IndexStoreError, RenderError, OSError: see `render`.
        In all cases CURRENT is as before, and the version that serves is loaded; one that was only kept to go
        back to may be gone.
    """
    bundles, repository = place.bundles, place.repository
    with _lock(bundles):
        serving, manifest = _serving(bundles), read_manifest(bundles / str(version), verify=False)
        if serving is not None:
            if version < serving.version and not roll_back:
                return False
            _require_same_shape(manifest, serving)
        before = _Before.of(repository, version)
        loaded: list[str] = []
        try:
            models = render(
                bundles,
                repository,
                index=place.index,
                config=place.config,
                target=place.target,
                engines=place.engines,
                device=place.device,
                serving=version,
            )
            graphs = [name for name in models if name.startswith("lazyar_")]
            for path, digest in placed_files(repository, manifest).items() if graphs else ():
                check_file(path.parent, path.name, digest)
            for name in graphs:
                loaded.append(name)
                _load(name, load, version=version)
            point_current(bundles, version)
        except BaseException:
            before.restore()
            for name in loaded:
                try:
                    load(name)
                except Exception as error:  # the first failure is the one to tell of
                    logger.error("%s was not loaded as before: %s", name, error)
            raise
    return True


def _load(name: str, load: Callable[[str], object], *, version: int) -> None:
    try:
        load(name)
    except Exception as error:  # whatever the caller's transport raises
        raise PublishError(f"model version {version}: {name} was not loaded: {error}") from error


def _serving(bundles: Path) -> Manifest | None:
    """The version that CURRENT names, None where it names none that is whole."""
    try:
        return read_current(bundles, verify=False)
    except BundleError:
        return None


def _require_same_shape(manifest: Manifest, serving: Manifest) -> None:
    """All versions of a graph share one config, and all requests one form of context."""
    if manifest.graphs != serving.graphs or manifest.features != serving.features:
        what = "tensors" if manifest.graphs != serving.graphs else "features"
        raise PublishError(
            f"model version {manifest.version}: expected the {what} of version {serving.version}, which "
            "serves, got others: render it into a repository of its own and start a server with it"
        )


@contextlib.contextmanager
def _lock(bundles: Path) -> Iterator[None]:
    """One publisher at a time; the lock goes with its process."""
    with (bundles / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Before(NamedTuple):
    """What a publication may have to put back."""

    repository: Path
    files: dict[Path, bytes]
    added: list[Path]

    @classmethod
    def of(cls, repository: Path, version: int) -> _Before:
        """Configs and adapters as they are, and where the version is not yet."""
        files = [*repository.glob("*/config.pbtxt"), *(repository / a / "1" / "model.py" for a in ADAPTERS)]
        files.append(repository / RECORD)
        graphs = [p / str(version) for p in repository.glob("lazyar_*")]
        return cls(
            repository,
            {path: path.read_bytes() for path in files if path.is_file()},
            [folder for folder in graphs if not folder.exists()],
        )

    def restore(self) -> None:
        """Put it back."""
        for folder in self.added:
            shutil.rmtree(folder, ignore_errors=True)
        for path, content in self.files.items():
            if not path.is_file() or path.read_bytes() != content:
                write_file(path, content)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m export.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_preset_arguments(parser)
    add = parser.add_argument
    add("--run", required=True, type=Path, help="run folder with bundles/")
    add("--version", type=int, help="bundle to publish (default: the newest)")
    add("--roll-back", action="store_true", help="also to an older version than the one that serves")
    add("--repository", type=Path, default=SOURCE, help="of the running server (model_repository)")
    add("--index", type=Path, help="index that is served (default: RUN/index)")
    add("--target", choices=TARGETS, default="cpu", help="engine of the graphs [cpu]")
    add("--engines", type=Path, help=f"target tensorrt: folder of engines (default: RUN/{ENGINES})")
    add(
        "--load",
        required=True,
        metavar="COMMAND",
        help="loads one model, whose name is added to it (`make publish` has one)",
    )
    arguments = parser.parse_args()
    try:
        place = Place(
            bundles=arguments.run / "bundles",
            repository=arguments.repository,
            index=arguments.index or arguments.run / "index",
            config=Preset.load(arguments.config, arguments.overrides).serving,
            target=arguments.target,
            engines=arguments.engines,
        )
        version = arguments.version or max(versions(place.bundles), default=0)
        command = shlex.split(arguments.load)
        done = publish(
            version,
            place,
            load=lambda name: subprocess.run([*command, name], check=True),
            roll_back=arguments.roll_back,
        )
    except (
        BundleError,
        ConfigError,
        EngineError,
        GraphConfigError,
        IndexStoreError,
        PublishError,
        RenderError,
        OSError,
    ) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"version {version} serves" if done else f"version {version} is not the latest: nothing to do")


if __name__ == "__main__":
    main()
