"""What the model says of semantic IDs that are given.

Letters: B requests, n SIDs of each, S slots, T SID levels, P profile columns.
"""

from __future__ import annotations

import numpy as np
import torch

from training.model.gr4ad import Generator
from training.objectives.sid import sid_log_p


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
    said = model(torch.from_numpy(slots).to(device), torch.from_numpy(profile).to(device), tokens)
    return sid_log_p(said.logits, tokens, copies=said.copies).cpu().numpy()
