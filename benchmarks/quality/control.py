"""Trains the SASRec control on the training part of a run, and lets it rank the requests of another part.

It reads what the generator reads: the prepared log of a run folder and the same requests with the same
histories, and all items but those of a history compete. The best epoch is that of the validation items.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from benchmarks.quality.protocol import DEPTH, Asked
from benchmarks.quality.sasrec import SasRec, SasRecConfig, softmax_loss

_BLOCK = 16  # batches whose users are sorted by length together, so that little is padded


def train(
    sequences: list[np.ndarray], *, items: int, config: SasRecConfig, validation: Asked, seed: int
) -> tuple[SasRec, list[dict[str, float]]]:
    """The model of its best epoch, and a record of every epoch.

    Args:
        sequences: items 1 .. N of the training part of each user, oldest first.
        items: N.
        config: see there.
        validation: what says when to stop.
        seed: of weights, order, negatives and dropout.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = SasRec(config, items=items)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98))
    sequences = [s[-config.length - 1 :] for s in sequences if len(s) > 1]
    lengths = np.array([len(s) for s in sequences])
    usual = (lengths.sum() - len(lengths)) / math.ceil(len(lengths) / config.batch_size)  # targets a batch
    history: list[dict[str, float]] = []
    kept, began = model.state_dict(), time.process_time()
    for epoch in range(1, config.epochs + 1):
        model.train()
        losses = []
        for users in _batches(lengths, config=config, random=random):
            padded = _pad([sequences[u] for u in users])
            target = padded[:, 1:]
            there = target > 0
            drawn = random.permutation(items)[: config.negatives] + 1
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
                loss = softmax_loss(
                    model(padded[:, :-1])[there],
                    target[there],
                    items=model.item.weight,
                    candidates=torch.from_numpy(drawn),
                )
            optimiser.zero_grad()
            # A target counts the same in whichever batch: there are many in one of long sequences.
            (loss * (there.sum() / usual)).backward()
            clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            losses.append(loss.item())
        found = validation.metrics(rank(model, validation, config=config))
        record = {
            "epoch": epoch,
            "cpu_seconds": round(time.process_time() - began, 1),
            "train_loss": float(np.mean(losses)),
            "validation_recall10": float(found["recall10"].mean()),
            "validation_ndcg10": float(found["ndcg10"].mean()),
        }
        if not math.isfinite(record["train_loss"]):
            raise ValueError(f"sasrec, epoch {epoch}: expected a finite loss, got {record['train_loss']}")
        history.append(record)
        print("sasrec:", ", ".join(f"{name} {value:.4g}" for name, value in record.items()), flush=True)
        best = best_epoch(history)
        if best == epoch:
            kept = {name: weight.clone() for name, weight in model.state_dict().items()}
        elif epoch - best >= config.patience:
            break
    model.load_state_dict(kept)
    return model, history


def best_epoch(history: list[dict[str, float]]) -> int:
    """The epoch with the highest validation NDCG@10, the first of equals; epochs count from 1."""
    return 1 + int(np.argmax([record["validation_ndcg10"] for record in history]))


@torch.no_grad()
def rank(model: SasRec, asked: Asked, *, config: SasRecConfig, batch_size: int = 512) -> np.ndarray:
    """Items int64 [R, DEPTH] of each request, best first, those of its history left out."""
    model.eval()
    found = []
    for start in range(0, len(asked.histories), batch_size):
        histories = asked.histories[start : start + batch_size]
        padded = _pad([h[-config.length :] for h in histories])
        last = (padded > 0).sum(1) - 1
        states = model(padded)[torch.arange(len(padded)), last]
        scores = states @ model.item.weight.T
        scores[:, 0] = -torch.inf
        for row, seen in enumerate(histories):
            scores[row, torch.from_numpy(seen)] = -torch.inf
        found.append(scores.topk(DEPTH, dim=1).indices.numpy())
    return np.concatenate(found)


def save(model: SasRec, path: Path) -> None:
    """Weights alone, as arrays."""
    np.savez(path, **{name: weight.numpy() for name, weight in model.state_dict().items()})


def _batches(
    lengths: np.ndarray, *, config: SasRecConfig, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Users of each batch of an epoch, in random order but with others of about the same length."""
    order, size = random.permutation(len(lengths)), config.batch_size
    batches = []
    for start in range(0, len(order), _BLOCK * size):
        block = order[start : start + _BLOCK * size]
        block = block[np.argsort(lengths[block], kind="stable")]
        batches += [block[i : i + size] for i in range(0, len(block), size)]
    for i in random.permutation(len(batches)):
        yield batches[i]


def _pad(rows: list[np.ndarray]) -> torch.Tensor:
    """Int64 [B, L], 0 behind shorter ones."""
    padded = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)
