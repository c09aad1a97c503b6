"""A user's request as tensors, sent with tritonclient over gRPC or HTTP; checks of the answer.

Letters: N history events, E excluded ads, P profile columns, k ads, T SID levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import np_to_triton_dtype

from feedback.store.histories import Histories
from feedback.store.layout import EVENT
from serving.keys import id_of
from serving.model.bundle import read_manifest
from serving.model.current import current_version
from serving.model.features import BEHAVIORS
from serving.model.request_features import RequestFeature
from serving.search.rank import RANK_BY, RankBy, falls

AD_KEYS = "ad_keys"
OUTPUTS = (
    "ad_ids",
    "scores",
    "expected_value",
    "sids",
    "model_version",
    "index_version",
    "beam_widths",
    "degraded",
    "ignored_history",
)  # all but `AD_KEYS`, which only an index with keys has, and which takes a step of its own


def send(
    url: str,
    tensors: dict[str, np.ndarray],
    *,
    protocol: str = "grpc",
    timeout_s: float = 30.0,
    parameters: dict[str, Any] | None = None,
    outputs: Sequence[str] = OUTPUTS,
    request_id: str = "",
) -> dict[str, np.ndarray]:
    """Send one request (tensors with a leading batch of 1 or more) and return these outputs.

    Feedback names a request by its id, so one that is logged should have an id of its own.

    Raises:
        tritonclient.utils.InferenceServerException: the server refused it, or is not there.
    """
    client = connect(url, protocol=protocol, timeout_s=timeout_s)
    try:
        inputs = infer_inputs(tensors, protocol=protocol)
        options: dict[str, Any] = {"client_timeout": timeout_s} if protocol == "grpc" else {}
        options["outputs"] = requested_outputs(outputs, protocol=protocol)
        result = client.infer("gr4ad", inputs, parameters=parameters, request_id=request_id, **options)
        return {name: result.as_numpy(name) for name in outputs}
    finally:
        client.close()


def infer_inputs(tensors: dict[str, np.ndarray], *, protocol: str = "grpc") -> list[Any]:
    """Tensors as tritonclient wants them for a protocol: grpc (also its asyncio client) or http."""
    module: Any = tritonclient.grpc if protocol == "grpc" else tritonclient.http
    inputs = []
    for name, values in tensors.items():
        tensor = module.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


def requested_outputs(names: Sequence[str], *, protocol: str = "grpc") -> list[Any]:
    """Outputs as tritonclient wants them; without any it asks for all there are."""
    module: Any = tritonclient.grpc if protocol == "grpc" else tritonclient.http
    return [module.InferRequestedOutput(name) for name in names]


def connect(url: str, *, protocol: str, timeout_s: float) -> Any:
    """Client of a protocol: grpc or http."""
    if protocol == "grpc":
        return tritonclient.grpc.InferenceServerClient(url)
    return tritonclient.http.InferenceServerClient(
        url, connection_timeout=timeout_s, network_timeout=timeout_s
    )


def ids(given: Sequence[int | str]) -> list[int]:
    """Ids of ads or users, of texts (keys) as the tables and the index have them.

    Raises:
        ValueError: a text that is no key.
    """
    return [id_of(one) if isinstance(one, str) else one for one in given]


@dataclass(frozen=True)
class Catalogue:
    """What the client knows of the ads and the users: the tables of a run folder, and their keys."""

    ads: pl.DataFrame
    users: pl.DataFrame
    events: pl.DataFrame
    sids: pl.DataFrame
    profile_columns: dict[str, tuple[str, ...]]
    end: int
    keys: Mapping[str, pl.DataFrame] = field(default_factory=dict)  # ads, users: where their ids are texts
    request_features: tuple[RequestFeature, ...] = ()
    ranker: str | None = None  # kind of the bundle's ranking stage

    @classmethod
    def load(cls, run: Path) -> Catalogue:
        """Read a run folder.

        Raises:
            FileNotFoundError, BundleError: a step of the run was not made yet.
        """
        bundles = run / "bundles"
        manifest = read_manifest(bundles / str(current_version(bundles)), verify=False)
        ads, users, events = (
            pl.read_parquet(run / "data" / f"{name}.parquet") for name in ("ads", "users", "events")
        )
        sids = pl.read_parquet(run / "tokenizer" / "sids.parquet")
        end = int(events["timestamp"].to_numpy().max()) + 1
        files = {name: run / "data" / "keys" / f"{name}.parquet" for name in ("ads", "users")}
        return cls(
            ads,
            users,
            events,
            sids,
            profile_columns=manifest.profile_columns,
            end=end,
            request_features=manifest.features.request_features,
            ranker=manifest.ranker_kind,
            keys={name: pl.read_parquet(file) for name, file in files.items() if file.is_file()},
        )

    def ad(self, word: str) -> int | str:
        """An ad that somebody typed: a key where the ads of these tables have keys, else a number.

        Raises:
            ValueError: it is not a number, where they have none.
        """
        return word if "ads" in self.keys else int(word)

    def user(self, word: str) -> int | str:
        """As `ad`, of a user."""
        return word if "users" in self.keys else int(word)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Outputs to ask for, the keys among them where the ads have keys."""
        return (*OUTPUTS, AD_KEYS) if "ads" in self.keys else OUTPUTS

    def request(
        self,
        user: int | str,
        *,
        num_ads: int,
        exclude: Sequence[int | str] = (),
        max_history: int = 1024,
        histories: Histories | None = None,
        attributes: Sequence[str] = (),
        exclude_accounts: Sequence[str] = (),
    ) -> dict[str, np.ndarray]:
        """Request of a user at the end of the logs: the newest events, the profile, the time.

        Its request features are those of the user's last event; one that is not known there is left out.
        Events that feedback has brought since follow those of the logs, and the request is behind them.

        Args:
            user: number or key.
            num_ads: k.
            exclude: ads, numbers or keys, that must not come back.
            max_history: most events that are sent.
            histories: of a feedback store; None for the logs alone.
            attributes: in the order of the server's `serving.attributes`, "" for unknown; none: not sent.
            exclude_accounts: accounts whose ads must not come back.

        Raises:
            ValueError: no such user, or a text that is no key.
        """
        (user_id,) = ids([user])
        rows = self.users.filter(pl.col("user_id") == user_id)
        if not rows.height:
            known = self.keys["users"]["key"] if "users" in self.keys else self.users["user_id"]
            span = f"{known.min()!r} .. {known.max()!r}"
            raise ValueError(f"expected a user of the logs ({span}), got {user!r}")
        events = self.events.filter(pl.col("user_id") == user_id).sort("timestamp", "ad_id").tail(max_history)
        row = rows.row(0, named=True)
        behaviors = np.array([BEHAVIORS[b] for b in events["behavior"]], np.int32)
        tensors = {
            "history_ad_ids": events["ad_id"].to_numpy()[None],
            "history_behaviors": behaviors[None],
            "history_timestamps": events["timestamp"].to_numpy()[None],
            "num_ads": np.array([[num_ads]], np.int32),
            # The logs are of the past: without a time the server would count the gaps up to today.
            "timestamp": np.array([[self.end]], np.int64),
        }
        profile = [_code(categories, row[column]) for column, categories in self.profile_columns.items()]
        if profile:  # of a model without columns there is no such input
            tensors["profile"] = np.array([profile], np.int32)
        last = events.row(-1, named=True) if events.height else {}
        for feature in self.request_features:
            value = last.get(feature.column)
            if value is not None:
                sent = min(max(value, -1), 2**31 - 1) if feature.size else str(value).encode()
                tensors[feature.name] = np.array([[sent]], np.int32 if feature.size else np.bytes_)
        if exclude:
            tensors["exclude_ad_ids"] = np.array([ids(exclude)], np.int64)
        for name, texts in {"attributes": attributes, "exclude_account_ids": exclude_accounts}.items():
            if texts:
                tensors[name] = np.array([[text.encode() for text in texts]], np.object_)
        since = histories.of(user_id) if histories else np.zeros(0, EVENT)
        now = max(self.end, int(since["timestamp"][-1]) + 1) if len(since) else self.end
        return with_later(tensors, since, now=now, max_history=max_history)


