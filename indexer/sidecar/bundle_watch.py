"""Follows the folder of bundles: encoders of generations, and a generation more for a new tokenizer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from indexer.encode.encoder import Encoder
from indexer.store.generations import fill
from indexer.store.index_store import IndexStore
from serving.index.layout import IndexStoreError
from serving.model.bundle import MANIFEST, BundleError, read_manifest, versions
from serving.model.current import current_version, named_versions

log = logging.getLogger("gr4ad.indexer")

_LOOK_S = 5.0
_AGAIN_S = 60.0  # until a bundle that could not be used is tried again
_FILL_ADS = 256  # encoded in one step, between two batches


def load_encoder(bundle: Path) -> Encoder:
    """Encoder of a bundle; imports ONNX Runtime only now.

    Raises:
        BundleError: the bundle has none, or a damaged one.
    """
    from indexer.encode import bundle_encoder

    return bundle_encoder.load_encoder(bundle)


class BundleWatch:
    """A chore of the worker; everything runs in the writer's thread, or before it starts.

    Attributes:
        problems: tokenizer id or bundle -> why it cannot be used.
    """

    def __init__(
        self, store: IndexStore, bundles: Path, *, load: Callable[[Path], Encoder] = load_encoder
    ) -> None:
        """Of an open store; nothing is read yet."""
        self._store, self._bundles, self._load = store, bundles, load
        self._tokenizers: dict[tuple[int, int], str] = {}  # version, time of its manifest -> tokenizer id
        self._look_at = 0.0
        self._again_at: dict[str, float] = {}
        self.problems: dict[str, str] = {}

    def __call__(self) -> bool:
        """Look for bundles from time to time and encode a few ads; True while there are more."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self.look()
        return self.fill_step()

    def look(self) -> None:
        """Load encoders that are missing, begin generations that are missing."""
        self.problems.pop("bundles", None)
        try:
            current = current_version(self._bundles)
        except BundleError as error:
            self._refuse("bundles", error)
            named = named_versions(self._bundles)
            if not named:
                return
            current = named[0]  # what it named last is what servers use
        for version in reversed(versions(self._bundles)):
            bundle = self._bundles / str(version)
            try:
                name = self._tokenizer_of(version, bundle)
            except (BundleError, OSError) as error:
                self._refuse(f"bundle {version}", error)
                continue
            self.problems.pop(f"bundle {version}", None)
            known = name in self._store.meta.generations
            # Of a bundle older than the one that serves, the generation may have been dropped on purpose.
            if name in self._store.encoders or (not known and version < current):
                continue
            if time.monotonic() >= self._again_at.get(name, 0.0):
                self._take(name, bundle)

    def fill_step(self) -> bool:
        """Encode the next ads of a generation that is not ready; whether there are more."""
        for name, generation in self._store.meta.generations.items():
            encoder = self._store.encoders.get(name)
            if generation.ready or encoder is None:
                continue
            if fill(self._store.file, encoder, limit=_FILL_ADS):
                return True
            log.warning("generation %s is ready", name)
        return False

    def missing(self) -> list[str]:
        """Why new ads cannot be taken; empty when they can."""
        ready = [name for name, g in self._store.meta.generations.items() if g.ready]
        if any(name in self._store.encoders for name in ready):
            return []
        reasons = "; ".join(self.problems.values())
        return ["no encoder for new ads" + (f": {reasons}" if reasons else " yet")]

    def _take(self, name: str, bundle: Path) -> None:
        known = name in self._store.meta.generations
        try:
            began = time.monotonic()
            encoder = self._load(bundle)
            if encoder.tokenizer_id != name:
                raise BundleError(f"{bundle}: expected an encoder of {name}, got {encoder.tokenizer_id}")
            self._store.add_encoder(encoder)
        except (BundleError, IndexStoreError, ImportError) as error:
            self._again_at[name] = time.monotonic() + _AGAIN_S
            self._refuse(name, error)
            return
        self.problems.pop(name, None)
        log.info("encoder of %s loaded in %.1f s", name, time.monotonic() - began)
        if not known:
            log.warning("bundle %s has a new tokenizer: generation %s begins", bundle.name, name)

    def _tokenizer_of(self, version: int, bundle: Path) -> str:
        key = version, (bundle / MANIFEST).stat().st_mtime_ns
        if key not in self._tokenizers:
            self._tokenizers[key] = read_manifest(bundle, verify=False).tokenizer_id
        return self._tokenizers[key]

    def _refuse(self, what: str, error: Exception) -> None:
        if self.problems.get(what) != str(error):  # once
            log.error("%s", error)
        self.problems[what] = str(error)
