"""Quantizers on one set of vectors, three seeds; and how long `balanced` takes on a large one.

python -m benchmarks.tokenizer.quantizers --tokenizer build/demo/tokenizer --data build/demo/data
/usr/bin/time -v python -m benchmarks.tokenizer.quantizers --points 1000000 --sizes 4096 1024

The first takes the embedder of a fitted tokenizer; quantizers learn from the ads before the train end and are
judged over all ads. The last row is the papers' plain baseline: three content levels, no hash.
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
from threadpoolctl import threadpool_limits

from serving.files import write_file
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.quality import SidQuality, Vectors, gini, sid_quality
from training.tokenizer.quantizers import QUANTIZERS
from training.tokenizer.tokenizer import Tokenizer

KINDS = ("balanced", "rq_kmeans", "rq_kmeans_plus", "fsq")
DIM, HEAPS = 64, 20_000


def compare(tokenizer: Tokenizer, data: Path, *, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row a quantizer and seed."""
    ads = pl.read_parquet(data / "ads.parquet")
    known = (ads["created_at"] < json.loads((data / "split.json").read_text())["train_end"]).to_numpy()
    (_, content), hashed = tokenizer.contents(ads), tokenizer.encode(ads)[:, -1:]
    first = np.unique(content, return_index=True)[1]
    x = tokenizer.vectors(ads)[first]  # [contents, D]
    weights = np.bincount(content, weights=known, minlength=len(x))
    rows = []
    for kind, seed in [(kind, seed) for kind in (*KINDS, "rq_kmeans, no hash") for seed in seeds]:
        no_hash = kind not in KINDS
        sizes = tokenizer.config.codebook_sizes
        if no_hash:
            sizes = (*sizes, tokenizer.config.hash_size)
        config = tokenizer.config.model_copy(update={"codebook_sizes": sizes, "seed": seed})
        start = time.process_time()
        quantizer = QUANTIZERS[kind.split(",")[0]].fit(x[weights > 0], config, weights=weights[weights > 0])
        cpu_s = time.process_time() - start
        codes = quantizer.encode(x)
        vectors = Vectors(content, x=x[content], decoded=quantizer.decode(codes)[content])
        # Without a hash, a last level of one code: every level before it is content.
        last = np.zeros_like(hashed) if no_hash else hashed
        quality = sid_quality(
            np.concatenate([codes[content], last], axis=1),
            (*sizes, 1 if no_hash else tokenizer.config.hash_size),
            vectors=vectors,
        )
        rows.append({"quantizer": kind, "seed": seed, "cpu_s": cpu_s, **asdict(quality)})
        print(f"{kind:18} seed {seed}  {_line(quality)}  {cpu_s:.0f} CPU s", flush=True)
    return rows


def large(points: int, sizes: Sequence[int]) -> None:
    """Fit `balanced` on points in heaps of very different size, on a sphere of `DIM` dimensions."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((HEAPS, DIM), np.float32)
    share = 1.0 / np.arange(10, HEAPS + 10)
    x = centres[random.choice(HEAPS, points, p=share / share.sum())]
    x += 0.5 * random.standard_normal((points, DIM), np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    start = time.process_time()
    quantizer = QUANTIZERS["balanced"].fit(x, TokenizerConfig(codebook_sizes=tuple(sizes)))
    fitted = time.process_time()
    codes = quantizer.encode(x)
    print(f"fit {fitted - start:.0f} CPU s, encode {time.process_time() - fitted:.0f} CPU s")
    for level, size in enumerate(sizes):
        ads = np.bincount(codes[:, level], minlength=size)
        print(
            f"level {level + 1}: Gini {gini(ads):.3f}, largest {ads.max() / ads.mean():.2f}, "
            f"dead {(ads == 0).sum()}"
        )


def _line(quality: SidQuality) -> str:
    ginis = " ".join(f"{g:.3f}" for g in quality.gini[:-1])
    largest = " ".join(f"{n:.2f}" for n in quality.largest[:-1])
    return (
        f"collision {quality.collision:.4f} (floor {quality.collision_floor:.4f})  compression "
        f"{quality.compression:.3f}  Gini {ginis}  largest {largest}  dead {sum(quality.dead_codes)}  "
        f"use of level 1 {quality.level_use[0]:.4f}  reconstruction {quality.reconstruction:.3f}  "
        f"path {quality.path_similarity:.4f}"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tokenizer.quantizers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokenizer", type=Path, help="folder of a fitted tokenizer, for its vectors")
    parser.add_argument("--data", type=Path, help="prepared tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="file of the rows, JSON")
    parser.add_argument("--points", type=int, help="points of the large run, made from a seed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 1024], help="of its levels")
    arguments = parser.parse_args()
    with threadpool_limits(limits=1):  # as `Tokenizer.fit`
        if arguments.points:
            large(arguments.points, arguments.sizes)
            return
        if not (arguments.tokenizer and arguments.data):
            parser.error("expected --tokenizer and --data, or --points")
        rows = compare(Tokenizer.load(arguments.tokenizer), arguments.data, seeds=arguments.seeds)
    if arguments.out:
        write_file(arguments.out, json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
