"""Requests with habits, and what a model with a copy path says of every SID, by plain loops."""

from collections.abc import Collection
from itertools import product

import numpy as np
import torch

from serving.search.beams import Beams
from tests.searching import searched
from tests.tiny import COPYING_SPEC, LEVEL_SIZES, copying_model, random_requests, tiny_catalogue
from training.rollout.executor import TorchExecutor

EVERY = list(product(*map(range, LEVEL_SIZES)))
NORMALISE = [
    ("codebook", "codebook", "codebook"),
    ("codebook", "codebook", "live"),
    ("codebook", "live", "live"),
    ("live", "live", "live"),
    ("live", "codebook", "live"),
    ("live", "live", "codebook"),
]


def requests(count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Random requests whose rows are half from the catalogue: such SIDs can be answers."""
    slots, profile = random_requests(count, spec=COPYING_SPEC)
    _, sids, _ = tiny_catalogue()
    random = np.random.default_rng(1)
    from_catalogue = (random.random(slots.shape[:2]) < 0.5) & (slots[..., 3] > 0)
    slots[from_catalogue, :3] = random.choice(sids, int(from_catalogue.sum())) + 1
    return slots, profile


def search(snapshot, *, executor=None, **options) -> Beams:
    return searched(executor or TorchExecutor(copying_model()), snapshot, requests=requests, **options)


def mixture_by_loops(row: int, *, count: int = 4) -> dict[tuple, float]:
    """p of every prefix of one request in float64: a dict, from the unsplit model and plain loops."""
    return parts_by_loops(row, count=count)[0]


def parts_by_loops(
    row: int, *, count: int = 4, live: Collection[tuple] = EVERY
) -> tuple[dict[tuple, float], dict[tuple, float]]:
    """Of every prefix of one request p, and what of it is the model's, see `mixture_by_loops`.

    What habits give is of those that are live.
    """
    slots, profile = requests(count)
    model = copying_model()
    with torch.no_grad():
        said = model(*map(torch.tensor, (slots[[row]], profile[[row]])), torch.tensor([EVERY]))
    levels = [x.double().softmax(-1)[0] for x in said.logits]
    parts = said.copies.logprob[0].double().exp().tolist()
    found, of_model, known = {(): 1.0}, {(): parts[0]}, set(live)
    for i, sid in enumerate(EVERY):
        p = parts[0]
        for t in range(3):
            p *= float(levels[t][i, sid[t]])
            prefix = sid[: t + 1]
            of_habits = sum(
                parts[1 + h]
                for h, habit in enumerate(slots[row, COPYING_SPEC.slots :].tolist())
                if tuple(c - 1 for c in habit[:3]) in known and tuple(c - 1 for c in habit[: t + 1]) == prefix
            )
            found[prefix], of_model[prefix] = p + of_habits, p
    return found, of_model


def live_sids(snapshot):
    return sorted({tuple(s) for s in snapshot.sids_of(snapshot.leaf_ad_ids)[0].tolist()})
