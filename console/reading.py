"""What one look at all sources brings, and where looks come from: the services themselves, or a recording."""

from __future__ import annotations

import lzma
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from console.learning import Earned, Learnt
from console.versions import Versions

SERVER, INDEXER, BUNDLES = "server", "indexer", "bundles"
"""The sources: metrics of gateway and Triton on one page, of the sidecar, the folder of model versions."""
TRAINER, LOOP = "trainer", "loop"
"""And, where there are any: checkpoints of a trainer that learns online, the file of a played loop."""
_KEPT = ("gr4ad_", "nv_inference_")  # of a page that is recorded
_MOST_BYTES = 1 << 30  # of a recording, unpacked


class Reading(BaseModel):
    """One look.

    Attributes:
        at: unix seconds.
        pages: text of the metrics pages that were there, by source.
        problems: why a source was not, by source.
        versions: of the model; None where the folder was not read.
        learnt: of the trainer; None where there is none.
        earned: of the loop; None where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: float
    pages: dict[str, str] = {}
    problems: dict[str, str] = {}
    versions: Versions | None = None
    learnt: Learnt | None = None
    earned: Earned | None = None


class Feed(Protocol):
    """Where looks come from."""

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """One after the other, each when it is due, until there are no more or `stop` is set."""
        ...


def line_of(reading: Reading) -> str:
    """A look as a line of a recording: of its pages what is ours and Triton's counts."""
    pages = {name: _kept(page) for name, page in reading.pages.items()}
    return reading.model_copy(update={"pages": pages}).model_dump_json() + "\n"


def recorded(path: Path) -> Iterator[Reading]:
    """Looks of a file of such lines, packed with xz; one that was cut off ends where it is cut.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none.
    """
    size = 0
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                size += len(line)
                if size > _MOST_BYTES:
                    raise ValueError(f"{path}: expected at most {_MOST_BYTES:,} bytes, got more")
                try:
                    yield Reading.model_validate_json(line)
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, first["loc"]))
                    raise ValueError(
                        f"{path}:{number}: expected a look, got {where} {first['msg']}"
                    ) from None
    except EOFError:
        return
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a recording of the console, got {error}") from None


def _kept(page: str) -> str:
    lines = (line for line in page.splitlines(keepends=True) if line.startswith(_KEPT))
    return "".join(lines)
