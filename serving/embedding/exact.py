"""The sentence model in float64, for values that float32 cannot tell apart: plain NumPy, seven times as slow.

    x_0     = norm(word[p] + position[0..L) + type[0])                        BERT, arXiv 1810.04805
    a       = softmax(q k / sqrt(32)) v              heads of 32 dimensions, q, k, v affine in x
    x'      = norm(x + W_o a + b_o)
    x_{i+1} = norm(x' + W_2 gelu(W_1 x' + b_1) + b_2)

Letters: L word pieces, D = 384 dimensions, H = 12 heads.
"""

from __future__ import annotations

import math

import numpy as np

LAYERS, HEADS, HEAD_DIM = 6, 12, 32
EPSILON = 1e-12  # of layer norms

Weights = dict[str, np.ndarray]
_erf = np.frompyfunc(math.erf, 1, 1)  # NumPy has none


def mean_vector(weights: Weights, pieces: np.ndarray) -> np.ndarray:
    """Mean over the last layer, float64 [D], of one text.

    Args:
        weights: float32, by their names in PyTorch.
        pieces: int64 [L], with those that begin and end a text.
    """
    word = weights["embeddings.word_embeddings.weight"][pieces].astype(np.float64)  # [L, D]
    position = weights["embeddings.position_embeddings.weight"][: len(pieces)]
    x = word + position + weights["embeddings.token_type_embeddings.weight"][0]
    x = _norm(weights, "embeddings.LayerNorm", x)
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        attended = _attention(weights, f"{name}.attention.self", x)
        x = _norm(
            weights,
            f"{name}.attention.output.LayerNorm",
            x + _affine(weights, f"{name}.attention.output.dense", attended),
        )
        hidden = _affine(weights, f"{name}.intermediate.dense", x)
        hidden = hidden * 0.5 * (1.0 + _erf(hidden / math.sqrt(2)).astype(np.float64))  # GELU
        x = _norm(weights, f"{name}.output.LayerNorm", x + _affine(weights, f"{name}.output.dense", hidden))
    return x.mean(axis=0)


def _attention(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    q, k, v = (
        _affine(weights, f"{name}.{part}", x).reshape(-1, HEADS, HEAD_DIM).transpose(1, 0, 2)  # [H, L, 32]
        for part in ("query", "key", "value")
    )
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(HEAD_DIM)  # [H, L, L]
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return (shares @ v).transpose(1, 0, 2).reshape(len(x), -1)  # [L, D]


def _affine(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[f"{name}.weight"].astype(np.float64).T + weights[f"{name}.bias"]


def _norm(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axis=1, keepdims=True) + EPSILON)
    return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]
