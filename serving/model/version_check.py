"""Whether a version may answer: its files hashed and its engine prepared, in a thread beside the batches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from serving.model.bundle import MANIFEST, BundleError, Manifest, read_manifest

_Stamps = tuple[tuple[str, int, int, int], ...]


class VersionCheck:
    """Looks at one version at a time, once as long as its files are the same ones."""

    def __init__(self, bundles: str | Path, *, prepare: Callable[[Manifest], None]) -> None:
        """Nothing is looked at yet.

        Args:
            bundles: folder of bundles.
            prepare: what is slow and comes after the hashes; BundleError where the version is of no use.
        """
        self._bundles, self._prepare = Path(bundles), prepare
        self._stamps: _Stamps | None = None  # files that the last look was at
        self._refusal: str | None = None
        self._thread: threading.Thread | None = None

    def passed(self, manifest: Manifest) -> bool:
        """Whether a version is found good; False while the thread is at it. Never waits.

        Raises:
            BundleError: it is not, which is remembered until its files change.
        """
        if self._thread is not None and self._thread.is_alive():
            return False
        # Of before the look: files that change meanwhile are looked at again.
        stamps = self._read_stamps(manifest)
        if stamps != self._stamps:
            self._stamps, self._refusal = stamps, None
            self._thread = threading.Thread(
                target=self._look, args=(manifest,), name="version-check", daemon=True
            )
            self._thread.start()
            return False
        if self._refusal is not None:
            raise BundleError(self._refusal)
        return True

    def _look(self, manifest: Manifest) -> None:
        try:
            read_manifest(self._bundles / str(manifest.version), verify=True)
            self._prepare(manifest)
        except BundleError as error:
            self._refusal = str(error)
        except Exception as error:  # noqa: BLE001  (nobody sees what a thread raises)
            self._refusal = f"model version {manifest.version}: {type(error).__name__}: {error}"

    def _read_stamps(self, manifest: Manifest) -> _Stamps:
        folder, stamps = self._bundles / str(manifest.version), []
        for name in (MANIFEST, *manifest.content["sha256"]):
            try:
                found = (folder / name).stat()
                stamps.append((str(folder / name), found.st_size, found.st_mtime_ns, found.st_ino))
            except OSError:
                stamps.append((str(folder / name), -1, 0, 0))
        return tuple(stamps)
