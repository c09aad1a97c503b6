"""A small neural ranker over the features that the trees have: two hidden layers, two outputs.

Letters: n candidates, F numbers, P columns of profile and request, d width.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from serving.ranking.features import Features
from training.preset.reward import RewardConfig
from training.reward.ranker import Predicted
from training.reward.rows import Rows

_CATEGORY = 4  # dimensions of a category's vector
_BATCH = 2048
CLIP = 5.0  # standard deviations: what is further out says no more


class Network(nn.Module):
    """Numbers, standardised, and categories -> log-odds and log ratio."""

    def __init__(self, numbers: int, categories: tuple[int, ...], *, width: int) -> None:
        """See `RewardConfig` for the width; `categories` are codes of each column, length P."""
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))
        self.categories = nn.ModuleList(nn.Embedding(size, _CATEGORY) for size in categories)
        self.hidden = nn.Sequential(
            nn.Linear(numbers + _CATEGORY * len(categories), width),
            nn.ReLU(),
            nn.Linear(width, max(width // 2, 1)),
            nn.ReLU(),
        )
        self.out = nn.Linear(max(width // 2, 1), 2)

    def forward(self, numbers: Tensor, profile: Tensor) -> Tensor:
        """Numbers [n, F] and codes [n, P] to [n, 2]."""
        numbers = ((numbers - self.mean) / self.scale).clamp(-CLIP, CLIP)
        vectors = [embed(profile[:, p]) for p, embed in enumerate(self.categories)]
        return self.out(self.hidden(torch.cat([numbers, *vectors], dim=1)))


class Neural:
    """A fitted network; see `Ranker`.

    Attributes:
        network: log-odds and log of the ratio.
    """

    def __init__(self, network: Network) -> None:
        """In evaluation mode."""
        self.network = network.eval()

    @classmethod
    def fit(cls, rows: Rows, validation: Rows, config: RewardConfig, *, categories: tuple[int, ...]) -> Self:
        """Fit with the losses of the trees, together; of all epochs the best by validation is kept.

        Args:
            rows: to fit on.
            validation: to choose by.
            config: width, epochs, learning rate, seed.
            categories: codes of each column of profile and request.
        """
        torch.manual_seed(config.seed)
        numbers = rows.features.numbers
        network = Network(numbers.shape[1], categories, width=config.width)
        network.mean.copy_(torch.from_numpy(numbers.mean(axis=0)))
        network.scale.copy_(torch.from_numpy(np.maximum(numbers.std(axis=0), 1e-3)))
        data, held_out = _tensors(rows), _tensors(validation)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-4)
        steps = config.epochs * -(-len(rows) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps)
        best, kept = np.inf, copy.deepcopy(network.state_dict())
        for _ in range(config.epochs):
            network.train()
            for batch in torch.randperm(len(rows)).split(_BATCH):
                optimizer.zero_grad()
                _loss(network, [column[batch] for column in data]).backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            network.eval()
            with torch.no_grad():
                loss = float(_loss(network, held_out))
            if loss < best:
                best, kept = loss, copy.deepcopy(network.state_dict())
        network.load_state_dict(kept)
        return cls(network)

    @torch.no_grad()
    def predict(self, features: Features) -> Predicted:
        """See `Ranker`."""
        found = self.network(torch.from_numpy(features.numbers), torch.from_numpy(features.profile).long())
        logit, ratio = found.double().numpy().T
        return Predicted(logit, np.exp(ratio))

    def save(self, folder: Path, name: str) -> list[str]:
        """See `Ranker`."""
        save_file(self.network.state_dict(), folder / f"{name}.safetensors")
        return [f"{name}.safetensors"]

    @classmethod
    def load(cls, folder: Path, name: str, *, numbers: int, categories: tuple[int, ...], width: int) -> Self:
        """Read what `save` wrote.

        Raises:
            safetensors.SafetensorError: not such a file.
            RuntimeError: weights of another network.
        """
        network = Network(numbers, categories, width=width)
        network.load_state_dict(load_file(folder / f"{name}.safetensors"))
        return cls(network)


def _tensors(rows: Rows) -> list[Tensor]:
    """Numbers, profile, had, weight, value, mean value of the ad."""
    columns = (
        rows.features.numbers,
        rows.features.profile,
        rows.had,
        rows.weight,
        rows.value,
        rows.features.value,
    )
    kinds = (torch.float32, torch.int64, *[torch.float32] * 4)
    return [torch.from_numpy(column).to(kind) for column, kind in zip(columns, kinds, strict=True)]


def _loss(network: Network, columns: list[Tensor]) -> Tensor:
    """Log loss of the outcome, by weight, and Poisson loss of the ratio where there is one, by mean value."""
    numbers, profile, had, weight, value, mean = columns
    logit, log_ratio = network(numbers, profile).T
    odds = (
        functional.binary_cross_entropy_with_logits(logit, had, weight=weight, reduction="sum") / weight.sum()
    )
    worth = (had * (mean * log_ratio.exp() - value * log_ratio)).sum() / (had * mean).sum().clamp(min=1e-6)
    return odds + 0.1 * worth
