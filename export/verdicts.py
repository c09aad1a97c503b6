"""What became of canaries: a file of a line each beside CURRENT, the newest ones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.files import read_small, write_file

logger = logging.getLogger(__name__)

VERDICTS = "CANARY.verdicts"
_KEPT = 64


class Verdict(BaseModel):
    """What became of one canary.

    Attributes:
        version: of the canary.
        verdict: whether it answers all requests now, or none.
        reason: by which rule or command.
        at: unix seconds.
        figures: that it was judged by, as `export.canary_rule.judge` has them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[int, Field(ge=1)]
    verdict: Literal["promoted", "rolled back"]
    reason: str
    at: float
    figures: dict[str, float | None] = {}


def read_verdicts(bundles: Path) -> list[Verdict]:
    """The newest at the end; without lines that are damaged."""
    path = bundles / VERDICTS
    try:
        lines = read_small(path, limit=1 << 20).splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        logger.warning("%s: expected verdicts, got: %s", path, error)
        return []
    found = []
    for line in lines:
        try:
            found.append(Verdict.model_validate_json(line))
        except ValidationError as error:
            logger.warning("%s: expected a verdict a line, got %r: %s", path, line[:80], error)
    return found


def add_verdict(bundles: Path, verdict: Verdict) -> None:
    """Write one more.

    Raises:
        OSError: the disk is full or not writable; it is as it was.
    """
    kept = [*read_verdicts(bundles), verdict][-_KEPT:]
    write_file(bundles / VERDICTS, "".join(v.model_dump_json() + "\n" for v in kept))


def rolled_back(bundles: Path) -> set[int]:
    """Versions that were, and were not promoted after it."""
    last = {v.version: v.verdict for v in read_verdicts(bundles)}
    return {version for version, verdict in last.items() if verdict == "rolled back"}
