"""One request to the running server, unfolded: history, ads, their texts, and the path of each SID."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tritonclient.utils import InferenceServerException

from console.unfold import Unfolder
from examples.client import AD_KEYS, Catalogue, problems, send
from serving.index.layout import IndexStoreError
from serving.model.bundle import BundleError
from serving.model.current import current_version
from serving.model.features import BEHAVIORS
from web.errors import HttpError

logger = logging.getLogger(__name__)

_SHOWN_HISTORY = 40  # newest events
_TIMEOUT_S = 10.0
_BEHAVIORS = {code: name for name, code in BEHAVIORS.items()}


class Asker:
    """Asks for users of a run's logs, one at a time."""

    def __init__(self, run: Path, *, url: str) -> None:
        """Read nothing yet.

        Args:
            run: folder of the run that is served.
            url: host:port of the server's gRPC.
        """
        self._run, self._url, self._lock = run, url, threading.Lock()
        self._catalogue: Catalogue | None = None
        self._version = 0  # that CURRENT named then: another may have other inputs
        self._unfolder = Unfolder(run)

    def ask(self, user: str, *, num_ads: int) -> dict[str, Any]:
        """What the server answers now, past its cache. Ids are texts: JavaScript's numbers end at 2^53.

        Args:
            user: number or key of a user; empty for the first one.
            num_ads: ads wanted.

        Raises:
            HttpError: 422 no such user, 429 somebody is asking already, 502 the server refused or is away,
                503 the run folder lacks something.
        """
        if not self._lock.acquire(blocking=False):
            raise HttpError(429, "busy", "one request is being asked already", headers={"Retry-After": "1"})
        try:
            return self._ask(user, num_ads=num_ads)
        except InferenceServerException as error:
            raise HttpError(502, "server", f"{self._url}: {error.message()}") from error
        except ValueError as error:
            raise HttpError(422, "invalid", str(error)) from error
        except (OSError, BundleError, pl.exceptions.PolarsError) as error:
            raise HttpError(503, "run", str(error)) from error
        finally:
            self._lock.release()

    def _ask(self, user: str, *, num_ads: int) -> dict[str, Any]:
        named = current_version(self._run / "bundles")
        if self._catalogue is None or self._version != named:
            self._catalogue, self._version = Catalogue.load(self._run), named
        catalogue = self._catalogue
        asked = catalogue.user(user) if user else int(catalogue.users["user_id"][0])
        tensors = catalogue.request(asked, num_ads=num_ads)
        began = time.perf_counter()
        answer = send(
            self._url,
            tensors,
            timeout_s=_TIMEOUT_S,
            parameters={"cache": "bypass"},
            outputs=catalogue.outputs,
        )
        seconds = time.perf_counter() - began
        text = _texts(catalogue, np.concatenate([tensors["history_ad_ids"][0], answer["ad_ids"][0]]))
        version = int(answer["model_version"][0, 0])
        levels, why = self._levels(tensors, answer, version=version)
        return {
            "user": str(asked),
            "events": tensors["history_ad_ids"].shape[1],
            "ignored": int(answer["ignored_history"][0, 0]),
            "history": _history(tensors, text),
            "ads": _ads(answer, text, levels=levels, history=tensors["history_ad_ids"][0]),
            "levels_missing": why,
            "model_version": version,
            "index_version": int(answer["index_version"][0, 0]),
            "beam_widths": answer["beam_widths"][0].tolist(),
            "degraded": bool(answer["degraded"][0, 0]),
            "ms": 1e3 * seconds,
            "problems": problems(answer, catalogue=catalogue, num_ads=num_ads, exclude=[]),
        }

    def _levels(
        self, tensors: dict[str, np.ndarray], answer: dict[str, np.ndarray], *, version: int
    ) -> tuple[np.ndarray | None, str | None]:
        """Log p of the levels [n, T], or why they are not known."""
        sids = answer["sids"][0]
        try:
            return self._unfolder.scores(tensors, sids[sids[:, 0] >= 0], version=version), None
        except (BundleError, IndexStoreError, OSError) as error:
            logger.warning("no levels: %s", error)
            return None, str(error)


def _texts(catalogue: Catalogue, ads: np.ndarray) -> dict[int, str]:
    rows = catalogue.ads.filter(pl.col("ad_id").is_in(np.unique(ads).tolist())).select("ad_id", "text")
    return {ad: text for ad, text in rows.iter_rows() if text}


def _history(tensors: dict[str, np.ndarray], text: dict[int, str]) -> list[dict[str, Any]]:
    """The newest events, newest first."""
    events = zip(
        tensors["history_ad_ids"][0].tolist(),
        tensors["history_behaviors"][0].tolist(),
        tensors["history_timestamps"][0].tolist(),
        strict=True,
    )
    return [
        {"ad": str(ad), "behavior": _BEHAVIORS[behavior], "time": at, "text": text.get(ad, "")}
        for ad, behavior, at in list(events)[: -_SHOWN_HISTORY - 1 : -1]
    ]


def _ads(
    answer: dict[str, np.ndarray], text: dict[int, str], *, levels: np.ndarray | None, history: np.ndarray
) -> list[dict[str, Any]]:
    """Rows of the answer, best first."""
    ads = answer["ad_ids"][0]
    keys = answer.get(AD_KEYS, np.full(answer["ad_ids"].shape, b"", object))[0]
    return [
        {
            "ad": keys[i].decode() or str(ad),
            "sid": answer["sids"][0][i].tolist(),
            "log_p": float(answer["scores"][0][i]),
            "log_p_levels": None if levels is None else levels[i].tolist(),
            "ecpm": float(answer["expected_value"][0][i]),
            "seen": int((history == ad).sum()),
            "text": text.get(ad, ""),
        }
        for i, ad in enumerate(ads[ads >= 0].tolist())
    ]
