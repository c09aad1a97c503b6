"""AdamW and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from training.preset.loop import LoopConfig, StepConfig


def make_optimizer(model: nn.Module, config: StepConfig) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors and tables of codes and ads (few rows of which a step reads) do not."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim >= 2 and not _is_table(name)]
    others = [p for name, p in named if p.ndim < 2 or _is_table(name)]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def _is_table(name: str) -> bool:
    return "codes.tables." in name or "item.ids." in name


def learning_rate(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then cosine to a hundredth of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * (0.505 + 0.495 * math.cos(math.pi * min(progress, 1.0)))


def constant_rate(step: int, config: StepConfig) -> float:
    """Linear warm-up, then the peak for as long as a run goes on."""
    return config.learning_rate * min(1.0, (step + 1) / max(config.warmup_steps, 1))
