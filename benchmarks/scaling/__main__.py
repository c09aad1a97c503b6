"""What size of the model and width of the beams give: `make scaling`.

Sizes differ in `model.width` alone; logs, tokenizer, recipe and steps are the same, and the model of 3 M
parameters is the arm `full` of `make simulate-arms`. Each is a run of its own below RUN/arms, trained once
and resumed where it was stopped. Every size answers the test requests of the simulation with every width;
searches are kept in OUT/cache. A size that is not trained to its end is left out, and named.

    python -m benchmarks.scaling --run build/demo --sizes 0.3M 1M 3M --beams 128 512 --seeds 0
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import stamp
from benchmarks.scaling.measure import measure
from benchmarks.scaling.plot import PAPER, paper_gain, plot
from benchmarks.simulation.settings import Arm, Settings
from benchmarks.simulation.train import PLAIN
from benchmarks.simulation.world import World
from benchmarks.tokenizer import generator
from serving.files import write_file
from training.preset.preset import Preset, add_preset_arguments
from training.reward.reward_model import RewardModel

SIZES: dict[str, tuple[str, tuple[str, ...]]] = {  # the smallest first: arm, settings beside the preset's
    "0.3M": ("width60", ("model.width=60",)),
    "1M": ("width120", ("model.width=120",)),
    "3M": ("full", ()),
    "10M": ("width408", ("model.width=408",)),
}
BEAMS = (32, 64, 128, 256, 512, 1024)
QUICK = ("training.steps=40", "training.validate_every=40", "training.validation_requests=32")
RULES = Path(__file__).parents[1] / "simulation" / "arms.yaml"


def scale(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train what is not there, and measure all that is."""
    prefix = "quick-" if arguments.quick else ""
    names = {size: prefix + arm for size, (arm, _) in SIZES.items() if size in arguments.sizes}
    for seed in () if arguments.no_train else arguments.seeds:
        for size, arm in names.items():
            generator.train(
                arguments,
                arm,
                seed=seed,
                tokenizer=generator.ARMS["full"],
                settings=(*PLAIN, *SIZES[size][1]),
            )
    runs = {size: str(arguments.run / "arms" / f"{arm}-seed{{seed}}") for size, arm in names.items()}
    settings = Settings.load(
        RULES,
        config=arguments.config,
        # Of all sizes the logs are the same; beside the arm of `make simulate-arms` there is a ranker.
        run=runs.get("3M", next(iter(runs.values()))).format(seed=arguments.seeds[0]),
        requests=arguments.requests,
        seeds=arguments.seeds,
    )
    world = World.open(settings, arguments.out / "cache")
    ranker = settings.run / settings.ranker
    return measure(
        world,
        {size: Arm(name=size, run=run) for size, run in runs.items()},
        beams=sorted(arguments.beams),
        steps=Preset.load(arguments.config, arguments.overrides).training.steps,
        ranker=RewardModel.load(ranker) if ranker.is_dir() else None,
    )


def text(report: dict[str, Any], *, metrics: list[str]) -> str:
    """Sizes, and a line for each point: means, and in brackets percent against the start of its width."""
    lines = [
        f"{name:6} {size['missing'] or '{parameters:,} parameters, loss {loss:.3f}'.format(**size)}"
        for name, size in report["sizes"].items()
    ]
    lines.append(f"{'size':6}{'beams':>6}" + "".join(f"{m:>26}" for m in metrics))
    for point in report["points"]:
        cells = [point["metrics"][metric] for metric in metrics]
        shown = [f"{c['mean']:.4g} ({_percent(c['size'])}, {_percent(c['beams'])})" for c in cells]
        lines.append(f"{point['size']:6}{point['beams']:6}" + "".join(f"{cell:>26}" for cell in shown))
    lines.append(f"in brackets %: against {report['smallest']}, against {report['start']} beams")
    for by in PAPER:
        times, percent = paper_gain(by)
        lines.append(f"paper, {by}: {times:.1f} times gives {percent:+.2f} % of revenue")
    return "\n".join(lines)


def _percent(gain: dict[str, float | None]) -> str:
    return "-" if gain["ratio"] is None else f"{100 * gain['ratio']:+.1f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser, default="configs/demo.yaml")
    parser.add_argument("--run", type=Path, default=Path("build/demo"), help="run folder with data/")
    parser.add_argument("--out", type=Path, default=Path("build/scaling"))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="[all]")
    parser.add_argument("--beams", nargs="+", type=int, default=list(BEAMS), help="[32 .. 1024]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="[0]")
    parser.add_argument("--requests", type=int, default=1500, help="test requests [1500]")
    parser.add_argument("--threads", type=int, default=1, help="of training [1]")
    parser.add_argument("--no-train", action="store_true", help="measure what is trained")
    parser.add_argument("--quick", action="store_true", help="two sizes, 40 steps: shows that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        arguments.sizes, arguments.beams, arguments.requests = ["0.3M", "1M"], [64, 128], 40
        arguments.overrides += QUICK
    try:
        report = scale(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    metrics = report["points"][0]["metrics"]
    shown = [f"{name}@{report['cutoff']}" for name in ("recall", "value", "response")]
    shown.append("revenue ranked" if "revenue ranked" in metrics else "revenue alone")
    path = arguments.out / "scaling.json"
    write_file(path, json.dumps({**stamp(), **report, "paper": PAPER}, indent=2) + "\n")
    plot(report, path.with_suffix(".png"), found=shown[0], earned=shown)
    print(text(report, metrics=shown))
    print(f"report: {path}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
