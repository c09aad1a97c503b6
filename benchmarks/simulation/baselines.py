"""Arms that need no generator: popularity, and what simple rules retrieve for a pointwise ranker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.simulation.answers import Answers
from benchmarks.simulation.scored import NO_AD
from benchmarks.simulation.world import World
from training.evaluation.baselines import rank_by_baselines
from training.evaluation.competing import Competing

EACH = 100  # ads that each rule retrieves


def popular(world: World) -> Answers:
    """The ads that were bought most often in the training part, with share of purchases and mean value."""
    top = np.argsort(-world.popularity, kind="stable")[: world.settings.depth]
    requests = len(world.requests.rows)

    def rows(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values[top], (requests, len(top)))

    share = world.popularity / world.popularity.sum()
    return Answers(rows(world.dataset.ad_ids), rows(share), rows(world.mean_value))


def retrieved(world: World) -> Answers:
    """Ads by popularity, own frequency, both also of late, and co-occurrence; no order of their own."""
    settings, config, drawn = world.settings, world.preset.evaluation, world.requests
    order = np.argsort(drawn.now, kind="stable")  # the rules go through the log once, from the oldest on
    oldest_first = replace(
        drawn,
        rows=drawn.rows[order],
        targets=[drawn.targets[i] for i in order],
        values=[drawn.values[i] for i in order],
    )
    lists = rank_by_baselines(
        world.dataset,
        oldest_first,
        competing=Competing.of(
            world.dataset, world.ads, exclude_seen=config.exclude_seen, serving=world.preset.serving
        ),
        target_behaviors=world.preset.logs.target_behaviors,
        recent_days=config.recent_days,
        half_life_days=config.half_life_days,
        limit=min(EACH, settings.depth * 2),
    )
    found = [np.unique(np.concatenate(each)) for each in zip(*lists.values(), strict=True)]
    ads = np.full((len(found), max(map(len, found))), NO_AD, np.int64)
    for i, candidates in zip(order, found, strict=True):
        ads[i, : len(candidates)] = candidates
    return Answers(ads, np.zeros(ads.shape), np.zeros(ads.shape))
