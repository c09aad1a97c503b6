"""Candidate lists on disk for the tiny log, made without a search: random SIDs, and a price for each ad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.tiny_log import open_run
from training.data.list_about import About
from training.data.list_shards import ContextList
from training.data.list_store import ListWriter, RewardWriter, StoredLists, request_keys
from training.data.lists import CandidateFlag, CandidateList
from training.loop.checkpoint import load_checkpoint, weights_sha256
from training.loop.retention import find_checkpoint
from training.objectives.sid import sid_log_p

REWARD = "prices"


def price(sids: np.ndarray) -> np.ndarray:
    """What an ad is worth: by its last code, and nothing that a request tells."""
    return (1.0 + 3.0 * (sids[..., -1] % 4)).astype(np.float32)


def write_lists(
    run: tuple[Path, Path],
    *,
    part: str = "train",
    name: str | None = None,
    every: int = 1,
    size: int = 8,
    weights: str | None = None,
) -> StoredLists:
    """Lists of every so many requests of a part, of the model that is in the run."""
    preset, spec, dataset = open_run(run)
    checkpoint = find_checkpoint(run[1] / "model")
    model = load_checkpoint(checkpoint).model.eval()
    groups = dataset.groups(part, target_behaviors=("conversion",), min_history=preset.training.min_history)
    rows = np.arange(0, len(groups), every)
    users, times, nth = request_keys(dataset.log, groups.request[rows])
    about = About(
        weights=weights or weights_sha256(checkpoint),
        tokenizer_id=spec.tokenizer_id,
        level_sizes=spec.level_sizes,
        contexts=len(rows),
        per_shard=40,
        inputs={},
    )
    catalogue, found = np.unique(dataset.ad_sids, axis=0), []
    for i, row in enumerate(rows):
        random = np.random.default_rng((0, int(row)))
        bought = np.unique(dataset.ad_sids[dataset.event_ad[dataset.targets(groups, row)]], axis=0)
        sids = random.permutation(catalogue)[:size]
        sids = np.concatenate([sids, [s for s in bought if not (sids == s).all(1).any()] or sids[:0]])
        is_bought = (sids[:, None] == bought).all(-1).any(-1)
        slots, profile = dataset.context(groups, rows[i : i + 1])
        tokens = torch.tensor(sids[None].astype(np.int64))
        with torch.no_grad():
            said = model(torch.tensor(slots), torch.tensor(profile), tokens)
            log_p = sid_log_p(said.logits, tokens, copies=said.copies)[0].numpy()
        candidates = CandidateList(
            sids=sids.astype(np.int32),
            reward=np.zeros(len(sids), np.float32),
            flags=np.where(is_bought, CandidateFlag.LOGGED, CandidateFlag.OWN).astype(np.uint8),
            ads=np.full(len(sids), -1),
            log_p_ref=log_p,
        )
        keys = {"user_id": int(users[i]), "now": int(times[i]), "nth": int(nth[i])}
        found.append(ContextList(**keys, candidates=candidates, bought=is_bought))
    writer = ListWriter(run[1] / "lists" / (name or part), about)
    for shard in writer.missing():
        writer.write(shard, [found[i] for i in about.rows(shard)])
    return StoredLists.open(writer.folder)


def write_rewards(lists: StoredLists, *, reward: str = REWARD, of=price) -> None:
    """Give stored lists the rewards of a made-up model."""
    writer = RewardWriter(lists, reward)
    for shard in writer.missing():
        writer.write(shard, [of(lists.get(row).sids) for row in lists.about.rows(shard)])
