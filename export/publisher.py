"""Checkpoints of the model that serves, handed to the running server one after another."""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from export.canary_watch import CanaryWatch
from export.gate import Gate
from export.gate_requests import GateRequests, held_out_requests
from export.lower import Lowering
from export.publish import Place, begin_canary, publish
from export.refit import refit
from export.refit_gate import RefitGate
from export.versions import canary_of, remove_superseded
from serving.backend.plans import SearchPlans
from serving.files import read_object
from serving.model.bundle import MANIFEST, read_manifest
from serving.model.current import current_version
from serving.model.pinned import require_free
from training.loop.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from training.loop.retention import find_checkpoint
from training.preset.preset import Preset
from training.spec import ModelSpec

POLL_S = 0.2  # between two looks for a checkpoint


@dataclass(frozen=True)
class Publisher:
    """What does not change from one checkpoint to the next: it is read once.

    Attributes:
        place: from where to where.
        preset: its sections `serving`, `precision` and `publish`.
        load: see `publish`.
        requests: what new weights are compared with those that serve on; None for no gate.
    """

    place: Place
    preset: Preset
    load: Callable[[str], object]
    requests: GateRequests | None

    @classmethod
    def of(cls, run: Path, place: Place, preset: Preset, *, load: Callable[[str], object]) -> Self:
        """With validation requests of a run.

        Raises:
            BundleError: no version serves.
            OSError: it is not readable.
            ValueError: the run's data are missing, hold no such request, or do not fit the model that serves.
        """
        serving = place.bundles / str(current_version(place.bundles))
        # A manifest has all that the specification of its model has.
        spec = ModelSpec.from_json(read_object(serving / MANIFEST))
        count, seed = preset.publish.gate_requests, preset.precision.seed
        requests = held_out_requests(run, spec, preset=preset, count=count, seed=seed)
        return cls(place, preset, load, requests)

    def publish(self, checkpoint: Checkpoint) -> int:
        """Refit the version that serves, and let the new one serve; versions too many are removed.

        With `publish.canary_share` it answers that share, until it is judged (`export.canary_watch`).

        Returns:
            The new version.

        Raises:
            RefitError, SkeletonError, NonFiniteError, ParityError, GateError, QuantizeError, BundleError: see
                `refit`.
            PinError, PublishError, RenderError and others: see `publish`.
            OSError: the disk is full or not writable.
            ValueError: a precision below FP32, and no requests to compare it on.
            In all cases the version that served still does, and there is no new one.
        """
        bundles = self.place.bundles
        base = current_version(bundles)
        require_free(bundles, base + 1)
        folder = refit(checkpoint, bundles, base=base, gate=self._gate, lowering=self._lowering(base))
        try:
            version, share = int(folder.name), self.preset.publish.canary_share
            if share:
                begin_canary(version, self.place, share=share)
            else:
                publish(version, self.place, load=self.load)
        except BaseException:
            shutil.rmtree(folder)
            raise
        remove_superseded(bundles, index=self.place.index, kept=self.preset.publish.kept)
        return int(folder.name)

    @functools.cached_property
    def _gate(self) -> RefitGate | None:
        """One for all checkpoints: it knows what the version that serves found."""
        if self.requests is None:
            return None
        plans = SearchPlans.of(self.preset.serving, levels=len(self.requests.snapshot.level_sizes))
        return RefitGate(
            self.requests,
            self.preset.publish,
            plans.plan,
            plans.normalise,
            threads=self.preset.serving.threads,
            batch_size=self.preset.precision.gate_batch_size,
        )

    def _lowering(self, base: int) -> Lowering | None:
        precision = read_manifest(self.place.bundles / str(base), verify=False).precision
        if precision == "fp32":
            return None
        if self._gate is None:
            raise ValueError(f"precision {precision}: expected requests to compare it with FP32 on, got none")
        gate = self._gate
        return Lowering(
            precision,
            Gate(
                gate.requests,
                self.preset.precision,
                gate.plan,
                normalise=gate.normalise,
                threads=gate.threads,
            ),
        )

    def follow(
        self,
        model: Path,
        *,
        say: Callable[[str], object],
        errors: tuple[type[Exception], ...],
        watch: CanaryWatch | None = None,
    ) -> None:
        """Publish every new checkpoint of a model, from the latest one on, until the process is stopped.

        While there is a canary, no checkpoint is published; then the latest one is.

        Args:
            model: folder with `checkpoints/`.
            say: is told of each version, and of each checkpoint that is not published, and why.
            errors: after which it goes on.
            watch: judges canaries; None where another process does.
        """
        last: Path | None = None
        while True:
            try:
                verdict = watch.look() if watch else None
                if verdict is not None:
                    say(f"canary {verdict.version} {verdict.verdict}: {verdict.reason}")
            except errors as error:
                say(f"canary: {error}")
            if canary_of(self.place.bundles) is not None:
                time.sleep(POLL_S)
                continue
            path = last
            with contextlib.suppress(CheckpointError):  # there will be one
                path = find_checkpoint(model)
            if path is not None and path != last:
                last, began = path, time.monotonic()
                try:
                    version = self.publish(load_checkpoint(path))
                    does = "is a canary" if self.preset.publish.canary_share else "serves"
                    say(f"version {version} {does}: {path}, {time.monotonic() - began:.1f} s")
                except errors as error:
                    say(f"{path} is not published: {error}")
            time.sleep(POLL_S)
