"""A new ad, from an event to the servers, and where a model that never saw it puts it.

python -m examples.new_ad --run build/demo --user 17      (make serve and make indexer must be running)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tritonclient.utils import InferenceServerException

from examples.client import Catalogue, ids, send
from serving.index.reader import MAX_WAIT_S
from serving.model.bundle import BundleError

NUM_ADS = 200  # length of the answer in which the ad is looked for
_WAIT_S = 10.0


@dataclass(frozen=True)
class Shown:
    """How a new ad fared.

    Attributes:
        ad_id: of the new ad.
        like: ad of the user's answer whose text it shares.
        rank: place in the answer, from 1; None where it is not in it.
        among: ads that the answer had at most.
        seconds: from the acknowledgement of the event until the servers know the ad.
    """

    ad_id: int
    like: int
    rank: int | None
    among: int
    seconds: float


def create_like_the_best(
    indexer_url: str, server_url: str, catalogue: Catalogue, *, user: int, among: int = NUM_ADS
) -> Shown:
    """Create an ad of another account with the text of the user's best ad; delete it in the end.

    It is servable once a history may hold it. Bypasses the result cache: cached answers are a minute old.

    Args:
        indexer_url: of the sidecar.
        server_url: gRPC.
        catalogue: tables of the run that is served.
        user: whose answer it is.
        among: length of the answer in which the ad is looked for; a server gives at most
            `serving.max_num_ads`.

    Raises:
        RuntimeError: the event was refused, or the ad is not known within ten seconds.
    """
    tensors = catalogue.request(user, num_ads=among)
    before = send(server_url, tensors, parameters={"cache": "bypass"})["ad_ids"][0]
    known = [ad for ad in before.tolist() if ad in catalogue.ads["ad_id"]]  # others came by an event
    if not known:
        raise RuntimeError(f"none of the ads of user {user}'s answer is in the tables of this run")
    row = catalogue.ads.filter(pl.col("ad_id") == known[0]).row(0, named=True)
    name = _new_name(catalogue)
    (new,) = ids([name])
    event = {
        "kind": "create",
        "ad_id": name,
        "version": 1,
        "account_id": "new advertiser",
        "conversion_type": str(row["conversion_type"]),
        "text": str(row["text"]),
        **given_fields(row),
    }
    post(indexer_url, event)
    accepted = time.perf_counter()
    seen = tensors | {
        "history_ad_ids": np.array([[new]], np.int64),
        "history_behaviors": np.array([[1]], np.int32),
        "history_timestamps": tensors["timestamp"] - 1,
    }
    try:
        while send(server_url, seen, parameters={"cache": "bypass"})["ignored_history"][0, 0]:
            if time.perf_counter() - accepted > _WAIT_S:
                raise RuntimeError(f"the servers do not know ad {new} after {_WAIT_S:.0f} s")
        seconds = time.perf_counter() - accepted
        time.sleep(MAX_WAIT_S)  # by then the search knows it too
        answer = send(server_url, tensors, parameters={"cache": "bypass"})["ad_ids"][0]
        rank = int(np.flatnonzero(answer == new)[0]) + 1 if new in answer else None
        return Shown(new, known[0], rank, among=among, seconds=seconds)
    finally:
        post(indexer_url, {"kind": "delete", "ad_id": new, "version": 2})


def given_fields(row: dict[str, Any]) -> dict[str, Any]:
    """What an ad of the tables comes with besides its text, as fields of an event."""
    families: dict[str, dict[int, Any]] = {"embedding": {}, "sid": {}}
    numbers = {}
    for name, value in row.items():
        family, _, number = name.rpartition("_")
        if family in families and number.isdecimal():
            families[family][int(number)] = value
        elif isinstance(value, int | float) and name not in ("ad_id", "created_at"):
            numbers[name] = float(value)
    found = {name: [values[i] for i in sorted(values)] for name, values in families.items() if values}
    if row.get("embedding") is not None:
        found["embedding"] = list(row["embedding"])
    return found | ({"numbers": numbers} if numbers else {})


def _new_name(catalogue: Catalogue) -> int | str:
    milliseconds = time.time_ns() // 1_000_000
    if "ads" in catalogue.keys:
        return f"new ad {milliseconds}"
    return int(catalogue.ads["ad_id"].to_numpy().max()) + 1 + milliseconds % 10**9


def describe(shown: Shown, *, user: int) -> str:
    """One line."""
    place = f"not among the first {shown.among}" if shown.rank is None else f"number {shown.rank}"
    return (
        f"ad {shown.ad_id}, created with the text of ad {shown.like}: servable {shown.seconds * 1e3:.0f} ms "
        f"after its event was acknowledged; {place} of user {user}, for a model that never saw it"
    )


def post(indexer_url: str, event: dict[str, object], *, token: str | None = None) -> None:
    """Send one event to the sidecar, with its token where it wants one.

    Raises:
        RuntimeError: it was refused, with the sidecar's reason.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(f"{indexer_url}/events", json.dumps(event).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            outcome = json.load(answer)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"event refused: {error.code} {error.read().decode()[:300]}") from error
    except OSError as error:
        raise RuntimeError(f"no indexer at {indexer_url}: {error}; run `make indexer`") from error
    if outcome["result"] != "applied":
        raise RuntimeError(f"event refused: expected the result applied, got {outcome}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("build/demo"))
    parser.add_argument("--url", default="127.0.0.1:8001", help="gRPC of the server [127.0.0.1:8001]")
    parser.add_argument("--indexer", default="http://127.0.0.1:8010", help="the sidecar")
    parser.add_argument("--user", type=int, help="user of the logs [the first one]")
    parser.add_argument(
        "--among", type=int, default=NUM_ADS, help=f"ads of the answer it is looked for in [{NUM_ADS}]"
    )
    arguments = parser.parse_args()
    try:
        catalogue = Catalogue.load(arguments.run)
        user = arguments.user if arguments.user is not None else int(catalogue.users["user_id"][0])
        shown = create_like_the_best(
            arguments.indexer, arguments.url, catalogue, user=user, among=arguments.among
        )
    except (RuntimeError, ValueError, OSError, BundleError, InferenceServerException) as error:
        sys.exit(f"error: {error}")
    print(f"{describe(shown, user=user)}; deleted again")


if __name__ == "__main__":
    main()
