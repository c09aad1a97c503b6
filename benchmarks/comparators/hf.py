"""Hugging Face `generate` on a T5 with the shape of a preset, its beams held to live SIDs by a callback.

Letters: S context tokens, n beams, T SID levels, V codes of a level, M live SIDs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.comparators import require

PAD, EOS, BOS = range(3)
SPECIAL = 3  # tokens before the first code
_PLACEHOLDER = -1e8  # `generate` starts all beams but one at -1e9: what still scores so low is no result


def token_offsets(level_sizes: tuple[int, ...]) -> np.ndarray:
    """Token of code 0 of each level, int64 [T]: every level has tokens of its own."""
    return SPECIAL + np.cumsum([0, *level_sizes[:-1]])


def random_context(level_sizes: tuple[int, ...], *, seed: int, length: int = 64) -> np.ndarray:
    """Context of random code tokens, int64 [S]; a seed always gives the same one."""
    return np.random.default_rng(seed).integers(SPECIAL, SPECIAL + sum(level_sizes), length)


@dataclass(frozen=True)
class T5Shape:
    """Sizes of a T5, and the seed of its weights.

    Attributes:
        layers: of the encoder, and of the decoder.
        width: d.
        heads: attention heads.
        ffn: hidden width of the feed-forward part.
        seed: of the weights; the same shape gives the same ones.
    """

    layers: int
    width: int
    heads: int
    ffn: int
    seed: int = 0


def build_t5(level_sizes: tuple[int, ...], shape: T5Shape) -> Any:
    """`T5ForConditionalGeneration` with seeded random weights."""
    transformers = require("transformers")
    config = transformers.T5Config(
        vocab_size=SPECIAL + sum(level_sizes),
        d_model=shape.width,
        d_kv=shape.width // shape.heads,
        d_ff=shape.ffn,
        num_layers=shape.layers,
        num_decoder_layers=shape.layers,
        num_heads=shape.heads,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape.seed)
        return transformers.T5ForConditionalGeneration(config).eval()


def allowed_tokens(sids: np.ndarray, level_sizes: tuple[int, ...]) -> dict[tuple[int, ...], Tensor]:
    """For BOS and for every live prefix after it: the tokens that may follow.

    The values are views of one tensor a level: `generate` writes through them, and a list would have to be
    made a tensor for every beam of every step.
    """
    table: dict[tuple[int, ...], Tensor] = {}
    tokens = sids + token_offsets(level_sizes)  # [M, T]
    begins = np.arange(len(sids)) == 0  # [M] rows at which a prefix begins; the empty one at the first
    for level in range(len(level_sizes)):
        above = begins.copy()
        begins[1:] |= tokens[1:, level] != tokens[:-1, level]
        nodes = tokens[begins]  # [prefixes that are one token longer, T]
        starts = np.flatnonzero(above[begins])  # of each prefix's followers among them
        prefixes = ((BOS, *prefix) for prefix in nodes[starts, :level].tolist())
        followers = torch.from_numpy(nodes[:, level].copy())
        table.update(zip(prefixes, followers.split(np.diff(starts, append=len(nodes)).tolist()), strict=True))
    return table


class HfGenerate:
    """`generate` of a seeded T5."""

    def __init__(
        self,
        level_sizes: tuple[int, ...],
        sids: np.ndarray,
        *,
        shape: T5Shape,
        threads: int = 2,
    ) -> None:
        """Build the model and the table of the callback.

        Args:
            level_sizes: V_1 .. V_T.
            sids: int32 [M, T] live SIDs, distinct and in lexicographic order.
            shape: of the T5.
            threads: of PyTorch, while `generate` runs.

        Raises:
            MissingComparatorError: transformers is not installed.
        """
        self.model = build_t5(level_sizes, shape)
        self._offsets = token_offsets(level_sizes)
        self._threads = threads
        self._allowed = allowed_tokens(sids, level_sizes)

    def generate(
        self, context: np.ndarray, beams: int, *, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Beam search of T new tokens.

        Args:
            context: int64 [S] tokens.
            beams: width of every level, and results asked for.
            constrained: False leaves the callback out; SIDs then need not exist, and a code lies outside its
                level where the token belongs to another one.

        Returns:
            sids int32 [n, T], best first, and scores float32 [n]: sums of log-probabilities over the whole
            vocabulary. n is `beams`, or less where the search reached fewer live SIDs.
        """
        input_ids = torch.from_numpy(context)[None]  # [1, S]
        with torch_threads(self._threads), torch.inference_mode():
            output = self.model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=False,
                num_beams=beams,
                num_return_sequences=beams,
                max_new_tokens=len(self._offsets),
                eos_token_id=None,  # every result is T tokens long, so none can end early
                length_penalty=0.0,
                prefix_allowed_tokens_fn=self._follow if constrained else None,
                return_dict_in_generate=True,
                output_scores=True,
            )
        sids = output.sequences[:, 1:].numpy() - self._offsets  # [n, T]
        scores = output.sequences_scores.numpy()
        real = scores > _PLACEHOLDER
        return sids[real].astype(np.int32), scores[real]

    def _follow(self, _: int, tokens: Tensor) -> Tensor:
        return self._allowed[tuple(tokens.tolist())]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch with `count` threads inside the block, as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
