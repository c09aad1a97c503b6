"""A run with a trained model, its bundle and an index: the demo's, or a small one made here."""

from __future__ import annotations

from pathlib import Path

from benchmarks.steps import run_step
from training.loop.retention import has_checkpoint

STEPS = 300  # of a small model: a few minutes, and peaky enough to be pruned


def trained_run(demo: Path, work: Path, *, config: str) -> Path:
    """`demo` where it has a trained model, else a small one of the preset's data below `work`; both exported.

    What is up to date is not done again.

    Raises:
        SystemExit: a step failed; it has said why.
    """
    run = demo if has_checkpoint(demo / "model") else work / "trained"
    preset = ["--config", config]
    if run != demo:
        few = ["--set", f"training.steps={STEPS}", "--set", f"training.validate_every={STEPS}"]
        data, tokenizer = ["--data", run / "data"], ["--out", run / "tokenizer"]
        run_step("training.data.prepare", *preset, "--out", run / "data")
        run_step("training.tokenizer", *preset, *data, *tokenizer)
        run_step("training.recipes.pretrain", *preset, *few, "--run", run)
    repository = ["--repository", work / "trained_repository"]
    run_step("export", *preset, *repository, "--run", run)
    tables = ["--ads", run / "data" / "ads.parquet", "--sids", run / "tokenizer" / "sids.parquet"]
    to = ["--bundles", run / "bundles", "--out", run / "index"]
    run_step("indexer", "build", *tables, *to)
    return run
