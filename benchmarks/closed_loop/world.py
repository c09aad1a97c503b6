"""Who is simulated: users of the logs whose tastes move, and ads, some of which come later.

The response model of `benchmarks.simulation` says what users buy on day 0, `drift` how that moves. A user's
past is that of the logs and what he bought since. Letters: A ads of the run, N ads that come later, U users.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from sklearn.cluster import KMeans

from benchmarks.closed_loop.drift import Drift
from benchmarks.simulation.history import NEWEST, Past
from benchmarks.simulation.response import ResponseModel
from benchmarks.simulation.response_fit import fit
from benchmarks.simulation.settings import FitSettings
from benchmarks.simulation.world import data_sha256, key_of
from serving.model.features import BEHAVIORS
from training.preset.preset import Preset
from training.reward.reward_model import Scores
from training.run import RunData

SEGMENTS = 8
RECENT_DAYS = 56  # users who bought something so shortly before the end of the logs are simulated
NEW_BIAS = 0.5  # deviation of how much better or worse a new ad is than the one it is like
_DAY = 86_400.0
_VERSION = 1  # of the code that fits, so that what an older one left in a cache is not taken for its own


@dataclass(frozen=True)
class NewAd:
    """An ad that comes later: an event's fields, and the ad whose text it has."""

    ad_id: int
    like: int
    account_id: str
    conversion_type: str
    text: str


@dataclass
class User:
    """One user.

    Attributes:
        user_id: number.
        segment: 0 .. `SEGMENTS` - 1.
        bought: rows of ads, with `times` in unix seconds.
    """

    user_id: int
    segment: int
    bought: np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class World:
    """What does not depend on who answers, but for what was bought.

    Attributes:
        response: ground truth on day 0; its rows are the run's ads, then those that come later.
        drift: since.
        users: by place.
        new_ads: in the order in which they come.
        start: unix seconds of day 0, the end of the logs.
    """

    response: ResponseModel
    drift: Drift
    users: list[User]
    new_ads: list[NewAd]
    start: int
    known: np.ndarray = field(repr=False)  # int64 [A + N], ids, ascending

    @classmethod
    def open(
        cls,
        run: Path,
        preset: Preset,
        *,
        cache: Path,
        users: int,
        new_ads: int,
        days: int,
        drift: float,
        seed: int,
    ) -> Self:
        """Fit the response model or take it from the cache, draw users, new ads and their drift.

        Args:
            run: folder with `data/` and `tokenizer/`.
            preset: of the model that serves.
            cache: folder for what takes long.
            users: U at most.
            new_ads: N.
            days: that the drift lasts.
            drift: its size, 1 for that of the logs.
            seed: of all draws.

        Raises:
            ValueError: no request to fit on, or nobody bought anything of late.
            OSError: the run is not there.
        """
        data = RunData.load(run)
        ads = data.prepared.tables.ads.sort("ad_id")
        response = _fitted(run, data, preset, ads=ads, cache=cache)
        random = np.random.default_rng([seed, 3])
        later, parents = _new_ads(ads, response, count=new_ads, random=random)
        categories = _categories(ads["text"])
        response = _with_new(response, [ad.ad_id for ad in later], parents, random=random)
        end = int(data.prepared.tables.events["timestamp"].to_numpy().max()) + 1
        drawn = _users(data.prepared.tables.events, response, count=users, now=end, random=random)
        return cls(
            response=response,
            drift=Drift.draw(
                np.concatenate([categories, categories[parents]]),
                segments=SEGMENTS,
                days=days,
                scale=drift,
                seed=seed,
            ),
            users=drawn,
            new_ads=later,
            start=end,
            known=response.ad_ids,
        )

    def respond(self, user: User, ads: np.ndarray, *, now: int) -> Scores:
        """P(buy) where the user looks, and value, float64 [n], of ads, ids int64 [n].

        Raises:
            ValueError: an ad that does not exist.
        """
        rows = self.rows(ads)
        past = Past.of_purchases(user.bought[-NEWEST:], user.times[-NEWEST:], now=now)
        day = (now - self.start) / _DAY
        return self.response.score_after(
            past, rows, shift=self.drift.at(day, segment=user.segment, rows=rows)
        )

    def rows(self, ads: np.ndarray) -> np.ndarray:
        """Rows int64 [n] of ads.

        Raises:
            ValueError: an ad that does not exist.
        """
        rows = np.minimum(np.searchsorted(self.known, ads), len(self.known) - 1)
        if len(wrong := ads[self.known[rows] != ads]):
            raise ValueError(f"expected ads of the run or new ones, got {wrong[:5].tolist()}")
        return rows

    def buy(self, user: User, ads: np.ndarray, *, now: int) -> None:
        """He has bought these ads, ids int64 [n]."""
        user.bought = np.concatenate([user.bought, self.rows(ads)])
        user.times = np.concatenate([user.times, np.full(len(ads), now)])


