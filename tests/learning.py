"""What a trainer and a loop leave in a run folder for the console."""

import json
import time
from pathlib import Path
from typing import Any

from console.learning import CHECKPOINTS, LOOP_FILE


def write_learnt(run: Path, *, step: int, history: list[dict[str, Any]] | None = None, **more: Any) -> None:
    """A checkpoint of a trainer, as far as the console reads one."""
    folder = run / CHECKPOINTS / f"step-{step:06d}"
    folder.mkdir(parents=True)
    record = {"step": step, "time": time.time(), "offset": 10 * step, "lag_seconds": 4.5, "probe_loss": 3.25}
    record |= {"train_total": 3.5, "entropy": 2.0} | more
    (folder / "checkpoint.json").write_text(json.dumps({"history": [record] if history is None else history}))


def earned(**more: Any) -> dict[str, Any]:
    """A line of a loop."""
    line = {"at": time.time(), "seed": 0, "day": 12.5, "requests": 900, "failed": 0, "version": 7}
    return line | {"revenue_online": 1234.0, "revenue_frozen": 1000.0} | more


def write_earned(run: Path, **more: Any) -> None:
    """One line more in the file of a loop."""
    with (run / LOOP_FILE).open("a") as file:
        file.write(json.dumps(earned(**more)) + "\n")
