"""Candidate lists for online learning, by its newest weights: a process of its own, at low priority.

python -m training.recipes.roll_out_online --config configs/demo.yaml --run build/demo

Round after round it draws requests of the training part, searches them as section `rollout` says (with larger
beams than serving, some drawn beyond the best), has the reward model in RUN/reward score what was found, and
leaves the lists in RUN/lists/online-<round>. `training.recipes.online` takes the newest that are whole.
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from serving.backend.priority import yield_to_servers
from training.data.list_store import ListStoreError, StoredLists
from training.loop.checkpoint import CheckpointError
from training.loop.retention import find_checkpoint, has_checkpoint
from training.preset.preset import Preset, add_preset_arguments
from training.recipes import pretrain
from training.recipes.command import alone, errors_end_the_command
from training.recipes.listed_requests import LISTS
from training.reward.reward_model import RewardModel
from training.reward.score import score_lists
from training.rollout.__main__ import roll_out
from training.run import RunData

LOCK = "online.lock"
POLL_S = 0.5
_NAME = re.compile(r"online-(\d+)")
_KEPT = 2  # rounds; the trainer may be reading the one before


def rounds(run: Path) -> list[int]:
    """Of a run folder, whole or not, ascending."""
    root = run / LISTS
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def folder_of(run: Path, number: int) -> Path:
    """Lists of a round."""
    return run / LISTS / f"online-{number}"


def newest_lists(run: Path, *, tokenizer_id: str, after: int = 0) -> tuple[int, StoredLists] | None:
    """The newest round behind `after` that is whole, with its rewards; None where there is none."""
    for number in reversed(rounds(run)):
        if number <= after:
            return None
        rewards = sorted(folder_of(run, number).glob("rewards.*"))
        try:
            if rewards:
                lists = StoredLists.open(
                    folder_of(run, number), reward=rewards[0].name.removeprefix("rewards.")
                )
                lists.check(tokenizer_id=tokenizer_id)
                return number, lists
        except ListStoreError:
            continue  # it is being made, or taken away
    return None


def one_round(preset: Preset, run: Path, checkpoint: Path, *, requests: int) -> Path:
    """Lists of other requests than those of the round before, with their rewards.

    Raises:
        CheckpointError, OSError: the checkpoint is gone, or the disk is full.
        ValueError: run, model and reward model do not fit each other.
    """
    found = rounds(run)
    number = found[-1] + 1 if found else 1
    rollout = preset.rollout.model_copy(update={"requests": requests, "seed": preset.rollout.seed + number})
    folder = folder_of(run, number)
    reward = RewardModel.load(run / "reward")
    lists = roll_out(
        preset.model_copy(update={"rollout": rollout}),
        run,
        part="train",
        checkpoint=checkpoint,
        folder=folder,
    )
    data = RunData.load(run)
    score_lists(reward, lists, data.dataset(data.fit_spec(preset)))
    for old in found[: 1 - _KEPT]:
        shutil.rmtree(folder_of(run, old), ignore_errors=True)
    return folder


def follow(preset: Preset, run: Path, model: Path, *, requests: int, say: Callable[[str], object]) -> None:
    """A round by each checkpoint that is there when the round before is at its end, until it is stopped.

    Raises:
        OSError: the disk is full or not writable.
        ValueError: run, model and reward model do not fit each other.
    """
    last: Path | None = None
    while True:
        path = find_checkpoint(model if has_checkpoint(model) else run / pretrain.FOLDER)
        if path == last:
            time.sleep(POLL_S)
            continue
        try:
            folder = one_round(preset, run, path, requests=requests)
        except (CheckpointError, FileNotFoundError):
            if path.exists():
                raise
            continue  # a newer one has taken its place
        last = path
        say(f"{folder}: {requests} lists by {path.name}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser)
    parser.add_argument(
        "--run", required=True, type=Path, help="run folder with data/, tokenizer/ and reward/"
    )
    parser.add_argument("--model", type=Path, help="folder with checkpoints/ (default: RUN/online)")
    parser.add_argument("--requests", type=int, default=256, help="of a round [%(default)s]")
    arguments = parser.parse_args()
    yield_to_servers()
    lock = arguments.run / LISTS / LOCK
    with errors_end_the_command(), alone(lock):  # what a signal leaves is not whole, and is not taken
        follow(
            Preset.load(arguments.config, arguments.overrides),
            arguments.run,
            arguments.model or arguments.run / "online",
            requests=arguments.requests,
            say=lambda text: print(text, flush=True),
        )


if __name__ == "__main__":
    main()
