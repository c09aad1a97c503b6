"""A run folder (`data/`, `tokenizer/`), opened for training and evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
import torch

from serving.inputs import changes, named, summary
from serving.model.features import BEHAVIORS
from training.data.exportable import check_model
from training.data.parts import TRAIN
from training.data.prepared import Prepared, load_prepared
from training.data.profile import ProfileVocabulary
from training.data.samples import RequestDataset, load_sids
from training.data.values import ValueBuckets
from training.model.item_head import ItemSizes, KnownAds
from training.preset.preset import Preset
from training.preset.tokenizer import TokenizerConfig
from training.spec import ModelSpec
from training.tokenizer import kinds
from training.tokenizer.alignment import Alignment
from training.tokenizer.given_sids import GivenSids
from training.tokenizer.storage import read_folder
from training.tokenizer.vector_cache import beside


class SpecError(ValueError):
    """A model cannot go on, or be fed, with the preset or the data that are there now."""


# Other values leave shapes as they are, but not what a weight is for.
_PLACES = ("heads", "shared_layers", "value_buckets")
_MEANINGS = ("gap_edges_s", "request_features")  # of rows of embeddings


def shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Of all weights of a model, by name; none is made."""
    with torch.device("meta"):
        weights = spec.empty().state_dict()
    return {name: tuple(weight.shape) for name, weight in weights.items()}


@dataclass(frozen=True)
class RunData:
    """What is in a run folder before a model is.

    Attributes:
        folder: the run folder.
        prepared: tables, split, and the profile vocabulary that this log alone would give.
        sids: of every ad.
        level_sizes: of the tokenizer.
        tokenizer_id: whose SIDs they are.
        alignment: of the tokenizer's codes to those of an older one; None where it was aligned to none.
    """

    folder: Path
    prepared: Prepared
    sids: pl.DataFrame
    level_sizes: tuple[int, ...]
    tokenizer_id: str
    alignment: Alignment | None = None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a run folder.

        Raises:
            ValueError: a table or the tokenizer is broken.
            OSError: something is missing.
        """
        # Checked whole, but not built: that takes the packages that fit one, and nothing is encoded here.
        tokenizer_id, config, *_ = read_folder(folder / "tokenizer")
        return cls(
            folder=folder,
            prepared=load_prepared(folder / "data"),
            sids=load_sids(folder / "tokenizer"),
            level_sizes=TokenizerConfig.model_validate(config).level_sizes,
            tokenizer_id=tokenizer_id,
            alignment=Alignment.load(folder / "tokenizer"),
        )

    def fit_spec(self, preset: Preset) -> ModelSpec:
        """Specification of a new model: value buckets of the training targets, profile categories of the log.

        Raises:
            ValueError: no training target, or a model that could not be served.
        """
        profile = self.prepared.profile
        features = preset.features.spec(
            levels=len(self.level_sizes),
            profile_sizes=profile.cardinalities,
            attribution_window_s=self.prepared.attribution_window_s,
            request_features=preset.request_features,
        )
        check_model(features, level_sizes=self.level_sizes, serving=preset.serving)
        return ModelSpec(
            model=preset.model,
            features=features,
            level_sizes=self.level_sizes,
            value_buckets=ValueBuckets.fit(self._target_values(preset), buckets=preset.model.value_buckets),
            profile_columns=dict(profile.categories),
            tokenizer_id=self.tokenizer_id,
            items=None if preset.model.item is None else ItemSizes(self.sids.height, self.texts.shape[1]),
        )

    @cached_property
    def texts(self) -> np.ndarray:
        """What the tokenizer reads of each ad, by ad id: float32 [A, D]; D = 0 where SIDs are given."""
        tokenizer = kinds.load(self.folder / "tokenizer", vector_file=beside(self.folder / "tokenizer"))
        ads = self.prepared.tables.ads.sort("ad_id")
        if isinstance(tokenizer, GivenSids):
            return np.zeros((ads.height, 0), np.float32)
        return tokenizer.vectors(ads)

    def known_ads(self, spec: ModelSpec) -> KnownAds:
        """Ads that a new model with an item level knows from its start on."""
        dataset = self.dataset(spec)
        seen = np.zeros(len(dataset.ad_ids), bool)
        seen[dataset.event_ad[dataset.parts.event == TRAIN]] = True
        return KnownAds(dataset.ad_ids, dataset.ad_sids.astype(np.int64), self.texts, seen)

    def go_on(self, spec: ModelSpec, preset: Preset) -> ModelSpec:
        """What a model is from now on, with these data and settings.

        Value buckets and profile categories stay the model's, whatever the log holds now. Settings that move
        no weight and leave its shape (dropout, length of a history, attribution window) are taken over.

        Raises:
            SpecError: SIDs, or shapes and places of weights, are not those of the model; says which.
        """
        self.check_tokenizer(spec)
        context = named("features", preset.features.model_dump())
        context["data.attribution_window"] = self.prepared.attribution_window_s
        context["data.request_features"] = [asdict(feature) for feature in preset.request_features]
        was = {f"features.{k}": v for k, v in spec.features.to_json().items()}
        was["data.attribution_window"] = spec.features.attribution_window_s
        was["data.request_features"] = [asdict(feature) for feature in spec.features.request_features]
        was = {name: was[name] for name in context} | named("model", spec.model.model_dump())
        changed = changes(was, context | named("model", preset.model.model_dump()))
        if not changed:
            return spec
        features = replace(
            spec.features,
            **preset.features.model_dump(),
            attribution_window_s=self.prepared.attribution_window_s,
            request_features=preset.request_features,
        )
        new = replace(spec, model=preset.model, features=features)
        moved = any(getattr(spec.model, key) != getattr(new.model, key) for key in _PLACES)
        moved |= any(getattr(spec.features, key) != getattr(features, key) for key in _MEANINGS)
        if moved or shapes(spec) != shapes(new):
            raise SpecError(
                f"the model was made with other settings (was -> is): {summary(changed)}; its weights do not "
                "fit them: set them back, or train a new model with --fresh or in another folder"
            )
        return new

    def check_tokenizer(self, spec: ModelSpec) -> None:
        """Whether a model speaks the SIDs of this folder.

        Raises:
            SpecError: they are another tokenizer's.
        """
        if spec.tokenizer_id != self.tokenizer_id:
            raise SpecError(
                f"{self.folder / 'tokenizer'}: expected tokenizer {spec.tokenizer_id} (the model's), got "
                f"{self.tokenizer_id}: its SIDs would mean other ads; put the model's tokenizer back, or "
                "train a new model with --fresh or in another folder"
            )

    def dataset(self, spec: ModelSpec) -> RequestDataset:
        """Requests as the model sees them.

        Raises:
            ValueError: an ad of the log has no SID, or users lack a profile column of the model.
        """
        profile = ProfileVocabulary(spec.profile_columns)
        return RequestDataset(self.prepared, self.sids, spec=spec.features, profile=profile)

    def _target_values(self, preset: Preset) -> np.ndarray:
        """Values float32 of the targets of the training part."""
        log, parts = self.prepared.log, self.prepared.parts
        codes = [BEHAVIORS[name] for name in preset.logs.target_behaviors]
        return log.value[log.outcomes((parts.event == TRAIN) & np.isin(log.behavior, codes))]
