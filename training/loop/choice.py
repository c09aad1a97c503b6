"""How the commands that read a trained model are told which one."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.loop.retention import find_checkpoint


def add_checkpoint_arguments(parser: argparse.ArgumentParser, *, needs: str = "model/") -> None:
    """`--run`, `--model` and `--checkpoint`.

    Args:
        parser: of the command.
        needs: what a run folder must hold besides data/ and tokenizer/.
    """
    parser.add_argument(
        "--run", required=True, type=Path, help=f"run folder with data/, tokenizer/ and {needs}"
    )
    parser.add_argument("--model", type=Path, help="folder with checkpoints/ (default: RUN/model)")
    parser.add_argument(
        "--checkpoint", default="latest", help="latest, best (by validation) or a name: step-000400 [latest]"
    )


def model_folder(arguments: argparse.Namespace) -> Path:
    """Folder of the model that was named."""
    return arguments.model or arguments.run / "model"


def chosen_checkpoint(arguments: argparse.Namespace) -> Path:
    """Where the checkpoint that was named is.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    return find_checkpoint(model_folder(arguments), arguments.checkpoint)
