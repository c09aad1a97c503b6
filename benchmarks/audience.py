"""Who may see an ad, inside the search: `make bench-audience`; writes build/bench/audience.json.

A million ads with a SID each, all of them with an audience, seeded weights in the shape of preset `bench`,
one request at a time in this process: without audiences; with them, for requests that are in other audiences
every time and for one that comes again; and a search without audiences all of whose beams are filtered
afterwards, with the answers that are short then. A small catalogue, where all ads can be scored, says whether
answers are right. Seconds are of the CPU: the machine need not be quiet.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import catalogue
from benchmarks.engines import seeded_graphs
from benchmarks.report import stamp
from export.graphs import example_request
from export.seeded import seeded_checkpoint
from serving.backend.resolve import resolve
from serving.engines.ort import OrtExecutor
from serving.index.audience_table import AudienceTable
from serving.index.eligible import NO_TERMS, States, Terms
from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.executor import Executor
from serving.search.widths import WidthPlan
from training.loop.checkpoint import Checkpoint
from training.preset.preset import Preset, add_preset_arguments

TARGETS = {
    "audience_50": "<= 1.15",
    "audience_1": "<= 1.3",
    "audience_differences": "<= 0",
    "audience_bytes_per_ad": "<= 40",
}
SHARES, PREDICATES = (0.5, 0.1, 0.01), (10, 1_000, 20_000)
USERS = 12  # requests that are in different audiences, more than a base remembers
REQUESTS = 64
NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Shop:
    """What answers.

    Attributes:
        executor: engine.
        plan: widths.
        values: means of the value buckets.
        slots, profile: seeded requests.
        num_ads: asked for.
    """

    executor: Executor
    plan: WidthPlan
    values: np.ndarray
    slots: np.ndarray
    profile: np.ndarray
    num_ads: int

    def answer(
        self, snapshot: IndexSnapshot, row: int, terms: Terms, *, most: int | None = None
    ) -> np.ndarray:
        """Ads of one request; `most` instead of `num_ads` of what the search kept."""
        at = slice(row, row + 1)
        eligible = snapshot.eligible(terms)
        beams = beam_search(
            self.executor,
            snapshot.trie,
            self.slots[at],
            self.profile[at],
            plan=self.plan,
            num_results=np.array([self.num_ads]),
            value_table=self.values,
            eligible=None if eligible is None else [eligible],
        )
        ads = resolve(
            snapshot,
            beams.sids[0],
            scores=beams.scores[0],
            expected_value=beams.expected_value[0],
            num_ads=most or self.num_ads,
            exclude=NONE,
            terms=terms,
        ).ad_ids
        return ads[ads >= 0]


def audiences(predicates: int, share: float, *, ads: int, seed: int) -> tuple[np.ndarray, AudienceTable]:
    """Audience of each ad, int32 [ads], and the table: each user is in some that have a share of the ads.

    Args:
        predicates: distinct ones.
        share: of the ads, that a user may see.
        ads: their number.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    each = max(round(share * predicates), 1)  # that a user is in
    weights = np.full(predicates, share / each)
    weights[-1] += max(1 - weights.sum(), 0.0)
    numbers = 1 + random.choice(predicates, ads, p=weights / weights.sum())
    named: list[list[str]] = [[] for _ in range(predicates)]
    for user in range(USERS):
        for i in random.choice(max(predicates - 1, 1), each, replace=False):
            named[i].append(f"user {user}")
    texts = {
        i + 1: json.dumps({"where": {"segment": {"in": [f"nobody {i}", *users]}}})
        for i, users in enumerate(named)
    }
    return numbers.astype(np.int32), AudienceTable().now(texts)


def of_user(user: int) -> Terms:
    """Terms of one of the users."""
    return Terms.of({"segment": f"user {user % USERS}"}, catalogue.NOW)


