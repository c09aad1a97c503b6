"""Fits the response model: likelihood over the catalogue, its sum over ads estimated by a sample.

With P(buy) = 1 - exp(-rate), the loss of a request is sum_a rate_a - sum_{bought} log(exp(rate_a) - 1). Ads
of the user's past enter the first sum one by one; the others by a sample of the catalogue, half of it uniform
and half by popularity, each with one over its expected number of draws. So rates, and with them
probabilities, come out on their own scale.

Letters: A ads, W words, F factors, B requests, P pairs, m sampled ads, k kernels.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.simulation.history import KERNELS_DAYS, TASTE_DAYS, Past
from benchmarks.simulation.response import MOST_LOG_RATE, ResponseModel
from benchmarks.simulation.settings import FitSettings
from serving.model.features import BEHAVIORS
from training.data.groups import TargetGroups
from training.data.samples import RequestDataset

WORDS = 4096  # the most frequent ones
SHRINK_VALUE = 5.0  # purchases that the mean of others counts as


def fit(
    dataset: RequestDataset,
    ads: pl.DataFrame,
    groups: TargetGroups,
    rows: np.ndarray,
    *,
    behaviors: tuple[str, ...],
    settings: FitSettings,
) -> ResponseModel:
    """Fit on requests.

    Args:
        dataset: log and histories; nothing of its SIDs is used.
        ads: table with the dataset's ads.
        groups: requests of the training weeks.
        rows: int64, those of them to fit on: of users that are not judged.
        behaviors: names of what counts as a purchase.
        settings: of the fit.

    Raises:
        ValueError: no request, or other ads.
    """
    ads = ads.sort("ad_id")
    if not len(rows) or not np.array_equal(ads["ad_id"].to_numpy(), dataset.ad_ids):
        raise ValueError(f"response model: expected requests of the dataset's ads, got {len(rows)} requests")
    codes = np.array([BEHAVIORS[name] for name in behaviors])
    torch.manual_seed(settings.seed)
    random = np.random.default_rng(settings.seed)
    bought = np.concatenate([dataset.targets(groups, row) for row in rows])
    counts = np.bincount(dataset.event_ad[bought], minlength=len(ads)).astype(np.float64)
    base = np.log((counts + 0.3) / len(rows))
    net = _Net(_words(ads["text"].to_list()), base=base, factors=settings.factors)
    few = (net.offset, net.own, net.own_gates, net.size, net.gates)
    tables = (*net.free, *net.of_words, net.bias)
    rates = ((few, settings.learning_rate), (tables, settings.table_learning_rate))
    optimizer = torch.optim.Adam([{"params": list(params), "lr": rate} for params, rate in rates])
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, settings.steps)
    chance = 0.5 / len(ads) + 0.5 * counts / counts.sum()
    for _ in tqdm(range(settings.steps), desc="response model", unit="step", mininterval=2.0):
        chosen = random.choice(rows, settings.batch, replace=len(rows) < settings.batch)
        drawn = np.sort(random.choice(len(ads), settings.sample, p=chance))
        pasts = [Past.of(dataset, groups, row, behaviors=codes) for row in chosen]
        targets = [np.unique(dataset.event_ad[dataset.targets(groups, row)]) for row in chosen]
        loss = net(pasts, targets, drawn, weights=1 / (settings.sample * chance[drawn])) / settings.batch
        loss = loss + settings.decay * net.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return ResponseModel(
        ad_ids=dataset.ad_ids,
        behaviors=codes,
        value=_values(dataset, ads["text"], bought).astype(np.float32),
        **net.arrays(),
    )


class _Net(nn.Module):
    """The model as torch fits it; see `response` for the formula."""

    def __init__(self, words: Tensor, *, base: np.ndarray, factors: int) -> None:
        super().__init__()
        self.words = words  # sparse [A, W], rows sum to 1
        self.base = torch.as_tensor(base, dtype=torch.float32)
        self.offset = nn.Parameter(torch.zeros(2))  # o, and the weight of the base rate less 1
        self.bias = nn.Parameter(torch.zeros(words.shape[0]))
        self.own = nn.Parameter(torch.full((len(KERNELS_DAYS),), 1 / len(KERNELS_DAYS)))
        self.own_gates = nn.Parameter(torch.tensor([0.0, 0.1, 0.5]))
        self.size = nn.Parameter(torch.zeros(1))
        self.gates = nn.Parameter(torch.full((len(TASTE_DAYS), factors), 0.5))
        self.free = nn.ParameterList(torch.zeros(words.shape[0], factors) for _ in range(2))
        self.of_words = nn.ParameterList(torch.randn(words.shape[1], factors) * 0.2 for _ in range(2))

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Bias [A], candidate factors [A, F], factors of the past [A, F]."""
        bias = self.offset[0] + (1 + self.offset[1]) * self.base + self.bias
        candidate, past = (
            free + torch.sparse.mm(self.words, words)
            for free, words in zip(self.free, self.of_words, strict=True)
        )
        return bias, candidate, past

    def forward(
        self, pasts: list[Past], targets: list[np.ndarray], drawn: np.ndarray, *, weights: np.ndarray
    ) -> Tensor:
        """Loss, summed over requests."""
        bias, candidate, past = self.tables()
        at = torch.as_tensor(np.repeat(np.arange(len(pasts)), [len(p.ads) for p in pasts]))
        own_ads = torch.as_tensor(np.concatenate([p.ads for p in pasts]))
        shares = torch.as_tensor(np.concatenate([p.taste for p in pasts]), dtype=torch.float32)  # [P, 2]
        kernels = torch.as_tensor(np.concatenate([p.own for p in pasts]), dtype=torch.float32)  # [P, k]
        mixed = (shares @ self.gates) * past[own_ads]  # [P, F]
        taste = torch.zeros(len(pasts), mixed.shape[1]).index_add(0, at, mixed)  # [B, F]
        level = self.size * torch.tensor([p.size for p in pasts], dtype=torch.float32)  # [B]

        def liking(request: Tensor, ad: Tensor) -> Tensor:
            return (taste[request] * candidate[ad]).sum(-1)

        def rate(log_rate: Tensor) -> Tensor:
            return log_rate.clamp(max=MOST_LOG_RATE).exp()

        offset, of_bias, of_liking = self.own_gates
        known = offset + of_bias * bias[own_ads] + of_liking * liking(at, own_ads) + kernels @ self.own
        own = rate(known + level[at])  # [P]
        of_own = np.concatenate([np.isin(p.ads, t) for p, t in zip(pasts, targets, strict=True)])
        new = [np.setdiff1d(t, p.ads) for p, t in zip(pasts, targets, strict=True)]
        new_at = torch.as_tensor(np.repeat(np.arange(len(new)), [len(t) for t in new]))
        new_ads = torch.as_tensor(np.concatenate(new))
        of_new = rate(bias[new_ads] + liking(new_at, new_ads) + level[new_at])
        bought = torch.cat([own[torch.as_tensor(of_own)], of_new])
        others = torch.as_tensor(drawn)
        rates = rate(bias[others] + level[:, None] + taste @ candidate[others].T)  # [B, m]
        counts = torch.as_tensor(
            weights * ~np.stack([np.isin(drawn, p.ads) for p in pasts]), dtype=torch.float32
        )
        return own.sum() + (rates * counts).sum() - bought.expm1().log().sum()

    def penalty(self) -> Tensor:
        """Squares of what is free."""
        return sum((p.square().sum() for p in (*self.free, *self.of_words, self.bias)), torch.zeros(()))

    @torch.no_grad()
    def arrays(self) -> dict[str, np.ndarray]:
        """Those of a `ResponseModel`, by name."""
        tables = dict(zip(("bias", "candidate", "past"), self.tables(), strict=True))
        tables |= {name: getattr(self, name) for name in ("gates", "own", "own_gates", "size")}
        return {name: table.detach().numpy().copy() for name, table in tables.items()}


