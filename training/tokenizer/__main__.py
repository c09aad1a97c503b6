"""Fit a tokenizer and give every ad its SID.

python -m training.tokenizer --config configs/demo.yaml --data build/demo/data --out build/demo/tokenizer

With --keep the tokenizer in --out gives the ads of newer logs their SIDs, so that a trained model goes on.
"""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from serving.files import new_file, write_file
from training.preset.preset import Preset, add_preset_arguments
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer import kinds
from training.tokenizer.given_sids import GivenSids
from training.tokenizer.quality import DEFINITIONS, SidQuality, sid_quality
from training.tokenizer.tokenizer import Tokenizer


def run(
    config: TokenizerConfig,
    data_dir: Path,
    *,
    out_dir: Path,
    keep: bool = False,
    numeric_columns: Sequence[str] = (),
) -> SidQuality:
    """Fit on the ads known before the train end, encode all ads, write everything to `out_dir`.

    `numeric_columns` are those of `data.numeric_columns`.

    `data_dir` holds ads.parquet (created_at in unix seconds) and split.json with `train_end` in unix seconds.
    `out_dir` gets the tokenizer, sids.parquet (ad_id Int64, s1 .. sT Int32) and quality.json; with `keep` it
    has a tokenizer already, which stays as it is.

    Raises:
        ValueError: a table or setting is unusable; the message says which.
        OSError: a file is missing.
    """
    data_dir, out_dir = Path(data_dir), Path(out_dir)
    split_file = data_dir / "split.json"
    train_end = json.loads(split_file.read_text()).get("train_end")
    if not isinstance(train_end, int):
        raise ValueError(f"{split_file}: expected train_end in unix seconds, got {train_end!r}")
    ads = pl.read_parquet(data_dir / "ads.parquet")
    known = int((ads["created_at"] < train_end).sum())
    print(f"{ads.height:,} ads, {known:,} of them before the train end", flush=True)

    start = time.perf_counter()
    tokenizer = (
        _kept(out_dir, config, numeric_columns)
        if keep
        else kinds.fit(ads, config, train_end=train_end, numeric_columns=numeric_columns)
    )
    fitted = time.perf_counter()
    sids = tokenizer.encode(ads)
    encoded = time.perf_counter()
    quality = sid_quality(sids, tokenizer.level_sizes)

    if not keep:
        tokenizer.save(out_dir)
    columns = {f"s{level + 1}": sids[:, level].astype(np.int32) for level in range(sids.shape[1])}
    with new_file(out_dir / "sids.parquet") as partial:
        pl.DataFrame({"ad_id": ads["ad_id"].cast(pl.Int64), **columns}).write_parquet(partial)
    report = {"tokenizer_id": tokenizer.tokenizer_id, **asdict(quality), "definitions": DEFINITIONS}
    write_file(out_dir / "quality.json", json.dumps(report, indent=2) + "\n")
    print(f"tokenizer {tokenizer.tokenizer_id} -> {out_dir}")
    print(f"fit {fitted - start:.1f} s, encode {encoded - fitted:.1f} s\n")
    print(quality.format_table())
    return quality


def _kept(
    folder: Path, config: TokenizerConfig, numeric_columns: Sequence[str]
) -> Tokenizer | GivenSids:
    tokenizer = kinds.load(folder)
    if not kinds.is_made_with(tokenizer, config, numeric_columns=numeric_columns):
        raise ValueError(f"{folder}: expected the tokenizer of {config}, it was made with {tokenizer.config}")
    return tokenizer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.tokenizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_preset_arguments(parser)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", action="store_true", help="encode with the tokenizer in --out, fit none")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        preset = Preset.load(arguments.config, arguments.overrides)
        run(
            preset.tokenizer,
            arguments.data,
            out_dir=arguments.out,
            keep=arguments.keep,
            numeric_columns=preset.data.numeric_columns if preset.data else (),
        )
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