def timed(ways: dict[str, Callable[[int], Any]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, in turn; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    random = np.random.default_rng(0)
    for number in range(rounds + 1):
        for name in random.permutation(list(ways)).tolist():
            began = time.process_time()
            ways[name](number)
            if number:
                seconds[name].append(time.process_time() - began)
    return seconds


def measured(
    shop: Shop, snapshot: IndexSnapshot, *, predicates: int, share: float, rounds: int
) -> dict[str, Any]:
    """One row of the table: times over the search without audiences, medians of pairs, and short answers."""
    numbers, table = audiences(predicates, share, ads=len(snapshot.ad_ids), seed=predicates)
    restricted = replace(snapshot, ad_audiences=numbers, audiences=table, states=States())
    shown = {u: restricted.shown(snapshot.ad_ids, of_user(u)) for u in range(USERS)}
    wrong, short, short_filtered = 0, 0, 0

    def check(ads: np.ndarray, user: int) -> None:
        nonlocal wrong, short
        wrong += not shown[user % USERS][np.searchsorted(snapshot.ad_ids, ads)].all()
        short += len(ads) < min(shop.num_ads, int(shown[user % USERS].sum()))

    def inside(number: int) -> None:
        check(shop.answer(restricted, number % REQUESTS, of_user(number)), number)

    def again(number: int) -> None:
        check(shop.answer(restricted, number % REQUESTS, of_user(0)), 0)

    def afterwards(number: int) -> None:
        nonlocal short_filtered
        ads = shop.answer(snapshot, number % REQUESTS, NO_TERMS, most=shop.plan.sid[-1])
        kept = shown[number % USERS][np.searchsorted(snapshot.ad_ids, ads)]
        short_filtered += bool(number) and int(kept.sum()) < shop.num_ads

    ways = {
        "without": lambda number: shop.answer(snapshot, number % REQUESTS, NO_TERMS),
        "inside": inside,
        "again": again,
        "afterwards": afterwards,
    }
    seconds = {name: np.array(x) for name, x in timed(ways, rounds=rounds).items()}
    states = restricted.states
    assert states._traits is not None
    traits = [a for a in states._traits if isinstance(a, np.ndarray)]
    kept = [a for s in states._known.values() for a in (s.leaves, s.below.keywords["before"])]
    held = sum(a.nbytes for a in (numbers, *traits, *kept))
    began = time.process_time()
    for user in range(USERS):
        restricted.eligible(of_user(user))
    return {
        "predicates": predicates,
        "share": share,
        "eligible": float(np.mean([s.mean() for s in shown.values()])),
        "without_ms": float(np.median(seconds["without"]) * 1e3),
        **{n: float(np.median(seconds[n] / seconds["without"])) for n in ("inside", "again", "afterwards")},
        "eligible_ms": (time.process_time() - began) / USERS * 1e3,
        "short": short,
        "not_allowed": wrong,
        "short_filtered": short_filtered / rounds,
        "bytes_per_ad": held / len(snapshot.ad_ids),
    }


def differences(checkpoint: Checkpoint, shop: Shop, *, requests: int, ads: int = 600) -> int:
    """Requests whose answer is not that of all ads scored and then filtered; of a catalogue so small."""
    sizes, found = checkpoint.spec.level_sizes, 0
    snapshot = catalogue.snapshot(ads, sizes)
    numbers, table = audiences(50, 0.1, ads=ads, seed=1)
    restricted = replace(snapshot, ad_audiences=numbers, audiences=table, states=States())
    every = replace(shop, plan=WidthPlan((ads,) * len(sizes), 1), num_ads=ads)
    few = replace(every, num_ads=20)
    for row in range(requests):
        terms = of_user(row)
        ranked = every.answer(snapshot, row % REQUESTS, NO_TERMS)
        expected = ranked[restricted.shown(ranked, terms)][:20]
        found += not np.array_equal(few.answer(restricted, row % REQUESTS, terms), expected)
    return found


def measure(preset: Preset, run: Path, *, rounds: int, ads: int, requests: int) -> dict[str, Any]:
    """All rows, and the ratios that have targets."""
    checkpoint = seeded_checkpoint(preset)
    folder = seeded_graphs(preset, run, shared_layers=checkpoint.model.shared)
    sizes = checkpoint.spec.level_sizes
    slots, profile = example_request(
        checkpoint.model, batch=REQUESTS, generator=torch.Generator().manual_seed(7)
    )
    shop = Shop(
        executor=OrtExecutor(folder, levels=len(sizes), threads=1),
        plan=WidthPlan.parse(preset.serving.widths, levels=len(sizes)),
        values=checkpoint.spec.value_buckets.means,
        slots=slots.numpy(),
        profile=profile.numpy(),
        num_ads=catalogue.NUM_ADS,
    )
    wrong = differences(checkpoint, shop, requests=requests)
    snapshot = catalogue.snapshot(ads, sizes)
    rows = []
    for predicates in PREDICATES:
        for share in SHARES:
            rows.append(measured(shop, snapshot, predicates=predicates, share=share, rounds=rounds))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    of = {(row["predicates"], row["share"]): row for row in rows}
    ratios = {
        "audience_50": of[1_000, 0.5]["inside"],
        "audience_1": of[1_000, 0.01]["inside"],
        "audience_differences": wrong + sum(row["not_allowed"] + row["short"] for row in rows),
        "audience_bytes_per_ad": max(row["bytes_per_ad"] for row in rows),
    }
    return {"rows": rows, "ratios": ratios, "targets": TARGETS, "ads": ads, "rounds": rounds}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser, default="configs/bench.yaml")
    parser.add_argument("--run", type=Path, default=Path("build/bench"))
    parser.add_argument("--rounds", type=int, default=40, help="timed requests of every way [40]")
    parser.add_argument("--requests", type=int, default=32, help="held against the scores of all ads [32]")
    parser.add_argument("--ads", type=int, default=1_000_000, help="of the catalogue [1,000,000]")
    arguments = parser.parse_args()
    preset = Preset.load(arguments.config, arguments.overrides)
    torch.set_num_threads(1)
    arguments.run.mkdir(parents=True, exist_ok=True)
    found = measure(
        preset, arguments.run, rounds=arguments.rounds, ads=arguments.ads, requests=arguments.requests
    )
    results = {**stamp(), "command": "make bench-audience", **found}
    (arguments.run / "audience.json").write_text(json.dumps(results, indent=1))
    print(json.dumps(found["ratios"], indent=1))


if __name__ == "__main__":
    main()
