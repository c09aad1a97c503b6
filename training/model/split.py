"""The generator cut into the graphs that serve: one prefix a request, one tail a later level.

Names and shapes of inputs and outputs are the contract in `serving.executor`. Letters: B requests, n beams,
C children, t levels with the value, S context slots, d width, R = L - K tail layers, G sets of context keys
and values (1 where the layers share one, else R).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.model.gr4ad import Generator


class PrefixGraph(nn.Module):
    """Shared layers of all levels, and level 1 (one beam, from BOS) through all layers."""

    def __init__(self, model: Generator) -> None:
        """Wrap a model; weights are shared, not copied."""
        super().__init__()
        self.model = model

    def forward(self, slots: Tensor, profile: Tensor) -> tuple[Tensor, ...]:
        """See `serving.executor.prefix_outputs`.

        Args:
            slots: int32 [B, S, T + 3].
            profile: int32 [B, P].

        Returns:
            logprob [B, V_1], m [B, t, d], context_kv [B, G, 2, S, d], context_bias [B, S],
            past_kv_1 [B, R, 2, 1, d].
        """
        model = self.model
        context_kv, bias = model.encode(slots, profile)
        m = model.shared_stage(context_kv, bias)[:, 0]  # [B, t, d]
        tail_kv = context_kv[model.shared :]
        h = model.fuse(m[:, :1], model.bos)  # [B, 1, d]
        past = []
        for layer, kv in zip(model.tail_layers, tail_kv, strict=True):
            h, new = layer.step(h, kv, bias, past=[])
            past.append(new)
        logprob = model.logits(h[:, 0], 1).log_softmax(-1)
        stacked = torch.stack([torch.stack(kv, dim=1) for kv in tail_kv[: model.tail_kv_groups]], dim=1)
        return logprob, m, stacked, bias, torch.stack(past, dim=1)


class TailGraph(nn.Module):
    """Layers K + 1 .. L at one level: children in, survivors out."""

    def __init__(self, model: Generator, level: int) -> None:
        """Wrap a model for `level` = 2 .. T + 1 (T + 1 is the value level)."""
        super().__init__()
        self.model, self.level = model, level

    def forward(
        self,
        m: Tensor,
        context_kv: Tensor,
        context_bias: Tensor,
        past_kv: list[Tensor],
        parents: list[Tensor],
        token: Tensor,
        allowed: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Score the children of n beams.

        Args:
            m: [B, t, d].
            context_kv: [B, G, 2, S, d].
            context_bias: [B, S].
            past_kv: for j = 1 .. level - 1, [B, R, 2, n_j, d]; n_1 = 1.
            parents: for j = 2 .. level - 1, int32 [B, n], beam of level j.
            token: int32 [B, n], code chosen at level - 1.
            allowed: int32 [B, n, C], -1 = padding.

        Returns:
            logprob [B, n, C] and past_kv of this level [B, R, 2, n, d].
        """
        model = self.model
        embedded = model.codes.table(self.level - 1)(token + 1)  # [B, n, d]
        h = model.fuse(m[:, self.level - 1 : self.level], embedded)
        past = [
            past_kv[0],
            *(self._gather(kv, parent) for kv, parent in zip(past_kv[1:], parents, strict=True)),
        ]
        new = []
        for i, layer in enumerate(model.tail_layers):
            group = context_kv[:, min(i, model.tail_kv_groups - 1)]  # [B, 2, S, d]
            h, kv = layer.step(h, (group[:, 0], group[:, 1]), context_bias, past=[p[:, i] for p in past])
            new.append(kv)
        logprob = model.logits(h, self.level).log_softmax(-1)  # [B, n, V]
        return logprob.gather(2, allowed.clamp(min=0).long()), torch.stack(new, dim=1)

    @staticmethod
    def _gather(kv: Tensor, parent: Tensor) -> Tensor:
        index = parent.long()[:, None, None, :, None].expand(-1, kv.shape[1], 2, -1, kv.shape[-1])
        return kv.gather(3, index)  # [B, R, 2, n_j, d] -> [B, R, 2, n, d]
