"""A catalogue of seeded ads with codebooks used as unevenly as real ones, and requests of its users.

Letters: N ads, T SID levels, E history events.
"""

from __future__ import annotations

import math

import numpy as np

from serving.backend.request import Features, request_features
from serving.index.snapshot import IndexSnapshot, Snapshot
from serving.model.features import BEHAVIORS, FeatureSpec

TOKENIZER_ID = "seeded-0"  # as `export.seeded` names the tokenizer of its model
NOW = 1_700_000_000
HISTORY = (60, 120)  # events of a request
NUM_ADS = 50
_SIGMA = 1.0  # of the logarithm of how many ads a code has
_DAY = 86_400


def seeded_sids(count: int, level_sizes: tuple[int, ...], *, seed: int = 0) -> np.ndarray:
    """Distinct SIDs int32 [count, T] in lexicographic order.

    Codes of the first level, and of the second below each code of the first, have log-normal shares; those of
    the later levels (the hash level is the last) are uniform.

    Raises:
        ValueError: more than half of all possible SIDs are asked for, or there are fewer than two levels.
    """
    most = math.prod(level_sizes) // 2
    if len(level_sizes) < 2 or not 0 < count <= most:
        raise ValueError(f"expected two levels or more and 1..{most} ads, got {level_sizes} and {count}")
    random = np.random.default_rng(seed)
    skewed, rest = math.prod(level_sizes[:2]), math.prod(level_sizes[2:])
    first = random.lognormal(0.0, _SIGMA, level_sizes[0])
    second = random.lognormal(0.0, _SIGMA, level_sizes[:2])
    share = (first[:, None] * second / second.sum(axis=1, keepdims=True)).ravel() / first.sum()
    held = np.zeros(skewed, np.int64)  # SIDs of each cluster (a pair of codes)
    while missing := count - int(held.sum()):
        open_share = np.where(held < rest, share, 0.0)  # a full cluster passes its ads on to the others
        held = np.minimum(held + random.multinomial(missing, open_share / open_share.sum()), rest)
    # Codes below a cluster: an arithmetic progression modulo their number, from a random start, with a random
    # step that has no factor in common with it. So they are distinct without drawing again.
    cluster = np.repeat(np.arange(skewed), held)  # [N]
    nth = np.arange(count) - np.repeat(np.cumsum(held) - held, held)  # [N] within its cluster
    step = random.integers(1, max(rest, 2), skewed)
    step[np.gcd(step, rest) > 1] = 1
    keys = cluster * rest + (random.integers(0, rest, skewed)[cluster] + nth * step[cluster]) % rest
    keys.sort()
    sids = np.empty((count, len(level_sizes)), np.int32)
    for level in reversed(range(len(level_sizes))):
        keys, sids[:, level] = np.divmod(keys, level_sizes[level])
    return sids


def snapshot(count: int, level_sizes: tuple[int, ...], seed: int = 0) -> IndexSnapshot:
    """Index of that catalogue: ads 1 .. count, all active, each with a SID of its own."""
    return IndexSnapshot.build(
        np.arange(1, count + 1),
        seeded_sids(count, level_sizes, seed=seed),
        active=np.ones(count, bool),
        level_sizes=level_sizes,
        version=1,
        tokenizer_id=TOKENIZER_ID,
    )


def features(
    spec: FeatureSpec, snapshot: Snapshot, tensors: dict[str, np.ndarray], *, row: int = 0
) -> Features:
    """What the server makes of one row of a request."""
    values = {name: tensor[row] for name, tensor in tensors.items()}
    return request_features(
        spec,
        snapshot,
        ad_ids=values["history_ad_ids"],
        behaviors=values["history_behaviors"],
        timestamps=values["history_timestamps"],
        profile=values["profile"],
        now=int(values["timestamp"][0]),
    )


def requests(
    count: int, spec: FeatureSpec, snapshot: IndexSnapshot, *, seed: int = 0, num_ads: int = NUM_ADS
) -> list[dict[str, np.ndarray]]:
    """Inputs of `count` requests as a client sends them, one row each: users with half a year of history."""
    random = np.random.default_rng(seed)
    found: list[dict[str, np.ndarray]] = []
    for _ in range(count):
        events = int(random.integers(HISTORY[0], HISTORY[1] + 1))
        # A user comes back to some ads: two events an ad.
        ads = random.choice(random.choice(snapshot.ad_ids, max(1, events // 2)), events)
        profile = [random.integers(0, size) for size in spec.profile_sizes]
        found.append(
            {
                "history_ad_ids": ads.astype(np.int64)[None],
                "history_behaviors": random.integers(1, len(BEHAVIORS) + 1, (1, events)).astype(np.int32),
                "history_timestamps": NOW - np.sort(random.integers(0, 180 * _DAY, (1, events)))[:, ::-1],
                "profile": np.array([profile], np.int32),
                "num_ads": np.array([[num_ads]], np.int32),
                "timestamp": np.array([[NOW]], np.int64),
            }
        )
    return found
