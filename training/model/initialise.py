"""Initial weights: those of a model that already copies a little from the history.

Much of what a user does next repeats or resembles the history. A decoder with random weights needs many steps
to find the path "history slot -> attention -> residual stream -> code embedding"; these weights start with
that path open, and change nothing in the architecture: queries and keys start equal (a token attends to slots
that carry it), output and value projections start as each other's inverse, and Fuse passes the token through.
Where nobody has an ad twice, what this path says at first is wrong: `model.initial_weights: random` leaves it
closed.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from training.model.gr4ad import Generator
from training.model.layers import ContextKeysValues, DecoderLayer


@torch.no_grad()
def initialise(model: Generator) -> Generator:
    """Set all weights of a model from torch's global generator; returns the model."""
    width = model.config.width
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            # Rows of norm 1: with tied heads the first logits have a standard deviation of about 1.
            nn.init.normal_(module.weight, std=width**-0.5)
            if module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
    for parameter in (model.level, model.bos, model.context.user, model.context.slot):
        nn.init.normal_(parameter, std=width**-0.5)
    model.fuse.mix.weight[:, width:] = torch.eye(width)
    layers = cast("list[DecoderLayer]", list(model.layers))
    for layer in layers:
        for linear in (layer.out_context, layer.out_self, cast(nn.Linear, layer.ffn[2])):
            linear.weight.mul_((2 * len(layers)) ** -0.5)
    if model.config.initial_weights == "copying":
        _open_path(model, layers)
    if model.item is not None:
        model.item.reset()
    return model


def _open_path(model: Generator, layers: list[DecoderLayer]) -> None:
    projections = cast("list[ContextKeysValues]", list(model.context_kv))
    for kv in projections:
        nn.init.orthogonal_(kv.value.weight)
    for i, layer in enumerate(layers):
        kv = projections[0 if model.config.share_context_kv else i]
        layer.query_context.weight.copy_(kv.key.weight)
        layer.out_context.weight.copy_(kv.value.weight.T / len(layers) ** 0.5)