def _fitted(run: Path, data: RunData, preset: Preset, *, ads: pl.DataFrame, cache: Path) -> ResponseModel:
    """Of all users of the training weeks: nobody is judged on logs here."""
    behaviors, settings = preset.logs.target_behaviors, FitSettings()
    of = {"version": _VERSION, "data": data_sha256(run), "fit": settings.model_dump(), "behaviors": behaviors}
    of["min_history"] = preset.training.min_history
    path = cache / f"response-{key_of(of)}.safetensors"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        dataset = data.dataset(data.fit_spec(preset))
        groups = dataset.groups(
            "train",
            target_behaviors=behaviors,
            min_history=preset.training.min_history,
            recent_weeks=settings.recent_weeks,
        )
        rows = np.arange(len(groups.user_row))
        fit(dataset, ads, groups, rows, behaviors=behaviors, settings=settings).save(path)
    return ResponseModel.load(path)


def _categories(texts: pl.Series) -> np.ndarray:
    """Number of each text's first two parts: department and commodity."""
    first = texts.str.split(", ").list.slice(0, 2).list.join(", ")
    return first.rank("dense").to_numpy().astype(np.int64) - 1


def _new_ads(
    ads: pl.DataFrame, response: ResponseModel, *, count: int, random: np.random.Generator
) -> tuple[list[NewAd], np.ndarray]:
    """Ads of new advertisers, each with the text of one that sells; and rows int64 [N] of those."""
    chance = np.exp(response.bias.astype(np.float64)) * (ads["status"] == "active").to_numpy()
    parents = random.choice(len(ads), count, p=chance / chance.sum())
    first = int(response.ad_ids[-1]) + 1
    found = []
    for number, parent in enumerate(parents.tolist()):
        row = ads.row(parent, named=True)
        account = f"new advertiser {number}"
        kind, text = str(row["conversion_type"]), str(row["text"])
        found.append(NewAd(first + number, int(row["ad_id"]), account, conversion_type=kind, text=text))
    return found, parents


def _with_new(
    response: ResponseModel, ids: list[int], parents: np.ndarray, *, random: np.random.Generator
) -> ResponseModel:
    """With rows for new ads: what is known of the ones they are like, but how good they are."""
    more = {
        name: np.concatenate([getattr(response, name), getattr(response, name)[parents]])
        for name in ("bias", "candidate", "past", "value")
    }
    more["bias"][len(response.bias) :] += NEW_BIAS * random.standard_normal(len(ids))
    return replace(response, ad_ids=np.concatenate([response.ad_ids, np.array(ids, np.int64)]), **more)


def _users(
    events: pl.DataFrame, response: ResponseModel, *, count: int, now: int, random: np.random.Generator
) -> list[User]:
    names = {code: name for name, code in BEHAVIORS.items()}
    bought = events.filter(pl.col("behavior").is_in([names[int(code)] for code in response.behaviors]))
    late = (
        bought.filter(pl.col("timestamp") >= now - RECENT_DAYS * _DAY)["user_id"].unique().sort().to_numpy()
    )
    if not len(late):
        raise ValueError(f"expected users who bought something in the last {RECENT_DAYS} days, got none")
    chosen = np.sort(random.permutation(late)[:count])
    groups = (
        bought.filter(pl.col("user_id").is_in(chosen)).sort("user_id", "timestamp").partition_by("user_id")
    )
    users = [
        User(
            int(group["user_id"][0]),
            segment=0,
            bought=np.searchsorted(response.ad_ids, group["ad_id"].to_numpy()),
            times=group["timestamp"].to_numpy(),
        )
        for group in groups
    ]
    pasts = [Past.of_purchases(u.bought[-NEWEST:], u.times[-NEWEST:], now=now) for u in users]
    tastes = np.stack([response.taste(past) for past in pasts])
    found = KMeans(min(SEGMENTS, len(users)), n_init=1, random_state=0).fit_predict(tastes)
    for user, segment in zip(users, found.tolist(), strict=True):
        user.segment = segment
    return users
