"""Ask a running server for a user's ads, print them, and check the answer (exit status 1 when it is wrong).

python -m examples.request --run build/demo --user 17
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
from tritonclient.utils import InferenceServerException

from examples.client import AD_KEYS, Catalogue, ids, problems, send
from feedback.store.histories import Histories
from feedback.store.layout import FeedbackStoreError
from serving.model.bundle import BundleError
from serving.model.manifest import RankerKind
from serving.search.rank import RANK_BY


def format_answer(answer: dict[str, np.ndarray], *, catalogue: Catalogue, history: np.ndarray) -> str:
    """Table of one answer, ads by their keys where it has them; `seen` counts them in the history."""
    lines = [f"{'#':>3}  {'ad':>9}  {'SID':<14}  {'log p':>7}  {'eCPM':>6}  {'seen':>4}  text"]
    keys = answer.get(AD_KEYS, np.full(answer["ad_ids"].shape, b"", object))[0]
    names = [key.decode() or ad for key, ad in zip(keys, answer["ad_ids"][0].tolist(), strict=True)]
    text = dict(catalogue.ads.select("ad_id", "text").iter_rows())
    for rank, ad in enumerate(answer["ad_ids"][0].tolist(), 1):
        if ad < 0:
            break
        sid = "-".join(map(str, answer["sids"][0][rank - 1].tolist()))
        lines.append(
            f"{rank:>3}  {names[rank - 1]:>9}  {sid:<14}  {answer['scores'][0][rank - 1]:7.3f}  "
            f"{answer['expected_value'][0][rank - 1]:6.2f}  {int((history == ad).sum()):>4}  "
            f"{text.get(ad, '')[:64]}"
        )
    return "\n".join(lines)


@contextlib.contextmanager
def _histories(run: Path) -> Iterator[Histories | None]:
    """Those of the run's feedback store; None where nobody has taken feedback yet."""
    try:
        store = Histories(run / "feedback")
    except FeedbackStoreError:
        yield None
        return
    with store:
        yield store


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, default=Path("build/demo"), help="run folder the server serves [build/demo]"
    )
    parser.add_argument(
        "--url", default="127.0.0.1:8001", help="host:port; 8001 is gRPC, 8000 HTTP [127.0.0.1:8001]"
    )
    parser.add_argument("--protocol", choices=("grpc", "http"), default="grpc")
    parser.add_argument("--user", help="user of the logs, a key where their ids are texts [the first one]")
    parser.add_argument("--num-ads", type=int, default=10)
    parser.add_argument("--exclude", nargs="*", default=[], metavar="AD", help="ads, keys as with --user")
    parser.add_argument(
        "--attributes", nargs="*", default=[], metavar="TEXT", help="in the order of serving.attributes"
    )
    parser.add_argument("--exclude-accounts", nargs="*", default=[], metavar="ACCOUNT")
    parser.add_argument("--max-per-account", type=int, help="most ads of one account [any number]")
    parser.add_argument("--widths", help='beams a level, e.g. "32-64-128:32" (within the server\'s limits)')
    parser.add_argument("--rank-by", choices=RANK_BY, help="p of an ad, or p x eCPM [serving.rank_by]")
    kinds = ("off", *get_args(RankerKind))
    parser.add_argument("--rerank", choices=kinds, help="order by the ranker [serving.rerank]")
    parser.add_argument("--width-cap", type=int, help="no level keeps more beams than this")
    arguments = parser.parse_args()
    try:
        catalogue = Catalogue.load(arguments.run)
        first = int(catalogue.users["user_id"][0])
        user = first if arguments.user is None else catalogue.user(arguments.user)
        exclude = [catalogue.ad(word) for word in arguments.exclude]
        with _histories(arguments.run) as histories:
            tensors = catalogue.request(
                user,
                num_ads=arguments.num_ads,
                exclude=exclude,
                histories=histories,
                attributes=arguments.attributes,
                exclude_accounts=arguments.exclude_accounts,
            )
            since = 0 if histories is None else len(histories.of(ids([user])[0]))
        request_id = uuid.uuid4().hex
        began = time.perf_counter()
        answer = send(
            arguments.url,
            tensors,
            protocol=arguments.protocol,
            parameters={
                k: v
                for k in ("widths", "width_cap", "rank_by", "rerank", "max_per_account")
                if (v := getattr(arguments, k)) is not None
            }
            | {"user_id": user},
            outputs=catalogue.outputs,
            request_id=request_id,
        )
        elapsed = time.perf_counter() - began
    except InferenceServerException as error:
        raise SystemExit(f"error: {arguments.url}: {error.message()}") from error
    except (OSError, ValueError, BundleError, FeedbackStoreError, pl.exceptions.PolarsError) as error:
        raise SystemExit(f"error: {error}") from error
    print(
        f"user {user}: {tensors['history_ad_ids'].shape[1]} events of history, "
        + (f"{since} of them from feedback, " if since else "")
        + f"{int(answer['ignored_history'][0, 0])} ignored; request {request_id} at "
        f"{int(tensors['timestamp'][0, 0])}"
    )
    print(format_answer(answer, catalogue=catalogue, history=tensors["history_ad_ids"][0]))
    print(
        f"model {answer['model_version'][0, 0]}, index {answer['index_version'][0, 0]}, widths "
        f"{'-'.join(map(str, answer['beam_widths'][0]))} (last: values), "
        f"degraded {bool(answer['degraded'][0, 0])}, "
        f"{elapsed * 1e3:.0f} ms over {arguments.protocol}"
    )
    wrong = problems(
        answer,
        catalogue=catalogue,
        num_ads=arguments.num_ads,
        exclude=exclude,
        rank_by=arguments.rank_by,
        rerank=arguments.rerank,
        exclude_accounts=arguments.exclude_accounts,
        max_per_account=arguments.max_per_account,
    )
    if wrong:
        print("wrong answer: " + "; ".join(wrong), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
