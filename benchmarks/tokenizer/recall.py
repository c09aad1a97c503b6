"""Whether an embedder lays together what is bought together, against words alone: R@1 / 5 / 10, three seeds.

python -m benchmarks.tokenizer.recall --data build/demo/data --out build/bench/recall.json
python -m benchmarks.tokenizer.recall --amazon FOLDER --embeddings raw_minilm tfidf_svd minilm words,minilm

The files of Amazon are not part of this repository, see `amazon.py` for what they are. Settings of the
embedders are those of the preset, `--set tokenizer.embedding_dim=128` and so on; `--judge valid` is for
choosing them.
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

from benchmarks.tokenizer.amazon import Amazon, next_item_recall
from serving.files import write_file
from training.preset.preset import Preset, add_preset_arguments
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer import vector_cache
from training.tokenizer.contents import contents_of
from training.tokenizer.cooccurrence.baskets import read_baskets
from training.tokenizer.embedders.minilm import MiniLm
from training.tokenizer.recall import fit_embedder, group_recall
from training.tokenizer.tables import read_ads

CATEGORIES = ("Industrial_and_Scientific", "Office_Products")
BASELINE = "tfidf_svd"
RAW = "raw_minilm"  # the sentence vectors themselves, 384 numbers


def demo(
    data: Path, embeddings: Sequence[Any], *, seeds: Sequence[int], base: TokenizerConfig, vector_file: Path
) -> list[dict[str, Any]]:
    """A row an embedder and seed: recall by group over the texts of a prepared log of completejourney."""
    ads = read_ads(data)
    parts = [read_baskets(data, part=part, behaviors=["conversion"]) for part in ("train", "later")]
    rows = []
    for seed in seeds:
        for embedding in embeddings:
            config = _config(base, embedding, seed=seed)
            content, of = contents_of(ads, config, vector_file=vector_file)
            train, later = (
                baskets.contents(ads["ad_id"].to_numpy(), of, count=len(content)) for baskets in parts
            )
            start = time.process_time()
            found = group_recall(content, config, train=train, later=later)
            cpu_s = time.process_time() - start
            groups = {name: asdict(group) for name, group in found.items()}
            rows.append({"embedding": embedding, "seed": seed, "groups": groups, "cpu_s": cpu_s})
            print(
                f"completejourney  {_name(embedding):14s} seed {seed}  {_line(groups)}  {cpu_s:.0f} CPU s",
                flush=True,
            )
    return rows


def amazon(
    log: Amazon,
    category: str,
    *,
    embeddings: Sequence[Any],
    seeds: Sequence[int],
    base: TokenizerConfig,
    vector_file: Path,
) -> list[dict[str, Any]]:
    """A row an embedder and seed: recall of the next item; one row of the sentence vectors themselves."""
    ads, rows = log.ads(), []

    def found(embedding: Any, vectors: np.ndarray, *, seed: int | None, cpu_s: float) -> None:
        recall = next_item_recall(vectors, log.last, log.following)
        rows.append({"embedding": embedding, "seed": seed, "recall": recall, "cpu_s": cpu_s})
        said = "" if seed is None else f"seed {seed}"
        print(
            f"{category}  {_name(embedding):14s} {said:6s}  {_figures(recall)}  {cpu_s:.0f} CPU s", flush=True
        )

    for seed in seeds:
        for embedding in embeddings:
            config = _config(base, embedding, seed=seed)
            content, of = contents_of(ads, config, vector_file=vector_file)
            start = time.process_time()
            if embedding == RAW:
                if seed == seeds[0]:  # nothing is drawn
                    found(
                        RAW, MiniLm.opened().embed(content)[of], seed=None, cpu_s=time.process_time() - start
                    )
                continue
            baskets = log.baskets.contents(ads["ad_id"].to_numpy(), of, count=len(content))
            vectors = fit_embedder(content, config, baskets).embed(content)[of]
            found(embedding, vectors, seed=seed, cpu_s=time.process_time() - start)
    return rows


def _config(base: TokenizerConfig, embedding: Any, *, seed: int) -> TokenizerConfig:
    named = "minilm" if embedding == RAW else embedding
    return TokenizerConfig.model_validate(base.model_dump() | {"embedding": named, "seed": seed})


def _embedding(word: str) -> str | list[str]:
    """An embedding as the command line names it: a list has commas."""
    return word.split(",") if "," in word else word


def _name(embedding: str | list[str]) -> str:
    return embedding if isinstance(embedding, str) else ",".join(embedding)


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
    add_preset_arguments(parser, default="configs/demo.yaml")
    parser.add_argument("--data", type=Path, help="a prepared folder of the demo's log")
    parser.add_argument("--amazon", type=Path, help="a folder with the files of the two categories")
    parser.add_argument(
        "--judge", choices=["test", "valid"], default="test", help="rows of Amazon that judge"
    )
    parser.add_argument("--embeddings", nargs="+", type=_embedding, default=[BASELINE, "bag"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("build/bench/recall.json"))
    arguments = parser.parse_args()
    embeddings, seeds = arguments.embeddings, arguments.seeds
    common: dict[str, Any] = {
        "seeds": seeds,
        "base": Preset.load(arguments.config, arguments.overrides).tokenizer,
        "vector_file": vector_cache.beside(arguments.out),
    }
    report: dict[str, Any] = {}
    if arguments.data:
        rows = demo(arguments.data, [e for e in embeddings if e != RAW], **common)
        report["completejourney"] = {"rows": rows}
        if "bag" in embeddings and BASELINE in embeddings:
            report["completejourney"]["ratios"] = found = ratios(rows)
            print("R@1 bag : tfidf_svd  " + "  ".join(f"{name} {ratio:.2f}" for name, ratio in found.items()))
    for category in CATEGORIES if arguments.amazon else ():
        log = Amazon.load(arguments.amazon, category, judge=arguments.judge)
        report[category] = {"rows": amazon(log, category, embeddings=embeddings, **common)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_file(arguments.out, json.dumps(report, indent=2) + "\n")
    print(f"-> {arguments.out}")


if __name__ == "__main__":
    main()
