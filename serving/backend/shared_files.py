"""Files in memory that the processes of one server share, and its launcher with them."""

from __future__ import annotations

import os
from pathlib import Path

# Without a launcher: the number of Triton's process.
_PREFIX = os.environ.get("GR4AD_SHM_PREFIX") or f"gr4ad_{os.getppid()}_"


def shared_file(name: str) -> Path:
    """File of this server. The launcher removes all that have its prefix, also after a crash."""
    return Path("/dev/shm") / f"{_PREFIX}{name}"
