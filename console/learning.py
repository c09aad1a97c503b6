"""What is learnt online, and what it brings: the trainer's checkpoints and the file of a loop that is played.

Both lie in the run folder: `online/checkpoints/step-*/checkpoint.json`, whose `history` has a
record a checkpoint (`python -m training.recipes.online`), and `loop.jsonl`, a line a second (`make loop`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

CHECKPOINTS, LOOP_FILE = "online/checkpoints", "loop.jsonl"
_TAIL_BYTES = 1 << 14  # of the file: some lines

_Model = TypeVar("_Model", bound=BaseModel)


class Learnt(BaseModel):
    """The trainer's newest record.

    Attributes:
        step: of the weights.
        time: when they were saved, unix seconds.
        offset: last sample that they have learnt.
        lag_seconds: from its answer to then.
        probe_loss: on requests of the logs.
        train_total: on what was served and replayed since the record before; None of no step.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    step: int
    time: float
    offset: int
    lag_seconds: float
    probe_loss: float
    train_total: float | None = None


class Earned(BaseModel):
    """The newest line of a loop: revenue per 1,000 requests, of late, of what serves and of a frozen model.

    Attributes:
        at: unix seconds.
        requests, failed: so far.
        day: simulated.
        revenue_online, revenue_frozen: see above.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    at: float
    requests: int
    failed: int
    day: float
    revenue_online: float
    revenue_frozen: float


def read_learnt(run: Path) -> Learnt | None:
    """Of the newest checkpoint that is whole; None where no trainer has written there.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none of a trainer that learns online.
    """
    for folder in sorted((run / CHECKPOINTS).glob("step-*"), reverse=True):
        try:
            history = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))["history"]
        except FileNotFoundError:  # removed meanwhile
            continue
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder}: expected a checkpoint with its history, got {error!r}") from None
        if not history:
            continue
        return _checked(Learnt, history[-1], where=folder)
    return None


def read_earned(run: Path) -> Earned | None:
    """The last whole line of the loop's file; None where no loop was played there.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none.
    """
    path = run / LOOP_FILE
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            whole = file.read().rpartition(b"\n")[0]
    except FileNotFoundError:
        return None
    if not whole:
        return None  # it has just begun
    try:
        line = json.loads(whole.rpartition(b"\n")[2])
    except ValueError as error:
        raise ValueError(f"{path}: expected lines of JSON, got {error}") from None
    return _checked(Earned, line, where=path)


def _checked(kind: type[_Model], values: object, *, where: Path) -> _Model:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
