"""What a run writes down for people: curves as PNG, and the same numbers for TensorBoard or as CSV."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from serving.files import write_file

PLOT, TABLE, EVENTS = "training.png", "training.csv", "tensorboard"

PARTS = ("train", "validation")  # what a record has means of

History = list[dict[str, float]]


class RunLog:
    """Shows the history of a run; what is shown is read off the keys of its records."""

    def __init__(self, folder: Path, *, step: int, records: int) -> None:
        """Nothing is written yet.

        Args:
            folder: of the model.
            step: the run goes on from here; what an earlier try logged beyond it is void.
            records: of the history that were shown before.
        """
        self._folder, self._step, self._shown = folder, step, records
        self._events: Any = None

    def show(self, history: History) -> None:
        """Write everything that is new; event files where tensorboard is installed, else a table."""
        if not history:
            return
        self._events = self._events or _event_writer(self._folder / EVENTS, step=self._step)
        if self._events is None:
            write_file(self._folder / TABLE, _table(history))
        else:
            for record in history[self._shown :]:
                self._add(record)
            self._events.flush()
        self._shown = len(history)
        from training.plots import plot_history  # Matplotlib takes a second, and only one process draws

        plot_history(history, self._folder / PLOT)

    def close(self) -> None:
        """Close the event files."""
        if self._events is not None:
            self._events.close()

    def _add(self, record: dict[str, float]) -> None:
        for key, value in record.items():
            part, _, name = key.partition("_")
            if part in PARTS:  # one chart a name, both parts in it
                self._events.add_scalar(f"{name}/{part}", value, int(record["step"]))
            elif key != "step":
                self._events.add_scalar(key, value, int(record["step"]))


class Progress:
    """The bar of steps with the latest total losses beside it."""

    def __init__(self, step: int, steps: int, *, shown: bool) -> None:
        """Show a bar that begins at `step`, if it is `shown`."""
        self._bar = tqdm(
            total=steps,
            initial=step,
            desc="train",
            unit="step",
            disable=not shown,
            mininterval=2.0,
            file=sys.stderr,
        )

    def __enter__(self) -> Progress:
        """The bar."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it where it is."""
        self._bar.close()

    def advance(self) -> None:
        """One step is done."""
        self._bar.update(1)

    def show(self, record: dict[str, float]) -> None:
        """Total losses of a record."""
        self._bar.set_postfix({part: f"{record[f'{part}_total']:.3f}" for part in PARTS})


def _event_writer(folder: Path, *, step: int) -> Any:
    """None where the package tensorboard, which is optional, is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else 0)


def _table(history: History) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for record in history for name in record))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
