"""RecTools' Recall@10 and NDCG@10 of answers: what `make benchmark` compares its own figures to.

    .venv-rectools/bin/python -m benchmarks.quality.outside.judge --sequences Beauty.txt --out out.json *.npz

Runs in the virtual environment of `requirements-rectools.txt` and imports nothing of this project: it reads
the sequence file itself, takes the last item of each line for the test item, and checks that no answer holds
what the user had before.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import rectools
from rectools import Columns
from rectools.metrics import NDCG, Recall, calc_metrics

METRICS = {"recall10": Recall(k=10), "ndcg10": NDCG(k=10, divide_by_achievable=True)}


def lines(path: Path) -> dict[int, list[int]]:
    """Items of each user."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    rows = [[int(word) for word in line.split()] for line in text.splitlines() if line.strip()]
    return {user: items for user, *items in rows}


def judge(answers: Path, sequences: dict[int, list[int]]) -> dict[str, float]:
    """Metrics of one file of answers, `users` [R] and `items` [R, k], -1 where an answer is shorter.

    Raises:
        ValueError: an answer holds an item twice, or one of the user's history.
    """
    with np.load(answers, allow_pickle=False) as file:
        users, items = file["users"], file["items"]
    for user, row in zip(users.tolist(), items, strict=True):
        given = row[row >= 0].tolist()
        if len(set(given)) < len(given) or set(given) & set(sequences[user][:-1]):
            raise ValueError(
                f"{answers}: user {user}: expected distinct items outside of the history, got {given}"
            )
    depth = items.shape[1]
    ranked = pd.DataFrame(
        {
            Columns.User: np.repeat(users, depth),
            Columns.Item: items.ravel(),
            Columns.Rank: np.tile(np.arange(1, depth + 1), len(users)),
        }
    )
    last = [sequences[user][-1] for user in users.tolist()]
    truth = pd.DataFrame({Columns.User: users, Columns.Item: last})
    return calc_metrics(METRICS, reco=ranked[ranked[Columns.Item] >= 0], interactions=truth)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sequences", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("answers", type=Path, nargs="+")
    arguments = parser.parse_args()
    sequences = lines(arguments.sequences)
    judged = {path.stem: judge(path, sequences) for path in arguments.answers}
    found = {"rectools": rectools.__version__, "figures": judged}
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
