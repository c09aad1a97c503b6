"""How far a model has drifted from the one whose search made candidate lists, and how much of it is live.

    python -m training.rollout.drift --config configs/demo.yaml --run build/demo --model OTHER --name train

Drift is the mean of log(p / p_ref) over the candidates that the search found. The live mass is the
probability that the model gives to the semantic IDs that are in the index at the time of the request,
together; what is left, it gives to IDs that are no ad.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from training.data.groups import TargetGroups
from training.data.list_store import StoredLists
from training.data.lists import CandidateFlag, pad
from training.data.samples import RequestDataset
from training.data.split import PARTS
from training.loop.checkpoint import CheckpointError, load_checkpoint
from training.loop.choice import add_checkpoint_arguments, chosen_checkpoint
from training.model.gr4ad import Generator
from training.preset.preset import Preset, add_preset_arguments
from training.rollout.live import LiveAds, LiveIndex
from training.rollout.score import log_p
from training.rollout.search import Searcher
from training.run import RunData

PREFIXES = 4096  # beams of all levels but the last: on the demo what lies below others is < .1 % of the mass


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Of a model from that of stored lists.

    Attributes:
        requests: that were looked at.
        log_ratio: float64, of each its mean log(p / p_ref).
        live_mass: float64, of each.
    """

    requests: int
    log_ratio: np.ndarray
    live_mass: np.ndarray

    def __str__(self) -> str:
        """One line."""
        ratio, mass = self.log_ratio.mean(), self.live_mass.mean()
        return f"{self.requests:,} requests: mean log(p / p_ref) {ratio:+.4f}, mass on live SIDs {mass:.4f}"


def measure_drift(
    model: Generator,
    stored: StoredLists,
    *,
    dataset: RequestDataset,
    groups: TargetGroups,
    live: LiveAds,
    requests: int,
    batch_size: int = 4,
    progress: bool = True,
) -> Drift:
    """Measure it on some of the lists of these groups, evenly spread over time.

    Args:
        model: the one that may have drifted.
        stored: lists with the log p of the other one.
        dataset: histories, and SIDs of the ads.
        groups: requests, some of which the lists are for.
        live: which ads are in the index when.
        requests: how many; all of them where there are fewer.
        batch_size: requests at a time.
        progress: show how far it is.

    Raises:
        ValueError: no list is for one of these requests.
    """
    of_lists = stored.rows_of(dataset, groups)
    rows = np.flatnonzero(of_lists >= 0)
    if not len(rows):
        raise ValueError(f"{stored.folder}: expected lists for requests of this part, got none")
    rows = rows[np.argsort(groups.now[rows], kind="stable")]
    rows = rows[np.linspace(0, len(rows) - 1, min(requests, len(rows))).astype(np.int64)]
    search = Searcher(model, LiveIndex(dataset, live, level_sizes=model.level_sizes))
    prefixes = (PREFIXES,) * (model.levels - 1)
    ratios, masses = [], []
    for start in tqdm(
        range(0, len(rows), batch_size),
        desc="drift",
        unit="batch",
        file=sys.stderr,
        mininterval=2.0,
        disable=not progress,
    ):
        batch = rows[start : start + batch_size]
        slots, profile = dataset.context(groups, batch)
        at = [stored.candidates(int(row)) for row in of_lists[batch]]
        scores = log_p(model, slots, profile, sids=pad([stored.lists.sids[of] for of in at]))
        for of, score in zip(at, scores, strict=True):
            own = (stored.lists.flags[of] & CandidateFlag.OWN) > 0
            ratios.append(np.mean((score[: len(own)] - stored.lists.log_p_ref[of])[own], dtype=np.float64))
        found = search(slots, profile, times=groups.now[batch], widths=(*prefixes, len(dataset.ad_ids)))
        masses += np.exp(found.beams.scores.astype(np.float64)).sum(axis=1).tolist()
    return Drift(requests=len(rows), log_ratio=np.array(ratios), live_mass=np.array(masses))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser)
    add_checkpoint_arguments(parser, needs="lists/")
    parser.add_argument("--name", default="train", help="of the lists: RUN/lists/NAME [train]")
    parser.add_argument("--part", choices=PARTS, default="train", help="whose requests they are for [train]")
    parser.add_argument("--requests", type=int, default=200, help="how many [200]")
    arguments = parser.parse_args()
    try:
        preset = Preset.load(arguments.config, arguments.overrides)
        torch.set_num_threads(preset.training.threads)
        checkpoint = load_checkpoint(chosen_checkpoint(arguments))
        data = RunData.load(arguments.run)
        data.check_tokenizer(checkpoint.spec)
        stored = StoredLists.open(arguments.run / "lists" / arguments.name)
        stored.check(tokenizer_id=data.tokenizer_id)
        dataset = data.dataset(checkpoint.spec)
        found = measure_drift(
            checkpoint.model,
            stored,
            dataset=dataset,
            groups=dataset.groups(
                arguments.part,
                target_behaviors=preset.logs.target_behaviors,
                min_history=preset.training.min_history,
            ),
            live=LiveAds.of(dataset, data.prepared.tables.ads),
            requests=arguments.requests,
        )
    except (CheckpointError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(found)


if __name__ == "__main__":
    main()
