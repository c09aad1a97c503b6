"""A cell: the answers of one model of one seed, kept with what they cost, and not made twice."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.protocol import Answers
from serving.files import read_object, write_file
from serving.inputs import Inputs, is_up_to_date


@dataclass(frozen=True)
class Cells:
    """Answers of one part of one data set, in a folder: NAME-seedS.npz and NAME-seedS.json beside it.

    Attributes:
        folder: made where it is missing.
        common: what all of them are made from, files by name.
        values: the same, JSON values by name.
    """

    folder: Path
    common: Mapping[str, Path]
    values: Mapping[str, Any]

    def path(self, row: str, seed: int) -> Path:
        """Where the answers of a row are, or would be."""
        return self.folder / f"{row}-seed{seed}.npz"

    def make(
        self,
        row: str,
        seed: int,
        *,
        files: Mapping[str, Path],
        values: Mapping[str, Any],
        answer: Callable[[], tuple[Answers, dict[str, Any]]],
    ) -> None:
        """Take the answers that are there, or make them.

        Args:
            row: of the table.
            seed: of the model.
            files: what these answers alone are made from.
            values: the same.
            answer: the answers, and what to note of the model: parameters, CPU minutes.
        """
        path = self.path(row, seed)
        record, about = path.with_suffix(".inputs.json"), path.with_suffix(".json")
        inputs = Inputs.now(
            {**self.values, **values}, files={**self.common, **files}, before=Inputs.load(record)
        )
        if record.exists() and is_up_to_date(record, inputs, outputs=[path, about]):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        answers, noted = answer()
        answers.save(path)
        write_file(about, json.dumps(noted, indent=1) + "\n")
        inputs.save(record)

    def found(self, row: str, seed: int) -> tuple[Answers, dict[str, Any]] | None:
        """Answers and what was noted of the model; None where there are none."""
        path = self.path(row, seed)
        if not path.exists():
            return None
        about = path.with_suffix(".json")
        return Answers.load(path), read_object(about) if about.exists() else {}


@contextmanager
def counted_minutes(path: Path) -> Iterator[None]:
    """Add the CPU minutes of the processes that run and end in here to those in a file."""
    before = _of_children()
    try:
        yield
    finally:
        write_file(path, json.dumps({"cpu_minutes": minutes(path) + (_of_children() - before) / 60}) + "\n")


def minutes(path: Path) -> float:
    """CPU minutes in a file of `counted_minutes`; 0 where there is none."""
    return float(read_object(path)["cpu_minutes"]) if path.exists() else 0.0


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
