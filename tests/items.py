"""A tiny model with an item level, what it says by brute force, and a tiny deployment that ranks by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from serving.backend.settings import ServingConfig
from serving.model.features import FeatureSpec, select_events
from serving.ranking.ranker import RankRequest
from tests.pipeline import Pipeline, checkpoint
from tests.ranking import Judge, ranked_deployment
from tests.tiny import LEVEL_SIZES, SPEC, VALUE_TABLE, tiny_catalogue, tiny_model
from training.loop.checkpoint import Checkpoint
from training.model.gr4ad import Generator
from training.model.initialise import initialise
from training.model.item_head import ItemSizes, KnownAds
from training.preset.model import ItemConfig, ModelConfig

TEXT = 5
NEW = 6  # last ads of the tiny catalogue, which came after the model


def known_ads() -> KnownAds:
    """All but the last ads of the tiny catalogue; every seventh was never seen."""
    ad_ids, sids, _ = tiny_catalogue()
    count = len(ad_ids) - NEW
    texts = np.random.default_rng(5).normal(size=(count, TEXT)).astype(np.float32)
    return KnownAds(ad_ids[:count], sids[:count].astype(np.int64), texts, np.arange(count) % 7 > 0)


def item_model(*, seed: int = 0, spec: FeatureSpec = SPEC, **item: float) -> Generator:
    """A tiny model whose item level tells ads well apart."""
    torch.manual_seed(seed)
    ads = known_ads()
    config = ModelConfig(
        layers=3,
        shared_layers=2,
        width=16,
        heads=2,
        ffn_multiple=2,
        value_buckets=4,
        item=ItemConfig(**{"width": 8, "dropout": 0.0, "mix": 0.3} | item),
    )
    model = Generator(
        config,
        spec,
        level_sizes=LEVEL_SIZES,
        value_buckets=len(VALUE_TABLE),
        items=ItemSizes(len(ads.ad_ids), TEXT),
    )
    initialise(model)
    model.load_state_dict(tiny_model().state_dict(), strict=False)  # the generator is the tiny one
    assert model.item is not None
    model.item.know(ads)
    with torch.no_grad():
        for name, weight in model.item.named_parameters():
            if name.split(".")[0] in ("ids", "text", "codes", "context"):
                weight.normal_(std=0.5)
    return model.eval()


def item_checkpoint(model: Generator, *, tokenizer_id: str) -> Checkpoint:
    """The model as a run would hand it over."""
    assert model.item is not None
    plain = checkpoint(tokenizer_id=tokenizer_id)
    return replace(plain, model=model, spec=replace(plain.spec, model=model.config, items=model.item.sizes))


def item_deployment(pipeline: Pipeline, folder: Path, *, config: ServingConfig) -> tuple[Pipeline, Judge]:
    """The tiny deployment, ranked by an item level."""
    model = item_model()
    start = item_checkpoint(model, tokenizer_id=pipeline.tokenizer_id)
    made = ranked_deployment(pipeline, folder, config=config, start=start, ranker=model)
    return made, lambda request: scores_by_hand(model, request)


def vectors_by_hand(model: Generator, ad_ids: np.ndarray, sids: np.ndarray) -> np.ndarray:
    """v of any ads, float64 [n, d], from the weights one by one."""
    ads, item = known_ads(), model.item
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    texts = ads.texts / np.linalg.norm(ads.texts, axis=1).mean()

    def content(row: int) -> np.ndarray:
        codes = sum(weights[f"item.codes.tables.{t}.weight"][ads.sids[row, t] + 1] for t in range(2))
        return weights["item.text.weight"] @ texts[row] + codes

    found = np.zeros((len(ad_ids), item.config.width))
    for i, (ad, sid) in enumerate(zip(ad_ids.tolist(), sids.tolist(), strict=True)):
        row = np.flatnonzero(ads.ad_ids == ad)
        if len(row):
            found[i] = content(int(row[0])) + ads.seen[row[0]] * weights["item.ids.weight"][row[0]]
            continue
        for length in (2, 1):
            below = [r for r in range(len(ads.ad_ids)) if ads.sids[r, :length].tolist() == sid[:length]]
            if below:
                found[i] = np.mean([content(r) for r in below], axis=0)
                break
    return found


def _norm(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def scores_by_hand(model: Generator, request: RankRequest) -> np.ndarray:
    """u . v(a) + mix log p of a request's ads, float64 [n], by another program than the model."""
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    spec, item = model.spec, model.item
    past = select_events(
        spec,
        request.past_ads,
        behaviors=request.past_behaviors,
        timestamps=request.past_times,
        now=request.now,
    )
    linear = lambda x, name: x @ weights[f"item.{name}.weight"].T + weights[f"item.{name}.bias"]  # noqa: E731
    known = lambda name: weights[f"item.context.{name}"]  # noqa: E731
    tokens = [known("user")[0, 0]]
    tokens += [known(f"profile.{i}.weight")[code] for i, code in enumerate(request.profile)]
    newest = None
    for slot, event in enumerate(past.events.tolist()):
        if event < 0:
            continue
        behavior, gap, count = past.columns[slot]
        newest = len(tokens) if slot == 0 else newest
        vector = vectors_by_hand(model, request.past_ads[[event]], request.past_sids[[event]])[0]
        tokens.append(
            vector * np.sqrt(item.config.width)
            + known("slot")[slot]
            + known("behavior.weight")[behavior]
            + known("gap.weight")[gap]
            + known("count.weight")[count]
        )
    x = np.stack(tokens)
    h = x[0] + (0 if newest is None else x[newest])
    y, heads = _norm(x, weights, "item.norms.0"), item.config.heads
    query = linear(_norm(h, weights, "item.norms.0"), "query")
    keys, values = np.split(linear(y, "keys_values"), 2, axis=-1)
    parts = []
    for q, k, v in zip(*(np.split(a, heads, axis=-1) for a in (query, keys, values)), strict=True):
        attention = np.exp(k @ q / np.sqrt(len(q)))
        parts.append(attention / attention.sum() @ v)
    h = h + linear(np.concatenate(parts), "out")
    inner = linear(_norm(h, weights, "item.norms.1"), "ffn.0")
    inner = inner * 0.5 * (1 + torch.erf(torch.from_numpy(inner / np.sqrt(2))).numpy())
    h = h + linear(inner, "ffn.2")
    state = _norm(h, weights, "item.norms.2")
    return vectors_by_hand(model, request.ads, request.sids) @ state + item.config.mix * request.log_p
