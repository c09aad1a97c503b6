"""What needs no model: items by users of the training part, and items that go with those of a history."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.quality.protocol import DEPTH, Asked, Sequences
from training.evaluation.baselines import CoOccurrence, best, fill_up

Answer = Callable[[Sequences, Asked], np.ndarray]


def by_popularity(sequences: Sequences, asked: Asked) -> np.ndarray:
    """Items int64 [R, DEPTH] that most training events are of."""
    order = _popular(sequences)
    found = [order[~np.isin(order, history)][:DEPTH] for history in asked.histories]
    return np.stack(found)


def by_co_occurrence(sequences: Sequences, asked: Asked) -> np.ndarray:
    """Items int64 [R, DEPTH] that users have who have those of the history, filled up with popular ones."""
    users = np.repeat(np.arange(len(training := sequences.training())), [len(items) for items in training])
    count = len(sequences.item_ids)
    together = CoOccurrence(users, np.concatenate(training) - 1, shape=(len(training), count))
    order, found = _popular(sequences), []
    for history in asked.histories:
        allowed = np.ones(count, bool)
        allowed[history - 1] = False
        items = best(together.scores(np.unique(history) - 1), allowed, limit=DEPTH) + 1
        found.append(fill_up(items, order[~np.isin(order, history)], limit=DEPTH))
    return np.stack(found)


def _popular(sequences: Sequences) -> np.ndarray:
    """As many of the most popular items as any answer needs."""
    counts = np.bincount(np.concatenate(sequences.training()), minlength=len(sequences.item_ids) + 1)[1:]
    longest = DEPTH + int(np.diff(sequences.prepared.log.user_ptr).max())
    return np.argsort(-counts, kind="stable")[:longest] + 1


ANSWERS: dict[str, Answer] = {"popularity": by_popularity, "co_occurrence": by_co_occurrence}
