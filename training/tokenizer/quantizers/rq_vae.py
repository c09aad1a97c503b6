"""The training of RQ-Kmeans+: the loss of a residual-quantised VAE.

    L = |x - x'|^2 + sum_l ( |sg(r_l) - e_l|^2 + beta |r_l - sg(e_l)|^2 )

r_l is what is left of z before level l, e_l the centroid that it takes, sg stops the gradient; through z_q it
passes to z as if nothing had been rounded (RQ-VAE: Lee et al., arXiv 2203.01941; TIGER, arXiv 2305.05065).

Letters: N points, B points of a batch, D dimensions, H hidden units, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from training.tokenizer.quantizers.mlp import LIMIT, ResidualMlp

HIDDEN = 256
STEPS = 1500
BATCH = 1024
LEARNING_RATE = 1e-3
BETA = 0.25


class _Layer(nn.Module):
    """`ResidualMlp` with gradients; the identity at first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, HIDDEN), nn.Linear(HIDDEN, dim)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x + self.second(torch.relu(self.first(x))), -LIMIT, LIMIT)

    def exact(self) -> ResidualMlp:
        w1, b1, w2, b2 = (p.detach().numpy() for p in (*self.first.parameters(), *self.second.parameters()))
        return ResidualMlp.of(w1.T, b1, w2=w2.T, b2=b2)


def train(
    points: np.ndarray, weights: np.ndarray, *, codebooks: Sequence[np.ndarray], seed: int
) -> tuple[ResidualMlp, ResidualMlp, list[np.ndarray]]:
    """Train from RQ-Kmeans' codebooks on points float32 [N, D], drawn by weight [N].

    Returns:
        Encoder, decoder, and the codebooks, float32 [K, D] each.
    """
    random = np.random.default_rng(seed)
    share = np.cumsum(weights.astype(np.float64))
    threads = torch.get_num_threads()
    # Other thread counts add in another order.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder, decoder = _Layer(points.shape[1]), _Layer(points.shape[1])
        books = nn.ParameterList(torch.from_numpy(book.copy()) for book in codebooks)
        parameters = [*encoder.parameters(), *decoder.parameters(), *books]
        optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        x = torch.from_numpy(points)
        for _ in range(STEPS):
            drawn = np.searchsorted(share, random.random(BATCH) * share[-1], side="right")
            optimizer.zero_grad()
            loss(x[drawn.clip(max=len(points) - 1)], encoder, decoder=decoder, books=books).backward()
            optimizer.step()
            schedule.step()
    finally:
        torch.set_num_threads(threads)
    return encoder.exact(), decoder.exact(), [book.detach().numpy() for book in books]


def loss(x: Tensor, encoder: nn.Module, *, decoder: nn.Module, books: nn.ParameterList) -> Tensor:
    """Mean of L over x, [B, D]."""
    z = encoder(x)
    residual, taken = z, torch.zeros_like(z)
    total = x.new_zeros(len(x))
    for book in books:
        with torch.no_grad():
            codes = torch.cdist(residual, book).argmin(dim=1)
        centroid = book[codes]  # [B, D]
        total = total + (residual.detach() - centroid).square().sum(1)
        total = total + BETA * (residual - centroid.detach()).square().sum(1)
        residual, taken = residual - centroid.detach(), taken + centroid
    through = z + (taken - z).detach()  # z_q, whose gradient goes to z
    return (total + (x - decoder(through)).square().sum(1)).mean()
