"""The generator cut into the graphs that serve: one prefix a request, one tail a later level.

Names and shapes of inputs and outputs are the contract in `serving.search.executor`. Letters: B requests,
n beams, C children, t levels with the value, S context slots, d width, H heads, e = d / H, R = L - K tail
layers, G sets of context keys and values (1 where the layers share one, else R).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from training.model.gr4ad import Generator
from training.model.graph_parts import TailLayers, head_of, past_of, tail_context
from training.model.mtp import MtpGenerator, MtpPrefixGraph, MtpTailGraph
from training.model.step import StepLayer


def split(model: Generator) -> nn.ModuleDict:
    """Every graph of a model in evaluation mode: "prefix", "tail_2" .. "tail_<T + 1>"."""
    model.eval()
    levels = range(2, model.levels + 2)
    graphs: dict[str, nn.Module]
    if isinstance(model, MtpGenerator):
        graphs = {"prefix": MtpPrefixGraph(model)} | {f"tail_{t}": MtpTailGraph(model, t) for t in levels}
    else:
        graphs = {"prefix": PrefixGraph(model)} | {f"tail_{t}": TailGraph(model, t) for t in levels}
    return nn.ModuleDict(graphs).eval()


class PrefixGraph(nn.Module):
    """Shared layers of all levels, and level 1 (one beam, from BOS) through all layers."""

    def __init__(self, model: Generator) -> None:
        """Wrap a model; weights of the layers 1 .. K are shared, those of the others copied."""
        super().__init__()
        self.model = model
        self.layers = nn.ModuleList(StepLayer(layer) for layer in model.tail_layers)
        self.gate, self.token, self.mix = _fused(model, model.bos[:, 0])
        self.head = head_of(model, 1)

    @property
    def has_copy_path(self) -> bool:
        """Whether it has the output `copy_logprob`."""
        return self.model.copy_path is not None

    def forward(self, slots: Tensor, profile: Tensor) -> tuple[Tensor, ...]:
        """See `serving.search.executor.prefix_outputs`.

        Args:
            slots: int32 [B, rows, T + 3], slots of the history, then habits.
            profile: int32 [B, P].

        Returns:
            logprob [B, V_1], m [B, t, d], context_kv [B, G, 2, H, S, e], context_bias [B, S],
            past_kv_1 [B, 2 R, 1, d], and copy_logprob [B, 1 + habits] of a model with a copy path.
        """
        model = self.model
        _, context_kv, bias = model.encode(slots, profile)
        m = model.shared_stage(context_kv, bias)[:, 0]  # [B, t, d]
        stacked = tail_context(model, context_kv)
        h = self.mix(m[:, 0] * self.gate) + self.token  # [B, d]
        past = []
        for i, layer in enumerate(self.layers):
            h, key, value = layer(h, stacked[:, min(i, model.tail_kv_groups - 1)], bias, past=[])
            past += [key, value]
        logprob = self.head(model.norm(h)).log_softmax(-1)
        outputs = (logprob, m, stacked, bias, torch.stack(past, dim=1))
        return outputs if model.copy_path is None else (*outputs, model.copy_logprob(slots, m))


class TailGraph(TailLayers):
    """Layers K + 1 .. L at one level: children in, survivors out."""

    def __init__(self, model: Generator, level: int) -> None:
        """Wrap a model for `level` = 2 .. T + 1 (T + 1 is the value level)."""
        super().__init__(model, level)
        self.gate, self.token, self.mix = _fused(model, model.codes.table(level - 1).weight[1:])

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
            context_kv: [B, G, 2, H, S, e].
            context_bias: [B, S].
            past_kv: for j = 1 .. level - 1, [B, 2 R, n_j, d], keys and values of each tail layer in turn;
                n_1 = 1.
            parents: for j = 2 .. level - 1, int32 [B, n], beam of level j.
            token: int32 [B, n], code chosen at level - 1.
            allowed: int32 [B, n, C], -1 = padding.

        Returns:
            logprob [B, n, C] and past_kv of this level [B, 2 R, n, d].
        """
        width = m.shape[-1]
        gated = m[:, self.level - 1 : self.level] * embedding(token, self.gate)  # [B, n, d]
        h = self.mix(gated.reshape(-1, width)) + embedding(token, self.token).reshape(-1, width)  # [B n, d]
        past = past_of(past_kv, parents)
        _, logprob, new = self.score(h, context_kv, context_bias, past=past, allowed=allowed)
        return logprob, torch.stack(new, dim=1)


@torch.no_grad()
def _fused(model: Generator, codes: Tensor) -> tuple[nn.Parameter, nn.Parameter, nn.Linear]:
    """Half of Fuse sees nothing but the token: one row a code worked out now, not two products a beam.

    Args:
        model: whose Fuse.
        codes: [V, d], what the token may be.

    Returns:
        W_g s of every code [V, d]; its part of W_f [.. ; s] [V, d]; the other part of W_f, a product.
    """
    fuse, width = model.fuse, model.config.width
    mix = nn.Linear(width, width, bias=False)
    mix.weight.copy_(fuse.mix.weight[:, :width])
    token = codes @ fuse.mix.weight[:, width:].T + fuse.mix.bias
    return nn.Parameter(fuse.gate(codes), requires_grad=False), nn.Parameter(token, requires_grad=False), mix
