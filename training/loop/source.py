"""Where a run's batches come from."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Protocol

import numpy as np

from training.data.batch import Batch


class Source(Protocol):
    """Batches of this process, each a pure function of the step.

    Attributes:
        held_out: names the validation batches: losses on others are not to be compared.
    """

    held_out: str

    def batches(self, start: int) -> Generator[Batch[np.ndarray], None, None]:
        """Those of step `start` and all later ones; closing the generator frees what builds them."""
        ...

    def validation(self) -> Iterable[Batch[np.ndarray]]:
        """The same ones every time; a process may have none."""
        ...

    def describe(self, step: int) -> str:
        """Which requests all processes together see at a step, in one line."""
        ...
