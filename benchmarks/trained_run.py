"""A run with a trained model, its bundle and an index: the demo's, or a small one made here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from training.loop.retention import has_checkpoint

STEPS = 300  # of a small model: a few minutes, and peaky enough to be pruned


def trained_run(demo: Path, work: Path, *, config: str) -> Path:
    """`demo` where it has a trained model, else a small one of the preset's data below `work`; both exported.

    Raises:
        CalledProcessError: a step failed; it has said why.
    """
    run = demo if has_checkpoint(demo / "model") else work / "trained"
    if run != demo:
        few = ["--set", f"training.steps={STEPS}", "--set", f"training.validate_every={STEPS}"]
        data = run / "data"
        _step("training.data.prepare", ["--config", config, "--out", data])
        _step("training.tokenizer", ["--config", config, "--data", data, "--out", run / "tokenizer"])
        _step("training.recipes.pretrain", ["--config", config, *few, "--run", run])
    _step("export", ["--config", config, "--run", run, "--repository", work / "trained_repository"])
    tables = ["--ads", run / "data" / "ads.parquet", "--sids", run / "tokenizer" / "sids.parquet"]
    _step("indexer", ["build", "--bundles", run / "bundles", *tables, "--out", run / "index"])
    return run


def _step(module: str, arguments: Sequence[str | Path]) -> None:
    """One of the commands behind `make demo`; what is up to date is not done again."""
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)
