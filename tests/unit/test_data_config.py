"""DataConfig refuses what it does not know."""

import pytest
from pydantic import ValidationError

from training.preset.data import DataConfig


def test_defaults() -> None:
    config = DataConfig(source="completejourney")
    assert (config.split.by, config.split.sizes) == ("weeks", (2, 3))
    assert config.attribution_window == 1800
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
        ({"source": "completejourney", "split": {"test": 0}}, "split.test"),
        ({"source": "completejourney", "split": {"by": "months"}}, "split.by"),
        ({"source": "completejourney", "split": {"test": 1.5}}, "whole numbers for by: weeks, got .*1.5"),
        ({"source": "completejourney", "split": {"by": "fractions", "test": 0.9}}, "below 1 together, got"),
        ({"source": "completejourney", "split": {"by": "column", "test": 2}}, "no amounts beside by: column"),
        ({"source": "completejourney", "attribution_window": -1}, "attribution_window"),
        ({"source": "completejourney", "target_behaviors": ["buy"]}, r"conversion.*got \['buy'\]"),
        ({"source": "completejourney", "target_behaviors": []}, "target_behaviors"),
        ({"source": "completejourney", "profile_columns": ["age", "age"]}, "distinct"),
        ({"source": "completejourney", "audiences": "yes"}, "(?s)audiences.*'on' or 'off'"),
        ({"source": "completejourney", "audiences": True}, "(?s)audiences.*'on' or 'off'"),
        ({"source": "parquet", "path": "x", "audiences": "on"}, "expected off for source 'parquet'"),
        (
            {"source": "completejourney", "audiences": "on", "profile_columns": ["income"]},
            r"expected age with audiences on.*got \['income'\]",
        ),
    ],
)
def test_bad_config(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig(**keys)


def test_frozen() -> None:
    config = DataConfig(source="completejourney")
    with pytest.raises(ValidationError, match="frozen"):
        config.attribution_window = 5  # type: ignore[misc]
