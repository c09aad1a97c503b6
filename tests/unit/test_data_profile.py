"""Profile vocabulary."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.data.profile import ProfileVocabulary

USERS = pl.DataFrame(
    {
        "user_id": [1, 2, 3, 4],
        "age": ["b", "unknown", "a", "b"],
        "home": ["unknown"] * 4,
        "size": ["1", "2", None, "10"],
    }
)


def test_codes_follow_the_sorted_categories() -> None:
    vocabulary = ProfileVocabulary.fit(USERS)
    assert vocabulary.columns == ("age", "home", "size")
    assert dict(vocabulary.categories) == {"age": ("a", "b"), "home": (), "size": ("1", "10", "2")}
    assert vocabulary.cardinalities == (3, 1, 4)
    codes = vocabulary.encode(USERS)
    assert codes.dtype == np.int32
    assert codes.tolist() == [[2, 0, 1], [0, 0, 3], [1, 0, 0], [2, 0, 2]]


def test_unseen_becomes_unknown_and_rows_keep_their_order() -> None:
    vocabulary = ProfileVocabulary.fit(USERS)
    others = pl.DataFrame({"size": ["99", "1"], "home": ["tent", "x"], "age": ["a", "zz"], "user_id": [9, 8]})
    assert vocabulary.encode(others).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_no_profile_columns() -> None:
    vocabulary = ProfileVocabulary.fit(USERS.select("user_id"))
    assert vocabulary.encode(USERS).shape == (4, 0)
    assert vocabulary.cardinalities == ()


def test_json(tmp_path: Path) -> None:
    vocabulary = ProfileVocabulary.fit(USERS)
    path = tmp_path / "profile.json"
    vocabulary.save(path)
    loaded = ProfileVocabulary.load(path)
    assert loaded.columns == vocabulary.columns
    assert dict(loaded.categories) == dict(vocabulary.categories)
    for text in (
        '["age"]',
        '{"columns": {"age": [1]}}',
        '{"columns": {}, "x": 1}',
        '{"columns": {"age": ["b", "a"]}}',
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match="expected"):
            ProfileVocabulary.load(path)


def test_missing_column() -> None:
    with pytest.raises(ValueError, match=r"expected profile columns .*missing \['age'\]"):
        ProfileVocabulary.fit(USERS).encode(USERS.drop("age"))
