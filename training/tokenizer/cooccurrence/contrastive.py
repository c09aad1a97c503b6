"""Learns a projection that lays together what is bought together: multi-positive InfoNCE.

    z_i = P^T f_i / |P^T f_i|
    L(i) = - log [ sum_{j in P_i} w_ij exp(z_i.z_j / tau) / sum_{k not in O_i} exp(z_i.z_k / tau) ]

(GR4AD, arXiv 2602.22732, UA-SID; there w = 1.) P_i are the positives of anchor i in the batch, w_ij the
strength of one against that of the anchor's strongest. The batch is the anchors, what was drawn as their
positives, and contents drawn from all that were in a basket, since an anchor has to be found among them. O_i
is i itself and every neighbour of i that Swing keeps but that is none of its positives: at most 200, each in
two or more of the counted baskets of i. What is bought with i once, or is weaker than those, stays a
negative; to leave all of it out learns no better (docs/decisions.md, "What `bag` learns with"). The sum over
positives stands inside the logarithm: an anchor has to lie near some of what it is bought with, not near all
of it.

What is kept is a running mean of the projections of the steps, which generalises better than the last one.

Letters: N contents, F features, D dimensions, A anchors, M contents of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch.nn import functional
from tqdm import tqdm

from training.preset.tokenizer import CooccurrenceConfig
from training.tokenizer.cooccurrence.held_out import recall_at
from training.tokenizer.cooccurrence.positives import Positives

logger = logging.getLogger(__name__)

Features: TypeAlias = csr_matrix | np.ndarray

MEMORY = 0.97  # of the running mean, a step


def learn_projection(
    features: Features,
    start: np.ndarray,
    positives: Positives,
    *,
    settings: CooccurrenceConfig,
    seed: int,
) -> np.ndarray:
    """Return the projection float32 [F, D] that was best on the held-out baskets, `start` among them.

    Where these hold no pair that counts, the one after all steps is returned, with a warning.

    Args:
        features: [N, F], sparse or dense.
        start: float32 [F, D].
        positives: of the N contents.
        settings: of the loss and its optimiser.
        seed: of what is drawn.

    Raises:
        ValueError: the shapes do not agree.
    """
    count, width = features.shape
    if start.shape[:1] != (width,) or positives.strength.shape != (count, count):
        raise ValueError(
            f"expected a projection [{width}, D] and positives [{count}, {count}] of features "
            f"{list(features.shape)}, got {list(start.shape)} and {list(positives.strength.shape)}"
        )
    chosen = strongest(positives.strength, settings.neighbours)
    anchors = np.flatnonzero(np.diff(chosen.indptr))
    random = np.random.default_rng(seed)
    can_stop = len(positives.held_out.anchors) > 0
    if not can_stop:
        logger.warning(
            "the held-out baskets hold no pair that counts: nothing says when to stop, all %d steps are kept",
            settings.steps,
        )
    with _one_thread():
        projection = torch.from_numpy(np.array(start, np.float32)).requires_grad_()
        mean = projection.detach().clone()
        optimiser = torch.optim.Adam([projection], lr=settings.learning_rate)

        def judged() -> float:
            return recall_at(_unit(_project(features, mean)).numpy(), positives.held_out, (1,))[1]

        best, kept, at = judged(), mean.clone(), 0
        logger.info("held-out R@1 %.3f before learning", best)
        progress = tqdm(range(1, settings.steps + 1), desc="co-occurrence", disable=None, leave=False)
        for step in progress:
            batch = _Batch.draw(anchors, chosen, seen=positives.seen, settings=settings, random=random)
            z = _unit(_project(features[batch.contents], projection))  # [M, D]
            loss = info_nce(
                z[: batch.anchors] @ z.T / settings.temperature,  # [A, M]
                weight=torch.from_numpy(batch.within(chosen)),
                bought=torch.from_numpy(batch.within(positives.strength) > 0),
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            mean.lerp_(projection.detach(), 1 - MEMORY)
            if step % settings.check_every == 0 or step == settings.steps:
                recall = judged()
                progress.set_postfix(loss=f"{loss.item():.3f}", recall=f"{recall:.3f}")
                if recall > best or not can_stop:
                    best, kept, at = recall, mean.clone(), step
        logger.info("held-out R@1 %.3f after %d of %d steps", best, at, settings.steps)
        return kept.numpy()


def info_nce(scores: torch.Tensor, *, weight: torch.Tensor, bought: torch.Tensor) -> torch.Tensor:
    """Mean loss of A anchors, which are the first of the M contents of their batch.

    Args:
        scores: z_i.z_k / tau, [A, M].
        weight: w of the positives, 0 for all others, [A, M]; every anchor has a positive besides itself.
        bought: bool [A, M], no negatives, whether positive or not; the anchor itself need not be.
    """
    itself = torch.eye(*scores.shape, dtype=torch.bool)
    positive = (weight > 0) & ~itself
    nothing = torch.finfo(scores.dtype).min
    above = torch.logsumexp((scores + weight.log()).masked_fill(~positive, nothing), dim=1)
    below = torch.logsumexp(scores.masked_fill(itself | (bought & ~positive), nothing), dim=1)
    return (below - above).mean()


def strongest(strength: csr_matrix, count: int) -> csr_matrix:
    """Of each row the `count` largest entries, as shares of the largest; of equal ones the first."""
    row = np.repeat(np.arange(strength.shape[0]), np.diff(strength.indptr))
    order = np.lexsort((strength.indices, -strength.data, row))
    share = strength.data / strength.data[order][strength.indptr[row]]
    kept = np.sort(order[np.arange(len(order)) - strength.indptr[row] < count])
    entries = (share[kept], (row[kept], strength.indices[kept]))
    return csr_matrix(entries, shape=strength.shape)


class _Batch:
    """Contents of one step, the anchors first."""

    def __init__(self, contents: np.ndarray, anchors: int, *, count: int) -> None:
        self.contents, self.anchors = contents, anchors
        self._place = np.full(count, -1)
        self._place[contents] = np.arange(len(contents))

    @classmethod
    def draw(
        cls,
        anchors: np.ndarray,
        chosen: csr_matrix,
        *,
        seen: np.ndarray,
        settings: CooccurrenceConfig,
        random: np.random.Generator,
    ) -> _Batch:
        """Anchors without repetition, of each some of its positives, and some of all contents seen."""
        drawn = random.choice(anchors, min(settings.anchors, len(anchors)), replace=False)
        first, length = chosen.indptr[drawn], np.diff(chosen.indptr)[drawn]
        at = first[:, None] + random.integers(0, length[:, None], (len(drawn), settings.positives))
        more = random.choice(seen, min(settings.negatives, len(seen)), replace=False)
        others = np.setdiff1d(np.concatenate([chosen.indices[at].ravel(), more]), drawn)
        return cls(np.concatenate([drawn, others]), len(drawn), count=chosen.shape[0])

    def within(self, pairs: csr_matrix) -> np.ndarray:
        """Values of the pairs of an anchor and a content of the batch, float32 [A, M]."""
        rows = pairs[self.contents[: self.anchors]]
        row, place = np.repeat(np.arange(self.anchors), np.diff(rows.indptr)), self._place[rows.indices]
        found = np.zeros((self.anchors, len(self.contents)), np.float32)
        found[row[place >= 0], place[place >= 0]] = rows.data[place >= 0]
        return found


def _project(features: Features, projection: torch.Tensor) -> torch.Tensor:
    """[N, F] @ [F, D]."""
    if isinstance(features, np.ndarray):
        return torch.from_numpy(np.asarray(features, np.float32)) @ projection
    columns = torch.from_numpy(features.indices.astype(np.int64))
    offsets = torch.from_numpy(features.indptr[:-1].astype(np.int64))
    weights = torch.from_numpy(features.data.astype(np.float32))
    return functional.embedding_bag(columns, projection, offsets, mode="sum", per_sample_weights=weights)


def _unit(x: torch.Tensor) -> torch.Tensor:
    return functional.normalize(x, dim=1, eps=1e-9)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Other numbers of threads add in another order and would give another tokenizer id."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
