"""Writes docs/preset.md, every key of a preset, from the pydantic models that check one: `make reference`.

A key's meaning is what the docstring of its model says under `Attributes:`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from training.preset.preset import Preset

PAGE = Path(__file__).resolve().parent / "preset.md"
_HEAD = """# Keys of a preset

<!-- made by `make reference` from the models that check a preset -->

A preset is a YAML file with these sections (`configs/demo.yaml`). Any key can be set on the command line of
a step (`--set data.split.by=days`) and through make (`make train SET="training.steps=100 model.width=64"`).
A key that is not here is refused, with those that may have been meant.
"""
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a model and its bases say of each key, in one line each."""
    found: dict[str, str] = {}
    for kind in reversed([k for k in model.__mro__ if issubclass(k, BaseModel) and k is not BaseModel]):
        _, _, block = (inspect.cleandoc(kind.__doc__ or "")).partition("\nAttributes:\n")
        block = re.split(r"\n\n(?=\S)", block)[0]
        for entry in re.split(r"\n(?= {4}\S)", "\n" + block):
            names, colon, text = entry.strip().partition(":")
            if colon:
                found |= dict.fromkeys(re.split(r",\s*", names), " ".join(text.split()))
    return found


def keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each key, those of groups of keys behind the group.

    Raises:
        ValueError: no docstring says what a key means.
    """
    schema, known = model.model_json_schema(), meanings(model)
    for name, field in model.model_fields.items():
        where = f"{prefix}.{name}"
        meaning = known.get(name) or field.description
        if not meaning:
            raise ValueError(f"{where}: expected a meaning in the docstring of {model.__name__}, got none")
        group, listed = _group(field.annotation)
        if group is None:
            yield where, _type(schema["properties"][name]), _default(field), meaning
        else:
            yield where, "list of groups" if listed else "group", _default(field) if listed else "", meaning
            yield from keys(group, f"{where}[]" if listed else where)


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for section, field in Preset.model_fields.items():
        model, _ = _group(field.annotation)
        assert model is not None
        first = inspect.cleandoc(model.__doc__ or "").split("\n\n")[0]
        rows = [
            f"| `{name}` | {kind} | {default} | {meaning} |"
            for name, kind, default, meaning in (map(_cell, row) for row in keys(model, section))
        ]
        table = ("| key | type | default | meaning |", "|---|---|---|---|", *rows)
        parts.append("\n\n".join((f"## {section}", " ".join(first.split()), "\n".join(table))))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _group(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model of a group of keys, also of an optional one, and whether the key holds a list of them."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation, False
    for inner in get_args(annotation):
        model, _ = _group(inner)
        if model is not None:
            return model, getattr(annotation, "__origin__", None) in (tuple, list)
    return None, False


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(kind) for kind in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    bounds = " and ".join(f"{sign} {schema[key]}" for key, sign in _BOUNDS.items() if key in schema)
    match schema.get("type"):
        case "array":
            return f"list of {_type(schema['items'])}"
        case "object":
            names = schema.get("propertyNames", {})
            of = f" of {_type(names)}" if names else ""
            return f"numbers by name{of}"
        case "integer":
            kind = "whole number"
        case "boolean":
            kind = "true or false"
        case "string":
            kind = "text"
        case kind:
            kind = str(kind)
    return f"{kind} {bounds}".rstrip()


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return f"`{json.dumps(value)}`"


def _cell(text: str) -> str:
    return re.sub(r"\bNone\b", "null", text.replace("|", "\\|"))


if __name__ == "__main__":
    PAGE.write_text(page())
