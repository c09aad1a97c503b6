"""The contrastive loss against its formula, and what learning a projection does."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from training.preset.tokenizer import CooccurrenceConfig
from training.tokenizer.cooccurrence.contrastive import info_nce, learn_projection, strongest
from training.tokenizer.cooccurrence.held_out import HeldOut, recall_at
from training.tokenizer.cooccurrence.positives import Positives

SETTINGS = CooccurrenceConfig(steps=60, check_every=10, anchors=24, negatives=12, learning_rate=0.02)


def test_loss_is_the_double_loop_of_the_formula():
    random = np.random.default_rng(0)
    anchors, contents = 6, 15
    scores = random.standard_normal((anchors, contents))
    bought = random.random((anchors, contents)) < 0.4
    positive = bought & (random.random((anchors, contents)) < 0.5)
    for i in range(anchors):
        positive[i, (i + 1) % contents] = bought[i, (i + 1) % contents] = True
    positive[0, 0] = True  # itself, which never counts
    weight = np.where(positive, random.uniform(0.1, 1, positive.shape), 0)
    losses = []
    for i in range(anchors):
        others = [k for k in range(contents) if k != i]
        above = sum(weight[i, k] * math.exp(scores[i, k]) for k in others)
        below = sum(math.exp(scores[i, k]) for k in others if positive[i, k] or not bought[i, k])
        losses.append(-math.log(above / below))

    def loss(scores):
        of = {"weight": torch.from_numpy(weight), "bought": torch.from_numpy(bought)}
        return info_nce(torch.from_numpy(scores), **of).item()

    assert loss(scores) == pytest.approx(np.mean(losses))
    false_negatives = scores + 5 * (bought & ~positive)
    assert loss(false_negatives) == pytest.approx(np.mean(losses))


def test_strongest_are_those_of_a_sorted_row():
    random = np.random.default_rng(0)
    dense = random.integers(0, 5, (20, 30)).astype(np.float32)
    found = strongest(csr_matrix(dense), 4).toarray()
    for row, kept in zip(dense, found, strict=True):
        order = sorted(range(30), key=lambda j: (-row[j], j))[:4]
        assert {j: kept[j] for j in np.flatnonzero(kept)} == {j: row[j] / row.max() for j in order if row[j]}


def meals(pairs=24, seed=0):
    """Contents 2 p and 2 p + 1 are bought together and share no feature; as many features as contents."""
    random = np.random.default_rng(seed)
    count = 2 * pairs
    features = csr_matrix(np.eye(count) + 0.2 * (random.random((count, count)) < 0.05))
    partners = np.zeros((count, count), np.float32)
    for p in range(pairs):
        partners[2 * p, 2 * p + 1] = partners[2 * p + 1, 2 * p] = 1
    start = random.standard_normal((count, 16)).astype(np.float32) / 4
    return features, start, csr_matrix(partners)


def vectors_of(features, projection):
    found = np.asarray(features @ projection)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_what_is_bought_together_comes_to_lie_together():
    features, start, partners = meals()
    held_out = HeldOut(partners.astype(np.uint8), np.arange(partners.shape[0]))
    positives = Positives(partners, held_out, seen=np.arange(len(start)))
    learnt = learn_projection(features, start, positives, settings=SETTINGS, seed=0)
    before, after = (recall_at(vectors_of(features, p), held_out, (1,))[1] for p in (start, learnt))
    assert before < 0.2
    assert after > 0.9
    again = learn_projection(features, start, positives, settings=SETTINGS, seed=0)
    np.testing.assert_array_equal(again, learnt)
    dense = learn_projection(features.toarray(), start, positives, settings=SETTINGS, seed=0)
    assert recall_at(vectors_of(features, dense), held_out, (1,))[1] > 0.9


def test_learning_that_does_not_help_is_thrown_away():
    """Held-out baskets that show what the start has already: any step away from it is worse."""
    features, start, partners = meals()
    near = vectors_of(features, start)
    similarity = near @ near.T
    np.fill_diagonal(similarity, -2)
    already = np.zeros_like(similarity, np.uint8)
    already[np.arange(len(near)), similarity.argmax(axis=1)] = 1
    positives = Positives(partners, HeldOut(csr_matrix(already), np.arange(len(near))), seen=np.arange(48))
    learnt = learn_projection(features, start, positives, settings=SETTINGS, seed=0)
    np.testing.assert_array_equal(learnt, start)


def test_held_out_baskets_without_a_pair_throw_no_learning_away(caplog):
    features, start, partners = meals()
    pairs = HeldOut(partners.astype(np.uint8), np.arange(48))
    none = HeldOut(csr_matrix(partners.shape, dtype=np.uint8), np.arange(48))
    positives = Positives(partners, none, seen=np.arange(48))
    learnt = learn_projection(features, start, positives, settings=SETTINGS, seed=0)
    assert recall_at(vectors_of(features, learnt), pairs, (1,))[1] > 0.9
    assert "nothing says when to stop, all 60 steps are kept" in caplog.text


def test_other_shapes_are_refused():
    features, start, partners = meals()
    positives = Positives(partners, HeldOut(partners, np.arange(48)), seen=np.arange(48))
    with pytest.raises(ValueError, match=r"expected a projection \[48, D\] .* got \[47, 16\] and \[48, 48\]"):
        learn_projection(features, start[1:], positives, settings=SETTINGS, seed=0)


def test_threads_of_others_are_left_as_they_were():
    features, start, partners = meals()
    held_out = HeldOut(partners.astype(np.uint8), np.arange(48))
    positives = Positives(partners, held_out, seen=np.arange(48))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        learn_projection(features, start, positives, settings=SETTINGS, seed=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
