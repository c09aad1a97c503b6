"""What was served and what came of it, as a sample: its context as the model saw it, its targets, its list.

The same as `training.data.samples` cuts from a log that holds the same rows (tested), but from one record: no
log needs to be in memory.

Letters: S slots, T SID levels, k ads of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from feedback.store.samples import JoinedSample
from serving.model.features import BEHAVIORS, FeatureSpec, join_codes
from training.data.batch import Sample
from training.data.lists import CandidateFlag, CandidateList
from training.data.values import ValueBuckets


class Sids(Protocol):
    """Semantic IDs of one tokenizer, as `serving.index.snapshot.IndexSnapshot` has them."""

    def sids_of(self, ad_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """SIDs int32 [n, T] of ads int64 [n], and whether each is known, bool [n]."""


def served_sample(
    joined: JoinedSample,
    sids: Sids,
    *,
    features: FeatureSpec,
    buckets: ValueBuckets,
    behavior_weights: Mapping[Any, float],
    target_behaviors: tuple[str, ...],
    least: str,
) -> Sample:
    """One sample; without targets where nothing came of it, without a list where nobody reported an ad.

    Args:
        joined: from `feedback.store.samples.Samples`; of several revisions the latest is right.
        sids: of the tokenizer that is trained for. Ads that it does not know are left out.
        features: what a context of the model looks like.
        buckets: of the targets' values.
        behavior_weights: weight of a target by its behavior; 0 for one that is not named.
        target_behaviors: an ad with one of them is a target, its outcome the highest of them.
        least: behavior from which on an outcome's value is its reward in the list; what came to less has 0.

    Raises:
        ValueError: the record is not of a model with such contexts or SIDs, or a value is no finite number.
    """
    record = joined.record
    _check(joined, features)
    slot_ads = np.array(record.slot_ads, np.int64)
    codes, known = sids.sids_of(slot_ads)
    columns = np.array(record.slots, np.int32).reshape(len(slot_ads), -1)  # [S, 3]
    wanted = {BEHAVIORS[name] for name in target_behaviors}
    facts = sorted((f for f in joined.facts if f.behavior in wanted), key=lambda f: f.behavior)
    targets = {fact.ad_id: fact for fact in facts}  # of each ad the highest
    ads = np.array([ad for ad in record.ad_ids if ad in targets], np.int64)
    tokens, has_sid = sids.sids_of(ads)
    found = [targets[ad] for ad in ads[has_sid].tolist()]
    weights = {BEHAVIORS[name]: weight for name, weight in behavior_weights.items()}
    return Sample(
        slots=join_codes(codes, columns, shown=known & (slot_ads >= 0)),
        profile=np.array(record.profile, np.int32),
        tokens=tokens[has_sid].astype(np.int64),
        value=buckets.encode(np.array([fact.value for fact in found], np.float32)),
        weight=np.array([weights.get(fact.behavior, 0.0) for fact in found], np.float32),
        slot_ads=np.where(known & (slot_ads >= 0), slot_ads, -1)[: features.slots],
        ads=ads[has_sid],
        candidates=_shown(joined, sids, least=BEHAVIORS[least]),
    )


def _shown(joined: JoinedSample, sids: Sids, *, least: int) -> CandidateList | None:
    """Ads that anything was reported of; the model that found them says how probable they were."""
    record, outcomes = joined.record, joined.outcomes
    places = [i for i, ad in enumerate(record.ad_ids) if ad in outcomes]
    if not places:
        return None
    ads = np.array(record.ad_ids, np.int64)[places]
    codes, known = sids.sids_of(ads)
    # An ad whose content has changed since has another SID, which was not searched then.
    kept = known & (codes == np.array(record.sids, np.int32)[places]).all(axis=1)
    reward = [outcomes[ad].value if outcomes[ad].behavior >= least else 0.0 for ad in ads.tolist()]
    return CandidateList(
        sids=codes[kept],
        reward=np.array(reward, np.float32)[kept],
        flags=np.full(int(kept.sum()), CandidateFlag.OWN | CandidateFlag.LOGGED, np.uint8),
        ads=ads[kept],
        log_p_ref=np.array(record.scores, np.float32)[places][kept],
    )


def _check(joined: JoinedSample, features: FeatureSpec) -> None:
    record = joined.record
    sizes = (len(BEHAVIORS) + 1, features.gap_buckets, features.count_buckets)
    columns = np.array(record.slots, np.int64).reshape(-1, len(sizes))
    for what, expected, got in (
        ("slots", features.rows, len(record.slot_ads)),
        ("profile", len(features.column_sizes), len(record.profile)),
        ("levels of SIDs", {features.levels}, {*map(len, record.sids)} or {features.levels}),
    ):
        if got != expected:
            raise ValueError(f"{what}: expected {expected} (the model's), got {got}")
    for what, limits, codes in (
        ("slots", sizes, columns),
        ("profile", features.column_sizes, np.array([record.profile], np.int64)),
    ):
        if (codes < 0).any() or (codes >= np.array(limits, np.int64)).any():
            raise ValueError(f"{what}: expected codes from 0 to below {limits}, got {codes.max(0).tolist()}")
    values = [fact.value for fact in joined.facts if not np.isfinite(fact.value)]
    if values or not np.isfinite(record.scores).all():
        raise ValueError(f"values and scores: expected finite numbers, got {values or record.scores}")
