"""Hand a version to a running server.

In an order in which nobody misses anything: the repository gets the new version beside the one in use, the
server loads its graphs, and CURRENT moves last. What servers cannot use any more goes in the same load.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from export.engines import Device
from export.kept import Target
from export.render import ADAPTERS, render
from export.rendered import RECORD
from export.versions import LOCK
from serving.backend.settings import ServingConfig
from serving.files import locked, write_file
from serving.model.bundle import BundleError, check_file, read_manifest
from serving.model.canary import Canary, read_canary, write_canary
from serving.model.current import point_current, read_current
from serving.model.manifest import Manifest
from serving.model.pinned import require_free
from serving.model.placed import placed_files

logger = logging.getLogger(__name__)


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


def publish(
    version: int,
    place: Place,
    *,
    load: Callable[[str], object],
    roll_back: bool = False,
    canary: Canary | None = None,
) -> bool:
    """Make a version the one that serves. Of several publishers at once, each waits for the one before.

    Args:
        version: has a complete bundle.
        place: from where to where.
        load: makes the server load what is new of a model, by name; returns when that is done, raises when
            it failed.
        roll_back: also to a version that is older than the one that serves.
        canary: which it is promoted from, if it still is one.

    Returns:
        False where a newer version has been published meanwhile: the latest wins. Or the canary has ended.

    Raises:
        PinError: another version is pinned.
        PublishError: the server did not load it, or it cannot lie beside the one that serves.
        BundleError, EngineError, GraphConfigError, IndexStoreError, RenderError, OSError: see `render`.
        In all cases CURRENT is as before, and the version that serves is loaded; one that was only kept to go
        back to may be gone.
    """
    bundles, repository = place.bundles, place.repository
    with locked(bundles / LOCK):
        require_free(bundles, version)
        if canary is not None and read_canary(bundles) != canary:
            return False
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


def begin_canary(version: int, place: Place, *, share: float) -> bool:
    """Let a version answer a share of the requests, in place of a canary of before: the latest wins.

    Args:
        version: has a complete bundle.
        place: from where to where.
        share: of the requests, in (0, 1).

    Returns:
        False where a newer version serves, or is the canary.

    Raises:
        PinError: another version is pinned.
        PublishError: the server would not run two versions, or not these two.
        BundleError: one of them is not whole, or none serves.
        OSError: the disk is full or not writable.
        In all cases everything is as it was.
    """
    bundles, calls = place.bundles, place.config.graph_calls
    if calls != "in_process":
        raise PublishError(
            f"model version {version}: expected serving.graph_calls: in_process for a canary, whose batches "
            f"take two versions, got {calls}; publish.canary_share=0 lets it answer all requests at once"
        )
    with locked(bundles / LOCK):
        require_free(bundles, version)
        serving, manifest = read_current(bundles, verify=False), read_manifest(bundles / str(version))
        running = read_canary(bundles)
        if version <= serving.version or (running is not None and version < running.version):
            return False
        _require_same_shape(manifest, serving)
        if manifest.tokenizer_id != serving.tokenizer_id:
            raise PublishError(
                f"model version {version}: expected a canary of tokenizer {serving.tokenizer_id}, whose SIDs "
                f"the index serves, got {manifest.tokenizer_id}; publish.canary_share=0 lets it answer all "
                "requests at once"
            )
        write_canary(bundles, Canary(version=version, beside=serving.version, share=share, began=time.time()))
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
                path.parent.mkdir(parents=True, exist_ok=True)  # of a model that other settings lack
                write_file(path, content)
