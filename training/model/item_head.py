"""The item level: ads instead of semantic IDs, by the state of a request x the vector of an ad.

    v(a) = e_a + W_x text(a) + sum_t e(s_t)          e_a = 0 for an ad that training did not see
    u    = one attention block over the history slots, each d^.5 v of its ad + what is known of the slot
    log p(a | X) = u . v(a) - log sum_b exp(u . v(b))

One block whose query is the newest event is what SASRec (Kang and McAuley, arXiv 1808.09781) does for its
last position; the vectors of the history and of the answers are the same. Code and slot embeddings are its
own: sharing the generator's made both worse (docs/decisions.md).

Letters: B requests, n ads of a request, S history slots, P columns of profile and request, T SID levels, A
ads that the model knows, D dimensions of a text's vector, C ads that a softmax is over, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from serving.model.features import FeatureSpec
from training.model.context import CodeEmbeddings, SlotEmbeddings
from training.preset.model import ItemConfig

KNOWN = tuple(f"item.{name}" for name in ("ad_ids", "sids", "texts", "seen"))
"""What `ItemHead.know` sets, as a model's state names it."""

_FIRST = 0.02  # standard deviation of vectors before anything is learnt, as in SASRec


class ItemSizes(NamedTuple):
    """What a head is made for.

    Attributes:
        ads: A.
        text: D; 0 where ads have no vectors.
    """

    ads: int
    text: int


@dataclass(frozen=True)
class KnownAds:
    """Ads that a model knows from its start on.

    Attributes:
        ad_ids: int64 [A], ascending.
        sids: int64 [A, T].
        texts: float32 [A, D].
        seen: bool [A], whether an event of the training part has it.
    """

    ad_ids: np.ndarray
    sids: np.ndarray
    texts: np.ndarray
    seen: np.ndarray