def with_later(
    tensors: dict[str, np.ndarray], since: np.ndarray, *, now: int, max_history: int = 1024
) -> dict[str, np.ndarray]:
    """A request with later events behind its history, asked at `now`.

    Args:
        tensors: of `Catalogue.request`.
        since: `EVENT` [N], later than its history, oldest first.
        now: unix seconds, behind them.
        max_history: most events that are sent, the newest.
    """
    later = {
        "history_ad_ids": since["ad_id"],
        "history_behaviors": since["behavior"].astype(np.int32),
        "history_timestamps": since["timestamp"],
    }
    joined = {
        name: np.concatenate([tensors[name][0], values])[-max_history:][None]
        for name, values in later.items()
    }
    return tensors | joined | {"timestamp": np.array([[now]], np.int64)}


def problems(
    answer: dict[str, np.ndarray],
    *,
    catalogue: Catalogue,
    num_ads: int,
    exclude: Sequence[int | str],
    rank_by: RankBy | None = None,
    rerank: str | None = None,
    exclude_accounts: Sequence[str] = (),
    max_per_account: int | None = None,
) -> list[str]:
    """What is wrong with an answer (row 0) to a request of that rank_by and rerank; empty when nothing is.

    Where ads have audiences there should be as many as there are for everybody, or as are asked for; where
    accounts are capped, how many is not checked.
    A request without one is answered in the order of the server's `serving.rank_by`, whichever that is; the
    order of a ranker, asked for or perhaps the server's default, is not checked.
    """
    found = []
    ranked = rerank != "off" and (rerank or catalogue.ranker) is not None
    excluded = ids(exclude)
    ad_ids, scores, values, sids = (
        answer[name][0] for name in ("ad_ids", "scores", "expected_value", "sids")
    )
    real = ad_ids >= 0
    if not real[: int(real.sum())].all():
        found.append("padding stands before an ad")
    ad_ids, scores, values, sids = ad_ids[real], scores[real], values[real], sids[real]
    ads = catalogue.ads.filter(pl.col("status") == "active")
    if exclude_accounts:
        ads = ads.filter(~pl.col("account_id").is_in(list(exclude_accounts)))
    active = ads["ad_id"].to_numpy()
    if not np.isin(ad_ids, active).all():
        what = "paused, unknown or of an excluded account" if exclude_accounts else "paused or unknown"
        found.append(f"ad {ad_ids[~np.isin(ad_ids, active)][0]} is {what}")
    most = least = min(num_ads, int((~np.isin(active, excluded)).sum()))
    if "audience" in ads.columns:
        everybody = ads.filter(pl.col("audience").is_null())["ad_id"].to_numpy()
        least = min(num_ads, int((~np.isin(everybody, excluded)).sum()))
    if max_per_account is None and not least <= len(ad_ids) <= most:
        found.append(f"expected {least if least == most else f'{least} to {most}'} ads, got {len(ad_ids)}")
    if len(np.unique(ad_ids)) != len(ad_ids):
        found.append("an ad comes twice")
    if np.isin(ad_ids, excluded).any():
        found.append(f"excluded ad {ad_ids[np.isin(ad_ids, excluded)][0]} came back")
    if not (ranked or falls(scores, values, rank_by=rank_by)) or not (scores <= 1e-4).all():
        order = rank_by or " or ".join(RANK_BY)
        found.append(f"scores are not log-probabilities, or ads not in falling order of {order}")
    low, high = float(catalogue.events["value"].min()), float(catalogue.events["value"].max())  # type: ignore[arg-type]
    if not ((values >= low - 1e-3) & (values <= high + 1e-3)).all():
        found.append(f"expected values between {low} and {high}, got {values.min()} .. {values.max()}")
    table = pl.DataFrame({"ad_id": ad_ids}).join(
        catalogue.sids, on="ad_id", how="left", maintain_order="left"
    )
    if not np.array_equal(table.drop("ad_id").fill_null(-1).to_numpy(), sids):
        found.append("an ad's SID is not the tokenizer's")
    if AD_KEYS in answer:
        keys = [key.decode() for key in answer[AD_KEYS][0][real]]
        if any(key and id_of(key) != ad for key, ad in zip(keys, ad_ids.tolist(), strict=True)):
            found.append("an ad's key is not its own")
    return found


def _code(categories: tuple[str, ...], value: str | None) -> int:
    return categories.index(value) + 1 if value in categories else 0
