"""Which model version answers: the one that CURRENT names, if everything it needs is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from serving.index.layout import IndexStoreError
from serving.index.reader import IndexReader
from serving.model.bundle import CURRENT, BundleError, Manifest, read_current
from serving.model.version_watch import Prepare, VersionWatch, file_stamp

logger = logging.getLogger(__name__)

RETRY_S = 1.0  # between two looks at a version that is not usable yet


class ActiveModel:
    """The version that CURRENT names, if it is complete, loaded, and its tokenizer's generation is ready.

    A version that is not usable is refused with a log line, and the one in use stays. What is slow is done in
    a thread: batches go on with the version in use meanwhile.
    """

    def __init__(
        self,
        bundles: str | Path,
        *,
        reader: IndexReader,
        is_loaded: Callable[[Manifest], bool],
        prepare: Prepare | None = None,
    ) -> None:
        """Find the first usable version.

        Args:
            bundles: folder of bundles.
            reader: index.
            is_loaded: whether the engine has every graph of a version; asked first, so it must be quick.
            prepare: what else the engine does before a version answers, see `VersionWatch`.

        Raises:
            BundleError: CURRENT names no complete version.
            IndexStoreError: its tokenizer's generation is not ready.
        """
        self._bundles, self._reader, self._is_loaded = Path(bundles), reader, is_loaded
        self._stamp, self._retry_at = file_stamp(self._bundles / CURRENT), 0.0
        self._refused: str | None = None  # why, as the log has it
        # Its graphs may still be loading: the first search finds out.
        self.manifest = read_current(self._bundles)
        self._require_generation(self.manifest)
        self._watch = VersionWatch(bundles, self.manifest, prepare=prepare)

    def refresh(self) -> bool:
        """Follow CURRENT; True when another version is in use now. Call between batches."""
        stamp = file_stamp(self._bundles / CURRENT)
        if stamp == self._stamp or time.monotonic() < self._retry_at:
            return False
        try:
            manifest = read_current(self._bundles, verify=False)
            if manifest.version == self.manifest.version:
                self._stamp, self._refused = stamp, None
                return False
            if manifest.features != self.manifest.features:
                raise BundleError(
                    f"model version {manifest.version}: expected the features of version "
                    f"{self.manifest.version}, {self.manifest.features}, got {manifest.features}; "
                    "render the repository and start again"
                )
            if not self._is_loaded(manifest):
                raise BundleError(f"model version {manifest.version}: its graphs are not loaded")
            if not self._watch.passed(manifest):
                return False
            self._require_generation(manifest)
        except (BundleError, IndexStoreError) as error:
            if str(error) != self._refused:
                self._refused = str(error)
                logger.error("model version %d stays in use: %s", self.manifest.version, error)
            # Not remembered as seen: the version may still be loading. Nor read again with every batch.
            self._retry_at = time.monotonic() + RETRY_S
            return False
        self._stamp, self._refused = stamp, None
        old, self.manifest = self.manifest, manifest
        self._watch.use(manifest)
        if old.tokenizer_id != manifest.tokenizer_id:
            self._reader.forget(old.tokenizer_id)
        return True

    def _require_generation(self, manifest: Manifest) -> None:
        try:
            self._reader.snapshot_of(manifest.tokenizer_id)
        except IndexStoreError as error:
            raise IndexStoreError(
                f"model version {manifest.version} is of tokenizer {manifest.tokenizer_id}: {error}"
            ) from error
