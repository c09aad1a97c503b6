"""Samples of the feedback store as training samples, each once and in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from feedback.store.layout import STORE
from feedback.store.samples import Fact, JoinedSample, Samples, TrimmedError
from serving.model.features import BEHAVIORS
from training.data.batch import Sample
from training.data.served import Sids, served_sample
from training.online.state import OnlineState, digest_of
from training.preset.recipes import TrainingConfig
from training.spec import ModelSpec

_AT_ONCE = 256  # samples that are read at a time
_LATE = 256  # answers whose ads are looked at for unseen SIDs


class SidSource(Sids, Protocol):
    """SIDs that may change while a run goes on."""

    def refresh(self) -> None:
        """Take changes over."""


class Intake:
    """Reads behind the offset of a state, and moves it on as samples are taken.

    Attributes:
        state: as of the samples that were taken.
        newest_written: when the last sample that was taken was answered, unix seconds; 0 before the first.
    """

    def __init__(
        self,
        store: Path,
        sids: SidSource,
        state: OnlineState,
        *,
        spec: ModelSpec,
        training: TrainingConfig,
        target_behaviors: tuple[str, ...],
        say: Callable[[str], object],
    ) -> None:
        """Nothing is read yet; there may be no store yet.

        Args:
            store: folder of the feedback store.
            sids: of the model's tokenizer.
            state: where the run stands.
            spec: of the model.
            training: weights of targets.
            target_behaviors: see `served_sample`.
            say: is told of samples that are gone or refused.
        """
        self.state, self.newest_written = state, 0.0
        self._folder, self._sids, self._spec, self._say = store, sids, spec, say
        self._training, self._targets = training, target_behaviors
        self._samples: Samples | None = None
        self._waiting: deque[JoinedSample] = deque()
        self._unseen: deque[tuple[int, int]] = deque(maxlen=_LATE)

    def close(self) -> None:
        """Let go of the store, until the next sample is taken."""
        if self._samples is not None:
            self._samples.close()
            self._samples = None

    @property
    def has_more(self) -> bool:
        """Whether samples were read that were not taken yet."""
        return bool(self._waiting)

    @property
    def behind(self) -> int:
        """Samples of the store that were not taken yet."""
        return 0 if self._samples is None else self._samples.newest - self.state.offset

    def unseen(self) -> float | None:
        """Share of the ads of late answers without the SID that they were served with; None of too few."""
        if len(self._unseen) < _LATE // 4:
            return None
        unseen, ads = np.sum(self._unseen, axis=0)
        return float(unseen / max(ads, 1))

    def take(self, limit: int) -> list[Sample]:
        """At most `limit` samples that something can be learnt of; what is taken must be in the next step.

        Raises:
            FeedbackStoreError: the store is damaged, or it is another one.
        """
        found: list[Sample] = []
        if limit and not self._waiting:
            self._read()
        while len(found) < limit and self._waiting:
            joined = self._waiting.popleft()
            self.state.offset = joined.sequence
            self.newest_written = joined.record.written
            sample = self._sample(joined)
            if sample is not None:
                found.append(sample)
        return found

    def _read(self) -> None:
        if self._samples is None:
            if not (self._folder / STORE / "data.mdb").is_file():
                return  # the service has not been started yet
            self._samples = Samples(self._folder)
        try:
            found = self._samples.read(after=self.state.offset, limit=_AT_ONCE)
        except TrimmedError as gone:
            self.state.lost += gone.after - self.state.offset
            self.state.offset = gone.after
            self._say(f"{gone}: this trainer was away for longer than they are kept; they are not learnt")
            found = []
        self._waiting.extend(found)
        if found:
            self._sids.refresh()

    def _sample(self, joined: JoinedSample) -> Sample | None:
        try:
            sample = served_sample(
                joined,
                self._sids,
                features=self._spec.features,
                buckets=self._spec.value_buckets,
                behavior_weights=self._training.behavior_weights,
                target_behaviors=self._targets,
                least=min(self._targets, key=BEHAVIORS.__getitem__),
            )
        except ValueError as error:
            self.state.refused += 1
            self._say(f"sample {joined.sequence} is not learnt: {error}")
            return None
        self._look_at_sids(joined)
        sample, digests = self._new(joined, sample)
        if not (digests or teaches(sample)):
            self.state.empty += 1
            return None
        self.state.learnt += 1
        self.state.remember(digests)
        return sample

    def _new(self, joined: JoinedSample, sample: Sample) -> tuple[Sample, list[int]]:
        """The sample without targets that a revision before it had, and digests of the others.

        A correction whose targets were all learnt has no list either: nothing in it is news.
        """
        assert sample.ads is not None
        digests = [digest_of(joined, fact) for fact in _highest(joined, sample.ads, self._targets)]
        if not joined.revision:
            return sample, digests
        new = np.array([digest not in self.state.remembered for digest in digests], bool)
        if not new.any():
            return replace(sample, candidates=None), []
        kept = {name: getattr(sample, name)[new] for name in ("tokens", "value", "weight", "ads")}
        return replace(sample, **kept), [digests[i] for i in np.flatnonzero(new)]

    def _look_at_sids(self, joined: JoinedSample) -> None:
        record = joined.record
        if record.ad_ids:
            codes, known = self._sids.sids_of(np.array(record.ad_ids, np.int64))
            same = known & (codes == np.array(record.sids, np.int32)).all(axis=1)
            self._unseen.append((int((~same).sum()), len(same)))


def _highest(joined: JoinedSample, ads: np.ndarray, behaviors: tuple[str, ...]) -> list[Fact]:
    """Of each ad the fact that made it a target."""
    codes = {BEHAVIORS[name] for name in behaviors}
    facts = sorted((fact for fact in joined.facts if fact.behavior in codes), key=lambda f: f.behavior)
    of_ads = {fact.ad_id: fact for fact in facts}
    return [of_ads[ad] for ad in ads.tolist()]


def teaches(sample: Sample) -> bool:
    """Whether there is a list with two candidates of which one was worth more."""
    return sample.candidates is not None and len(np.unique(sample.candidates.reward)) > 1
