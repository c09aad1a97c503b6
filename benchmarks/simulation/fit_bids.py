"""Price shape of an ad exchange: a mixture of log-normals, fitted to the winning prices of iPinYou.

    python -m benchmarks.simulation.fit_bids --train ipinyou/train.tsv.gz --test ipinyou/test.tsv.gz

The log (2013, one bidder's won impressions, as prepared in github.com/rk2900/DLF) is not shipped; the
parameters are, in `ipinyou.json`. Of each impression two columns are used, both in fen per thousand:
`payprice`, the highest bid of the others, and `slotprice`, the floor. Prices above the bidder's own 277 or
294 are not in the log, so the upper tail is cut.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from benchmarks.simulation.bids import PATH
from serving.files import sha256, write_file


def fit(prices: np.ndarray, floors: np.ndarray, *, components: int) -> dict[str, Any]:
    """Parameters of the mixture of log(price), its limits, and the floor as a share of the price."""
    mixture = GaussianMixture(components, random_state=0, n_init=5).fit(np.log(prices)[:, None])
    order = np.argsort(mixture.means_[:, 0])
    return {
        "weights": mixture.weights_[order].tolist(),
        "means": mixture.means_[order, 0].tolist(),
        "deviations": np.sqrt(mixture.covariances_[order, 0, 0]).tolist(),
        "lowest": float(prices.min()),
        "highest": float(prices.max()),
        "floor_share": float(floors.mean() / prices.mean()),
        "impressions": len(prices),
    }


def distance(shape: dict[str, Any], prices: np.ndarray) -> float:
    """Kolmogorov-Smirnov: the largest difference of the two distributions."""
    values, counts = np.unique(prices, return_counts=True)
    z = (np.log(values)[:, None] - shape["means"]) / shape["deviations"]
    fitted = norm.cdf(z) @ np.array(shape["weights"])
    there = np.cumsum(counts) / counts.sum()
    return float(np.abs(fitted - there).max())


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Prices and floors float64 of a file's impressions."""
    with gzip.open(path) as file:
        table = pl.read_csv(file.read(), separator="\t", columns=["payprice", "slotprice"])
    return table["payprice"].to_numpy().astype(np.float64), table["slotprice"].to_numpy().astype(np.float64)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True, help="for the distance alone")
    parser.add_argument("--components", type=int, default=3)
    arguments = parser.parse_args()
    shape = fit(*read(arguments.train), components=arguments.components)
    shape["test_distance"] = distance(shape, read(arguments.test)[0])
    shape["train_sha256"] = sha256(arguments.train)
    write_file(PATH, json.dumps(shape, indent=2) + "\n")
    print(json.dumps(shape, indent=2))


if __name__ == "__main__":
    main()
