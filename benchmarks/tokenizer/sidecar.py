"""Whether the sidecar gives the whole catalogue the SIDs of its tokenizer, for every embedder, and how fast.

python -m benchmarks.tokenizer.sidecar --config configs/demo.yaml --data build/demo/data

Every embedder is fitted, exported and asked for each ad of the catalogue. Speed is that of ads whose texts
all differ, in calls of 256, per second of processor time. The demo's ads come with no embeddings: for `given`
seeded ones are drawn, of two modalities, a third of the ads without the second.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from export.encoder import contents_of, write_encoder
from indexer.encode.bundle_encoder import open_encoder
from indexer.encode.encoder import Encoder
from training.preset.preset import Preset, add_preset_arguments
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer import kinds, vector_cache
from training.tokenizer.cooccurrence.baskets import read_baskets
from training.tokenizer.cooccurrence.positives import Cooccurrence

EMBEDDERS: tuple[str | tuple[str, ...], ...] = (
    "tfidf_svd",
    "bag",
    "given",
    "minilm",
    ("words", "given"),
    ("words", "minilm", "given"),
)
WIDTHS = (24, 8)
TIMED = {"minilm": 1024}  # ads; of an embedder without a sentence model 16,384
CALL = 256


@dataclass(frozen=True)
class Outcome:
    """What came of one embedder.

    Attributes:
        embedding: as in the preset.
        ads: of the catalogue.
        wrong: ads whose SID differs from the tokenizer's.
        ads_per_cpu_second: of distinct texts, in calls of `CALL`.
    """

    embedding: str
    ads: int
    wrong: int
    ads_per_cpu_second: float


def measure(ads: pl.DataFrame, config: TokenizerConfig, *, preset: Preset, data: Path, kept: Path) -> Outcome:
    """Fit, export and ask one embedder.

    Args:
        ads: the catalogue.
        config: of the tokenizer.
        preset: whose target behaviors baskets have.
        data: folder of the prepared data.
        kept: file of sentence vectors, between runs.
    """
    cooccurrence = None
    if config.learns_from_baskets and preset.data:
        baskets = read_baskets(
            data, part="train", behaviors=preset.data.target_behaviors, basket=config.cooccurrence.basket
        )
        cooccurrence = Cooccurrence(baskets)
    given = "given" in config.parts
    read = ads if given else ads.drop("embedding")
    train_end = json.loads((data / "split.json").read_text())["train_end"]
    tokenizer = kinds.fit(
        read,
        config,
        train_end=train_end,
        widths=WIDTHS if given else (),
        cooccurrence=cooccurrence,
        vector_file=kept,
    )
    with tempfile.TemporaryDirectory() as scratch:
        write_encoder(tokenizer, Path(scratch) / "encoder")
        encoder = open_encoder(Path(scratch) / "encoder")
        fields = read.select(
            "ad_id", "account_id", "conversion_type", "text", *(["embedding"] if given else [])
        )
        count = TIMED["minilm"] if "minilm" in config.parts else 16_384
        speed = _speed(encoder, fields.unique("text", maintain_order=True).head(count))
        found = encoder.encode(fields["ad_id"].to_numpy(), contents_of(fields))
    wrong = int((found != tokenizer.encode(read)).any(axis=1).sum())
    name = config.embedding if isinstance(config.embedding, str) else "+".join(config.embedding)
    return Outcome(name, ads.height, wrong, round(speed, 1))


def _speed(encoder: Encoder, ads: pl.DataFrame) -> float:
    ids, contents = ads["ad_id"].to_numpy(), contents_of(ads)
    began = time.process_time()
    for start in range(0, len(ids), CALL):
        encoder.encode(ids[start : start + CALL], contents[start : start + CALL])
    return len(ids) / (time.process_time() - began)


def with_vectors(ads: pl.DataFrame) -> pl.DataFrame:
    """Ads with seeded embeddings of two modalities; every third ad lacks the second."""
    vectors = np.random.default_rng(0).standard_normal((ads.height, sum(WIDTHS))).astype(np.float32)
    vectors[::3, WIDTHS[0] :] = 0
    return ads.with_columns(pl.Series("embedding", vectors.tolist(), dtype=pl.List(pl.Float32)))


def main() -> int:
    """Command line; the exit status says whether all SIDs are the tokenizer's."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tokenizer.sidecar",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_preset_arguments(parser)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("build/tokenizer/sidecar.json"))
    parser.add_argument("--only", nargs="*", default=[], help="embedders, a sum as words+minilm")
    arguments = parser.parse_args()
    preset = Preset.load(arguments.config, arguments.overrides)
    ads = with_vectors(pl.read_parquet(arguments.data / "ads.parquet"))
    chosen = [tuple(n.split("+")) if "+" in n else n for n in arguments.only] or EMBEDDERS
    outcomes = []
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for embedding in chosen:
        settings = preset.tokenizer.model_dump() | {"embedding": embedding}
        outcome = measure(
            ads,
            TokenizerConfig.model_validate(settings),
            preset=preset,
            data=arguments.data,
            kept=vector_cache.beside(arguments.out),
        )
        outcomes.append(outcome)
        print(
            f"{outcome.embedding:20} {outcome.wrong} of {outcome.ads:,} ads differ, "
            f"{outcome.ads_per_cpu_second:,.0f} ads a second and core",
            flush=True,
        )
    arguments.out.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
