"""A chore: follows what audiences of events may name: columns of the bundle that serves, and attributes."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from indexer.store.index_store import IndexStore
from serving.index.audience import ATTRIBUTES, AudienceError, Columns, attribute_columns
from serving.model.bundle import BundleError, read_manifest
from serving.model.current import current_version
from serving.model.manifest import Manifest

log = logging.getLogger("gr4ad.indexer")

_LOOK_S = 5.0


def columns_of(manifest: Manifest) -> Columns:
    """Columns that a model's requests have: of the profile, and request features, with their values."""
    features = {feature.name: feature.texts for feature in manifest.features.request_features}
    return {**manifest.profile_columns, **features}


class AudienceColumns:
    """Columns that audiences of events may name; called in the writer's thread, or before it starts."""

    def __init__(self, store: IndexStore, bundles: Path, *, attributes: Path | None) -> None:
        """Of an open store; nothing is read yet.

        Args:
            store: is told.
            bundles: folder of bundles.
            attributes: file of the preset's `serving.attributes`, as JSON; None for the one that the export
                left among the bundles, which may be missing: then there are none.
        """
        self._store, self._bundles = store, bundles
        self._path, self._needed = attributes or bundles / ATTRIBUTES, attributes is not None
        self._seen: tuple[int, int] | None = None
        self._look_at = 0.0

    def __call__(self) -> None:
        """Tell the store when a version or the file is another one; looks every few seconds.

        Raises:
            OSError: the file cannot be read; the columns stay as they are.
            AudienceError: it does not hold attributes; likewise.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        try:
            version = current_version(self._bundles)
        except BundleError:  # said by who follows bundles
            return
        there = self._needed or self._path.exists()
        seen = version, self._path.stat().st_mtime_ns if there else 0
        if seen == self._seen:
            return
        manifest = read_manifest(self._bundles / str(version), verify=False)
        self._store.columns = {**columns_of(manifest), **(self._attributes() if there else {})}
        self._seen = seen
        log.info("audiences may name %s", ", ".join(sorted(self._store.columns)) or "no column")

    def _attributes(self) -> Columns:
        try:
            return attribute_columns(json.loads(self._path.read_text()))
        except (ValueError, AudienceError) as error:
            raise AudienceError(f"{self._path}: {error}") from error
