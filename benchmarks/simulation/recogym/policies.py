"""Who shows the ads: simple rules, our generator by probability or by value, and a ranker on top.

Letters: B users that ask, P products, n candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.simulation.recogym.play import History
from benchmarks.simulation.recogym.tables import PLACES
from serving.backend.resolve import resolve
from serving.index.snapshot import IndexSnapshot
from serving.model.features import BEHAVIORS, join_codes, select_events
from serving.ranking.features import Features, Request, features_of
from serving.search.beam_search import beam_search
from serving.search.rank import RankBy
from serving.search.widths import WidthPlan
from training.loop.retention import open_checkpoint
from training.preset.preset import Preset
from training.reward.reward_model import RewardModel
from training.rollout.executor import TorchExecutor
from training.run import RunData

_NONE = np.zeros(0, np.int64)
_AD = np.array([PLACES.index("ad") + 1], np.int32)  # code 0 is unknown


class Uniform:
    """Any product; with `viewed`, every second time one that the user has viewed, by how often."""

    def __init__(self, products: int, *, seed: int, viewed: bool = False) -> None:
        """Of all products."""
        self._products, self._viewed, self._random = products, viewed, np.random.default_rng(seed)

    def __call__(self, histories: Sequence[History]) -> list[int]:
        """See `Policy`."""
        return [self._one(history) for history in histories]

    def _one(self, history: History) -> int:
        if self._viewed and self._random.random() < 0.5:
            return int(self._random.choice(_views(history)))
        return int(self._random.integers(self._products))


class Popular:
    """The product that most have viewed; of `own`, the one that the user has viewed most often."""

    def __init__(self, views: np.ndarray, *, own: bool = False) -> None:
        """From int64 [P], views in the log."""
        self._views, self._own = views, own

    def __call__(self, histories: Sequence[History]) -> list[int]:
        """See `Policy`."""
        if not self._own:
            return [int(self._views.argmax())] * len(histories)
        products = len(self._views)
        counts = [np.bincount(_views(history), minlength=products) for history in histories]
        return [int((count + self._views / (1 + self._views.sum())).argmax()) for count in counts]


class Generated:
    """The first ad of our generator; with a reward model, the best by it of the first `candidates`."""

    def __init__(
        self,
        preset: Preset,
        run: Path,
        *,
        model: Path,
        rank_by: RankBy,
        reward: RewardModel | None = None,
        candidates: int = 20,
    ) -> None:
        """Open a trained model.

        Args:
            preset: widths of the search, target behaviors.
            run: run folder with the log that it was trained on.
            model: folder of the checkpoints.
            rank_by: probability, or p x expected value.
            reward: ranker of the first ads; None for none.
            candidates: how many it ranks.
        """
        checkpoint, data = open_checkpoint(model), RunData.load(run)
        self._spec, self._rank_by, self._count = checkpoint.spec, rank_by, candidates if reward else 1
        self._executor = TorchExecutor(checkpoint.model.eval())
        self._dataset = data.dataset(self._spec)
        self._index = IndexSnapshot.build(
            self._dataset.ad_ids,
            self._dataset.ad_sids,
            active=np.ones(len(self._dataset.ad_ids), bool),
            level_sizes=self._spec.level_sizes,
        )
        self._plan = WidthPlan.parse(preset.serving.widths, levels=len(self._spec.level_sizes))
        self._wanted = [BEHAVIORS[name] for name in preset.logs.target_behaviors]
        self._reward = reward

    def __call__(self, histories: Sequence[History]) -> list[int]:
        """See `Policy`."""
        slots = np.stack([self._slots(history) for history in histories])
        beams = beam_search(
            self._executor,
            self._index.trie,
            slots,
            np.tile(_AD, (len(histories), 1)),
            plan=self._plan,
            num_results=np.full(len(histories), self._plan.value),
            value_table=self._spec.value_buckets.means,
            value_correction=self._spec.value_correction,
        )
        found = [
            resolve(
                self._index,
                beams.sids[i],
                scores=beams.scores[i],
                expected_value=beams.expected_value[i],
                num_ads=self._count,
                exclude=_NONE,
                rank_by=self._rank_by,
            ).ad_ids
            for i in range(len(histories))
        ]
        return self._ranked(histories, found) if self._reward else [int(ads[0]) for ads in found]

    def _slots(self, history: History) -> np.ndarray:
        """Int32 [S, T + 3]; product i is ad i, row i of the dataset."""
        ads = np.array(history.ads)
        shown = select_events(
            self._spec.features,
            ads,
            behaviors=np.array(history.behaviors, np.int32),
            timestamps=np.array(history.times),
            now=history.now,
        )
        codes = self._dataset.ad_sids[ads[shown.events]]  # of empty slots anything
        return join_codes(codes, shown.columns, shown=shown.events >= 0)

    def _ranked(self, histories: Sequence[History], found: list[np.ndarray]) -> list[int]:
        """All users are new to the reward model, so the rankers of any fold may judge them."""
        assert self._reward is not None
        bound = self._reward.features(self._dataset)
        parts: list[Features] = []
        for history, ads in zip(histories, found, strict=True):
            codes, times = bound.codes[history.ads], np.array(history.times)
            had = np.isin(history.behaviors, self._wanted)
            request = Request(
                codes=codes[had],
                times=times[had],
                seen_codes=codes[:, 0],
                seen_times=times,
                now=history.now,
                profile=_AD,
            )
            parts.append(features_of(request, bound.codes[ads], statistics=bound.newest))
        features, line = Features.join(parts), self._reward.about.calibration[self._reward.about.serves]
        predicted = self._reward.predict(features, 0)
        worth = line.probability(predicted) * line.value(predicted, features.value)
        best = worth.reshape(len(found), -1).argmax(axis=1)
        return [int(ads[at]) for ads, at in zip(found, best, strict=True)]


def _views(history: History) -> np.ndarray:
    return np.array(history.ads)[np.array(history.behaviors) == BEHAVIORS["click"]]
