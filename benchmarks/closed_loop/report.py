"""What a loop was: figures of one seed, of all seeds together, and the picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.closed_loop.deployment import ONLINE, Deployment
from benchmarks.closed_loop.freshness import Publishes, delays, sequences, trainer_history
from benchmarks.closed_loop.play import Asked, Played
from benchmarks.closed_loop.revenue import BLOCKS, FIGURES, columns, last_third, ratio, series
from benchmarks.closed_loop.settings import Settings
from benchmarks.simulation.measures import PER

_SEED = 1 << 32  # users of different seeds are different clusters


@dataclass(frozen=True)
class Result:
    """One seed: its requests, and its figures as they are written."""

    asked: list[Asked]
    figures: dict[str, Any]


def result(settings: Settings, played: Played, deployment: Deployment) -> Result:
    """Of a loop that is over, or was stopped; trainer and publisher may still run.

    Raises:
        FeedbackStoreError: its store is open in this process still, or damaged.
    """
    asked = played.asked
    publishes = Publishes.read(deployment.said("publisher"))
    learnt = trainer_history(deployment.run / ONLINE)
    fresh = _freshness(played, deployment, publishes, learnt)
    seconds = np.array([one.seconds for one in asked])
    figures = {
        "seed": settings.seed,
        "settings": {
            key: value
            for key, value in dataclasses.asdict(settings).items()
            if isinstance(value, int | float | tuple)
        },
        "requests": len(asked),
        "days": round(asked[-1].day, 1) if asked else 0.0,
        "minutes": round(asked[-1].at / 60, 2) if asked else 0.0,
        "failed_requests": len(played.failures),
        "failures": sorted(set(played.failures))[:5],
        "feedback_rejected": played.rejected,
        **_ratios(asked),
        "versions": len({one.version for one in asked}),
        "publishes": len(publishes.steps),
        "publishes_refused": len(publishes.refused),
        "refused": sorted(set(publishes.refused))[:5],
        "publish_p50_s": _percentile(np.array(publishes.seconds), 50),
        "feedback_to_weights_p50_s": _percentile(fresh, 50),
        "feedback_to_weights_p99_s": _percentile(fresh, 99),
        "feedback_measured": len(fresh),
        "ended": deployment.ended(),
        "new_ads": played.new_ads,
        "new_ads_shown": played.new_ads_shown,
        "purchases": int(sum(one.online.bought.sum() for one in asked)),
        "steps": int(learnt[-1]["step"]) if learnt else 0,
        "request_p50_ms": _percentile(1e3 * seconds, 50),
        "request_p99_ms": _percentile(1e3 * seconds, 99),
        "series": series(asked),
        "trainer": [
            {key: record.get(key) for key in ("step", "time", "offset", "probe_loss", "train_total")}
            for record in learnt
        ],
    }
    return Result(asked, figures)


def together(results: Sequence[Result]) -> dict[str, Any]:
    """Figures of all seeds: ratios over all last thirds, where users of different seeds are different."""
    thirds = [last_third(r.asked) for r in results]
    users = np.concatenate(
        [np.array([_SEED * i + one.user for one in third], np.int64) for i, third in enumerate(thirds)]
    )
    every = [one for third in thirds for one in third]
    found: dict[str, Any] = {"seeds": len(results)}
    for name in FIGURES:
        of = ratio(every, name, clusters=users)
        found |= {
            f"{name}_ratio": of["ratio"],
            f"{name}_ratio_low": of["low"],
            f"{name}_ratio_high": of["high"],
        }
    found["failed_requests"] = sum(r.figures["failed_requests"] for r in results)
    return found


def _ratios(asked: Sequence[Asked]) -> dict[str, Any]:
    third, found = last_third(asked), {}
    for name in FIGURES:
        of = ratio(third, name)
        found |= {
            f"{name}_ratio": of["ratio"],
            f"{name}_ratio_low": of["low"],
            f"{name}_ratio_high": of["high"],
        }
        if third:
            means = [round(PER * float(c.mean()), 1) for c in columns(third, name)]
            found[f"{name}_per_1000"] = dict(zip(("online", "frozen"), means, strict=True))
    return found


def _freshness(
    played: Played, deployment: Deployment, publishes: Publishes, learnt: list[dict[str, Any]]
) -> np.ndarray:
    of_steps = {int(record["step"]): int(record["offset"]) for record in learnt}
    offsets = {v: of_steps[step] for v, step in publishes.steps.items() if step in of_steps}
    accepted = sequences(deployment.store, accepted=played.accepted)
    return delays(accepted, offsets=offsets, first_answer=played.first_answer)


def _percentile(values: np.ndarray, q: float) -> float | None:
    return round(float(np.percentile(values, q)), 2) if len(values) else None


def plot(figures: Sequence[dict[str, Any]], path: Path) -> None:
    """A row a seed: revenue per 1,000 requests of both, their ratio with its interval, versions and loss."""
    figure, axes = plt.subplots(
        len(figures), 3, figsize=(14, 0.6 + 3.2 * len(figures)), squeeze=False, layout="constrained"
    )
    for row, of in zip(axes, figures, strict=True):
        rows = [r for r in of["series"] if r["ratio"] is not None]
        days = [r["day"] for r in rows]
        for name, colour in (("online", "#0072B2"), ("frozen", "#999999")):
            row[0].plot(days, [r[name] for r in rows], color=colour, marker="o", markersize=3, label=name)
        row[0].set_ylabel(f"seed {of['seed']}: revenue per {PER:,} requests")
        row[0].set_ylim(bottom=0)
        row[0].legend(fontsize=8)
        row[1].axhline(1.0, color="#999999", linewidth=1)
        row[1].fill_between(days, [r["low"] for r in rows], [r["high"] for r in rows], alpha=0.25)
        row[1].plot(days, [r["ratio"] for r in rows], marker="o", markersize=3)
        row[1].set_ylabel("online : frozen")
        steps = [record["step"] for record in of["trainer"]]
        row[2].plot(steps, [record["probe_loss"] for record in of["trainer"]], label="requests of the logs")
        row[2].plot(steps, [record["train_total"] for record in of["trainer"]], label="served and replayed")
        row[2].set_ylabel("loss of a target")
        row[2].set_title(f"{of['versions']} versions answered", fontsize="medium")
        row[2].legend(fontsize=8)
        for axis, what in zip(row, ("simulated days", "simulated days", "steps of the trainer"), strict=True):
            axis.set_xlabel(what)
            axis.grid(alpha=0.3)
    figure.suptitle(f"simulated users whose tastes drift; {BLOCKS} blocks, 95 % over users", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
