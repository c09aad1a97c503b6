"""What the model says of semantic IDs that are given.

Letters: B requests, n SIDs of each, S slots, T SID levels, P profile columns.
"""

from __future__ import annotations

import numpy as np
import torch

from training.model.gr4ad import Generator


@torch.no_grad()
def log_p(model: Generator, slots: np.ndarray, profile: np.ndarray, *, sids: np.ndarray) -> np.ndarray:
    """Their log p(s_1 .. s_T | X) by teacher forcing, over the whole codebook of each level, float32 [B, n].

    Args:
        model: in evaluation mode.
        slots: int32 [B, S, T + 3].
        profile: int32 [B, P].
        sids: int [B, n, T].
    """
    device = next(model.parameters()).device
    tokens = torch.from_numpy(sids.astype(np.int64)).to(device)
    logits, _ = model(torch.from_numpy(slots).to(device), torch.from_numpy(profile).to(device), tokens)
    levels = (
        level.log_softmax(-1).gather(2, tokens[:, :, t : t + 1]).squeeze(2)
        for t, level in enumerate(logits[: tokens.shape[2]])
    )
    return torch.stack(list(levels)).sum(0).cpu().numpy()
