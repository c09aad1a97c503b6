"""Everything that a report shows, as numbers.

Letters: A ads, T levels, D dimensions, P points of the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from serving.files import read_object
from training.tokenizer import kinds, vector_cache
from training.tokenizer.alignment import Alignment
from training.tokenizer.drift import DRIFT
from training.tokenizer.fit_record import FitRecord
from training.tokenizer.published import SIDS
from training.tokenizer.quality import SidQuality, reconstruction, sid_quality
from training.tokenizer.report.map import AdMap, draw_map
from training.tokenizer.report.stages import Recall, measure_recall
from training.tokenizer.report.tree import Node, Words, grow, spread_codes
from training.tokenizer.tables import read_ads, read_split
from training.tokenizer.tokenizer import Tokenizer

CLUSTERS = 8  # codes of the first level that are shown


@dataclass(frozen=True, eq=False)
class Figures:
    """Of one tokenizer and its SIDs; what a tokenizer of given SIDs cannot have is None or empty.

    Attributes:
        tokenizer_id: whose.
        settings: as they are stored with it.
        quality: of the SIDs.
        levels: ads of each code, int64 [K], of each level, the hash level last.
        lost: reconstruction error after the first 1, 2, .. levels, see `quality.reconstruction`.
        recall: of neighbours; None without texts, or without baskets that say anything.
        tree: some codes of the first level, from the fullest to the emptiest.
        map: of distinct texts.
        fit: what the fit cost; None for a tokenizer from before that was kept.
        drift: content of drift.json.
        alignment: to an older tokenizer.
    """

    tokenizer_id: str
    settings: dict[str, Any]
    quality: SidQuality
    levels: list[np.ndarray]
    lost: list[float | None]
    recall: Recall | None
    tree: list[Node]
    map: AdMap | None
    fit: FitRecord | None
    drift: dict[str, Any] | None
    alignment: Alignment | None

    @classmethod
    def measure(cls, folder: Path, *, data_dir: Path, behaviors: Sequence[str]) -> Figures:
        """Measure the tokenizer in a folder and the SIDs that it has given to the ads of a log.

        Raises:
            TokenizerError: there is no sound tokenizer.
            ValueError: an ad has no SID; or see `measure_recall`.
            OSError: a file is missing.
        """
        tokenizer = kinds.load(folder, vector_file=vector_cache.beside(folder))
        ads = read_ads(data_dir)
        table = ads.select("ad_id").join(
            pl.read_parquet(folder / SIDS), on="ad_id", how="left", maintain_order="left"
        )
        if missing := table["s1"].null_count():
            raise ValueError(
                f"{folder / SIDS}: expected a SID for every ad, {missing} have none: make tokenize"
            )
        sids = table.drop("ad_id").to_numpy()
        fit = FitRecord.load(folder)
        until = fit.fitted_until if fit else read_split(data_dir)[0]
        reads_texts, levels = "text" in ads.columns, enumerate(tokenizer.level_sizes)
        common: dict[str, Any] = {
            "tokenizer_id": tokenizer.tokenizer_id,
            "settings": tokenizer.config.to_json(),
            "levels": [np.bincount(sids[:, t], minlength=size) for t, size in levels],
            "fit": fit,
            "drift": read_object(folder / DRIFT) if (folder / DRIFT).exists() else None,
            "alignment": Alignment.load(folder),
        }
        if not isinstance(tokenizer, Tokenizer):
            tree = _tree(ads, sids) if reads_texts else []
            quality = sid_quality(sids, tokenizer.level_sizes)
            return cls(**common, quality=quality, lost=[], recall=None, tree=tree, map=None)
        vectors = tokenizer.vectors_behind(ads, sids)
        recall = None
        if tokenizer.config.reads_texts:
            recall = measure_recall(
                tokenizer, ads, data_dir=data_dir, behaviors=behaviors, fitted_until=until
            )
        return cls(
            **common,
            quality=sid_quality(sids, tokenizer.level_sizes, vectors=vectors),
            # `reconstruct` leaves the last column out, the hash level.
            lost=[
                reconstruction(vectors.x, tokenizer.reconstruct(sids[:, : level + 1]))
                for level in range(1, sids.shape[1])
            ],
            recall=recall,
            tree=_tree(ads, sids[:, :-1]) if reads_texts else [],
            map=draw_map(tokenizer, ads, sids) if reads_texts else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for what is not known."""
        ratios = {
            f"r1_{key}_ratio": self.recall.ratio(group) if self.recall else None
            for key, group in (("warm", "warm"), ("heldout", "kept out"), ("few", "few"))
        }
        costs = ("fit_seconds", "fit_peak_gb", "encode_ads_per_s")
        return {
            "tokenizer_id": self.tokenizer_id,
            **ratios,
            "collision": self.quality.collision,
            "collision_floor": self.quality.collision_floor,
            "compression": self.quality.compression,
            **{f"gini_{t}": gini for t, gini in enumerate(self.quality.gini, start=1)},
            "dead_codes": sum(self.quality.dead_codes),
            **{name: getattr(self.fit, name) if self.fit else None for name in costs},
            "ads": self.quality.ads,
            "utilisation": self.quality.utilisation,
            "largest_bucket": list(self.quality.largest),
            "reconstruction": self.lost,
            "path_similarity": self.quality.path_similarity,
            "recall": self.recall.to_json() if self.recall else None,
            "recall_anchors": self.recall.anchors if self.recall else None,
            "drift": self.drift,
            "aligned_to": self.alignment.aligned_to if self.alignment else None,
            "agreement": list(self.alignment.agreement) if self.alignment else None,
            "settings": self.settings,
            "clusters": [asdict(node) for node in self.tree],
        }


def _tree(ads: pl.DataFrame, codes: np.ndarray) -> list[Node]:
    words = Words(ads["text"].to_list())
    return grow(codes, words, first=spread_codes(codes[:, 0], count=CLUSTERS))
