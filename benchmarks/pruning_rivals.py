"""Ten best of 512 beams, of Hugging Face, CTranslate2 and the trained model, pruned and not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.comparators.ct2 import Ct2Generate
from benchmarks.comparators.hf import HfGenerate, T5Shape, random_context
from benchmarks.trained_demo import TrainedDemo

BEAMS, LENGTH = 512, 64  # of the context, tokens


def rivals(
    demo: TrainedDemo,
    search: Callable[[np.ndarray, bool], Any],
    *,
    threads: int,
    rounds: int,
    every: int = 3,
) -> dict[str, Any]:
    """Milliseconds of lone requests by engine, in turn, and what pruning makes of the distance.

    Their engines have the trained model's shape and random weights: an ordinary beam search takes the same
    time whatever it finds.

    Args:
        demo: trained run.
        search: ours; rows of requests, and whether it is pruned.
        threads: of every engine.
        rounds: calls of each.
        every: Hugging Face takes part in one of so many.
    """
    spec, snapshot = demo.spec, demo.snapshot
    model = spec.model
    sids = np.unique(snapshot.sids_of(snapshot.ad_ids)[0], axis=0)
    shape = T5Shape(
        layers=model.layers, width=model.width, heads=model.heads, ffn=model.ffn_multiple * model.width
    )
    hf = HfGenerate(spec.level_sizes, sids, shape=shape, threads=threads)
    ct2 = Ct2Generate(spec.level_sizes, compute_type="float32", shape=shape, threads=threads)
    contexts = [random_context(spec.level_sizes, seed=s, length=LENGTH) for s in range(rounds + 1)]
    engines: dict[str, Callable[[int], Any]] = {
        "ours": lambda i: search(demo.rows[[i]], False),
        "ours_pruned": lambda i: search(demo.rows[[i]], True),
        "hf_512": lambda i: hf.generate(contexts[i], BEAMS),
        "ct2_512": lambda i: ct2.generate(contexts[i], BEAMS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds + 1):
        for name, run in engines.items():
            if name == "hf_512" and number % every and number:
                continue
            began = time.perf_counter()
            run(number)
            if number:
                seconds[name].append(time.perf_counter() - began)
    ms = {name: float(np.median(s)) * 1e3 for name, s in seconds.items()}
    absolute = {
        f"{name}{'_pruned' if ours == 'ours_pruned' else ''}": ms[name] / ms[ours]
        for name in ("hf_512", "ct2_512")
        for ours in ("ours", "ours_pruned")
    }
    return {
        "ms": ms,
        "times_faster": absolute,
        "hf_512_n10": absolute["hf_512_pruned"] / absolute["hf_512"],
        "ct2_512_n10": absolute["ct2_512_pruned"] / absolute["ct2_512"],
    }
