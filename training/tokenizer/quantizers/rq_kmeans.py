"""Plain residual k-means: the centroids of a level by Lloyd's algorithm, no prices."""

import faiss
import numpy as np

from training.tokenizer.quantizers.residual import Level, ResidualQuantizer


class RqKmeans(ResidualQuantizer):
    """RQ-Kmeans, the baseline of GR4AD (arXiv 2602.22732)."""

    @staticmethod
    def fit_level(
        points: np.ndarray,
        weights: np.ndarray,
        *,
        begin: np.ndarray,
        older: bool,
        iterations: int,
        seed: int,
    ) -> Level:
        """See `ResidualQuantizer`; `older` or not, Lloyd's algorithm stays near where it begins."""
        # Every point counts (faiss would sample 256 a centroid); a small cluster is no reason to warn.
        kmeans = faiss.Kmeans(
            points.shape[1],
            len(begin),
            niter=iterations,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=max(256, len(points)),
        )
        kmeans.train(points, weights=weights, init_centroids=begin)
        return Level.of(np.asarray(kmeans.centroids))
