"""What the commands of all recipes share: arguments, errors, the group of processes."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import torch

from feedback.store.layout import FeedbackStoreError
from serving.index.layout import IndexStoreError
from serving.inputs import summary
from training.data.stream import StreamError
from training.loop.checkpoint import Checkpoint, CheckpointError, NonFiniteError
from training.loop.device import Device, DeviceError
from training.model.fp8 import MissingPackageError
from training.online.guards import GuardError
from training.preset.loop import StepConfig
from training.preset.preset import add_preset_arguments

_FAULTS = (
    CheckpointError,
    DeviceError,
    FeedbackStoreError,
    GuardError,
    IndexStoreError,
    MissingPackageError,
    NonFiniteError,
    StreamError,
    ValueError,
    OSError,
)


def parse_arguments(description: str | None, *, out: str) -> argparse.Namespace:
    """Arguments of `make_parser`."""
    return make_parser(description, out=out).parse_args()


def make_parser(description: str | None, *, out: str) -> argparse.ArgumentParser:
    """Arguments `config`, `overrides`, `run`, `out` (None where not given), `fresh`.

    Args:
        description: of the recipe.
        out: where in the run folder the recipe puts checkpoints unless `--out` says otherwise.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser)
    parser.add_argument("--run", required=True, type=Path, help="run folder with data/ and tokenizer/")
    parser.add_argument("--out", type=Path, help=f"where checkpoints and curves go (default: RUN/{out})")
    parser.add_argument("--fresh", action="store_true", help="start over: do not resume from a checkpoint")
    return parser


@contextlib.contextmanager
def use_device(config: StepConfig) -> Iterator[Device]:
    """The device of this process, in the group of all processes of the run."""
    torch.set_num_threads(config.threads)
    with Device.join(config.device, config.precision) as device:
        yield device


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """No other process holds this file inside the block; one that was killed does not.

    Raises:
        CheckpointError: another one does.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"{lock}: expected to work here alone, another process holds it") from None
        yield


@contextlib.contextmanager
def errors_end_the_command() -> Iterator[None]:
    """What a user can set right, and being stopped, is a message and status 1, not a traceback."""
    try:
        yield
    except _FAULTS as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt as stop:
        raise SystemExit(f"\n{stop or 'stopped'}") from stop


def tell(found: Checkpoint, steps: int, *, changed: list[str], device: Device) -> None:
    """Say where a run goes on, and what is not as it was; the first process does."""
    if device.rank:
        return
    print(f"resumed at step {found.step} of {steps}")
    if changed:
        print(f"changed since (was -> is): {summary(changed)}")
