"""What each size finds and earns with each width of the beams.

Letters: R requests, n ads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.simulation.answers import Answers, Trained, answers_of
from benchmarks.simulation.bids import PriceShape
from benchmarks.simulation.measures import compared, measures, ordered
from benchmarks.simulation.scored import Judge, Scored
from benchmarks.simulation.settings import Arm
from benchmarks.simulation.world import World
from training.loop.checkpoint import CheckpointError, load_checkpoint

VALUES = 64  # beams of the last level that get a value, as in the preset that serves
# As in the paper: beams that wider ones are compared to, and beams that sizes are compared with.
START, AT_BEAMS = 128, 512

Figures = dict[str, np.ndarray]  # metric -> float64 [R], mean over seeds


def widths_of(beams: int) -> str:
    """The plan of so many beams at the last level: a quarter, half, all of them, as in the demo's preset."""
    return f"{max(1, beams // 4)}-{max(1, beams // 2)}-{beams}:{min(beams, VALUES)}"


def measure(
    world: World, arms: dict[str, Arm], *, beams: Sequence[int], steps: int, ranker: Judge | None
) -> dict[str, Any]:
    """Sizes, and a point for each size that is there and each width.

    Args:
        world: requests, users, auctions and seeds.
        arms: by size, the smallest first.
        beams: at the last level.
        steps: that every size has learnt for.
        ranker: the platform's; None leaves out auctions that need one.

    Raises:
        ValueError: no size is there.
    """
    trained: dict[str, list[Trained]] = {}
    sizes: dict[str, dict[str, Any]] = {}
    for name, arm in arms.items():
        try:
            trained[name] = [Trained.find(arm, seed=seed) for seed in world.settings.seeds]
            sizes[name] = _size(trained[name], steps=steps)
        except (CheckpointError, ValueError) as error:
            trained.pop(name, None)
            sizes[name] = {"missing": str(error)}
    if not trained:
        raise ValueError(f"expected a size that is trained, got none: {sizes}")
    found = {
        (name, width): [
            answers_of(world, arms[name].model_copy(update={"widths": widths_of(width)}), one) for one in ones
        ]
        for name, ones in trained.items()
        for width in beams
    }
    figures = _figures(world, found, ranker=ranker)
    smallest, start = next(iter(trained)), START if START in beams else min(beams)

    def cell(name: str, width: int, metric: str) -> dict[str, Any]:
        mine = figures[name, width][metric]
        against = {"size": figures[smallest, width][metric], "beams": figures[name, start][metric]}
        users, seed = world.users, world.settings.seed
        gains = {by: compared(mine, theirs, users=users, seed=seed) for by, theirs in against.items()}
        return {"mean": float(mine.mean()), **gains}

    return {
        "sizes": sizes,
        "smallest": smallest,
        "start": start,
        "at_beams": AT_BEAMS if AT_BEAMS in beams else max(beams),
        "cutoff": max(world.settings.cutoffs),
        "requests": len(world.requests.rows),
        "seeds": list(world.settings.seeds),
        "points": [
            {
                "size": name,
                "beams": width,
                "widths": widths_of(width),
                "metrics": {metric: cell(name, width, metric) for metric in figures[name, width]},
            }
            for name, width in figures
        ],
    }


def _size(trained: list[Trained], *, steps: int) -> dict[str, Any]:
    """Parameters, and loss of the validation requests, mean over seeds.

    Raises:
        CheckpointError: a checkpoint is not readable.
        ValueError: one has learnt for another number of steps.
    """
    losses = []
    for one in trained:
        checkpoint = load_checkpoint(one.checkpoint)
        if checkpoint.step != steps:
            raise ValueError(f"{one.checkpoint}: expected step {steps}, got {checkpoint.step}")
        losses.append(checkpoint.history[-1]["validation_sid"])
    parameters = sum(weight.numel() for weight in checkpoint.model.parameters())
    return {"parameters": parameters, "loss": float(np.mean(losses)), "missing": None}


def _figures(
    world: World, found: dict[tuple[str, int], list[Answers]], *, ranker: Judge | None
) -> dict[tuple[str, int], Figures]:
    """By size and width, ordered by p x expected value."""
    every = [answers.ads for seeds in found.values() for answers in seeds]
    truth = Scored.of(world.response, world.dataset, world.requests, answers=every)
    ranked = Scored.of(ranker, world.dataset, world.requests, answers=every) if ranker else None
    shape, figures = PriceShape.load(), {}
    for key, seeds in found.items():
        by_seed = [
            measures(
                world,
                ordered(answers, "value", ranker=None, rerank=world.settings.rerank),
                truth=truth,
                ranker=ranked,
                shape=shape,
            )
            for answers in seeds
        ]
        figures[key] = {metric: np.mean([f[metric] for f in by_seed], axis=0) for metric in by_seed[0]}
    return figures
