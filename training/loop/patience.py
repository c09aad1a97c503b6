"""When a run that no longer gets better ends before its last step."""

from __future__ import annotations

from training.loop.log import History


def best_record(history: History, *, first: int = 0) -> int:
    """Position of the record with the lowest total validation loss from `first` on; the first of equals.

    Raises:
        ValueError: there is none.
    """
    return min(range(first, len(history)), key=lambda i: history[i]["validation_total"])


def is_exhausted(history: History, *, patience: int | None, first: int = 0) -> bool:
    """Whether the last `patience` validations were no better than one before them.

    Args:
        history: records of a run.
        patience: None is never exhausted.
        first: of the history; records before it are of other validation requests.
    """
    if patience is None or len(history) <= first:
        return False
    return len(history) - 1 - best_record(history, first=first) >= patience
