"""Curves and bars as PNG."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")

import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen first)


def plot_history(history: list[dict[str, float]], path: Path) -> None:
    """Curves over steps, one chart for every name in the keys `train_<name>` and `validation_<name>`."""
    parts = ("train", "validation")
    keys = (key.partition("_") for record in history for key in record)
    names = list(dict.fromkeys(name for part, _, name in keys if part in parts))
    figure, axes = plt.subplots(
        1, len(names), figsize=(4 * len(names), 3.6), constrained_layout=True, squeeze=False
    )
    for axis, name in zip(axes[0], names, strict=True):
        for part in parts:
            shown = [record for record in history if f"{part}_{name}" in record]
            if not shown:  # what only training has, as parts of lists where there are none to validate on
                continue
            steps, values = [r["step"] for r in shown], [r[f"{part}_{name}"] for r in shown]
            axis.plot(steps, values, marker="o", markersize=3, label=part, color=f"C{parts.index(part)}")
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("nats a target")
    axes[0][0].legend()
    _save(figure, path)


def plot_ranking(rows: dict[str, dict[str, dict[str, float]]], path: Path, *, title: str) -> None:
    """Bars of ranking metrics: rows[metric][method][cutoff]."""
    figure, axes = plt.subplots(
        1, len(rows), figsize=(4.2 * len(rows), 3.6), constrained_layout=True, squeeze=False
    )
    for axis, (metric, methods) in zip(axes[0], rows.items(), strict=True):
        for i, (method, values) in enumerate(methods.items()):
            width = 0.8 / len(methods)
            positions = [j + (i - (len(methods) - 1) / 2) * width for j in range(len(values))]
            axis.bar(positions, list(values.values()), width=0.95 * width, label=method.replace("_", " "))
            axis.set_xticks(range(len(values)), [f"@{k}" for k in values])
        axis.set_title(metric.replace("_", " "))
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].legend()
    figure.suptitle(title)
    _save(figure, path)


def plot_rankers(judged: dict[str, dict[str, Any]], path: Path, *, title: str) -> None:
    """What was expected beside what came, and AUC: judged[ranker] as `training.reward.judge` gives it."""
    figure, axes = plt.subplots(1, 4, figsize=(16.8, 3.9), constrained_layout=True)
    for axis, what in zip(axes[:3], ("p", "value", "reward"), strict=True):
        ends = []
        for ranker, of in judged.items():
            expected, came = (
                [decile[side] for decile in of[what]["deciles"]] for side in ("expected", "came")
            )
            axis.plot(expected, came, marker="o", markersize=3, label=ranker)
            ends += [number for number in (*expected, *came) if number > 0]
        axis.plot([min(ends), max(ends)], [min(ends), max(ends)], color="grey", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlabel=f"{what} expected, mean of a decile", ylabel="what came")
    metrics = ("auc", "auc_by_request")
    for i, (ranker, of) in enumerate(judged.items()):
        places = [j + (i - (len(judged) - 1) / 2) * 0.25 for j in range(len(metrics))]
        axes[3].bar(places, [of[metric] for metric in metrics], width=0.24, label=ranker)
    axes[3].set_xticks(range(len(metrics)), [metric.replace("_", " ") for metric in metrics])
    axes[3].set_ylim(0.5, 1)
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title)
    _save(figure, path)


def plot_reliability(deciles: list[dict], path: Path) -> None:
    """Mean predicted and realised value of each decile, see `training.evaluation.calibration.calibration`."""
    figure, axis = plt.subplots(figsize=(4.6, 4.2), constrained_layout=True)
    predicted, realised = ([part[name] for part in deciles] for name in ("predicted", "realised"))
    band = [(part["noise"] or 0.0) * abs(part["realised"]) for part in deciles]
    axis.errorbar(predicted, realised, yerr=band, fmt="o-", capsize=3, markersize=4, label="tenth of targets")
    ends = [min(predicted + realised), max(predicted + realised)]
    axis.plot(ends, ends, color="grey", linewidth=1, label="as predicted")
    axis.set_xlabel("mean expected value")
    axis.set_ylabel("mean realised value, 95 %")
    axis.grid(alpha=0.3)
    axis.legend()
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