class ItemHead(nn.Module):
    """Vectors of ads, and the state of a request that they are multiplied with."""

    ad_ids: Tensor
    sids: Tensor
    texts: Tensor
    seen: Tensor

    def __init__(
        self, config: ItemConfig, sizes: ItemSizes, *, spec: FeatureSpec, level_sizes: tuple[int, ...]
    ) -> None:
        """Build; `know` says which ads there are, `reset` sets the first weights.

        Args:
            config: of the head.
            sizes: A and D.
            spec: context.
            level_sizes: V_1 .. V_T.
        """
        super().__init__()
        self.config, self.sizes, width = config, sizes, config.width
        # The last level is a hash, or what tells ads of one prefix apart; that is what e_a is for.
        self.codes = CodeEmbeddings(level_sizes[: max(1, len(level_sizes) - 1)], width)
        self.ids = nn.Embedding(sizes.ads, width)
        self.text = nn.Linear(sizes.text, width, bias=False) if sizes.text else None
        self.context = SlotEmbeddings(spec, width=width)
        self.query, self.keys_values = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.register_buffer("ad_ids", torch.zeros(sizes.ads, dtype=torch.int64))
        self.register_buffer("sids", torch.zeros(sizes.ads, len(level_sizes), dtype=torch.int64))
        self.register_buffer("texts", torch.zeros(sizes.ads, sizes.text))
        self.register_buffer("seen", torch.zeros(sizes.ads, 1))

    @torch.no_grad()
    def reset(self) -> None:
        """First weights, from torch's global generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=_FIRST)
        text = [] if self.text is None else [self.text.weight]
        for weight in (self.context.slot, self.context.user, *text):
            nn.init.normal_(weight, std=_FIRST)

    @torch.no_grad()
    def know(self, ads: KnownAds) -> None:
        """Take over which ads there are; texts are brought to a mean length of 1."""
        self.ad_ids.copy_(torch.tensor(ads.ad_ids))
        self.sids.copy_(torch.tensor(ads.sids))
        length = float(np.linalg.norm(ads.texts, axis=1).mean()) if ads.texts.size else 0.0
        self.texts.copy_(torch.from_numpy(ads.texts) / (length or 1.0))
        self.seen.copy_(torch.tensor(ads.seen)[:, None])

    def rows(self, ad_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of ads int64 [..], any for those that the model does not know; and whether it knows them."""
        rows = torch.searchsorted(self.ad_ids, ad_ids.contiguous()).clamp(max=len(self.ad_ids) - 1)
        return rows, self.ad_ids[rows] == ad_ids

    def vectors(self, rows: Tensor) -> Tensor:
        """Vectors v of known ads, [n, d] of rows int64 [n]; in training without e_a for some of them."""
        return self.own(rows) + self.content(rows)

    def own(self, rows: Tensor) -> Tensor:
        """e_a, [n, d]."""
        kept = self.seen[rows]
        if self.training and self.config.ids_dropped:
            kept = kept * (torch.rand_like(kept) >= self.config.ids_dropped)
        return self.ids(rows) * kept

    def content(self, rows: Tensor) -> Tensor:
        """What text and codes say of known ads, [n, d]."""
        sids = self.sids[rows]
        codes = [table(sids[:, t] + 1) for t, table in enumerate(self.codes.tables)]
        vectors = torch.stack(codes).sum(0)
        return vectors if self.text is None else vectors + self.text(self.texts[rows])

    def state(self, slots: Tensor, profile: Tensor, vectors: Tensor) -> Tensor:
        """State u, [B, d].

        Args:
            slots: int [B, S, T + 3].
            profile: int [B, P].
            vectors: v of the ads of the history slots, [B, S, d]; of empty ones anything.
        """
        config, count = self.config, vectors.shape[1]
        x, bias = self.context.with_contents(slots, profile, [vectors * config.width**0.5])
        there = (bias[:, -count:, None] == 0).to(x.dtype)
        x = functional.dropout(x, config.dropout, self.training)
        asked = x[:, :1] + there[:, :1] * x[:, -count : x.shape[1] - count + 1]  # user slot and newest event
        batch, heads = x.shape[0], (config.heads, config.width // config.heads)
        query = self.query(self.norms[0](asked)).view(batch, 1, *heads).transpose(1, 2)
        both = self.keys_values(self.norms[0](x)).view(batch, -1, 2, *heads).unbind(2)
        keys, values = (part.transpose(1, 2) for part in both)  # [B, heads, 1 + P + S, d / heads]
        scores = query @ keys.transpose(-1, -2) * heads[1] ** -0.5 + bias[:, None, None]
        weights = functional.dropout(scores.softmax(-1), config.dropout, self.training)
        found = self.out((weights @ values).transpose(1, 2).reshape(batch, 1, config.width))
        h = asked + functional.dropout(found, config.dropout, self.training)
        h = h + functional.dropout(self.ffn(self.norms[1](h)), config.dropout, self.training)
        return self.norms[2](h)[:, 0]

    def log_p(self, slots: Tensor, profile: Tensor, *, slot_ads: Tensor, ads: Tensor) -> Tensor:
        """Log p(a | X) of ads, [B, n] in float32; 0 of one that the model does not know.

        In training the softmax is over the ad and `config.negatives` others, drawn for the whole batch.

        Args:
            slots: int [B, S, T + 3].
            profile: int [B, P].
            slot_ads: int64 [B, S], -1 in an empty slot.
            ads: int64 [B, n].
        """
        slot_rows, in_slot = self.rows(slot_ads)
        rows, known = self.rows(ads)
        every = len(self.ad_ids)
        drawn = self.config.negatives if self.training else 0
        others = torch.arange(every, device=rows.device)
        if drawn and drawn < every:
            others = torch.randint(every, (drawn,), device=rows.device)
        used, place = torch.cat([others, slot_rows.flatten(), rows.flatten()]).unique(return_inverse=True)
        vectors = self.vectors(used)
        of_others, of_slots, of_ads = place.split([len(others), slot_rows.numel(), rows.numel()])
        slot_vectors = vectors[of_slots].view(*slot_ads.shape, -1) * in_slot[..., None]
        state = self.state(slots, profile, slot_vectors)
        own = (state[:, None] * vectors[of_ads].view(*ads.shape, -1)).sum(-1).float()  # [B, n]
        scores = (state @ vectors[of_others].T).float()[:, None]  # [B, 1, C]
        same = others == rows[..., None]  # [B, n, C]
        rest = torch.where(same, float("-inf"), scores).logsumexp(-1)
        return torch.where(known, own - torch.logaddexp(own, rest), 0.0)
