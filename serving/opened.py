"""One model version that can search, as the scheduler holds it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from serving.engines.metered import MeteredExecutor
from serving.model.bundle import BundleError
from serving.model.manifest import Manifest
from serving.search.cold_start import ColdStart
from serving.search.executor import Executor
from serving.search.normalise import Normalise

logger = logging.getLogger(__name__)


class Opened:
    """A version, its engine, and what else shapes its beams.

    Attributes:
        manifest: of the version.
        executor: its engine.
        cold_start: what unseen SIDs get.
        settings: what the server's configuration says of its beams, see `cache_key`.
        first: nothing was searched yet.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        executor: Executor,
        make_cold_start: Callable[[Manifest], ColdStart | None],
        normalise: tuple[Normalise, ...] | None,
    ) -> None:
        """Wire up."""
        self.manifest, self.executor, self.first = manifest, MeteredExecutor(executor), True
        self.cold_start: ColdStart | None = None
        try:
            self.cold_start = make_cold_start(manifest)
        except BundleError:
            logger.exception("version %d: ads that it was not trained on get no part", manifest.version)
        share = self.cold_start.share if self.cold_start else 0.0
        self.settings = f"{normalise} {share}"
