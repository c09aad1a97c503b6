"""User profile columns -> small integers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

from training.data.columns import UNKNOWN


@dataclass(frozen=True)
class ProfileVocabulary:
    """Sorted categories a profile column. Code 0 is "unknown", code i is `categories[column][i - 1]`.

    Attributes:
        categories: column -> sorted distinct categories without "unknown"; the order of the columns is the
            order of the codes.
    """

    categories: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        """Refuse categories that are unsorted, repeated or named "unknown"."""
        for column, names in self.categories.items():
            if list(names) != sorted(set(names)) or UNKNOWN in names:
                raise ValueError(
                    f"profile column {column!r}: expected sorted distinct categories without {UNKNOWN!r}, "
                    f"got {names}"
                )

    @classmethod
    def fit(cls, users: pl.DataFrame) -> Self:
        """Collect the categories of every column of users but user_id."""
        columns = [name for name in users.columns if name != "user_id"]
        return cls(
            {
                name: tuple(sorted(set(users[name].drop_nulls().unique().to_list()) - {UNKNOWN}))
                for name in columns
            }
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The P profile columns in code order."""
        return tuple(self.categories)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes a column, "unknown" included: the rows an embedding table needs. Length P."""
        return tuple(len(names) + 1 for names in self.categories.values())

    def encode(self, users: pl.DataFrame) -> npt.NDArray[np.int32]:
        """Codes int32 [U, P], in the order of the rows of users; unseen categories and nulls become 0.

        Raises:
            ValueError: users lacks a column of the vocabulary.
        """
        missing = [name for name in self.categories if name not in users.columns]
        if missing:
            raise ValueError(
                f"users: expected profile columns {list(self.columns)}, "
                f"got {users.columns} (missing {missing})"
            )
        codes = np.zeros((users.height, len(self.categories)), dtype=np.int32)
        for p, (name, categories) in enumerate(self.categories.items()):
            code = {category: i for i, category in enumerate(categories, start=1)}
            if code:
                codes[:, p] = users[name].replace_strict(code, default=0, return_dtype=pl.Int32).to_numpy()
        return codes

    def save(self, path: Path) -> None:
        """Write as JSON."""
        text = json.dumps(
            {"columns": {name: list(names) for name, names in self.categories.items()}}, indent=2
        )
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON, or not a profile vocabulary.
        """
        content = json.loads(path.read_text(encoding="utf-8"))
        columns = (
            content.get("columns") if isinstance(content, dict) and set(content) == {"columns"} else None
        )
        if not isinstance(columns, dict) or not all(
            isinstance(names, list) and all(isinstance(name, str) for name in names)
            for names in columns.values()
        ):
            raise ValueError(
                f"{path}: expected {{'columns': {{column: [category, ...]}}}}, got {str(content)[:120]}"
            )
        return cls({name: tuple(names) for name, names in columns.items()})
