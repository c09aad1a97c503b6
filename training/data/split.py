"""Train | validation | test: where they are cut, and how that is kept with the prepared data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

DAY = 24 * 3600
WEEK = 7 * DAY
PARTS = ("train", "validation", "test")


class Split(BaseModel):
    """What the prepared data say about their parts.

    By time, train is [-inf, train_end), validation is [train_end, validation_end), test is
    [validation_end, end) in unix seconds. By column, the column `split` of the events says the part, and the
    bounds only where each part ends.

    Raises:
        pydantic.ValidationError: unknown key, wrong type, or bounds of time that are not strictly increasing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    by: Literal["time", "column"] = "time"
    train_end: int = Field(ge=0)
    validation_end: int
    end: int

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.by == "time" and not self.train_end < self.validation_end < self.end:
            raise ValueError(
                "expected train_end < validation_end < end, "
                f"got {self.train_end}, {self.validation_end}, {self.end}"
            )
        return self

    @classmethod
    def by_length(
        cls, first: int, last: int, *, unit: Literal["weeks", "days"], validation: int, test: int
    ) -> Self:
        """Cut whole weeks or days off the end of a log that spans [first, last] unix seconds.

        Args:
            first: time of the first event.
            last: time of the last event; `end` is one second later.
            unit: of the lengths.
            validation: length of the validation range, >= 1.
            test: length of the test range, >= 1.

        Raises:
            ValueError: less than one whole week or day would be left for training.
        """
        seconds, end = {"weeks": WEEK, "days": DAY}[unit], last + 1
        least = 1 + validation + test
        if end - first < least * seconds:
            raise ValueError(
                f"expected events over at least {least} {unit} "
                f"(1 train + {validation} validation + {test} test), "
                f"got {(end - first) / seconds:.2f} {unit} ({first} .. {last}); "
                "choose another data.split, as {by: fractions}"
            )
        validation_end = end - test * seconds
        return cls(train_end=validation_end - validation * seconds, validation_end=validation_end, end=end)

    @classmethod
    def by_fractions(cls, times: np.ndarray, *, last: int, validation: float, test: float) -> Self:
        """Cut at times, so that the last requests are the test and those before them the validation.

        Args:
            times: int64 [N], unix seconds of each request with a target, in any order.
            last: time of the last event; `end` is one second later.
            validation: share of the requests, rounded up; those of one second are together in the later part.
            test: share of the requests.

        Raises:
            ValueError: too few different times for three parts.
        """
        times = np.sort(times)
        in_test = int(np.ceil(test * len(times)))
        in_both = in_test + int(np.ceil(validation * len(times)))
        if in_both >= len(times) or not times[0] < times[-in_both] < times[-in_test]:
            raise ValueError(
                f"expected requests at enough different times for {1 - validation - test:g} train + "
                f"{validation:g} validation + {test:g} test, got {len(np.unique(times))} times of "
                f"{len(times)} requests; see data.split"
            )
        return cls(train_end=int(times[-in_both]), validation_end=int(times[-in_test]), end=last + 1)

    @classmethod
    def by_column(cls, ends: Sequence[int]) -> Self:
        """Parts that the events name, with the time at which each ends."""
        train_end, validation_end, end = ends
        return cls(by="column", train_end=train_end, validation_end=validation_end, end=end)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            pydantic.ValidationError: not JSON, or not a valid split.
        """
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
