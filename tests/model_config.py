"""Settings in rendered configs: read, and changed for one test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2


def settings_of(config: Path) -> dict[str, Any]:
    """What a config.pbtxt says in its one parameter."""
    parsed = text_format.Parse(config.read_text(), model_config_pb2.ModelConfig())
    assert list(parsed.parameters) == ["settings"]
    return json.loads(parsed.parameters["settings"].string_value)


def with_settings(config: Path, to: Path, *, serving: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A copy of a config.pbtxt with other settings, `serving` of its section of that name."""
    parsed = text_format.Parse(config.read_text(), model_config_pb2.ModelConfig())
    settings = settings_of(config) | changes
    settings["serving"] |= serving or {}
    parsed.parameters["settings"].string_value = json.dumps(settings)
    to.write_text(text_format.MessageToString(parsed))
    return to
