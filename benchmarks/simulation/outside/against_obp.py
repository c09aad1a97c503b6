"""Our off-policy estimates beside those of sb-obp, on its synthetic slates: `make simulate-outside`.

Runs in the virtual environment of `requirements-judges.txt`. Writes OUT and ends with an error where an
estimate differs by more than 1e-9.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from obp.dataset import SyntheticSlateBanditDataset, logistic_reward_function
from obp.ope import (
    SelfNormalizedSlateIndependentIPS,
    SelfNormalizedSlateRewardInteractionIPS,
    SelfNormalizedSlateStandardIPS,
    SlateCascadeDoublyRobust,
    SlateIndependentIPS,
    SlateRewardInteractionIPS,
    SlateStandardIPS,
)

from benchmarks.simulation.outside.off_policy import cascade_doubly_robust, ips, snips

ACTIONS, SLOTS, ROUNDS = 6, 3, 3000
# What a weight is of: name in a log of obp, and its two estimators.
KINDS = {
    "standard": ("pscore", SlateStandardIPS, SelfNormalizedSlateStandardIPS),
    "cascade": ("pscore_cascade", SlateRewardInteractionIPS, SelfNormalizedSlateRewardInteractionIPS),
    "independent": ("pscore_item_position", SlateIndependentIPS, SelfNormalizedSlateIndependentIPS),
}


def compare(seed: int) -> dict[str, dict[str, float]]:
    """Both estimates of every kind for an epsilon-greedy policy."""
    data = SyntheticSlateBanditDataset(
        n_unique_action=ACTIONS,
        len_list=SLOTS,
        dim_context=2,
        reward_type="binary",
        reward_structure="cascade_additive",
        base_reward_function=logistic_reward_function,
        random_state=seed,
    )
    log = data.obtain_batch_bandit_feedback(n_rounds=ROUNDS, return_pscore_item_position=True)
    judged = data.generate_evaluation_policy_pscore(
        evaluation_policy_type="optimal", context=log["context"], action=log["action"], epsilon=0.3
    )
    mine = dict(zip(("pscore", "pscore_item_position", "pscore_cascade"), judged, strict=True))
    shape = (ROUNDS, SLOTS)
    rewards = log["reward"].reshape(shape)
    common = {key: log[key] for key in ("slate_id", "reward", "position")}
    found = {}
    for kind, (name, plain, normalised) in KINDS.items():
        weights = (mine[name] / log[name]).reshape(shape)
        options = {**common, name: log[name], f"evaluation_policy_{name}": mine[name]}
        for label, ours, theirs in (("ips", ips, plain), ("snips", snips, normalised)):
            estimate = theirs(len_list=SLOTS).estimate_policy_value(**options)
            found[f"{kind} {label}"] = {"ours": ours(rewards, weights), "obp": float(estimate)}
    found["cascade dr"] = _doubly_robust(log, mine["pscore_cascade"], common, seed=seed)
    return found


def _doubly_robust(
    log: dict[str, np.ndarray], judged: np.ndarray, common: dict[str, np.ndarray], *, seed: int
) -> dict[str, float]:
    """With any guess and any distribution over actions: what is compared is the formula."""
    random = np.random.default_rng(seed)
    expected = random.random((ROUNDS, SLOTS, ACTIONS))
    policy = random.dirichlet(np.ones(ACTIONS), (ROUNDS, SLOTS))
    shape = (ROUNDS, SLOTS)
    ours = cascade_doubly_robust(
        log["reward"].reshape(shape),
        (judged / log["pscore_cascade"]).reshape(shape),
        actions=log["action"].reshape(shape),
        expected=expected,
        policy=policy,
    )
    theirs = SlateCascadeDoublyRobust(len_list=SLOTS, n_unique_action=ACTIONS).estimate_policy_value(
        **common,
        action=log["action"],
        pscore_cascade=log["pscore_cascade"],
        evaluation_policy_pscore_cascade=judged,
        q_hat=expected.ravel(),
        evaluation_policy_action_dist=policy.ravel(),
    )
    return {"ours": ours, "obp": float(theirs)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/simulation/off_policy.json"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    table = {seed: compare(seed) for seed in range(arguments.seeds)}
    worst = max(abs(row["ours"] - row["obp"]) for rows in table.values() for row in rows.values())
    for seed, rows in table.items():
        for name, row in rows.items():
            print(f"seed {seed}  {name:18} ours {row['ours']:.6f}  obp {row['obp']:.6f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"largest_difference": worst, "seeds": table}, indent=2) + "\n")
    if not worst <= 1e-9:
        raise SystemExit(f"error: expected the estimates of obp within 1e-9, got a difference of {worst:g}")
    print(f"largest difference {worst:.2g}; report: {arguments.out}")


if __name__ == "__main__":
    main()
