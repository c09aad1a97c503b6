"""What an order of ads is worth, request by request.

Letters: R requests, n ads, k cut-off, U users.
"""

from __future__ import annotations

import numpy as np

from benchmarks.simulation.answers import Answers
from benchmarks.simulation.auction import Rules, revenue
from benchmarks.simulation.bids import PriceShape
from benchmarks.simulation.scored import NO_AD, Scored
from benchmarks.simulation.settings import Order
from benchmarks.simulation.world import World
from training.reward.reward_model import Scores

PER = 1000  # requests that revenue is given for
RESAMPLES = 2000


def ordered(answers: Answers, order: Order, *, ranker: Scored | None, rerank: int) -> Answers:
    """Answers in another order; equals stay as they are.

    Args:
        answers: the most probable ad first.
        order: see `settings.Arm`.
        ranker: the platform's, for `reward`.
        rerank: first ads by value that the ranker reorders; the rest stays behind. Answers without a value of
            their own are reordered whole.
    """
    if order == "probability":
        return answers
    own = answers.p * answers.value
    if order == "value":
        return _by(answers, own)
    if ranker is None:
        raise ValueError("order reward: expected a ranker, got none")
    found = ranker.at(answers.ads)
    if not own.any():
        return _by(Answers(answers.ads, found.p, found.value), found.p * found.value)
    first = _by(answers, own)
    scores = ranker.at(first.ads)
    within = np.arange(first.ads.shape[1]) < rerank
    worth = np.where(within, 1.0 + scores.p * scores.value, 0.0)  # those behind keep their order
    return _by(Answers(first.ads, scores.p, scores.value), worth)


def measures(
    world: World, answers: Answers, *, truth: Scored, ranker: Scored | None, shape: PriceShape
) -> dict[str, np.ndarray]:
    """By name, float64 [R]; auctions that need a ranker are left out without one.

    recall@k: share of the targets among the first k. value@k: value of those of them that were bought.
    response@k: sum of P(buy) x value of the first k by the response model. revenue of an auction by its name.
    """
    settings, requests, true = world.settings, world.requests, truth.at(answers.ads)
    out: dict[str, np.ndarray] = {}
    for k in settings.cutoffs:
        first = answers.ads[:, :k]
        hits = [np.isin(t, row) for t, row in zip(requests.targets, first, strict=True)]
        out[f"recall@{k}"] = np.array([hit.mean() for hit in hits])
        out[f"value@{k}"] = np.array([v[hit].sum() for v, hit in zip(requests.values, hits, strict=True)])
        out[f"response@{k}"] = (true.p * true.value)[:, :k].sum(axis=1)
    rules = Rules(
        attention=settings.attention, reserve=shape.floor_share, rounds=settings.rounds, seed=settings.seed
    )
    for name, auction in settings.auctions.items():
        k = auction.candidates
        if auction.estimate == "own":
            estimates = answers.p
        elif ranker is not None:
            estimates = ranker.at(answers.ads).p
        else:
            continue
        earned = revenue(
            answers.ads[:, :k],
            estimates[:, :k],
            true=Scores(true.p[:, :k], true.value[:, :k]),
            requests=world.request_ids,
            rules=rules,
            shape=shape,
        )
        out[f"revenue {name}"] = earned * PER
    return out


def compared(
    mine: np.ndarray, theirs: np.ndarray, *, users: np.ndarray, seed: int
) -> dict[str, float | None]:
    """Ratio of two means less one, and the 95 % interval of it when users are drawn anew.

    Args:
        mine: float64 [R], mean over seeds.
        theirs: float64 [R], of the same requests and the same seeds.
        users: int64 [R], whose requests they are.
        seed: of the resampling.

    Returns:
        ratio, low, high; None where their mean is 0.
    """
    _, at = np.unique(users, return_inverse=True)
    sums = np.stack([np.bincount(at, x) for x in (mine, theirs)])  # [2, U]
    if not sums[1].any():
        return dict.fromkeys(("ratio", "low", "high"))
    count = sums.shape[1]
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    top, bottom = (drawn @ sums.T).T
    low, high = np.percentile(top[bottom > 0] / bottom[bottom > 0] - 1, [2.5, 97.5])
    return {"ratio": float(sums[0].sum() / sums[1].sum() - 1), "low": float(low), "high": float(high)}


def _by(answers: Answers, worth: np.ndarray) -> Answers:
    order = np.argsort(-np.where(answers.ads == NO_AD, -np.inf, worth), axis=1, kind="stable")
    ads, p, value = (np.take_along_axis(a, order, 1) for a in (answers.ads, answers.p, answers.value))
    return Answers(ads, p, value)
