"""Bulk builds: seconds, peak memory, and what a reader of the result costs. Each in a process of its own."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.live_index.deployment import build_index
from serving.index.reader import IndexReader

LEVEL_SIZES = (4096, 1024, 256)
_LOOKUPS = 2_000


def measure(
    run: Path, *, ads: int, many: int, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Build `ads` and `many` ads with given SIDs, and read the first."""
    folder = run / "build"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    say(f"build: {ads:,} ads")
    small = _apart("build", folder / "small", ads)
    say("build: reader")
    read = _apart("read", folder / "small", ads)
    shutil.rmtree(folder / "small")
    say(f"build: {many:,} ads")
    large = _apart("build", folder / "large", many)
    shutil.rmtree(folder)
    return {
        "ads": ads,
        "many": many,
        "build_1m_s": small["seconds"],
        "build_1m_file_mb": small["file_mb"],
        "build_10m_s": large["seconds"],
        "build_10m_peak_gb": large["peak_gb"],
        "build_10m_file_mb": large["file_mb"],
        "reader_start_s": read["start_s"],
        "reader_bytes_per_ad": read["bytes_per_ad"],
    }


def private_bytes(process: int | str = "self") -> int:
    """Memory that a process has written and shares with nobody; mapped files do not count."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


def _apart(job: str, index: Path, ads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.live_index.build", job, str(index), str(ads)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(f"{job} of {ads} ads failed: {found.stderr[-2000:]}")
    return json.loads(found.stdout.splitlines()[-1])


def _build(index: Path, ads: int) -> dict[str, Any]:
    seconds = build_index(index, ads=ads, level_sizes=LEVEL_SIZES, tokenizer_id="seeded")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # mapped pages of the store included
    size = sum(f.stat().st_blocks * 512 for f in index.rglob("*") if f.is_file())
    return {"seconds": seconds, "peak_gb": peak / 1e9, "file_mb": size / 1e6}


def _read(index: Path, ads: int) -> dict[str, Any]:
    before, began = private_bytes(), time.monotonic()
    reader = IndexReader(index)
    snapshot = reader.snapshot
    start_s = time.monotonic() - began
    random = np.random.default_rng(0)
    for _ in range(10):
        sids, known = snapshot.sids_of(random.integers(1, ads + 1, _LOOKUPS))
        leaves = snapshot.leaves_of(sids)
        rows, _ = snapshot.ads_of_leaves(leaves)
        if not known.all() or len(rows) < _LOOKUPS:
            raise RuntimeError("the reader does not find the ads that were built")
    return {"start_s": start_s, "bytes_per_ad": (private_bytes() - before) / ads}


if __name__ == "__main__":
    print(json.dumps({"build": _build, "read": _read}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))))
