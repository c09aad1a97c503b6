"""Where a run that learns online stands. It is part of its checkpoint: weights and offset are one folder."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from feedback.store.samples import Fact, JoinedSample
from training.loop.checkpoint import CheckpointError

REMEMBERED = 1 << 17  # targets; a correction of an older one is learnt as if it were new
BALANCE_BATCHES = 8  # that lambda is measured on


@dataclass
class OnlineState:
    """What the weights have learnt of the feedback store.

    offset = learnt + empty + refused + lost + skipped, always.

    Attributes:
        offset: sequence number of the last sample that is behind these weights.
        learnt: samples that were in a step.
        empty: samples that nothing can be learnt of: no target, and no list with two different rewards; or a
            correction that adds nothing.
        refused: samples that do not fit the model, or hold what is no number.
        lost: samples that the store had dropped before they were read.
        skipped: samples that were left out by command.
        since: step and offset of the checkpoint before this one, of the run's start in the first.
        norms: sums of |g_VSL| and |g_RL|, and of how many batches.
        loss: moving average of the loss of the probe; None before the first look.
        entropy: of the first level over the probe, at the start.
        remembered: of digests of targets (`digest_of`), the newest last, how often they were learnt.
    """

    offset: int = 0
    learnt: int = 0
    empty: int = 0
    refused: int = 0
    lost: int = 0
    skipped: int = 0
    since: dict[str, int] = field(default_factory=lambda: {"step": 0, "offset": 0})
    norms: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    loss: float | None = None
    entropy: float | None = None
    remembered: OrderedDict[int, int] = field(default_factory=OrderedDict)

    @classmethod
    def of(cls, values: dict[str, Any] | None, remembered: np.ndarray | None) -> Self:
        """From a checkpoint.

        Raises:
            CheckpointError: it is not of a run that learns online.
        """
        try:
            state = cls(**(values or {}))
        except TypeError as error:
            raise CheckpointError(f"online: expected where a run stands, got {values}: {error}") from error
        counted = state.learnt + state.empty + state.refused + state.lost + state.skipped
        if values is None or counted != state.offset:
            raise CheckpointError(f"online: expected counts that add up to the offset, got {values}")
        state.remember([] if remembered is None else remembered.tolist())
        return state

    def to_json(self) -> dict[str, Any]:
        """Plain values, without `remembered`."""
        values = asdict(self)
        del values["remembered"]
        return values

    def remember(self, digests: list[int]) -> None:
        """Targets that are in the next step."""
        for digest in digests:
            self.remembered[digest] = self.remembered.get(digest, 0) + 1
        while len(self.remembered) > REMEMBERED:
            self.remembered.popitem(last=False)

    def memory(self) -> np.ndarray:
        """Digests int64 of the targets that are remembered, each as often as it was learnt."""
        digests = np.fromiter(self.remembered.keys(), np.int64, len(self.remembered))
        return np.repeat(digests, list(self.remembered.values()))

    @property
    def balance(self) -> float:
        """Lambda = |g_VSL| / |g_RL| as far as it was measured; 0 before."""
        return self.norms[0] / self.norms[1] if self.norms[1] else 0.0


def digest_of(sample: JoinedSample, fact: Fact) -> int:
    """The same for the same outcome of the same ad of the same request."""
    name = f"{sample.record.request_id}|{fact.ad_id}|{fact.behavior}|{fact.value!r}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
