"""Keys of the served log: group `served_log` of the section `serving`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ServedLogConfig(BaseModel):
    """Where records of answers go.

    Attributes:
        sink: "off", "file" (a log on this machine) or "redis" (a stream).
        share: of the requests that leave a record, chosen by a hash of their ids.
        queue: records that may wait to be written; more are dropped and counted.
        folder: of the log's files; None for `served` beside the index.
        file_mb: a file is closed when it is this long.
        keep_files: in the folder; the oldest goes when there are more.
        url: Redis of the stream; passwords belong into GR4AD_SERVED_LOG_URL.
        stream: its key.
        max_length: entries that the stream is trimmed to, about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sink: Literal["off", "file", "redis"] = "off"
    share: float = Field(1.0, gt=0, le=1)
    queue: int = Field(4096, ge=1)
    folder: str | None = None
    file_mb: int = Field(64, ge=1)
    keep_files: int = Field(64, ge=2)
    url: str = "redis://127.0.0.1:6379/0"
    stream: str = "gr4ad:served"
    max_length: int = Field(1_000_000, ge=1)
