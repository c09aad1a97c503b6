"""RQ-Kmeans+: residual k-means whose space is learnt further.

    z = encoder(x)      codes and z_q = residual k-means of z      x' = decoder(z_q)

Encoder and decoder have a residual connection and begin as the identity, the codebooks as those of RQ-Kmeans;
then all of them are trained with the loss of a residual-quantised VAE (GPR, arXiv 2511.10138, RQ-Kmeans+).
GPR publishes neither sizes nor the form of the decoder: ours have one hidden layer each.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.quantizers.base import Arrays
from training.tokenizer.quantizers.grid import check_points, check_weights, merge_equal, on_grid
from training.tokenizer.quantizers.mlp import ResidualMlp
from training.tokenizer.quantizers.residual import Level
from training.tokenizer.quantizers.rq_kmeans import RqKmeans


class RqKmeansPlus:
    """Residual k-means between an encoder and a decoder."""

    def __init__(self, encoder: ResidualMlp, decoder: ResidualMlp, *, quantizer: RqKmeans) -> None:
        """Put trained parts together.

        Raises:
            ValueError: their widths differ.
        """
        dims = [len(encoder.b2), len(decoder.b2), quantizer.levels[0].codebook.shape[1]]
        if len(set(dims)) > 1:
            raise ValueError(f"expected encoder, decoder and codebooks of one width, got {dims}")
        self.encoder, self.decoder, self.quantizer = encoder, decoder, quantizer

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        config: TokenizerConfig,
        *,
        weights: np.ndarray | None = None,
        start: np.ndarray | None = None,
    ) -> Self:
        """See `Quantizer`.

        Raises:
            ValueError: see `ResidualQuantizer.fit`.
        """
        # torch takes seconds to import, and only a fit needs it.
        from training.tokenizer.quantizers.rq_vae import train

        points = check_points(x)
        check_weights(weights, len(x))
        first = RqKmeans.fit(x, config, weights=weights, start=start)
        points, mass = merge_equal(points, weights)
        codebooks = [level.codebook for level in first.levels]
        encoder, decoder, codebooks = train(points, mass, codebooks=codebooks, seed=config.seed)
        return cls(encoder, decoder, quantizer=RqKmeans([Level.of(book) for book in codebooks]))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """See `Quantizer`."""
        return self.quantizer.level_sizes

    def encode(self, x: np.ndarray) -> np.ndarray:
        """See `Quantizer`."""
        return self.quantizer.encode_points(self.encoder(check_points(x, dim=len(self.encoder.b2))))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """See `Quantizer`: the decoder's view of the sum of the codes' centroids."""
        return self.decoder(on_grid(self.quantizer.decode(codes)))

    def state(self) -> Arrays:
        """Return the codebooks and the weights of both layers."""
        return self.quantizer.state() | self.encoder.state("encode.") | self.decoder.state("decode.")

    @classmethod
    def from_state(cls, arrays: Arrays) -> Self:
        """Rebuild from `state()`."""
        encoder, decoder = (ResidualMlp.from_state(arrays, name) for name in ("encode.", "decode."))
        return cls(encoder, decoder, quantizer=RqKmeans.from_state(arrays))
