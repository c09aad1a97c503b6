"""The table: a row for each arm, and the keys that sum it up.

An arm whose checkpoints, ranker or order are not there keeps its row: `missing` says what, its metrics are
empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.simulation.answers import Answers, Trained, answers_of
from benchmarks.simulation.baselines import popular, retrieved
from benchmarks.simulation.bids import PriceShape
from benchmarks.simulation.curves import Curve, Point, at_equal_drift
from benchmarks.simulation.drift import drifts, mean_drift
from benchmarks.simulation.measures import compared, measures, ordered
from benchmarks.simulation.scored import Judge, Scored
from benchmarks.simulation.settings import Arm
from benchmarks.simulation.world import World
from training.loop.checkpoint import CheckpointError

Figures = dict[str, np.ndarray]  # metric -> float64 [R]
Drifts = dict[int, dict[str, float]]  # seed -> see `drifts`
UNSEEDED = -1  # seed of an arm without a generator
AUCTION = "revenue ranked"  # the auction of the keys


def build(
    world: World,
    *,
    ranker: Judge | None = None,
    speeds: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Rows by arm id, keys and settings.

    Args:
        world: what all arms are judged in.
        ranker: the platform's, which reads the world's dataset; None where there is none.
        speeds: requests a second by arm id, of those that were measured.
    """
    settings, speeds = world.settings, speeds or {}
    trained: dict[str, dict[int, Trained]] = {}
    found: dict[str, dict[int, Answers]] = {}
    missing: dict[str, str | None] = {}
    for name, arm in settings.arms.items():
        trained[name], missing[name] = _trained(world, arm, ranker=ranker is not None)
        empty = missing[name] is not None and not trained[name]
        found[name] = {} if empty else _answers(world, arm, trained[name])
    every = [a.ads for seeds in found.values() for a in seeds.values()]
    if not every:
        raise ValueError(f"expected an arm with answers, got none: {missing}")
    truth = Scored.of(world.response, world.dataset, world.requests, answers=every)
    ranked = Scored.of(ranker, world.dataset, world.requests, answers=every) if ranker else None
    shape = PriceShape.load()
    figures: dict[str, dict[int, Figures]] = {
        name: {
            seed: measures(
                world,
                ordered(answers, settings.arms[name].order, ranker=ranked, rerank=settings.rerank),
                truth=truth,
                ranker=ranked,
                shape=shape,
            )
            for seed, answers in seeds.items()
        }
        for name, seeds in found.items()
    }
    moved = {name: drifts(world, trained[name]) for name in settings.arms}
    rows = {
        name: {
            "name": arm.name,
            "order": arm.order,
            "paper": arm.paper,
            "curve": arm.curve,
            "seeds": [seed for seed in figures[name] if seed != UNSEEDED],
            "missing": missing[name],
            "qps": speeds.get(name),
            **mean_drift(moved[name]),
            "metrics": _cells(world, figures[name], figures[settings.baseline]),
        }
        for name, arm in settings.arms.items()
    }
    return {
        "label": "simulation",
        "baseline": settings.baseline,
        "rows": rows,
        **keys(world, figures),
        **equal_drift(world, figures, moved),
        "lazyar_vs_k0_qps": speeds["ua_sid"] / speeds["k0"] - 1 if {"ua_sid", "k0"} <= set(speeds) else None,
        "calibration_error": _calibration_error(world, found[settings.baseline]),
        "seeds": len(figures[settings.baseline]),
        "requests": len(world.requests.rows),
    }


def keys(world: World, figures: dict[str, dict[int, Figures]]) -> dict[str, float | None]:
    """Ratios less one, by name; None where an arm is not there.

    The two arms of a ratio have one width plan and one order, and learnt for as many steps.
    """

    def ratio(mine: str, theirs: str, metric: str, what: str = "ratio") -> float | None:
        pair = _paired(figures.get(mine, {}), figures.get(theirs, {}), metric)
        return compared(*pair, users=world.users, seed=world.settings.seed)[what] if pair else None

    value, recall = (f"{name}@{max(world.settings.cutoffs)}" for name in ("value", "recall"))
    return {
        "rspo_vs_vsl_value50": ratio("rspo", "vsl", value),
        "rspo_vs_vsl_value50_low": ratio("rspo", "vsl", value, "low"),
        "rspo_vs_vsl_recall50": ratio("rspo", "vsl", recall),
        "uvr_vs_rspo": ratio("uvr_dbs", "rspo", value),
        "auction_rspo_vs_vsl": ratio("rspo", "vsl", AUCTION),
        "auction_rspo_vs_vsl_low": ratio("rspo", "vsl", AUCTION, "low"),
        "lazyar_vs_k0_revenue": ratio("ua_sid", "k0", AUCTION),
        "rank_by_value_gain10": ratio("vsl", "vsl_by_probability", f"value@{min(world.settings.cutoffs)}"),
    }


