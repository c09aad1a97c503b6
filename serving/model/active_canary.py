"""Which version answers a share of the requests beside the one in use, if any."""

from __future__ import annotations

import logging
from pathlib import Path

from serving.model.bundle import BundleError, read_manifest
from serving.model.canary import Canary, read_canary
from serving.model.current import CANARY, CURRENT
from serving.model.graphs import Graphs
from serving.model.manifest import Manifest
from serving.model.refusal import Reason, Refusal
from serving.model.version_watch import VersionWatch, file_stamp

logger = logging.getLogger(__name__)


class ActiveCanary:
    """The version that CANARY names, if it can be used and the version in use is the one it is compared with.

    One that cannot be used, or that fails, is refused until the file names another: the version in use
    answers its share.

    Attributes:
        manifest: of the version; None where there is none.
        refused: why the version of CANARY does not answer; None when it does, or while it is looked at.
        refused_version: which one that is.
    """

    def __init__(self, bundles: str | Path, *, graphs: Graphs, watch: VersionWatch) -> None:
        """Wire up; `watch` is that of the version in use."""
        self._bundles, self._graphs, self._watch = Path(bundles), graphs, watch
        self._stamps: object = None
        self._named: Canary | None = None
        self._candidate: Manifest | None = None
        self.manifest: Manifest | None = None
        self.refused: Refusal | None = None
        self.refused_version = 0

    def refresh(self, running: Manifest) -> None:
        """Follow CANARY beside the version in use. Call between batches."""
        stamps = file_stamp(self._bundles / CANARY), file_stamp(self._bundles / CURRENT)
        if stamps != self._stamps:
            self._stamps = stamps
            self._read()
        named = self._named
        if named is None or named.beside != running.version:
            self._use(None)
            return
        if self._in_use(named) or self.refused is not None:
            return
        self._use(None)  # of the one before
        reason: Reason = "manifest"
        try:
            if self._candidate is None:
                self._candidate = read_manifest(self._bundles / str(named.version), verify=False)
            reason = "features"
            _require_same(self._candidate, running)
            reason = "files"
            if not self._watch.passed(self._candidate):
                return
            reason = "answers"
            self._graphs.probe(self._candidate)
        except BundleError as error:
            self.refuse(Refusal(reason, str(error)))
        else:
            self._use(self._candidate)

    def takes(self, request_id: str | None) -> bool:
        """Whether a request is this version's."""
        return self.manifest is not None and self._named is not None and self._named.takes(request_id)

    def refuse(self, refusal: Refusal) -> None:
        """It does not answer any more."""
        version = self._named.version if self._named else 0
        logger.error("canary %d is refused: %s", version, refusal.text)
        self._use(None)
        self.refused, self.refused_version = refusal, version

    def _read(self) -> None:
        named = None
        try:
            named = read_canary(self._bundles)
        except BundleError as error:
            logger.error("no canary: %s", error)
        if named is None or self._named is None or named.version != self._named.version:
            self._candidate, self.refused = None, None
        self._named = named

    def _in_use(self, named: Canary) -> bool:
        return self.manifest is not None and self.manifest.version == named.version

    def _use(self, manifest: Manifest | None) -> None:
        if manifest is not self.manifest:
            self.manifest = manifest
            self._watch.use_beside(manifest)


def _require_same(manifest: Manifest, running: Manifest) -> None:
    """What the repository was rendered for, and the tokenizer whose generation is in use."""
    for name in ("tokenizer_id", "features", "ranker_kind", "level_sizes"):
        expected, got = getattr(running, name), getattr(manifest, name)
        if expected != got:
            raise BundleError(
                f"canary {manifest.version}: expected the {name} of version {running.version}, {expected}, "
                f"got {got}"
            )
