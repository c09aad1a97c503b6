"""Which model version answers: the one that CURRENT names, if everything it needs is there."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from serving.index.layout import IndexStoreError
from serving.index.reader import IndexReader
from serving.model.active_canary import ActiveCanary
from serving.model.bundle import BundleError
from serving.model.current import CURRENT, current_version, named_versions, read_current
from serving.model.features import FeatureSpec
from serving.model.graphs import Graphs
from serving.model.manifest import Manifest, RankerKind
from serving.model.refusal import Reason, Refusal
from serving.model.version_watch import VersionWatch, check_files, file_stamp

logger = logging.getLogger(__name__)

RETRY_S = 1.0  # between two looks at a version that is not usable yet


class ActiveModel:
    """The version that CURRENT names, if it is complete, loaded, and its tokenizer's generation is ready.

    A version that is not usable is refused with a log line, and the one in use stays. What is slow is done in
    a thread: batches go on with the version in use meanwhile. At the start, and when the graphs of the one in
    use are gone, the newest usable version of those that CURRENT named before stands in.

    Attributes:
        manifest: of the version in use.
        refused: why that is not the version of CURRENT; None when it is, or while the other is looked at.
        canary: version that answers a share of the requests; None where canaries do not count.
    """

    def __init__(
        self,
        bundles: str | Path,
        *,
        reader: IndexReader,
        graphs: Graphs,
        features: FeatureSpec,
        ranker: RankerKind | None = None,
        canaries: bool = False,
    ) -> None:
        """Find the first usable version.

        Args:
            bundles: folder of bundles.
            reader: index.
            graphs: who runs the graphs.
            features: what the repository was rendered for, and every version must have.
            ranker: likewise; None for versions without one.
            canaries: whether CANARY counts.

        Raises:
            BundleError: CURRENT names no complete version that can be used, nor did it before.
        """
        self._bundles, self._reader = Path(bundles), reader
        self._graphs, self._features, self._ranker = graphs, features, ranker
        self._retry_at, self._stand_in_at = 0.0, 0.0
        self._nobody = ""  # why no version can stand in
        self.refused: Refusal | None = None
        stamp = file_stamp(self._bundles / CURRENT)
        named = named_versions(bundles)
        if not named:
            current_version(bundles)  # says what is wrong
        # Its graphs may still be loading: the first search finds out, and that they are the right ones.
        self.manifest, self._proved = self._stand_in(named, loaded=False), False
        self._stamp = stamp if self._is_current() else None
        for other in reader.generations:
            if other != self.manifest.tokenizer_id:
                reader.forget(other)
        self._watch = VersionWatch(bundles, self.manifest, graphs=graphs, canaries=canaries)
        self.canary = ActiveCanary(bundles, graphs=graphs, watch=self._watch) if canaries else None

    def refresh(self) -> bool:
        """Follow CURRENT and CANARY; True when another version is in use now. Call between batches.

        Raises:
            BundleError: the version in use computes something else than it should, and none can stand in.
        """
        replaced = self._refresh()
        if self.canary is not None:
            self.canary.refresh(self.manifest)
        return replaced

    def _refresh(self) -> bool:
        if self._follow():
            return True
        if self._proved or not self._graphs.is_loaded(self.manifest):
            return False
        try:
            self._graphs.probe(self.manifest)
        except BundleError as error:
            return self._replace(error)
        self._proved = True
        return False

    def replace_lost(self) -> bool:
        """After a failed search: True when another version is in use, as the graphs of the last are gone.

        Raises:
            BundleError: they are gone, and no version can stand in. They may come back.
        """
        if self._graphs.is_loaded(self.manifest):
            return False
        version = self.manifest.version
        return self._replace(BundleError(f"model version {version}: its graphs are not loaded any more"))

    def _follow(self) -> bool:
        stamp = file_stamp(self._bundles / CURRENT)
        if stamp == self._stamp or time.monotonic() < self._retry_at:
            return False
        reason: Reason = "manifest"
        try:
            manifest = read_current(self._bundles, verify=False)
            if manifest.version == self.manifest.version:
                self._stamp, self.refused = stamp, None
                return False
            reason = "features"
            self._require_features(manifest)
            reason = "graphs"
            self._require_loaded(manifest)
            reason = "files"
            if not self._watch.passed(manifest):
                return False
            reason = "generation"
            self._require_generation(manifest)
            reason = "answers"
            self._graphs.probe(manifest)
        except (BundleError, IndexStoreError, OSError) as error:
            self._refuse(Refusal(reason, str(error)))
            # Not remembered as seen: the version may still be loading. Nor read again with every batch.
            self._retry_at = time.monotonic() + RETRY_S
            return False
        self._stamp = stamp
        self._take(manifest)
        return True

    def _refuse(self, refusal: Refusal) -> None:
        if refusal != self.refused:
            logger.error("model version %d stays in use: %s", self.manifest.version, refusal.text)
        self.refused = refusal

    def _replace(self, error: BundleError) -> bool:
        """Another version for the one in use, which `error` says what is wrong with; checked here and now."""
        if time.monotonic() < self._stand_in_at:
            raise BundleError(f"{error}; {self._nobody}") from error
        others = [version for version in named_versions(self._bundles) if version != self.manifest.version]
        try:
            manifest = self._stand_in(others, loaded=True)
        except BundleError as nobody:
            self._nobody, self._stand_in_at = str(nobody), time.monotonic() + RETRY_S
            raise BundleError(f"{error}; {nobody}") from error
        logger.error("%s; version %d stands in", error, manifest.version)
        self._stamp = None
        self._take(manifest)
        return True

    def _stand_in(self, versions: list[int], *, loaded: bool) -> Manifest:
        """The first usable one of these."""
        problems = []
        for version in versions:
            try:
                manifest = check_files(self._bundles / str(version), self._graphs)
                self._require_features(manifest)
                self._require_generation(manifest)
                if loaded:
                    self._require_loaded(manifest)
                if self._graphs.prepare is not None:
                    self._graphs.prepare(manifest)
                if loaded:
                    self._graphs.probe(manifest)
            except (BundleError, IndexStoreError, OSError) as error:
                problems.append(f"version {version}: {error}")
                logger.error("model version %d cannot be used: %s", version, error)
                continue
            return manifest
        raise BundleError(f"no version can answer: {'; '.join(problems) or 'CURRENT named no other'}")

    def _take(self, manifest: Manifest) -> None:
        old, self.manifest, self._proved, self.refused = self.manifest, manifest, True, None
        self._watch.use(manifest)
        if old.tokenizer_id != manifest.tokenizer_id:
            self._reader.forget(old.tokenizer_id)

    def _is_current(self) -> bool:
        try:
            return current_version(self._bundles) == self.manifest.version
        except BundleError:
            return False

    def _require_features(self, manifest: Manifest) -> None:
        if manifest.features != self._features:
            raise BundleError(
                f"model version {manifest.version}: expected the features that the repository was rendered "
                f"for, {self._features}, got {manifest.features}; render the repository and start again"
            )
        if manifest.ranker_kind != self._ranker:
            raise BundleError(
                f"model version {manifest.version}: expected the ranker that the repository was rendered "
                f"for, {self._ranker}, got {manifest.ranker_kind}; render the repository and start again"
            )

    def _require_loaded(self, manifest: Manifest) -> None:
        if not self._graphs.is_loaded(manifest):
            raise BundleError(f"model version {manifest.version}: its graphs are not loaded")

    def _require_generation(self, manifest: Manifest) -> None:
        try:
            sizes = self._reader.snapshot_of(manifest.tokenizer_id).level_sizes
        except IndexStoreError as error:
            raise IndexStoreError(
                f"model version {manifest.version} is of tokenizer {manifest.tokenizer_id}: {error}"
            ) from error
        if sizes != manifest.level_sizes:
            raise BundleError(
                f"model version {manifest.version}: expected the level sizes of the index, {sizes}, got "
                f"{manifest.level_sizes}"
            )
