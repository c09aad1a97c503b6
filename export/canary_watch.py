"""Watches a canary, what came of its answers and whether servers refuse it; promotes it or rolls it back."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from export.canary_rule import Arm, judge
from export.publish import Place, publish
from export.verdicts import Verdict, add_verdict
from export.versions import LOCK
from feedback.store.layout import FeedbackStoreError
from feedback.store.samples import JoinedSample, Samples, TrimmedError
from serving.files import locked
from serving.model.bundle import BundleError
from serving.model.canary import Canary, read_canary, write_canary
from training.preset.publish import PublishConfig

METRICS_EVERY_S = 1.0
_TIMEOUT_S = 2.0
_CHUNK = 1024  # samples that are read at once
_REFUSED = re.compile(r"^gr4ad_canary_refused\{([^}]*)\} ([0-9.eE+]+)$", re.MULTILINE)

Say = Callable[[str], object]


@dataclass
class _Seen:
    """What is known of one canary."""

    canary: Canary
    offset: int | None = None  # of the feedback store; None before the first look
    arms: tuple[Arm, Arm] = field(default_factory=lambda: (Arm(), Arm()))  # canary, beside


class CanaryWatch:
    """Looks whenever it is asked to. One that begins anew reads again what came of the canary's answers."""

    def __init__(
        self,
        place: Place,
        config: PublishConfig,
        *,
        load: Callable[[str], object],
        say: Say,
        feedback: Path | None = None,
        metrics: str | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            place: see `publish`.
            config: the rule.
            load: see `publish`.
            say: is told what is done, and each new reason why nothing is.
            feedback: store of what came of answers; None: nothing is known of them.
            metrics: metrics page of the server, which says what it refuses; None: that is not asked.
        """
        self._place, self._config, self._load, self._say = place, config, load, say
        self._feedback, self._metrics = feedback, metrics
        self._samples: Samples | None = None
        self._seen: _Seen | None = None
        self._said = ""
        self._ask_at = 0.0

    def look(self) -> Verdict | None:
        """One look, and what follows from it; None while nothing does.

        Raises:
            PublishError, RenderError and others: it was to be promoted, see `publish`.
            OSError: see `roll_back_canary`.
        """
        canary = self.running()
        if canary is None:
            self._seen = None
            return None
        if self._seen is None or self._seen.canary != canary:
            self._seen = _Seen(canary)
        refused = self._refused(canary)
        if refused is not None:
            return self._roll_back(canary, refused, {})
        if not self._read(self._seen):
            return None
        found = judge(*self._seen.arms, self._config)
        if found.do == "roll back":
            return self._roll_back(canary, found.reason, found.figures)
        if found.do == "promote":
            return promote(canary, self._place, load=self._load, reason=found.reason, figures=found.figures)
        self._tell(f"canary {canary.version}: {found.reason}")
        return None

    def running(self) -> Canary | None:
        """The canary there is."""
        try:
            return read_canary(self._place.bundles)
        except BundleError as error:
            self._tell(str(error))
            return None

    def close(self) -> None:
        """Let go of the feedback store."""
        if self._samples is not None:
            self._samples.close()
            self._samples = None

    def _tell(self, text: str) -> None:
        said = re.sub(r"\d+", "#", text)  # counts grow with every look
        if said != self._said:
            self._said = said
            self._say(text)

    def _roll_back(self, canary: Canary, reason: str, figures: dict[str, float | None]) -> Verdict | None:
        return roll_back_canary(self._place.bundles, canary, reason=reason, figures=figures)

    def _refused(self, canary: Canary) -> str | None:
        """Why the server does not answer with it; None where it does, or is not asked."""
        if self._metrics is None or time.monotonic() < self._ask_at:
            return None
        self._ask_at = time.monotonic() + METRICS_EVERY_S
        try:
            with urllib.request.urlopen(self._metrics, timeout=_TIMEOUT_S) as page:
                text = page.read(16 << 20).decode(errors="replace")
        except (OSError, ValueError) as error:
            self._tell(f"{self._metrics}: expected the server's metrics, got: {error}")
            return None
        for labels, value in _REFUSED.findall(text):
            if float(value) == canary.version:
                reason = re.search('reason="([^"]*)"', labels)
                return f"the server refuses it: {reason.group(1) if reason else 'no reason'}"
        return None

    def _read(self, seen: _Seen) -> bool:
        """Count what is new in the feedback store; False where there is none."""
        version = seen.canary.version
        if self._feedback is None:
            self._tell(f"canary {version} is held: no feedback store tells what came of its answers")
            return False
        try:
            if self._samples is None:
                self._samples = Samples(self._feedback)
            if seen.offset is None:
                seen.offset = _first_of(self._samples, since=seen.canary.began)
            while samples := self._samples.read(after=seen.offset, limit=_CHUNK):
                for sample in samples:
                    _count(seen, sample)
                seen.offset = samples[-1].sequence
        except TrimmedError as error:
            self._tell(f"canary {version}: {error}")
            seen.offset = None
            seen.arms = Arm(), Arm()
            return False
        except FeedbackStoreError as error:
            self._tell(f"canary {version} is held: {error}")
            self.close()
            return False
        return True


def _count(seen: _Seen, sample: JoinedSample) -> None:
    """What was known when the window of an answer closed; both versions from the canary's first answer on."""
    if sample.revision or sample.record.written < seen.canary.began:
        return
    canary, beside = seen.arms
    if sample.record.model_version == seen.canary.version:
        canary.add(sample)
    elif sample.record.model_version == seen.canary.beside and canary.answers:
        beside.add(sample)


def _first_of(samples: Samples, *, since: float) -> int:
    """An offset that nothing lies behind of what was served since then; samples come in the order of time."""
    after = samples.newest
    while after > 0:
        try:
            earlier = samples.read(after=max(after - _CHUNK, 0), limit=_CHUNK)
        except TrimmedError:
            return after
        first = next((s for s in earlier if not s.revision), None)  # corrections are of any time
        after = max(after - _CHUNK, 0)
        if first is not None and first.record.written < since:
            return after
    return 0


def promote(
    canary: Canary,
    place: Place,
    *,
    load: Callable[[str], object],
    reason: str,
    figures: dict[str, float | None] | None = None,
) -> Verdict | None:
    """Let a canary answer all requests; None where it has ended meanwhile.

    Raises:
        PublishError and others: see `publish`. It goes on as it was.
    """
    if not publish(canary.version, place, load=load, canary=canary):
        return None
    verdict = Verdict(
        version=canary.version, verdict="promoted", reason=reason, at=time.time(), figures=figures or {}
    )
    with locked(place.bundles / LOCK):
        add_verdict(place.bundles, verdict)
    return verdict


def roll_back_canary(
    bundles: Path, canary: Canary, *, reason: str, figures: dict[str, float | None] | None = None
) -> Verdict | None:
    """Let the version beside a canary answer all requests again; None where it has ended meanwhile.

    Raises:
        BundleError: the file that names it was damaged meanwhile.
        OSError: the disk is full or not writable. It has ended, and nothing says so.
    """
    verdict = Verdict(
        version=canary.version, verdict="rolled back", reason=reason, at=time.time(), figures=figures or {}
    )
    with locked(bundles / LOCK):
        if read_canary(bundles) != canary:
            return None
        try:
            add_verdict(bundles, verdict)  # first: a version that was not judged must not look like one
        finally:  # a full disk is no reason to go on with it
            write_canary(bundles, None)
    return verdict
