"""Table 1 of the paper, re-enacted on logs: `make simulate`.

    python -m benchmarks.simulation --arms benchmarks/simulation/arms.yaml

Users of the test weeks are replayed. What they would have bought says a response model that was fitted on
other users and other weeks; what their log says they bought is counted beside it. Ads bid, and auctions
with a few slots earn. Every figure is of a simulation. Searches are kept in OUT/cache.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import stamp
from benchmarks.simulation.plot import plot
from benchmarks.simulation.response_check import check
from benchmarks.simulation.settings import Settings
from benchmarks.simulation.speed import requests_a_second
from benchmarks.simulation.table import AUCTION, build
from benchmarks.simulation.world import World
from serving.files import write_file
from training.reward.reward_model import RewardModel


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).with_name("arms.yaml")
    parser.add_argument("--arms", type=Path, default=default, help="what is compared [beside this file]")
    parser.add_argument("--run", type=Path, help="run folder whose logs are replayed [of the file]")
    parser.add_argument("--requests", type=int, help="test requests [of the file]")
    parser.add_argument("--out", type=Path, default=Path("build/simulation"))
    parser.add_argument("--no-speed", action="store_true", help="leave QPS out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings.load(arguments.arms, run=arguments.run, requests=arguments.requests)
    world = World.open(settings, arguments.out / "cache")
    table = simulate(world, speed=not arguments.no_speed)
    write_file(arguments.out / "table.json", json.dumps(table, indent=2) + "\n")
    metrics = [f"{m}@{max(settings.cutoffs)}" for m in ("value", "response", "recall")]
    plot(table, arguments.out / "table.png", metrics=[*metrics, AUCTION])
    print(text(table))
    print(f"report: {arguments.out / 'table.json'}")


def simulate(world: World, *, speed: bool) -> dict[str, Any]:
    """All that is written: the table, how good the response model is, and the settings."""
    judged = check(
        world.response, world.dataset, world.requests, popularity=world.popularity, seed=world.settings.seed
    )
    folder = world.settings.run / world.settings.ranker
    ranker = RewardModel.load(folder) if folder.is_dir() else None
    table = build(world, ranker=ranker, speeds=requests_a_second(world) if speed else None)
    return {
        **stamp(),
        **table,
        "response_model": judged,
        "settings": world.settings.model_dump(mode="json"),
    }


def text(table: dict[str, Any]) -> str:
    """Rows as lines: mean of each metric, and in brackets percent against the baseline with its interval."""
    rows = table["rows"].values()
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["metrics"]))
    lines = [f"{'simulation':34}" + "".join(f"{metric:>31}" for metric in metrics) + "    paper"]
    for row in rows:
        cells = (_cell(row["metrics"].get(metric)) for metric in metrics)
        paper = ", ".join(f"{name} {figure:+.2f} %" for name, figure in row["paper"].items())
        lines.append(f"{row['name'][:33]:34}" + "".join(f"{cell:>31}" for cell in cells) + f"    {paper}")
    return "\n".join(lines)


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    if cell.get("ratio") is None:
        return f"{cell['mean']:.4g}"
    ratio, low, high = (100 * cell[key] for key in ("ratio", "low", "high"))
    return f"{cell['mean']:.4g} ({ratio:+.1f} [{low:+.1f}, {high:+.1f}])"


if __name__ == "__main__":
    main()
