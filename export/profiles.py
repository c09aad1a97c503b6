"""Optimisation profiles: smallest, usual and largest shape of every input, from what serving can ask for.

Letters: B requests, n beams, C children, V codes of a level, T SID levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.backend.plans import SearchPlans
from serving.backend.settings import ServingConfig
from serving.model.manifest import AD_RANKER, GraphTensors, Manifest
from serving.search.widths import WidthPlan

USUAL_CHILDREN = 64  # of the beam that has most; kernels are chosen for it, not limited to it


class ProfileError(ValueError):
    """A graph has a dimension that nobody knows."""


@dataclass(frozen=True)
class ShapeRange:
    """Shapes of one input: smallest, usual and largest."""

    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape lies inside."""
        return len(shape) == len(self.most) and all(
            a <= s <= b for a, s, b in zip(self.least, shape, self.most, strict=True)
        )


def profiles(manifest: Manifest, config: ServingConfig) -> dict[str, dict[str, ShapeRange]]:
    """Profiles of the graphs of a bundle, see `graph_profiles`."""
    return graph_profiles(
        manifest.graphs,
        level_sizes=manifest.level_sizes,
        value_buckets=len(manifest.value_table),
        config=config,
    )


def graph_profiles(
    graphs: GraphTensors,
    *,
    level_sizes: tuple[int, ...],
    value_buckets: int,
    config: ServingConfig,
) -> dict[str, dict[str, ShapeRange]]:
    """Profile of every graph: stem -> input -> range.

    A level keeps more beams than its width where a request asks for more ads, or excludes so many that the
    kept prefixes would not lead to enough, so the largest n is not the width alone.

    Args:
        graphs: inputs and outputs, as a manifest has them.
        level_sizes: V_1 .. V_T.
        value_buckets: V of the value level.
        config: width plans and limits.

    Raises:
        ProfileError: a graph has a dynamic dimension of an unknown name.
        ValueError: a width plan does not fit the model.
    """
    found = {}
    for stem, tensors in graphs.items():
        sizes = _sizes(stem, level_sizes, value_buckets, config)
        found[stem] = {
            name: _range(dims, sizes=sizes, where=f"{stem}: {name}") for name, _, dims in tensors["inputs"]
        }
    return found


def sizes_of(level: int, plan: WidthPlan, *, levels: int) -> dict[str, int]:
    """Beams at the tail of `level` (0: the prefix) when every level keeps the width of a plan.

    A tail scores the beams that the level before kept; the value level fewer of them. Keys and values of
    level j have a row for every beam that the tail of level j scored.
    """
    if level == 0:
        return {}
    beams = {f"beams_{j}": plan.sid[j - 2] for j in range(2, level)}
    return beams | {"beams": plan.value if level > levels else plan.sid[level - 2]}


def _sizes(
    stem: str, codes: tuple[int, ...], value_buckets: int, config: ServingConfig
) -> dict[str, tuple[int, int, int]]:
    """Smallest, usual and largest size of each dynamic dimension of a graph."""
    levels = len(codes)
    level = int(stem.removeprefix("tail_")) if stem.startswith("tail_") else 0
    plans = SearchPlans.of(config, levels=levels)
    usual = sizes_of(level, plans.plan, levels=levels)
    widest = sizes_of(level, plans.max_plan, levels=levels)
    # A level keeps at least the ads asked for, and before the last one those that are excluded besides. With
    # live levels, beams that get a value may go through the tails of earlier levels once more.
    kept = max(config.max_num_ads + config.max_exclude, plans.max_plan.value)
    sizes = {"batch": (1, config.max_batch_size, config.max_batch_size)}
    for name, width in usual.items():
        asked = config.max_num_ads if name == "beams" and level > levels else kept
        sizes[name] = (1, width, max(widest[name], asked))
    if stem == AD_RANKER:
        sizes["ads"] = (1, config.rerank_pool, max(config.rerank_pool, config.max_num_ads))
    if level > levels:
        sizes["children"] = (value_buckets, value_buckets, value_buckets)
    elif level:
        sizes["children"] = (1, min(USUAL_CHILDREN, codes[level - 1]), codes[level - 1])
    return sizes


def _range(dims: Sequence[int | str], *, sizes: dict[str, tuple[int, int, int]], where: str) -> ShapeRange:
    for d in dims:
        if isinstance(d, str) and d not in sizes:
            raise ProfileError(f"{where}: expected one of the dynamic dimensions {sorted(sizes)}, got {d!r}")
    least, usual, most = zip(*(sizes[d] if isinstance(d, str) else (d, d, d) for d in dims), strict=True)
    return ShapeRange(least, usual, most)
