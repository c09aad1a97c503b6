"""DataConfig refuses what it does not know."""

import pytest
from pydantic import ValidationError

from training.preset.data import DataConfig


def test_defaults() -> None:
    config = DataConfig(source="completejourney")
    assert (config.validation_weeks, config.test_weeks) == (2, 3)
    assert config.target_behaviors == ("conversion",)
    assert config.profile_columns is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": "csv"}, "completejourney"),
        ({"source": "completejourney", "weeks": 3}, "weeks"),
        ({"source": "parquet"}, "expected a folder"),
        (
            {"source": "completejourney", "path": "x"},
            "expected nothing for source 'completejourney', got 'x'",
        ),
        ({"source": "completejourney", "test_weeks": 0}, "test_weeks"),
        ({"source": "completejourney", "target_behaviors": ["buy"]}, r"conversion.*got \['buy'\]"),
        ({"source": "completejourney", "target_behaviors": []}, "target_behaviors"),
        ({"source": "completejourney", "profile_columns": ["age", "age"]}, "distinct"),
    ],
)
def test_bad_config(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig(**keys)


def test_frozen() -> None:
    config = DataConfig(source="completejourney")
    with pytest.raises(ValidationError, match="frozen"):
        config.test_weeks = 5  # type: ignore[misc]
