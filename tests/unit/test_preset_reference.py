"""docs/preset.md: every key of a preset with type, default and meaning, as the code has them now."""

import re
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from docs.preset_reference import PAGE, keys, meanings, page
from training.preset.preset import Preset
from training.preset.recipes import TrainingConfig


def test_the_page_is_current():
    assert PAGE.read_text() == page(), "docs/preset.md shows other keys: run `make reference`"


def test_every_key_has_a_row_and_a_meaning():
    """Counted by the models themselves, so that no group is left out."""

    def leaves(value, prefix):
        if not isinstance(value, BaseModel):
            return [prefix]
        return [leaf for key, inner in value for leaf in leaves(inner, f"{prefix}.{key}")]

    preset = Preset.model_validate({"data": {"source": "completejourney"}})
    expected = [leaf for name in Preset.model_fields for leaf in leaves(getattr(preset, name), name)]
    rows = re.findall(r"^\| `([\w.\[\]]+)` \| (.+?) \| (.*?) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert set(expected) <= {name for name, *_ in rows}
    assert all(len(meaning) > 5 for *_, meaning in rows)


class Base(BaseModel):
    """Base.

    Attributes:
        one, two: said once
            in two lines: for both.
        three: of the base.
    """

    one: int = Field(1, ge=0, lt=9)
    two: float | None = None
    three: Literal["a", "b"] = "a"


class Derived(Base):
    """Derived.

    Attributes:
        three: of its own.
        many: a list.
        map: numbers.

    Raises:
        ValueError: never: not a key.
    """

    three: Literal["a", "b"]
    many: tuple[str, ...] = ("x",)
    map: dict[str, float] = {}


def test_meanings_come_from_docstrings():
    assert meanings(Derived) == {
        "one": "said once in two lines: for both.",
        "two": "said once in two lines: for both.",
        "three": "of its own.",
        "many": "a list.",
        "map": "numbers.",
    }
    assert meanings(TrainingConfig)["steps"] == "optimizer steps."


def test_types_and_defaults():
    rows = {name: (kind, default) for name, kind, default, _ in keys(Derived, "s")}
    assert rows == {
        "s.one": ("whole number >= 0 and < 9", "`1`"),
        "s.two": ("number or null", "`null`"),
        "s.three": ("`a` or `b`", "required"),
        "s.many": ("list of text", '`["x"]`'),
        "s.map": ("numbers by name", "`{}`"),
    }


def test_groups_of_keys():
    class Whole(BaseModel):
        """Whole.

        Attributes:
            group: of keys.
            some: groups.
        """

        group: Derived | None = None
        some: tuple[Base, ...] = ()

    rows = {name: kind for name, kind, *_ in keys(Whole, "s")}
    assert rows["s.group"] == "group"
    assert rows["s.some"] == "list of groups"
    assert {"s.group.many", "s.group.one", "s.some[].one"} < rows.keys()


def test_a_key_without_a_meaning_is_named():
    class Silent(BaseModel):
        """Nothing of its key."""

        key: int = 1

    with pytest.raises(ValueError, match="s.key: expected a meaning in the docstring of Silent, got none"):
        list(keys(Silent, "s"))
