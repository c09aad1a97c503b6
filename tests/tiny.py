"""One tiny seeded model and catalogue for tests; nothing here is trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from serving.index.snapshot import IndexSnapshot
from serving.model.features import FeatureSpec
from training.model.gr4ad import Generator
from training.model.initialise import initialise
from training.preset.model import ModelConfig

LEVEL_SIZES = (6, 5, 7)
SPEC = FeatureSpec(levels=3, short_slots=4, long_slots=4, max_history=16, profile_sizes=(3, 4))
COPYING_SPEC = replace(SPEC, habits=10)
VALUE_TABLE = np.array([0.5, 1.0, 2.0, 8.0], np.float32)


def tiny_model(*, shared_layers: int = 2, layers: int = 3, seed: int = 0, **options: int | bool) -> Generator:
    """Generator with random weights that are large enough for beams to differ."""
    torch.manual_seed(seed)
    config = ModelConfig(
        layers=layers,
        shared_layers=shared_layers,
        width=16,
        heads=2,
        ffn_multiple=2,
        value_buckets=4,
        **options,
    )
    spec = COPYING_SPEC if config.copy_path else SPEC
    model = Generator(config, spec, level_sizes=LEVEL_SIZES, value_buckets=len(VALUE_TABLE))
    return initialise(model).eval()


def plain_model() -> Generator:
    """K = 0, keys and values of the context a layer each, untied heads: the other branch of every option."""
    return tiny_model(shared_layers=0, layers=2, share_context_kv=False, tie_embeddings=False)


def copying_model(*, seed: int = 0, **options: int | bool) -> Generator:
    """A tiny model with a copy path whose weights tell habits apart, g about a half."""
    model = tiny_model(seed=seed, copy_path=True, **options)
    assert model.copy_path is not None
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.copy_path.named_parameters():
            if not name.startswith("norm."):
                weight.copy_(0.3 * torch.randn(weight.shape, generator=random))
    return model


def tiny_catalogue(
    *, ads: int = 60, seed: int = 0, paused: int = 5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ad ids int64 [N], SIDs int32 [N, T] (some shared), active bool [N]."""
    random = np.random.default_rng(seed)
    ad_ids = np.sort(random.choice(10_000, ads, replace=False)).astype(np.int64)
    sids = np.stack([random.integers(0, v, ads) for v in LEVEL_SIZES], axis=1).astype(np.int32)
    active = np.ones(ads, bool)
    active[random.choice(ads, paused, replace=False)] = False
    return ad_ids, sids, active


def tiny_snapshot(**options: int) -> IndexSnapshot:
    """Index of `tiny_catalogue`."""
    ad_ids, sids, active = tiny_catalogue(**options)
    return IndexSnapshot.build(ad_ids, sids, active=active, level_sizes=LEVEL_SIZES)


def random_requests(count: int, *, seed: int = 0, spec: FeatureSpec = SPEC) -> tuple[np.ndarray, np.ndarray]:
    """Slots and habits int32 [B, S + H, T + 3] and profile int32 [B, P] in range.

    The first request is a cold-start user.
    """
    random = np.random.default_rng(seed)
    sizes = [v + 1 for v in LEVEL_SIZES] + [4, spec.gap_buckets, spec.count_buckets]
    slots = np.stack([random.integers(1, s, (count, spec.rows)) for s in sizes], axis=-1).astype(np.int32)
    slots[random.random((count, spec.rows)) < 0.3] = 0
    slots[0] = 0
    profile = np.stack([random.integers(0, s, count) for s in spec.profile_sizes], axis=-1).astype(np.int32)
    return slots, profile


def random_slot_ads(count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a scheduler is sent, and the slots that it must make of it with the index of `tiny_catalogue`.

    Returns:
        slot_ads int64 [B, S], of which some are unknown; the other columns int32 [B, S, 3]; profile int32
        [B, P]; slots int32 [B, S, T + 3]. The first request is a cold-start user.
    """
    random = np.random.default_rng(seed)
    ad_ids, sids, _ = tiny_catalogue()
    codes = dict(zip(ad_ids.tolist(), sids.tolist(), strict=True))
    slots, profile = random_requests(count, seed=seed)
    columns = slots[..., SPEC.levels :].copy()
    slot_ads = random.choice(ad_ids, slots.shape[:2])
    slot_ads[random.random(slot_ads.shape) < 0.1] = 10_001  # no ad has it
    slot_ads[columns[..., 0] == 0] = -1
    for row in np.ndindex(slot_ads.shape):
        sid = codes.get(int(slot_ads[row]))
        slots[row] = 0 if sid is None else [*(c + 1 for c in sid), *columns[row]]
    return slot_ads, columns, profile, slots
