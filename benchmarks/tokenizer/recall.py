"""Whether `bag` lays together what is bought together, against `tfidf_svd`: R@1 / 5 / 10, three seeds.

python -m benchmarks.tokenizer.recall --data build/demo/data --out build/bench/recall.json
python -m benchmarks.tokenizer.recall --data build/demo/data --amazon FOLDER

The files of Amazon are not part of this repository, see `amazon.py` for what they are.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.tokenizer.amazon import Amazon, next_item_recall
from serving.files import write_file
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.cooccurrence.baskets import read_baskets
from training.tokenizer.cooccurrence.positives import find_positives
from training.tokenizer.embedders import EMBEDDERS
from training.tokenizer.recall import group_recall

CATEGORIES = ("Industrial_and_Scientific", "Office_Products")
BASELINE = "tfidf_svd"


def demo(data: Path, embeddings: Sequence[str], *, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row an embedder and seed: recall by group over the texts of a prepared log of completejourney."""
    ads = pl.read_parquet(data / "ads.parquet")
    texts, content = np.unique(ads["text"].to_numpy(), return_inverse=True)
    ids = ads["ad_id"].to_numpy()
    train, later = (
        read_baskets(data, part=part, behaviors=["conversion"]).contents(ids, content, count=len(texts))
        for part in ("train", "later")
    )
    rows = []
    for seed in seeds:
        for embedding in embeddings:
            config = TokenizerConfig.model_validate({"embedding": embedding, "seed": seed})
            start = time.process_time()
            found = group_recall(texts.tolist(), config, train=train, later=later)
            cpu_s = time.process_time() - start
            groups = {name: asdict(group) for name, group in found.items()}
            rows.append({"embedding": embedding, "seed": seed, "groups": groups, "cpu_s": cpu_s})
            print(
                f"completejourney  {embedding:10s} seed {seed}  {_line(groups)}  {cpu_s:.0f} CPU s",
                flush=True,
            )
    return rows


def amazon(
    folder: Path, category: str, *, embeddings: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """A row an embedder and seed: recall of the next item, learnt from valid and judged by test."""
    log = Amazon.load(folder, category)
    count = len(log.titles)
    baskets = log.baskets.contents(np.arange(count), np.arange(count), count=count)
    rows = []
    for seed in seeds:
        for embedding in embeddings:
            config = TokenizerConfig.model_validate({"embedding": embedding, "seed": seed})
            positives = find_positives(baskets, settings=config.cooccurrence)
            embedder = EMBEDDERS[embedding].fit(log.titles, config, positives=positives)
            recall = next_item_recall(embedder.embed(log.titles), log.last, log.following)
            rows.append({"embedding": embedding, "seed": seed, "recall": recall})
            print(f"{category}  {embedding:10s} seed {seed}  {_figures(recall)}", flush=True)
    return rows


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """R@1 of `bag` : R@1 of `tfidf_svd` by group, means over the seeds."""

    def mean(embedding: str, group: str) -> float:
        return float(
            np.mean([row["groups"][group]["recall"][1] for row in rows if row["embedding"] == embedding])
        )

    return {group: mean("bag", group) / mean(BASELINE, group) for group in ("warm", "kept out", "few")}


def _figures(recall: dict[int, float]) -> str:
    return " ".join(f"{value:.3f}" for value in recall.values())


def _line(groups: dict[str, dict[str, Any]]) -> str:
    return " | ".join(f"{name} ({g['anchors']}) {_figures(g['recall'])}" for name, g in groups.items())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tokenizer.recall",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="a prepared folder of the demo's log")
    parser.add_argument("--amazon", type=Path, help="a folder with the files of the two categories")
    parser.add_argument("--embeddings", nargs="+", default=[BASELINE, "bag"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("build/bench/recall.json"))
    arguments = parser.parse_args()
    embeddings, seeds = arguments.embeddings, arguments.seeds
    report: dict[str, Any] = {}
    if arguments.data:
        rows = demo(arguments.data, embeddings, seeds=seeds)
        report["completejourney"] = {"rows": rows}
        if {"bag", BASELINE} <= set(embeddings):
            report["completejourney"]["ratios"] = found = ratios(rows)
            print("R@1 bag : tfidf_svd  " + "  ".join(f"{name} {ratio:.2f}" for name, ratio in found.items()))
    for category in CATEGORIES if arguments.amazon else ():
        report[category] = {"rows": amazon(arguments.amazon, category, embeddings=embeddings, seeds=seeds)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_file(arguments.out, json.dumps(report, indent=2) + "\n")
    print(f"-> {arguments.out}")


if __name__ == "__main__":
    main()
