"""The models that `make simulate` compares: `make simulate-arms`, `python -m benchmarks.simulation.train`.

For each seed a generator an arm, in RUN/arms/<arm>-seed<seed>. Beside that of arm `full` candidate lists, a
reward model and the rewards of the lists, and from its weights, on the same lists and for the same number of
steps, one model an objective and strength: model/post_trained/rspo for strength 1, rspo-s0.3 for .3. What is
there is not made again, and what was stopped goes on.

    python -m benchmarks.simulation.train --run build/demo --arms full k0 --objectives vsl rspo --seeds 0 1 2
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.steps import all_of, run_step
from benchmarks.tokenizer import generator
from training.preset.preset import add_preset_arguments

# Decoders and objectives are compared, and one of the decoders has no copy path, so none has.
PLAIN = ("model.copy_path=false", "features.habits=0")
ARMS: dict[str, tuple[str, ...]] = {  # settings beside the preset's and `PLAIN`
    "full": (),
    # Without a shared stage there is nothing that the loss without tokens would serve.
    "k0": ("model.shared_layers=0", "training.lambda_value=0", "training.lambda_mtp=0"),
    "mtp": (  # four layers for the first level, one behind them: as many as the others have
        *("model.decoder=mtp", "model.shared_layers=4"),
        *("training.lambda_value=0", "training.lambda_mtp=0"),
    ),
    "next": ("training.lambda_value=0",),
    "first": (),
}
LISTS = "train"
CONTROL = "vsl"
OBJECTIVES = (CONTROL, "rspo", "uvr", "dpo", "grpo")
# Settings beside the preset's: what requests of the validation part say is best (docs/decisions.md).
OWN_SETTINGS: dict[str, tuple[str, ...]] = {"dpo": ("post_training.beta=1",)}
STRENGTHS = (0.3, 1.0)  # so that each objective has a curve over drift; arms.yaml names their models


def train(arguments: argparse.Namespace, arm: str, *, seed: int) -> None:
    """All models of an arm and a seed.

    Raises:
        SystemExit: a step failed; says which, and where its log is.
    """
    tokenizer = generator.ARMS["first" if arm == "first" else "full"]
    run = generator.train(arguments, arm, seed=seed, tokenizer=tokenizer, settings=(*PLAIN, *ARMS[arm]))
    if arm != "full":
        return
    steps = [
        ["training.rollout", "--name", LISTS],
        ["training.reward"],
        ["training.reward", "score", "--lists", LISTS],
    ]
    for objective in arguments.objectives:
        for strength in arguments.strengths if objective != CONTROL else (1.0,):
            chosen = [f"post_training.objective={objective}", f"post_training.seed={seed}"]
            chosen += [f"post_training.strength={strength}", f"post_training.threads={arguments.threads}"]
            chosen += OWN_SETTINGS.get(objective, ())
            folder = str(run / "model" / "post_trained" / name_of(objective, strength))
            steps.append(["training.recipes.post_train", "--out", folder, *_set(chosen)])
            steps.append(["training.evaluation.correct_values", "--model", folder])
    for step in steps:
        _run(arguments, run, step)


def name_of(objective: str, strength: float) -> str:
    """Folder of a model below model/post_trained."""
    return objective if strength == 1 else f"{objective}-s{strength:g}"


def _run(arguments: argparse.Namespace, run: Path, step: Sequence[str]) -> None:
    """One command on a run, its output in the run's log."""
    command = [*step, "--config", arguments.config, "--run", str(run), *_set((*PLAIN, *arguments.overrides))]
    run_step(*command, of=run.name, log=run / "log.txt")


def _set(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser, default="configs/demo.yaml")
    parser.add_argument("--run", type=Path, default=Path("build/demo"), help="run folder with data/")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="[all]")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES, help="[all]")
    parser.add_argument(
        "--strengths", nargs="+", type=float, default=STRENGTHS, help="of the lists beside the targets [.3 1]"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1, help="of each run [1]")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time [1]")
    arguments = parser.parse_args()
    jobs = [partial(train, arguments, arm, seed=seed) for seed in arguments.seeds for arm in arguments.arms]
    all_of(jobs, at_once=arguments.jobs)


if __name__ == "__main__":
    main()
