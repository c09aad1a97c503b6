"""A small purchase log on disk that a small model can learn: every user repeats a few ads, in turn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

from tests.pipeline import small_ads
from training.data.prepare import prepare
from training.data.prepared import load_prepared
from training.data.samples import RequestDataset
from training.preset.data import DataConfig
from training.preset.preset import Preset
from training.preset.tokenizer import TokenizerConfig
from training.run import RunData
from training.spec import ModelSpec
from training.tokenizer.tokenizer import Tokenizer

DAY = 86_400
CONFIG = {
    "data": {
        "source": "parquet",
        "path": "",
        "split": {"by": "weeks", "validation": 1, "test": 1},
        "target_behaviors": ["conversion"],
    },
    "features": {"short_slots": 4, "long_slots": 4, "max_history": 32},
    "model": {"layers": 3, "shared_layers": 2, "width": 16, "heads": 2, "value_buckets": 4},
    "training": {
        "steps": 40,
        "batch_size": 8,
        "targets_per_request": 2,
        "learning_rate": 0.01,
        "warmup_steps": 4,
        "validate_every": 20,
        "validation_requests": 12,
        "min_history": 3,
        "threads": 1,
    },
    "evaluation": {"requests": 30, "cutoffs": [1, 5], "widths": "4-8-16:1"},
}


def open_run(run: tuple[Path, Path], *overrides: str) -> tuple[Preset, ModelSpec, RequestDataset]:
    """What `write_run` wrote, as a new model would be trained on it."""
    preset, data = Preset.load(run[0], overrides), RunData.load(run[1])
    spec = data.fit_spec(preset)
    return preset, spec, data.dataset(spec)


def write_run(folder: Path, *, users: int = 12, seed: int = 0) -> tuple[Path, Path]:
    """Tables, prepared data, tokenizer and SIDs; returns the preset (YAML) and the run folder."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        own = random.choice(60, 4, replace=False)
        for day in range(0, 49, 2):
            for ad in {int(own[day // 2 % 4]), int(random.choice(own))}:
                rows.append(
                    (
                        user,
                        ad,
                        day * DAY + user,
                        "conversion",
                        float(np.round(random.exponential(3) + 0.1, 2)),
                        "made up",
                    )
                )
            rows.append((user, int(random.integers(60)), day * DAY + 3600, "impression", 0.0, "made up"))
    names = ["user_id", "ad_id", "timestamp", "behavior", "value", "provenance"]
    return run_of(folder, pl.DataFrame(rows, schema=names, orient="row"), users=users, config=CONFIG)


def run_of(folder: Path, events: pl.DataFrame, *, users: int, config: dict) -> tuple[Path, Path]:
    """A run of these events of users 0, 1, .. and ads 0 .. 59; returns preset (YAML) and run folder."""
    source, run = folder / "source", folder / "run"
    source.mkdir(parents=True)
    small_ads().write_parquet(source / "ads.parquet")
    pl.DataFrame(
        {"user_id": np.arange(users), "age": [("old", "young")[u % 2] for u in range(users)]}
    ).write_parquet(source / "users.parquet")
    events.write_parquet(source / "events.parquet")
    content = config | {"data": config["data"] | {"path": str(source)}}
    preset = folder / "preset.yaml"
    preset.write_text(json.dumps(content))  # JSON is YAML
    prepare(DataConfig(**content["data"]), run / "data")
    tables = load_prepared(run / "data").tables
    # Figures that tests hold fast were made with these.
    words_alone = TokenizerConfig(
        embedding="tfidf_svd",
        quantizer="rq_kmeans",
        codebook_sizes=(6, 5),
        hash_size=16,
        embedding_dim=8,
    )
    tokenizer = Tokenizer.fit(tables.ads, words_alone)
    tokenizer.save(run / "tokenizer")
    codes = tokenizer.encode(tables.ads)
    pl.DataFrame(
        {"ad_id": tables.ads["ad_id"], **{f"s{t + 1}": codes[:, t] for t in range(3)}}
    ).write_parquet(run / "tokenizer" / "sids.parquet")
    return preset, run
