"""The kinds of rankers."""

from __future__ import annotations

from pathlib import Path

from serving.model.bundle import BundleError
from serving.model.manifest import Manifest, RankerKind
from serving.ranking.item_ranker import ItemRanker
from serving.ranking.ranker import Ranker, RankGraph
from serving.ranking.reward_ranker import RewardRanker

_KINDS: dict[RankerKind, type[RewardRanker] | type[ItemRanker]] = {
    kind.kind: kind for kind in (RewardRanker, ItemRanker)
}


def load_ranker(bundle: str | Path, manifest: Manifest, graph: RankGraph, *, pad_to: int = 1) -> Ranker:
    """The ranker of a bundle.

    Args:
        bundle: its folder.
        manifest: its manifest.
        graph: runs its graph.
        pad_to: see `Ranker`.

    Raises:
        BundleError: it has none, or one that is not what it should be.
    """
    kind = manifest.ranker_kind
    if kind is None:
        raise BundleError(
            f"model version {manifest.version}: expected a bundle with a ranker, got one without"
        )
    return _KINDS[kind].load(bundle, manifest, graph, pad_to=pad_to)
