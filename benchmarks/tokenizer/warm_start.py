"""Steps that a model saves on a re-fitted tokenizer.

python -m benchmarks.tokenizer.warm_start --old build/demo

The tokenizer of a trained run is fitted again (another seed, or other settings with --set), aligned to the
old one. Then three models are trained on its SIDs, each with the same seed and batches:

    fresh      from random weights
    unaligned  weights of the old model, but for those of codes
    aligned    weights of the old model, each code with those of the code it goes on from

Steps saved: where the curve of `fresh` comes to the validation loss that the other one has at its end
(between two validations by a straight line), less the steps of that one. All losses are of one tokenizer.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from benchmarks.steps import run_step
from training.loop.retention import open_checkpoint
from training.preset.preset import add_preset_arguments
from training.tokenizer.alignment import ALIGNMENT, Alignment

LOSS = "validation_sid"  # nats a target


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser, default="configs/demo.yaml")
    parser.add_argument("--old", type=Path, default=Path("build/demo"), help="trained run [build/demo]")
    parser.add_argument("--out", type=Path, default=Path("build/warm_start"), help="[build/warm_start]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200, help="of the fresh model [1200]")
    parser.add_argument("--warm-steps", type=int, default=200, help="of the other two [200]")
    arguments = parser.parse_args()
    found = [_one_seed(arguments, seed) for seed in range(arguments.seeds)]
    for name in ("unaligned", "aligned"):
        saved = [run["saved"][name] for run in found]
        print(f"{name:10} steps saved {_spread(saved)}, loss {_spread([r['loss'][name] for r in found])}")
    print(f"{'fresh':10} loss at its end {_spread([run['loss']['fresh'] for run in found])}")
    (arguments.out / "report.json").write_text(json.dumps(found, indent=2) + "\n")


def _one_seed(arguments: argparse.Namespace, seed: int) -> dict:
    """Ads that keep their codes, balance, curves, end losses and steps saved of one seed."""
    run = arguments.out / f"seed{seed}"
    run.mkdir(parents=True, exist_ok=True)
    if not (run / "data").exists():
        (run / "data").symlink_to((arguments.old / "data").resolve())
    settings = [f"tokenizer.seed={seed + 1}", f"tokenizer.align_to={arguments.old / 'tokenizer'}"]
    settings += [*arguments.overrides, f"training.seed={seed}", "training.threads=1"]
    _command("training.tokenizer", arguments, settings, ["--data", run / "data", "--out", run / "tokenizer"])
    alignment = Alignment.load(run / "tokenizer")
    warm = [f"training.warm_start={arguments.old}", f"training.steps={arguments.warm_steps}"]
    curves = {
        "fresh": _curve(arguments, [*settings, f"training.steps={arguments.steps}"], run / "fresh"),
        "aligned": _curve(arguments, [*settings, *warm], run / "aligned"),
    }
    shutil.move(run / "tokenizer" / ALIGNMENT, run / ALIGNMENT)
    curves["unaligned"] = _curve(arguments, [*settings, *warm], run / "unaligned")
    shutil.move(run / ALIGNMENT, run / "tokenizer" / ALIGNMENT)
    loss = {name: curve[-1][1] for name, curve in curves.items()}
    saved = {
        name: _steps_to(loss[name], curves["fresh"]) - arguments.warm_steps
        for name in ("aligned", "unaligned")
    }
    agreement = alignment.agreement if alignment else ()
    ginis = json.loads((run / "tokenizer" / "quality.json").read_text())["gini"]
    print(f"seed {seed}: agreement {agreement}, Gini {ginis}, loss {loss}, steps saved {saved}", flush=True)
    found = {"seed": seed, "agreement": agreement, "gini": ginis, "loss": loss, "saved": saved}
    return found | {"curves": curves}


def _curve(arguments: argparse.Namespace, settings: list[str], out: Path) -> list[tuple[int, float]]:
    """Train, or go on; (step, validation loss of the SID) from the first validation to the last."""
    settings = [*settings, "training.validate_every=50"]
    _command("training.recipes.pretrain", arguments, settings, ["--run", out.parent, "--out", out])
    return [(int(record["step"]), record[LOSS]) for record in open_checkpoint(out).history]


def _command(module: str, arguments: argparse.Namespace, settings: list[str], words: list) -> None:
    sets = [word for setting in settings for word in ("--set", setting)]
    run_step(module, "--config", arguments.config, *words, *sets, log=arguments.out / "log.txt")


def _steps_to(loss: float, curve: list[tuple[int, float]]) -> float:
    """Step at which the falling curve first comes to a loss; its last one where it does not."""
    lowest = np.minimum.accumulate([value for _, value in curve])
    steps = [float(step) for step, _ in curve]
    return float(np.interp(-loss, -lowest, steps))


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.4g} ({', '.join(f'{value:.4g}' for value in values)})"


if __name__ == "__main__":
    main()
