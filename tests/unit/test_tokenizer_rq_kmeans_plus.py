"""RQ-Kmeans+: its loss against the formula, its exact layer, and that training does what it is for."""

import numpy as np
import pytest
import torch
from torch import nn

import training.tokenizer.quantizers.rq_vae as rq_vae
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.quantizers.grid import on_grid
from training.tokenizer.quantizers.mlp import ResidualMlp
from training.tokenizer.quantizers.rq_kmeans import RqKmeans
from training.tokenizer.quantizers.rq_kmeans_plus import RqKmeansPlus

CONFIG = TokenizerConfig(codebook_sizes=(12, 6), seed=2)


@pytest.fixture(scope="module")
def points():
    x = np.random.default_rng(0).normal(size=(1500, 6)) * [2, 1.5, 1, 1, 0.5, 0.2]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def layer(random, dim=6, hidden=20):
    shapes = [(dim, hidden), (hidden,), (hidden, dim), (dim,)]
    w1, b1, w2, b2 = (random.normal(size=shape) * 0.3 for shape in shapes)
    return ResidualMlp.of(w1, b1, w2=w2, b2=b2)


def test_layer_is_its_formula_and_the_same_in_any_batch(points):
    mlp = layer(np.random.default_rng(3))
    x = on_grid(points)
    actual = mlp(x)
    wanted = x + np.maximum(x.astype(np.float64) @ mlp.w1 + mlp.b1, 0) @ mlp.w2 + mlp.b2
    np.testing.assert_allclose(actual, np.clip(wanted, -1, 1), atol=1e-5)
    np.testing.assert_array_equal(actual, on_grid(actual))
    np.testing.assert_array_equal(np.concatenate([mlp(row[None]) for row in x[:200]]), actual[:200])


def test_layer_whose_sums_might_round_is_refused():
    big = np.full((4, 4), 1000.0)
    with pytest.raises(ValueError, match="expected sums below 4096, so that they are exact, got 8000"):
        ResidualMlp.of(big, np.zeros(4), w2=np.zeros((4, 4)), b2=np.zeros(4))
    with pytest.raises(ValueError, match="got nan"):
        ResidualMlp.of(big * np.nan, np.zeros(4), w2=np.zeros((4, 4)), b2=np.zeros(4))
    with pytest.raises(ValueError, match=r"expected weights \[D, H\]"):
        ResidualMlp.of(np.zeros((3, 4)), np.zeros(4), w2=np.zeros((4, 4)), b2=np.zeros(4))


def test_loss_and_gradient_are_those_of_the_written_formula(points):
    """Encoder and decoder are one matrix each; sums as loops, gradients by differences."""
    random = np.random.default_rng(1)
    x = torch.from_numpy(points[:5].astype(np.float64))
    encoder, decoder = (nn.Linear(6, 6, bias=False, dtype=torch.float64) for _ in range(2))
    books = nn.ParameterList(torch.from_numpy(random.normal(size=(k, 6))) for k in (4, 3))

    def written(e, d, books):
        total = 0.0
        for row in x.numpy():
            z = e @ row
            rest, taken, value = z.copy(), np.zeros(6), 0.0
            for book in books:
                c = book[((rest - book) ** 2).sum(axis=1).argmin()]
                value += (1 + rq_vae.BETA) * ((rest - c) ** 2).sum()
                rest, taken = rest - c, taken + c
            total += value + ((row - d @ taken) ** 2).sum()
        return total / len(x)

    arrays = [book.detach().numpy() for book in books]
    e, d = encoder.weight.detach().numpy(), decoder.weight.detach().numpy()
    loss = rq_vae.loss(x, encoder, decoder=decoder, books=books)
    assert float(loss) == pytest.approx(written(e, d, arrays))
    loss.backward()
    moved = d.copy()
    moved[2, 3] += 1e-6
    assert float(decoder.weight.grad[2, 3]) == pytest.approx(
        (written(e, moved, arrays) - written(e, d, arrays)) / 1e-6, rel=1e-3, abs=1e-5
    )
    # The encoder learns from reconstruction through z_q as if it were z, and from the commitment.
    z = x @ encoder.weight.T
    code1 = ((z[:, None] - books[0]) ** 2).sum(2).argmin(1)
    rest = z - books[0][code1]
    code2 = ((rest[:, None] - books[1]) ** 2).sum(2).argmin(1)
    left = rest - books[1][code2]
    missed = x - (books[0][code1] + books[1][code2]) @ decoder.weight.T
    to_z = (-2 * missed @ decoder.weight + 2 * rq_vae.BETA * (rest + left)) / len(x)
    torch.testing.assert_close(encoder.weight.grad, to_z.T.detach() @ x)


def test_training_reconstructs_better_than_where_it_began(points, monkeypatch):
    monkeypatch.setattr(rq_vae, "STEPS", 300)
    begun, trained = RqKmeans.fit(points, CONFIG), RqKmeansPlus.fit(points, CONFIG)
    errors = [((points - q.decode(q.encode(points))) ** 2).sum(axis=1).mean() for q in (begun, trained)]
    assert errors[1] < 0.97 * errors[0]
    assert len(np.unique(trained.encode(points)[:, 0])) == 12


def test_untrained_it_is_residual_k_means(points, monkeypatch):
    monkeypatch.setattr(rq_vae, "STEPS", 0)
    plain, plus = RqKmeans.fit(points, CONFIG), RqKmeansPlus.fit(points, CONFIG)
    np.testing.assert_array_equal(plus.encode(points), plain.encode(points))
