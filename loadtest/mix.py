"""What is asked: requests of users, some of them again within a window.

Letters: N history events.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from serving.model.bundle import read_manifest
from serving.model.current import current_version
from serving.model.features import BEHAVIORS

SYNTHETIC_HISTORY = (60, 120)  # events
_NOW, _DAY = 1_700_000_000, 86_400
_HISTORY = ("history_ad_ids", "history_behaviors", "history_timestamps")

Tensors = dict[str, np.ndarray]
Key = tuple[int, int]
"""Which request: number of the user, and how many of the newest events are left out."""


@dataclass(frozen=True)
class Mix:
    """Users as requests, and how they are drawn.

    Attributes:
        users: one request of one row for every user, as `examples.client.Catalogue.request` makes it.
        live_ads: ads that can be shown; an answer has fewer than asked for only where there are fewer.
        source: where the users come from, for the report.
        repeats: share of requests that were sent before within the window, 0 .. 1.
        window_s: how long ago that may be.
    """

    users: list[Tensors]
    live_ads: int
    source: str
    repeats: float = 0.0
    window_s: float = 60.0

    def __post_init__(self) -> None:
        """Reject what cannot be drawn from."""
        if not self.users:
            raise ValueError("request mix: expected at least one user, got none")
        if not 0 <= self.repeats < 1:
            raise ValueError(f"repeats: expected a share of 0 or more and below 1, got {self.repeats}")
        if not self.window_s > 0:
            raise ValueError(f"repeat window: expected seconds above 0, got {self.window_s}")

    def save(self, path: Path) -> None:
        """Write for another process."""
        arrays = {f"{i} {name}": values for i, user in enumerate(self.users) for name, values in user.items()}
        rest = [len(self.users), self.live_ads, self.source, self.repeats, self.window_s]
        np.savez(path, mix=np.frombuffer(json.dumps(rest).encode(), np.uint8), **arrays)

    @classmethod
    def load(cls, path: Path) -> Mix:
        """Inverse of `save`."""
        with np.load(path, allow_pickle=False) as file:
            count, *rest = json.loads(file["mix"].tobytes())
            users: list[Tensors] = [{} for _ in range(count)]
            for key in file.files:
                number, _, name = key.partition(" ")
                if name:
                    users[int(number)][name] = file[key]
        return cls(users, *rest)

    def tensors(self, key: Key) -> Tensors:
        """The request of a key: the user's, without the newest events that the key leaves out."""
        user, dropped = key
        tensors = self.users[user]
        if not dropped:
            return tensors
        return tensors | {name: tensors[name][:, : tensors[name].shape[1] - dropped] for name in _HISTORY}

    def draw(
        self, times: Iterable[float], *, seed: int, stream: int = 0, streams: int = 1
    ) -> Iterator[tuple[float, Key, bool]]:
        """For ascending times: (time, request, whether it is a repeat).

        What is no repeat was not sent before: users come in random order, and in each further turn without
        their newest event of the turn before, until histories are used up. Several streams share the users
        out among themselves.
        """
        random = np.random.default_rng([seed, stream, 1])
        recent: deque[tuple[float, Key]] = deque()
        mine = np.arange(len(self.users))
        fresh = self._fresh(mine[stream % streams :: streams] if len(mine) >= streams else mine, random)
        for time in times:
            while recent and recent[0][0] < time - self.window_s:
                recent.popleft()
            repeat = bool(recent) and random.random() < self.repeats
            key = recent[int(random.integers(len(recent)))][1] if repeat else next(fresh)
            recent.append((time, key))
            yield time, key, repeat

    def _fresh(self, users: np.ndarray, random: np.random.Generator) -> Iterator[Key]:
        lengths = {user: self.users[user]["history_ad_ids"].shape[1] for user in users.tolist()}
        longest = max(lengths.values())
        for turn in count():
            for user in random.permutation(users).tolist():
                if turn <= lengths[user] or turn > longest:
                    yield user, min(turn, lengths[user])


def from_logs(run: Path, *, users: int, num_ads: int, seed: int = 0) -> tuple[list[Tensors], int]:
    """Requests of users drawn from the logs of a run, at the end of the logs, and the number of live ads.

    Raises:
        FileNotFoundError, BundleError: a step of the run was not made yet.
    """
    from examples.client import Catalogue

    catalogue = Catalogue.load(run)
    manifest = read_manifest(run / "bundles" / str(current_version(run / "bundles")), verify=False)
    known = np.sort(catalogue.users["user_id"].to_numpy())
    chosen = np.random.default_rng(seed).permutation(known)[:users]
    requests = [
        catalogue.request(int(u), num_ads=num_ads, max_history=manifest.features.max_history) for u in chosen
    ]
    return requests, int((catalogue.ads["status"] == "active").sum())


def synthetic(bundle: Path, ad_ids: np.ndarray, *, users: int, num_ads: int, seed: int = 0) -> list[Tensors]:
    """Requests of made-up users of a bundle: half a year of history over these ads, int64 [N].

    Raises:
        BundleError: no such bundle.
    """
    spec = read_manifest(bundle, verify=False).features
    random = np.random.default_rng(seed)
    found: list[Tensors] = []
    for _ in range(users):
        events = min(int(random.integers(SYNTHETIC_HISTORY[0], SYNTHETIC_HISTORY[1] + 1)), spec.max_history)
        ads = random.choice(random.choice(ad_ids, max(1, events // 2)), events)  # some come again
        profile = [random.integers(0, size) for size in spec.profile_sizes]
        found.append(
            ({"profile": np.array([profile], np.int32)} if profile else {})
            | {
                "history_ad_ids": ads.astype(np.int64)[None],
                "history_behaviors": random.integers(1, len(BEHAVIORS) + 1, (1, events)).astype(np.int32),
                "history_timestamps": np.sort(_NOW - random.integers(0, 180 * _DAY, (1, events))),
                "num_ads": np.array([[num_ads]], np.int32),
                "timestamp": np.array([[_NOW]], np.int64),
            }
        )
    return found


def build_mix(
    run: Path,
    *,
    users: int,
    num_ads: int,
    repeats: float,
    window_s: float,
    seed: int = 0,
    synthetic_ads: int | None = None,
) -> Mix:
    """The mix of a run: users of its logs, or made-up ones where it has none or `synthetic_ads` is given.

    Made-up users saw ads of RUN/index, or the ads 1 .. synthetic_ads.

    Raises:
        OSError, ValueError, BundleError, IndexStoreError: the run lacks something, or a setting is wrong.
    """
    if synthetic_ads is None and (run / "data" / "events.parquet").is_file():
        requests, live = from_logs(run, users=users, num_ads=num_ads, seed=seed)
        source = f"{len(requests)} users of the logs in {run / 'data'}"
    else:
        bundles = run / "bundles"
        version = current_version(bundles)
        ids, live = _ads_of(run / "index", synthetic_ads)
        requests = synthetic(bundles / str(version), ids, users=users, num_ads=num_ads, seed=seed)
        source = f"{len(requests)} made-up users over {len(ids)} ads"
    return Mix(users=requests, live_ads=live, source=source, repeats=repeats, window_s=window_s)


def _ads_of(index: Path, synthetic_ads: int | None) -> tuple[np.ndarray, int]:
    if synthetic_ads is not None:
        return np.arange(1, synthetic_ads + 1), synthetic_ads
    from serving.index.reader import IndexReader

    reader = IndexReader(index)
    try:
        live = reader.snapshot.leaf_ad_ids
        return live, len(live)
    finally:
        reader.close()
