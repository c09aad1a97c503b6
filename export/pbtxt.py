"""Texts of config.pbtxt: templates filled in, parameters escaped, the outcome parsed as Triton's protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serving.backend.model_settings import PARAMETER, GraphSettings, ModelSettings

TEMPLATES = Path(__file__).parent / "templates"


class RenderError(RuntimeError):
    """A model repository cannot be rendered: a setting, a template or a bundle does not fit."""


def fill(template: str, values: Mapping[str, object]) -> str:
    """A template with its placeholders replaced.

    Raises:
        RenderError: a placeholder has no value.
    """
    try:
        return Template((TEMPLATES / f"{template}.pbtxt").read_text()).substitute(values)
    except (KeyError, ValueError) as error:
        raise RenderError(f"{template}.pbtxt: placeholder {error} has no value") from error


def parameter(key: str, value: object) -> str:
    """A model's parameter, whatever characters are in it."""
    config = model_config_pb2.ModelConfig()
    config.parameters[key].string_value = str(value)
    return text_format.MessageToString(config, as_utf8=True).rstrip()


def settings_parameter(settings: ModelSettings | GraphSettings) -> str:
    """The parameter that carries a Python model's settings."""
    return parameter(PARAMETER, settings.model_dump_json())


def check_config(name: str, text: str) -> model_config_pb2.ModelConfig:
    """Parse a rendered config.

    Raises:
        RenderError: it does not parse, or it names another model.
    """
    try:
        parsed = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise RenderError(f"{name}: config.pbtxt is not a Triton model config: {error}") from error
    if parsed.name != name:
        raise RenderError(f"{name}: expected a config of that name, got {parsed.name!r}")
    return parsed
