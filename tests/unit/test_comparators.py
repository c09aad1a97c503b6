"""What the benchmark compares with does the work it is timed for: against brute force on tiny catalogues."""

import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from benchmarks.comparators import MissingComparatorError, require, static
from benchmarks.comparators.ct2 import Ct2Generate
from benchmarks.comparators.hf import BOS, EOS, HfGenerate, T5Shape, build_t5, random_context, token_offsets
from serving.index.trie import Trie

SHAPE = T5Shape(layers=2, width=16, heads=2, ffn=32)
SIZES = (6, 2, 7)


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="needs requirements-bench.txt")


@pytest.fixture
def ctranslate2(transformers):
    return pytest.importorskip("ctranslate2", reason="needs requirements-bench.txt")


def random_sids(count, sizes, *, seed=0):
    """At most `count` distinct SIDs in lexicographic order, int32 [M, T]."""
    random = np.random.default_rng(seed)
    return np.unique(np.stack([random.integers(0, v, count) for v in sizes], axis=1), axis=0).astype(np.int32)


def teacher_forced(context, tokens, sizes, *, never=None):
    """log p of each token of sequences [N, T] given the ones before it, [N, T]; `never` has probability 0."""
    model = build_t5(sizes, SHAPE)
    inputs = np.concatenate([np.full((len(tokens), 1), BOS), tokens[:, :-1]], axis=1)
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor(context)[None].expand(len(tokens), -1),
            decoder_input_ids=torch.tensor(inputs),
        ).logits  # [N, T, V]
    if never is not None:
        logits[..., never] = -torch.inf
    return logits.log_softmax(-1).gather(2, torch.tensor(tokens)[..., None])[..., 0].numpy()


def plain_search(sequences, logprob, widths):
    """Beam search with a dict: the kept prefixes of the last level and their scores, best first."""
    kept = {(): 0.0}
    for level, width in enumerate(widths):
        step = {}
        for sequence, row in zip(sequences, logprob, strict=True):
            if (above := tuple(sequence[:level])) in kept:
                step[tuple(sequence[: level + 1])] = kept[above] + row[level]
        kept = dict(sorted(step.items(), key=lambda item: -item[1])[:width])
    return list(kept), list(kept.values())


def test_hugging_face_finds_the_best_live_sids(transformers):
    sids, context = random_sids(60, SIZES), random_context(SIZES, seed=1, length=9)
    hf = HfGenerate(SIZES, sids, shape=SHAPE, threads=1)
    found, scores = hf.generate(context, 12)  # as many beams as prefixes of two codes: nothing is pruned
    expected = teacher_forced(context, sids + token_offsets(SIZES), SIZES).sum(1)
    order = np.argsort(-expected)[:12]
    assert found.tolist() == sids[order].tolist()
    np.testing.assert_allclose(scores, expected[order], atol=1e-4)


def test_hugging_face_returns_every_live_sid_once_where_there_are_fewer_than_beams(transformers):
    sids = np.array([[0, 1, 2], [0, 1, 3], [4, 0, 0]], np.int32)
    found, _ = HfGenerate(SIZES, sids, shape=SHAPE, threads=1).generate(random_context(SIZES, seed=0), 8)
    assert sorted(found.tolist()) == sids.tolist()


@pytest.mark.parametrize("engine", ["hf", "ct2"])
def test_unconstrained_search_equals_a_plain_one_over_all_tokens(engine, ctranslate2):
    sizes = (4, 3, 3)
    context = random_context(sizes, seed=5, length=9)  # the end token is likely as the first one here
    if engine == "hf":
        sids, scores = HfGenerate(sizes, random_sids(5, sizes), shape=SHAPE, threads=1).generate(
            context, 6, constrained=False
        )
    else:
        sids, scores = Ct2Generate(sizes, shape=SHAPE, threads=1).generate(context, 6)
    tokens = np.array(list(product(range(sum(sizes) + 3), repeat=3)))
    # CTranslate2 knows that the end may not come yet, and normalises over the other tokens.
    logprob = teacher_forced(context, tokens, sizes, never=EOS if engine == "ct2" else None)
    expected, expected_scores = plain_search(tokens.tolist(), logprob.tolist(), (6, 6, 6))
    assert any(EOS in sequence[:2] for sequence in expected) == (engine == "hf")  # it ends nothing
    assert [tuple(t) for t in (sids + token_offsets(sizes)).tolist()] == expected
    np.testing.assert_allclose(scores, expected_scores, atol=1e-4)


