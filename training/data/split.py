"""Time split: train | validation | test by whole weeks, counted back from the last event."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

WEEK = 7 * 24 * 3600


class TimeSplit(BaseModel):
    """Three half-open ranges of unix seconds.

    Train is [-inf, train_end), validation is [train_end, validation_end), test is [validation_end, end).

    Raises:
        pydantic.ValidationError: unknown key, wrong type, or bounds that are not strictly increasing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    train_end: int = Field(ge=0)
    validation_end: int
    end: int

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.train_end < self.validation_end < self.end:
            raise ValueError(
                "expected train_end < validation_end < end, "
                f"got {self.train_end}, {self.validation_end}, {self.end}"
            )
        return self

    @classmethod
    def by_weeks(cls, first: int, last: int, *, validation_weeks: int, test_weeks: int) -> Self:
        """Cut a log that spans [first, last] unix seconds.

        Args:
            first: time of the first event.
            last: time of the last event; `end` is one second later.
            validation_weeks: length of the validation range.
            test_weeks: length of the test range.

        Raises:
            ValueError: less than one whole week would be left for training, or a range has no week.
        """
        if validation_weeks < 1 or test_weeks < 1:
            raise ValueError(
                f"expected >= 1 week each, got validation_weeks {validation_weeks}, test_weeks {test_weeks}"
            )
        end = last + 1
        weeks = 1 + validation_weeks + test_weeks
        if end - first < weeks * WEEK:
            raise ValueError(
                f"expected events over at least {weeks} weeks "
                f"(1 train + {validation_weeks} validation + {test_weeks} test), "
                f"got {(end - first) / WEEK:.2f} weeks ({first} .. {last})"
            )
        validation_end = end - test_weeks * WEEK
        return cls(train_end=validation_end - validation_weeks * WEEK, validation_end=validation_end, end=end)

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
