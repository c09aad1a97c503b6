"""Instruction templates from a file."""

from __future__ import annotations

from pathlib import Path

import yaml

from serving.embedding.instructions import Instructions


def read_instructions(path: str | Path) -> Instructions:
    """Read a YAML file of templates, such as instructions.yaml beside this module.

    Raises:
        ValueError: it holds no such templates.
        OSError: it cannot be read.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected instruction templates in YAML ({error})") from error
    if not isinstance(content, list) or not all(isinstance(template, dict) for template in content):
        raise ValueError(f"{path}: expected a list of instruction templates, got {type(content).__name__}")
    try:
        return Instructions(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