def test_ctranslate2_int8_decodes_all_levels(ctranslate2):
    context = random_context(SIZES, seed=0, length=9)
    sids, scores = Ct2Generate(SIZES, shape=SHAPE, threads=1, compute_type="int8").generate(context, 7)
    exact, exact_scores = Ct2Generate(SIZES, shape=SHAPE, threads=1).generate(context, 7)
    assert sids.shape == (7, 3)
    assert np.allclose(scores, exact_scores, atol=0.2)
    assert not np.array_equal(scores, exact_scores)  # it really computes in another precision


def test_weights_follow_the_seed_alone(transformers):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    weights = [build_t5(SIZES, replace(SHAPE, seed=seed)).shared.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_contexts_are_code_tokens_and_follow_the_seed():
    context = random_context(SIZES, seed=3)
    assert context.shape == (64,)
    assert context.min() >= 3
    assert context.max() < 3 + sum(SIZES)
    assert np.array_equal(context, random_context(SIZES, seed=3))
    assert not np.array_equal(context, random_context(SIZES, seed=4))


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(MissingComparatorError, match=r"ctranslate2.*requirements-bench\.txt"):
        require("ctranslate2")


@pytest.mark.parametrize("dense_levels", [0, 1, 2, 3])
@pytest.mark.parametrize("widths", [(2, 5, 9), (6, 12, 84)])
def test_static_and_ours_equal_a_plain_search(dense_levels, widths):
    sids = random_sids(50, SIZES)
    torch.manual_seed(0)
    logprobs = [torch.randn(n, v).log_softmax(-1) for n, v in zip((1, *widths), SIZES, strict=False)]
    constraint = static.StaticConstraint(sids, SIZES, dense_levels=dense_levels)
    assert constraint.dense_levels == dense_levels
    kept = {(): 0.0}  # every prefix with its score, best first: the rows of logprobs follow this order
    for level, width in enumerate(widths):
        live = {tuple(sid[: level + 1]) for sid in sids.tolist()}
        step = {
            (*prefix, code): score + float(logprobs[level][beam, code])
            for beam, (prefix, score) in enumerate(kept.items())
            for code in range(SIZES[level])
            if (*prefix, code) in live
        }
        kept = dict(sorted(step.items(), key=lambda item: -item[1])[:width])
    for found, scores in (
        static.search_static(constraint, logprobs, widths),
        static.search_ours(Trie.from_sorted(sids), [x.numpy() for x in logprobs], widths),
    ):
        assert [tuple(sid) for sid in found.tolist()] == list(kept)
        np.testing.assert_allclose(scores, list(kept.values()), atol=1e-5)


def test_static_ends_at_the_leaf_of_each_sid():
    sids = random_sids(50, SIZES)
    constraint = static.StaticConstraint(sids, SIZES)
    scores, states = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    chosen = torch.zeros(1, 0, dtype=torch.int64)
    for level, size in enumerate(SIZES):
        scores, parent, token, states = constraint.step(
            level, torch.zeros(len(scores), size), states=states, scores=scores, k=(6, 12, len(sids))[level]
        )
        chosen = torch.cat([chosen[parent], token[:, None]], dim=1)
    assert sids[states.numpy()].tolist() == chosen.tolist()
    assert sorted(states.tolist()) == list(range(len(sids)))


def test_static_has_no_dense_table_that_is_too_big(monkeypatch):
    monkeypatch.setattr(static, "MAX_DENSE_CELLS", 6)
    assert static.StaticConstraint(random_sids(50, SIZES), SIZES).dense_levels == 1


def test_compare_times_each_repeat_after_a_warm_up_and_refuses_different_answers(monkeypatch):
    sids, sizes = random_sids(2000, (32, 16, 16)), (32, 16, 16)
    options = {"level_sizes": sizes, "widths": (4, 8, 16), "repeats": 3, "seed": 0}
    search, calls = static.search_static, []
    monkeypatch.setattr(static, "search_static", lambda *args: calls.append(0) or search(*args))
    seconds = static.compare(Trie.from_sorted(sids), static.StaticConstraint(sids, sizes), **options)
    assert {name: len(values) for name, values in seconds.items()} == {"ours": 3, "static": 3}
    assert len(calls) > 3
    other = static.StaticConstraint(random_sids(9, sizes, seed=1), sizes)
    with pytest.raises(AssertionError, match="same SIDs"):
        static.compare(Trie.from_sorted(sids), other, **options)
