"""Fit a tokenizer and give every ad its SID.

python -m training.tokenizer --config configs/demo.yaml --data build/demo/data --out build/demo/tokenizer

With --keep the tokenizer in --out gives the new ads of newer logs their SIDs, so that a trained model goes
on; one of other settings is refused. What was published stays (`training.tokenizer.published`), and how far
the new ads are from those of the fit is told (`training.tokenizer.drift`).
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl

from serving.files import write_file
from serving.inputs import RECORD, Inputs, changes, is_up_to_date, named, summary
from training.preset.preset import Preset, add_preset_arguments
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer import kinds, vector_cache
from training.tokenizer.align import align
from training.tokenizer.cooccurrence.baskets import read_baskets
from training.tokenizer.cooccurrence.positives import Cooccurrence
from training.tokenizer.definitions import format_definitions
from training.tokenizer.drift import Drift, Spread
from training.tokenizer.fit_record import FIT, FitRecord, peak_memory_gb
from training.tokenizer.given_sids import GivenSids
from training.tokenizer.published import keep_published, load_published, write_published
from training.tokenizer.quality import SidQuality, Vectors, sid_quality
from training.tokenizer.report.command import main as report
from training.tokenizer.storage import MANIFEST
from training.tokenizer.tables import read_ads, read_split
from training.tokenizer.tokenizer import Tokenizer
from training.workers import Here, OnRay, Workers

_FITTED_ON = "the ads that the codebooks were fitted on"
_EVENTS, _BEHAVIORS = "data/events.parquet", "data.target_behaviors"
_OF_THE_FIT = (_FITTED_ON, _EVENTS, _BEHAVIORS)
_FILES = ("tokenizer.json", "sids.parquet", "quality.json")


def run(
    config: TokenizerConfig,
    data_dir: Path,
    *,
    out_dir: Path,
    keep: bool = False,
    numeric_columns: Sequence[str] = (),
    widths: Sequence[int] = (),
    target_behaviors: Sequence[str] = (),
    workers: Workers | None = None,
) -> SidQuality:
    """Fit on the ads known before the train end, encode all ads, write everything to `out_dir`.

    `numeric_columns`, `widths` (of `embedding_columns`) and `target_behaviors` are those of section `data`;
    `workers` count what is bought together, None for this process. Vectors that take long are kept beside
    `out_dir`, see `training.tokenizer.vector_cache`.

    `data_dir` holds ads.parquet (created_at in unix seconds), split.json with `train_end` in unix seconds,
    and events.parquet, of whose training part an embedder may learn.
    `out_dir` gets the tokenizer, sids.parquet (ad_id Int64, s1 .. sT Int32), quality.json, fit.json and
    drift.json; with `keep` it has a tokenizer already, which stays as it is.

    Raises:
        ValueError: a table or setting is unusable; the message says which.
        OSError: a file is missing.
    """
    data_dir, out_dir = Path(data_dir), Path(out_dir)
    train_end, _ = read_split(data_dir)
    ads = read_ads(data_dir)
    known = int((ads["created_at"] < train_end).sum())
    print(f"{ads.height:,} ads, {known:,} of them before the train end", flush=True)

    vector_file = vector_cache.beside(out_dir)
    older = None if keep else kinds.load_older(config, vector_file=vector_file)
    start = time.perf_counter()
    tokenizer = (
        _kept(out_dir, config, numeric_columns=numeric_columns, widths=widths)
        if keep
        else kinds.fit(
            ads,
            config,
            train_end=train_end,
            numeric_columns=numeric_columns,
            widths=widths,
            cooccurrence=_cooccurrence(config, data_dir, behaviors=target_behaviors, workers=workers),
            older=older,
            vector_file=vector_file,
        )
    )
    fitted, peak_gb = time.perf_counter(), peak_memory_gb()
    codes = tokenizer.encode(ads)
    encoded = time.perf_counter()
    same = kinds.saved_id(out_dir) == tokenizer.tokenizer_id
    published = load_published(out_dir) if same else None
    table = _table(ads, codes, published=published, tokenizer=tokenizer)
    sids = table.drop("ad_id").to_numpy()
    vectors = tokenizer.vectors_behind(ads, sids) if isinstance(tokenizer, Tokenizer) else None
    quality = sid_quality(sids, tokenizer.level_sizes, vectors=vectors)

    (out_dir / RECORD).unlink(missing_ok=True)
    if not same:
        tokenizer.save(out_dir)
    write_published(out_dir, table, before=published)
    if vectors is not None:
        created = ads["created_at"].to_numpy()
        if not keep:
            spread = _spread(vectors, sids, rows=created < train_end)
            rate = ads.height / (encoded - fitted)
            costs = {"fit_seconds": fitted - start, "fit_peak_gb": peak_gb, "encode_ads_per_s": rate}
            FitRecord(tokenizer.tokenizer_id, train_end, spread, **costs).save(out_dir)
        if older is not None and isinstance(tokenizer, Tokenizer):
            _align(tokenizer, older, ads=ads.filter(pl.col("created_at") < train_end), out_dir=out_dir)
        _tell_drift(vectors, sids, created=created, out_dir=out_dir)
    report = {"tokenizer_id": tokenizer.tokenizer_id, **asdict(quality), "definitions": format_definitions()}
    write_file(out_dir / "quality.json", json.dumps(report, indent=2) + "\n")
    print(f"tokenizer {tokenizer.tokenizer_id} -> {out_dir}")
    print(f"fit {fitted - start:.1f} s, encode {encoded - fitted:.1f} s\n")
    print(quality.format_table())
    return quality


def _table(
    ads: pl.DataFrame,
    codes: np.ndarray,
    *,
    published: pl.DataFrame | None,
    tokenizer: Tokenizer | GivenSids,
) -> pl.DataFrame:
    """SIDs of the ads, those that have one as it was published."""
    columns = {f"s{level + 1}": codes[:, level].astype(np.int32) for level in range(codes.shape[1])}
    table = pl.DataFrame({"ad_id": ads["ad_id"].cast(pl.Int64), **columns})
    if published is None:
        return table
    table, moved = keep_published(table, published)
    if len(moved) and isinstance(tokenizer, GivenSids):
        raise ValueError(
            f"ad {moved[0]}: expected the SID that it was published with, the table gives another one (and "
            f"{len(moved) - 1} more such ads): a model knows ads by their SIDs; train a new one with --fresh "
            "or in another folder"
        )
    new = table.join(published, on="ad_id", how="anti").height
    print(f"{new:,} ads are new; {len(moved):,} that have changed keep their published SID", flush=True)
    return table


def _spread(vectors: Vectors, sids: np.ndarray, *, rows: np.ndarray) -> Spread:
    return Spread.of(vectors.x[rows], sids[rows, :-1], decoded=vectors.decoded[rows])


def _tell_drift(vectors: Vectors, sids: np.ndarray, *, created: np.ndarray, out_dir: Path) -> None:
    fit = FitRecord.load(out_dir)
    if fit is None:
        print(f"drift: not known, {out_dir} was fitted before there was a {FIT}", flush=True)
        return
    new = _spread(vectors, sids, rows=created >= fit.fitted_until)
    drift = Drift.between(fit.spread, new, codes=sids[:, :-1])
    drift.save(out_dir)
    print(f"drift of {drift.new.ads:,} ads since the fit: {drift.why}", flush=True)


def _align(tokenizer: Tokenizer, older: Tokenizer, *, ads: pl.DataFrame, out_dir: Path) -> None:
    alignment = align(tokenizer, older, ads=ads)
    alignment.save(out_dir)
    kept = ", ".join(f"{share:.1%}" for share in alignment.agreement)
    print(f"aligned to {alignment.aligned_to}: ads whose codes up to each level go on: {kept}", flush=True)


def _cooccurrence(
    config: TokenizerConfig, data_dir: Path, *, behaviors: Sequence[str], workers: Workers | None
) -> Cooccurrence | None:
    if not config.learns_from_baskets:
        return None
    baskets = read_baskets(data_dir, part="train", behaviors=behaviors, basket=config.cooccurrence.basket)
    return Cooccurrence(baskets, workers=workers, scratch=data_dir)


def _inputs(
    config: TokenizerConfig, data_dir: Path, *, out_dir: Path, behaviors: Sequence[str], keep: bool
) -> Inputs:
    """What tokenizer and SIDs are made from; one that is kept was fitted on an earlier log."""
    before = Inputs.load(out_dir / RECORD)
    values, ads = named("tokenizer", config.model_dump(mode="json")), "data/ads.parquet"
    files = {ads: data_dir / "ads.parquet"}
    if config.learns_from_baskets and not keep:
        values[_BEHAVIORS] = list(behaviors)
        files[_EVENTS] = data_dir / "events.parquet"
    older = None if config.align_to is None or keep else Path(config.align_to)
    if older is not None and older.resolve() != out_dir.resolve():
        files["the tokenizer of tokenizer.align_to"] = older / MANIFEST
    if config.instructions is not None:
        files["the file of tokenizer.instructions"] = Path(config.instructions)
    # One that is missing is told by whoever reads it.
    files = {name: path for name, path in files.items() if name == ads or path.exists()}
    found = Inputs.now(values, files=files, before=before)
    fitted = {_FITTED_ON: f"{found.values[ads][:16]} before {read_split(data_dir)[0]}"}
    if keep:
        was = before.values if before else {}
        fitted = {_FITTED_ON: ""} | {name: was[name] for name in _OF_THE_FIT if name in was}
    return replace(found, values=found.values | fitted)


def _kept(
    folder: Path, config: TokenizerConfig, *, numeric_columns: Sequence[str], widths: Sequence[int]
) -> Tokenizer | GivenSids:
    tokenizer = kinds.load(folder, vector_file=vector_cache.beside(folder))
    if not kinds.is_made_with(tokenizer, config, numeric_columns=numeric_columns, widths=widths):
        was = named("tokenizer", tokenizer.config.model_dump(mode="json"))
        was["data.numeric_columns"] = list(getattr(tokenizer, "numeric_columns", ()))
        was["widths of data.embedding_columns"] = list(getattr(tokenizer, "widths", ()))
        now = named("tokenizer", config.model_dump(mode="json"))
        now["data.numeric_columns"] = list(numeric_columns)
        now["widths of data.embedding_columns"] = list(widths)
        raise ValueError(
            f"{folder}: {summary(changes(was, now))}: a model that was trained on these SIDs would no longer "
            "know its ads; set it back, or start over with another tokenizer and model (make tokenize train "
            "FRESH=1, or another RUN)"
        )
    return tokenizer


def main() -> None:
    """Command line; `report` as the first word is a command of its own."""
    if sys.argv[1:2] == ["report"]:
        report(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m training.tokenizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_preset_arguments(parser)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", action="store_true", help="encode with the tokenizer in --out, fit none")
    parser.add_argument("--fresh", action="store_true", help="make it again, changed or not")
    parser.add_argument("--ray", action="store_true", help="count what is bought together on Ray")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        preset = Preset.load(arguments.config, arguments.overrides)
        config, out, keep = preset.tokenizer, arguments.out, arguments.keep
        logs = preset.data
        behaviors = logs.target_behaviors if logs else ()
        inputs = _inputs(config, arguments.data, out_dir=out, behaviors=behaviors, keep=keep)
        outputs = [out / name for name in _FILES]
        if not is_up_to_date(out / RECORD, inputs, outputs=outputs, fresh=arguments.fresh):
            run(
                config,
                arguments.data,
                out_dir=out,
                keep=keep,
                numeric_columns=logs.numeric_columns if logs else (),
                widths=logs.embedding_widths if logs else (),
                target_behaviors=behaviors,
                workers=OnRay() if arguments.ray else Here(),
            )
            inputs.save(out / RECORD)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