def _words(texts: list[str]) -> Tensor:
    """Which words a text has, sparse [A, W], rows sum to 1 where there is any."""
    found = [sorted(set(re.findall(r"[^\W_]+", text.lower()))) for text in texts]
    frequent = Counter(word for words in found for word in words).most_common(WORDS)
    place = {word: i for i, (word, count) in enumerate(frequent) if count > 1}
    known = [[place[word] for word in words if word in place] for words in found]
    row = np.repeat(np.arange(len(known)), [len(words) for words in known])
    column = np.array([place for words in known for place in words], np.int64)
    share = np.repeat([1 / max(len(words), 1) for words in known], [len(words) for words in known])
    return torch.sparse_coo_tensor(
        torch.as_tensor(np.stack([row, column])),
        torch.as_tensor(share, dtype=torch.float32),
        (len(texts), max(len(place), 1)),
        check_invariants=True,
    ).coalesce()


def _values(dataset: RequestDataset, texts: pl.Series, bought: np.ndarray) -> np.ndarray:
    """Value of a purchase of each ad [A]: its mean, shrunk to that of its text, that to the mean of all."""
    ad, value = dataset.event_ad[bought], dataset.log.value[bought].astype(np.float64)
    text = texts.rank("dense").to_numpy() - 1

    def shrunk(groups: np.ndarray, size: int, towards: np.ndarray) -> np.ndarray:
        sums, counts = np.bincount(groups, value, minlength=size), np.bincount(groups, minlength=size)
        return (sums + SHRINK_VALUE * towards) / (counts + SHRINK_VALUE)

    of_texts = shrunk(text[ad], int(text.max()) + 1, np.full(int(text.max()) + 1, value.mean()))
    return np.maximum(shrunk(ad, len(texts), of_texts[text]), 0.0)