def equal_drift(
    world: World, figures: dict[str, dict[int, Figures]], moved: dict[str, Drifts]
) -> dict[str, float | str | None]:
    """RSPO over GRPO by value, ratio less one, its lower bound, and at what: equal `drift` in each seed.

    At equal `strength` where a drift is not known or the two drifted to different sides of the baseline.
    """
    metric = f"value@{max(world.settings.cutoffs)}"
    mine, theirs = (_curves(world, name, metric, figures=figures, moved=moved) for name in ("rspo", "grpo"))
    pair, at = at_equal_drift(mine, theirs), "drift"
    if pair is None:
        pair, at = _paired(figures.get("rspo", {}), figures.get("grpo", {}), metric), "strength"
    found = compared(*pair, users=world.users, seed=world.settings.seed) if pair else {}
    return {
        "rspo_vs_grpo": found.get("ratio"),
        "rspo_vs_grpo_low": found.get("low"),
        "rspo_vs_grpo_at": at if pair else None,
    }


def _curves(
    world: World,
    name: str,
    metric: str,
    *,
    figures: dict[str, dict[int, Figures]],
    moved: dict[str, Drifts],
) -> dict[int, Curve]:
    """The curve of an arm by seed, of the seeds whose drift is known, the baseline's too."""
    arms, baseline = world.settings.arms, world.settings.baseline
    of = arms[name].curve if name in arms else None
    others = [other for other, arm in arms.items() if of and arm.curve == of and other != name]

    def points(names: list[str], seed: int) -> list[Point]:
        there = [n for n in names if seed in figures.get(n, {}) and seed in moved[n]]
        return [Point(moved[n][seed]["drift"], figures[n][seed][metric]) for n in there]

    found = {}
    for seed in figures.get(name, {}):
        ends = points([baseline, name], seed)
        if len(ends) == 2:
            found[seed] = Curve(start=ends[0], own=ends[1], others=points(others, seed))
    return found


def _trained(world: World, arm: Arm, *, ranker: bool) -> tuple[dict[int, Trained], str | None]:
    """Generators by seed, and what is missing."""
    if not ranker and (arm.order == "reward" or arm.kind == "retrieved"):
        return {}, f"no ranker in {world.settings.run / world.settings.ranker}"
    found, missing = {}, []
    for seed in world.settings.seeds if arm.kind == "generator" else ():
        try:
            found[seed] = Trained.find(arm, seed=seed)
        except CheckpointError as error:
            missing.append(str(error))
    return found, "; ".join(missing) or None


def _answers(world: World, arm: Arm, trained: dict[int, Trained]) -> dict[int, Answers]:
    """By seed."""
    if arm.kind == "popularity":
        return {UNSEEDED: popular(world)}
    if arm.kind == "retrieved":
        return {UNSEEDED: retrieved(world)}
    return {seed: answers_of(world, arm, one) for seed, one in trained.items()}


def _calibration_error(world: World, answers: dict[int, Answers]) -> float | None:
    """How far the expected value of all found targets together is from what they were worth."""
    expected = worth = 0.0
    for found in answers.values():
        for ads, value, targets, values in zip(
            found.ads, found.value, world.requests.targets, world.requests.values, strict=True
        ):
            _, mine, theirs = np.intersect1d(ads, targets, return_indices=True)
            expected += float(value[mine].sum())
            worth += float(values[theirs].sum())
    return abs(expected / worth - 1) if worth else None


def _cells(world: World, mine: dict[int, Figures], baseline: dict[int, Figures]) -> dict[str, Any]:
    """Of every metric: mean, mean by seed, and against the baseline's same seeds."""
    cells = {}
    for metric in next(iter(mine.values()), {}):
        by_seed = {seed: float(figures[metric].mean()) for seed, figures in mine.items()}
        pair = _paired(mine, baseline, metric)
        cells[metric] = {"mean": float(np.mean(list(by_seed.values()))), "by_seed": by_seed}
        if pair:
            cells[metric] |= compared(*pair, users=world.users, seed=world.settings.seed)
    return cells


def _paired(
    mine: dict[int, Figures], theirs: dict[int, Figures], metric: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Means float64 [R] over the seeds that both have, None without any; an arm without seeds has all."""
    if any(metric not in figures for figures in (*mine.values(), *theirs.values())):
        return None
    seeds = {*mine, *theirs} if UNSEEDED in (*mine, *theirs) else set(mine) & set(theirs)
    both = [[f[metric] for seed, f in arm.items() if seed in seeds] for arm in (mine, theirs)]
    if not all(both):
        return None
    return np.mean(both[0], axis=0), np.mean(both[1], axis=0)
