"""RecoGym judges our policies: `make recogym`, `python -m benchmarks.simulation.recogym`.

For each seed a world of RecoGym's: users are shown ads by a logging policy, its events become our tables, our
own commands train on them, and each policy shows ads to the same new users. Writes OUT/table.json. What an
earlier call has trained is not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import stamp
from benchmarks.simulation.measures import compared
from benchmarks.simulation.recogym.play import PYTHON, Played, Policy, WorldError, play
from benchmarks.simulation.recogym.policies import Generated, Popular, Uniform
from benchmarks.simulation.recogym.tables import write_tables
from benchmarks.steps import run_step
from serving.files import write_file
from serving.model.features import BEHAVIORS
from training.preset.preset import Preset
from training.reward.reward_model import RewardModel

CONFIG = Path(__file__).with_name("preset.yaml")
# Beside RecoGym's own settings: taste matters more than a product's popularity, and users leave sooner.
WORLD = {"sigma_mu_organic": 1.0, "prob_leave_bandit": 0.02}
ADS_ALONE = "data.target_behaviors=[conversion]"  # lists and post-training are of ads, not of what is viewed
QUICK = ("training.steps=40", "rollout.requests=64", "reward.trees=10", "reward.epochs=1")
QUICK += ("post_training.steps=8", "training.warmup_steps=4")
JUDGED_FROM, BASELINE = 100_000, "vsl"


def train(log: Played, run: Path, *, bids: np.ndarray, sets: list[str]) -> Preset:
    """Tables of a log, and all that is trained on them, by the commands of this project; its preset.

    Raises:
        SystemExit: a command failed; says which, and where its log is.
    """
    tables = run / "tables"
    write_tables(log, bids, tables)
    sets = [f"data.path={tables}", *sets]
    _run(run, ["training.data.prepare", "--out", run / "data"], sets)
    _run(run, ["training.tokenizer", "--data", run / "data", "--out", run / "tokenizer"], sets)
    for step in ("training.recipes.pretrain", "training.rollout", "training.reward"):
        _run(run, [step, "--run", run], [*sets, ADS_ALONE] if step == "training.rollout" else sets)
    _run(run, ["training.reward", "score", "--run", run, "--lists", "train"], sets)
    for objective in ("vsl", "rspo"):
        own = [ADS_ALONE, f"post_training.objective={objective}"]
        _run(run, ["training.recipes.post_train", "--run", run], [*sets, *own])
    return Preset.load(CONFIG, sets)


def policies_of(preset: Preset, run: Path, log: Played, *, products: int, seed: int) -> dict[str, Policy]:
    """All that are judged, by name."""
    views = np.bincount(log.product[log.behavior == BEHAVIORS["click"]], minlength=products)
    reward, model = RewardModel.load(run / "reward"), run / "model"

    def generated(folder: Path, **options: Any) -> Generated:
        return Generated(preset, run, model=folder, **({"rank_by": "value"} | options))

    tuned = {name: model / "post_trained" / name for name in ("vsl", "rspo")}
    return {
        "random": Uniform(products, seed=seed),
        "popularity": Popular(views),
        "most viewed by the user": Popular(views, own=True),
        "pre-trained, by probability": generated(model, rank_by="probability"),
        "pre-trained, by value": generated(model),
        "vsl, by probability": generated(tuned["vsl"], rank_by="probability"),
        "vsl": generated(tuned["vsl"]),
        "rspo": generated(tuned["rspo"]),
        "vsl, re-ranked": generated(tuned["vsl"], reward=reward),
        "rspo, re-ranked": generated(tuned["rspo"], reward=reward),
    }


def measures(played: Played, bids: np.ndarray) -> dict[str, np.ndarray]:
    """Of a thousand ads shown, by user float64 [U]: clicks, RecoGym's expectation of them, and their value.

    Users who left before an ad are none; they are the same whatever the policy.
    """
    _, row = np.unique(played.user, return_inverse=True)
    shown = played.behavior == BEHAVIORS["impression"]
    chance = played.chance * shown
    sums = {
        "clicks": played.behavior == BEHAVIORS["conversion"],
        "expected": chance,
        "value": chance * bids[played.product],
    }
    count = np.bincount(row, shown)
    met = count > 0
    return {name: 1000 * np.bincount(row, column)[met] / count[met] for name, column in sums.items()}


def rows_of(found: dict[str, list[dict[str, np.ndarray]]]) -> dict[str, dict[str, Any]]:
    """The table: means over users and seeds, and against the baseline's same users.

    Args:
        found: of each policy its measures, a seed each.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, seeds in found.items():
        rows[name] = {}
        for measure in seeds[0]:
            mine, base = (np.concatenate([of[measure] for of in found[n]]) for n in (name, BASELINE))
            against = compared(mine, base, users=np.arange(len(mine)), seed=0)
            rows[name][measure] = {"mean": float(mine.mean()), **against}
    return rows


