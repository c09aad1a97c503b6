"""Time split by whole weeks."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from training.data.split import Split

WEEK = 604_800


def test_weeks_are_counted_back_from_the_last_event() -> None:
    last = 1_000_000_000
    split = Split.by_length(last - 20 * WEEK, last, unit="weeks", validation=2, test=3)
    assert split.end == last + 1
    assert split.validation_end == last + 1 - 3 * WEEK
    assert split.train_end == last + 1 - 5 * WEEK


def test_shortest_span() -> None:
    split = Split.by_length(0, 4 * WEEK - 1, unit="weeks", validation=1, test=2)
    assert split.train_end == WEEK
    with pytest.raises(
        ValueError, match=r"at least 4 weeks \(1 train \+ 1 validation \+ 2 test\), got 4.00 weeks"
    ):
        Split.by_length(1, 4 * WEEK - 1, unit="weeks", validation=1, test=2)


def test_json_round_trip_and_bad_json(tmp_path: Path) -> None:
    split = Split(train_end=10, validation_end=20, end=30)
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split
    (tmp_path / "bad.json").write_text('{"train_end": 10, "validation_end": 20, "end": 30, "more": 1}')
    with pytest.raises(ValidationError, match="more"):
        Split.load(tmp_path / "bad.json")


@pytest.mark.parametrize("bounds", [(20, 10, 30), (10, 10, 30), (10, 30, 30), (-1, 10, 30)])
def test_bad_order(bounds: tuple[int, int, int]) -> None:
    with pytest.raises(ValidationError):
        Split(train_end=bounds[0], validation_end=bounds[1], end=bounds[2])
