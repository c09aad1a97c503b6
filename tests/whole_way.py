"""An advertiser's tables on their whole way, by the commands of the Makefile, in this process."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl

from indexer.encode.bundle_encoder import load_encoder
from indexer.events.parse import parse_event
from indexer.store.incoming import Incoming, Outcome
from indexer.store.index_store import IndexStore
from launcher.triton_server import TritonServer

DAY = 86_400
FEATURES = {"short_slots": 4, "long_slots": 4, "max_history": 32}
MODEL = {"layers": 3, "shared_layers": 2, "width": 16, "heads": 2, "value_buckets": 4}
TRAINING = {
    "steps": 20,
    "batch_size": 8,
    "targets_per_request": 2,
    "warmup_steps": 4,
    "validate_every": 20,
    "validation_requests": 12,
    "threads": 1,
}
SERVING = {
    "widths": "4-8-16:6",
    "max_num_ads": 40,
    "max_exclude": 50,
    "max_batch_size": 8,
    "load_control": "fixed",
    "cache": "off",
}


def write_tables(folder: Path, **tables: pl.DataFrame) -> Path:
    """ads, users, events as Parquet."""
    folder.mkdir(parents=True)
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")
    return folder


def purchases(*, users: int, ads: int, days: int = 49) -> pl.DataFrame:
    """Sequences: every other day each user buys one of three ads of its own, or sees another."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(users):
        own = random.choice(ads, 3, replace=False)
        for day in range(0, days, 2):
            value = float(np.round(random.exponential(3) + 0.1, 2))
            rows.append((user, int(own[day // 2 % 3]), day * DAY + user, "conversion", value, "made up"))
    names = ["user_id", "ad_id", "timestamp", "behavior", "value", "provenance"]
    return pl.DataFrame(rows, schema=names, orient="row")


def tables_with_sids(folder: Path) -> Path:
    """Ten users and fifty ads that bring their semantic IDs."""
    random = np.random.default_rng(1)
    sids = {f"sid_{level}": random.integers(0, size, 50) for level, size in enumerate((6, 5, 7))}
    return write_tables(
        folder,
        ads=pl.DataFrame({"ad_id": np.arange(50), **sids}),
        users=pl.DataFrame({"user_id": np.arange(10)}),
        events=purchases(users=10, ads=50),
    )


class WholeWay:
    """One run, step by step."""

    def __init__(self, folder: Path, *, tables: Path, data: dict, **sections: dict) -> None:
        """Write the preset; `data` and `sections` add to what is small."""
        self.run, self.repository = folder / "run", folder / "run" / "model_repository"
        self.preset = folder / "preset.yaml"
        content = {
            "data": {"source": "parquet", "path": str(tables), "attribution_window": 0, **data},
            "features": FEATURES,
            "model": MODEL,
            "training": TRAINING,
            "evaluation": {"requests": 20, "cutoffs": [1, 5], "widths": "4-8-16:1"},
            "serving": SERVING,
        } | sections
        self.preset.write_text(json.dumps(content))  # JSON is YAML

    def command(self, module: str, *arguments: object) -> None:
        """`python -m MODULE ARGUMENTS`, but for a process."""
        main = importlib.import_module(module).main
        with mock.patch.object(sys, "argv", [module, *map(str, arguments)]):
            status = main()
        assert not status, f"{module}: status {status}"

    def data(self) -> None:
        """Make data."""
        self.command("training.data.prepare", "--config", self.preset, "--out", self.run / "data")

    def to_index(self) -> None:
        """Make data tokenize train evaluate export index."""
        config, run = ("--config", self.preset), ("--run", self.run)
        data, tokenizer = self.run / "data", self.run / "tokenizer"
        self.data()
        self.command("training.tokenizer.__main__", *config, "--data", data, "--out", tokenizer)
        self.command("training.recipes.pretrain", *config, *run)
        self.command("training.evaluation.__main__", *config, *run)
        self.command("export.__main__", *config, *run, "--repository", self.repository)
        self.command(
            "indexer.__main__",
            "build",
            *("--bundles", self.run / "bundles"),
            *("--ads", data / "ads.parquet"),
            *("--sids", tokenizer / "sids.parquet"),
            *("--out", self.run / "index"),
        )

    def event(self, **fields: object) -> Outcome:
        """One event of an ad, as the sidecar takes it."""
        raw = json.dumps(fields).encode()
        encoder = load_encoder(self.run / "bundles" / "1")
        with IndexStore(self.run / "index", encoders=[encoder]) as store:
            return store.apply([Incoming(parse_event(raw), raw, "test")])[0]

    def sid(self, ad_id: int) -> tuple[int, ...]:
        """Of an ad in the index."""
        with IndexStore(self.run / "index") as store:
            (sid,) = store.ad(ad_id).sids.values()
            return sid

    def versions(self, command: str, *more: object) -> None:
        """Python -m export publish, rollback or pin."""
        where = ("--run", self.run, "--repository", self.repository)
        self.command("export.__main__", command, "--config", self.preset, *where, *more)

    def serve(self) -> TritonServer:
        """Make serve; a context."""
        return TritonServer(self.repository)

    def request(self, server: TritonServer, user: int) -> None:
        """Make request, which ends with status 1 if the answer is wrong."""
        self.command("examples.request", "--run", self.run, "--url", server.grpc_url, "--user", user)