def format_table(rows: dict[str, dict[str, Any]]) -> str:
    """As text, gains over the baseline in percent."""
    lines = []
    for name, row in rows.items():
        cells = [
            f"{of['mean']:7.2f} {of['ratio']:+7.1%} [{of['low']:+.1%}, {of['high']:+.1%}]".ljust(36)
            for of in row.values()
        ]
        lines.append(f"{name:28}{''.join(cells)}")
    return "\n".join([" " * 28 + "".join(name.ljust(36) for name in next(iter(rows.values()))), *lines])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/recogym"))
    parser.add_argument("--python", type=Path, default=PYTHON, help=f"interpreter with RecoGym [{PYTHON}]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--products", type=int, default=100)
    parser.add_argument("--users", type=int, default=1500, help="that the log is of [1500]")
    parser.add_argument("--judged", type=int, default=300, help="users that each policy meets [300]")
    parser.add_argument("--quick", action="store_true", help="see that it runs: few users, hardly trained")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.users, arguments.judged = 150, 30
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    try:
        for number, seed in enumerate(arguments.seeds, start=1):
            for name, of in _judge(arguments, seed).items():
                found.setdefault(name, []).append(of)
            rows, path = rows_of(found), arguments.out / "table.json"  # after each seed: the rest takes long
            settings = {key: getattr(arguments, key) for key in ("products", "users", "judged", "quick")}
            settings |= {"seeds": arguments.seeds[:number], "baseline": BASELINE, "world": WORLD}
            report = {"label": "simulation: RecoGym 0.1.3", **settings, "rows": rows} | stamp()
            write_file(path, json.dumps(report, indent=1) + "\n")
    except (WorldError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"of 1,000 ads shown, against {BASELINE}\n{format_table(rows)}\nreport: {path}")


def _judge(arguments: argparse.Namespace, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Measures of all policies in the world of a seed."""
    products, kind = arguments.products, "-quick" if arguments.quick else ""
    run = arguments.out / f"seed{seed}-{products}x{arguments.users}{kind}"  # other logs need another folder
    run.mkdir(parents=True, exist_ok=True)
    world = {**WORLD, "random_seed": seed, "num_products": products}
    bids = np.random.default_rng(seed).lognormal(0, 0.5, products)

    def meet(policy: Policy, *, first: int, users: int) -> Played:
        return play(policy, world, first=first, users=users, python=arguments.python)

    log = meet(Uniform(products, seed=seed, viewed=True), first=0, users=arguments.users)
    sets = [f"{section}.seed={seed}" for section in ("training", "rollout", "reward", "post_training")]
    preset = train(log, run, bids=bids, sets=[*sets, *(QUICK if arguments.quick else ())])
    found = {}
    for name, policy in policies_of(preset, run, log, products=products, seed=seed).items():
        found[name] = measures(meet(policy, first=JUDGED_FROM, users=arguments.judged), bids)
        means = ", ".join(f"{measure} {of.mean():.2f}" for measure, of in found[name].items())
        print(f"seed {seed}, {name}: {means}", flush=True)
    return found


def _run(run: Path, step: list[Any], sets: list[str]) -> None:
    words = [str(word) for word in (*step, "--config", CONFIG)] + [w for s in sets for w in ("--set", s)]
    run_step(*words, of=run.name, log=run / "log.txt")


if __name__ == "__main__":
    main()
