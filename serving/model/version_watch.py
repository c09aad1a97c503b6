"""Whether a version may answer: its files hashed and its engine prepared, in a thread beside the batches."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from serving.model.bundle import MANIFEST, BundleError, check_file, read_manifest
from serving.model.canary import read_canary
from serving.model.current import read_current
from serving.model.graphs import Graphs
from serving.model.manifest import Manifest

logger = logging.getLogger(__name__)

POLL_S = 0.25  # between two looks at CURRENT
NICE = 19
_REMEMBERED = 4  # versions; to go back to one of them needs no hash

Stamp = tuple[int, int, int]


class _Known(NamedTuple):
    """What is known of a version while its files have these stamps; `refusal` says what is wrong with it."""

    stamps: tuple[Stamp, ...]
    refusal: str | None


def check_files(bundle: Path, graphs: Graphs) -> Manifest:
    """Manifest of a version all of whose files are what they must be, in the bundle and outside.

    Raises:
        BundleError: says which is not.
    """
    manifest = read_manifest(bundle)
    for path, expected in graphs.files(manifest).items():
        check_file(path.parent, path.name, expected)
    return manifest


class VersionWatch:
    """Looks at the version that CURRENT names, then at that of CANARY, once while their files are the same.

    It does not wait for a batch: a server that nobody asks is ready for the version that came meanwhile. The
    thread ends with the object.
    """

    def __init__(
        self, bundles: str | Path, in_use: Manifest, *, graphs: Graphs, canaries: bool = False
    ) -> None:
        """Begin.

        Args:
            bundles: folder of bundles.
            in_use: version that answers, which has been checked.
            graphs: who runs them.
            canaries: whether CANARY counts.
        """
        self._bundles, self._graphs, self._canaries = Path(bundles), graphs, canaries
        self._beside: int | None = None
        self._in_use = self._prepared = in_use.version
        self._known = {in_use.version: _Known(self._stamps(in_use), None)}
        self._hurry = threading.Event()
        threading.Thread(
            target=_watch, args=(weakref.ref(self), self._hurry), name="version-watch", daemon=True
        ).start()

    def passed(self, manifest: Manifest) -> bool:
        """Whether a version is found good; False while the thread is not through with it. Never waits.

        Raises:
            BundleError: it is not, which holds until its files change.
        """
        known = self._known.get(manifest.version)
        if known is not None and known.stamps == self._stamps(manifest):
            if known.refusal is not None:
                raise BundleError(known.refusal)
            if self._is_prepared(manifest):
                return True
        self._hurry.set()
        return False

    def use(self, manifest: Manifest) -> None:
        """A version answers from now on."""
        self._in_use = manifest.version

    def use_beside(self, manifest: Manifest | None) -> None:
        """A canary answers its share from now on; None for none: what was prepared of it is gone."""
        if self._prepared == self._beside != self._in_use:
            self._prepared = 0
        self._beside = None if manifest is None else manifest.version

    def look(self) -> None:
        """Look at the version that is to answer next; the thread's work."""
        try:
            manifest = self._next()
        except BundleError:
            return  # whoever wants a version finds out
        if manifest is None:
            return
        stamps = self._stamps(manifest)  # of before: files that change meanwhile are looked at again
        known = self._known.get(manifest.version)
        if known is None or known.stamps != stamps:
            folder = self._bundles / str(manifest.version)
            refusal = self._refusal(lambda m: check_files(folder, self._graphs), manifest)
        elif known.refusal is not None or self._is_prepared(manifest):
            return
        else:
            refusal = None
        if refusal is None and self._graphs.prepare is not None:
            refusal = self._refusal(self._graphs.prepare, manifest)
            self._prepared = manifest.version
        self._known[manifest.version] = _Known(stamps, refusal)
        while len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]

    def _next(self) -> Manifest | None:
        """That of CURRENT, or where that answers, of CANARY; None for nothing to do."""
        manifest = read_current(self._bundles, verify=False)
        if manifest.version == self._in_use:
            canary = read_canary(self._bundles) if self._canaries else None
            if canary is None or canary.version == self._beside:
                return None
            manifest = read_manifest(self._bundles / str(canary.version), verify=False)
        # Two versions are in memory at most: the canary goes first, or it is the one of CURRENT now.
        return manifest if self._beside is None else None

    def _is_prepared(self, manifest: Manifest) -> bool:
        return self._graphs.prepare is None or self._prepared == manifest.version

    def _refusal(self, step: Callable[[Manifest], object], manifest: Manifest) -> str | None:
        try:
            step(manifest)
        except BundleError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  (nobody sees what a thread raises)
            return f"model version {manifest.version}: {type(error).__name__}: {error}"
        return None

    def _stamps(self, manifest: Manifest) -> tuple[Stamp, ...]:
        folder = self._bundles / str(manifest.version)
        try:
            outside = list(self._graphs.files(manifest))
        except BundleError:  # the check says why; once that is put right there are more stamps
            outside = []
        inside = [folder / name for name in (MANIFEST, *manifest.sha256)]
        return tuple(map(file_stamp, [*inside, *outside]))


def file_stamp(path: Path) -> Stamp:
    """Changes with the file; zeros where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # the latter for a name that no file can have
        return (0, 0, 0)
    return found.st_size, found.st_mtime_ns, found.st_ino


def _watch(reference: weakref.ref[VersionWatch], hurry: threading.Event) -> None:
    # Of this thread alone: searches go first.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    while True:
        hurry.wait(POLL_S)
        hurry.clear()
        watch = reference()
        if watch is None:
            return
        try:
            watch.look()
        except Exception:  # the next version must find somebody who looks
            logger.exception("version watch")
        del watch  # or it would live as long as the thread
