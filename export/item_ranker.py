"""The item level of a model as the ranking stage of a bundle: graph, tables, and that they say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim

from export.graphs import example_request, export_graph
from export.parity import require_parity
from serving.engines.ort import OrtRankGraph
from serving.model.features import BEHAVIORS, FeatureSpec, join_codes, select_events
from serving.model.manifest import AD_RANKER, Manifest
from serving.ranking.history import DAY_S
from serving.ranking.item_ranker import ItemRanker
from serving.ranking.ranker import OUTPUT, RankRequest
from training.model.gr4ad import Generator
from training.model.item_graph import ItemGraph, item_of, item_tables

_REQUESTS, _ADS, _EVENTS = 16, 40, 30


def write_item_ranker(model: Generator, bundle: Path) -> dict[str, Any]:
    """Write graph and tables into the folder of a bundle; returns what its manifest says of them.

    Raises:
        ValueError: the model has no item level.
        OSError: the disk is full or not writable.
    """
    width = item_of(model).config.width
    slots, profile = example_request(model, batch=3, generator=torch.Generator().manual_seed(0))
    slots = slots[:, : model.spec.slots]  # the item level sees no habits
    batch, ads = Dim("batch", min=1, max=4096), Dim("ads", min=1, max=65536)
    given = {
        "slots": (slots, {0: batch}),
        "profile": (profile, {0: batch}),
        "slot_vectors": (torch.zeros(3, slots.shape[1], width), {0: batch}),
        "ad_vectors": (torch.zeros(3, 5, width), {0: batch, 1: ads}),
        "log_p": (torch.zeros(3, 5), {0: batch, 1: ads}),
    }
    ranked = ItemGraph(model)
    graph: torch.nn.Module = ranked
    if not profile.shape[1]:  # a tensor of no width is none
        graph = _WithoutColumns(ranked)
        del given["profile"]
    export_graph(
        graph,
        tuple(example for example, _ in given.values()),
        bundle / f"{AD_RANKER}.onnx",
        inputs=list(given),
        outputs=[OUTPUT],
        dynamic=tuple(axes for _, axes in given.values()),
    )
    item_tables(model).save(bundle)
    return {"kind": ItemRanker.kind, "width": width}


def check_item_ranker(model: Generator, bundle: Path, manifest: Manifest, *, seed: int = 0) -> float:
    """Largest difference of a bundle's ranking stage from the model, over random requests.

    What is compared are log-probabilities over the ads of a request, as the loss has them.

    Raises:
        ParityError: see `require_parity`.
        BundleError: the bundle's ranker cannot be used.
    """
    ranker = ItemRanker.load(bundle, manifest, OrtRankGraph(bundle))
    ranker.probe(manifest)
    random = np.random.default_rng(seed)
    item = item_of(model.eval())
    ad_ids, sids = item.ad_ids.cpu().numpy(), item.sids.cpu().numpy().astype(np.int32)
    errors = []
    for _ in range(_REQUESTS):
        own, asked = random.integers(0, len(ad_ids), 6), random.integers(0, len(ad_ids), _ADS)
        past = random.choice(own, random.integers(0, _EVENTS))
        now = int(random.integers(1 << 30, 1 << 31))
        request = RankRequest(
            ads=ad_ids[asked],
            sids=sids[asked],
            log_p=-5 * random.random(len(asked), np.float32),
            past_ads=ad_ids[past],
            past_sids=sids[past],
            past_behaviors=random.choice(list(BEHAVIORS.values()), len(past)),
            past_times=np.sort(now - random.integers(0, 365 * DAY_S, len(past))),
            now=now,
            profile=np.array([random.integers(0, size) for size in manifest.features.column_sizes], np.int32),
        )
        [found] = ranker.worth([request])
        expected = _said_by_model(model, request, manifest.features)
        errors.append(float(np.abs(_log_p(found) - _log_p(expected)).max()))
    return require_parity(np.array(errors), what=f"{AD_RANKER}'s log-probabilities over the ads of a request")


@torch.no_grad()
def _said_by_model(model: Generator, request: RankRequest, spec: FeatureSpec) -> np.ndarray:
    """Scores float32 [n] of a request's ads by the model itself, up to a constant; the vectors are in it."""
    past = select_events(
        spec,
        request.past_ads,
        behaviors=request.past_behaviors,
        timestamps=request.past_times,
        now=request.now,
    )
    shown = past.events >= 0
    slots = np.zeros((spec.rows, spec.columns), np.int32)
    shown_ads = np.full(spec.rows, -1)
    if shown.any():
        slots = join_codes(request.past_sids[past.events], past.columns, shown=shown)
        shown_ads[shown] = request.past_ads[past.events[shown]]
    slot_ads = shown_ads[: spec.slots]
    inputs = (slots, request.profile, request.sids.astype(np.int64), slot_ads, request.ads)
    said = model(*(torch.from_numpy(array)[None] for array in inputs)).item_log_p
    return said[0].numpy() + item_of(model).config.mix * request.log_p


def _log_p(scores: np.ndarray) -> np.ndarray:
    """Over the ads of one request."""
    return scores - np.logaddexp.reduce(scores.astype(np.float64))


class _WithoutColumns(torch.nn.Module):
    """The graph of a model without profile and request columns."""

    def __init__(self, module: ItemGraph) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        slots: torch.Tensor,
        slot_vectors: torch.Tensor,
        ad_vectors: torch.Tensor,
        log_p: torch.Tensor,
    ) -> torch.Tensor:
        return self.module(
            slots,
            slots.new_zeros((slots.shape[0], 0)),
            slot_vectors=slot_vectors,
            ad_vectors=ad_vectors,
            log_p=log_p,
        )
