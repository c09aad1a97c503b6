"""The served log as the ad resolver keeps it: what of a request and its answer goes into a record.

Letters: b rows of one client request, S history slots, H habits, T SID levels.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from serving.backend.model_settings import ModelSettings
from serving.backend.outcomes import TELL_EVERY_S
from serving.backend.request import Features
from serving.backend.resolve import NO_AD, Ads
from serving.model.features import EVENT_COLUMNS, FeatureSpec
from serving.search.rank import RankBy
from serving.served_log.record import MAX_REQUEST_ID, ServedRecord
from serving.served_log.redis_stream import RedisStreamWriter
from serving.served_log.segments import SegmentWriter
from serving.served_log.writer import ServedLogWriter, Sink, is_sampled

logger = logging.getLogger(__name__)

URL = "GR4AD_SERVED_LOG_URL"


def context_length(spec: FeatureSpec) -> int:
    """Numbers of a row of `pack_context`."""
    return 1 + spec.rows * (1 + EVENT_COLUMNS) + len(spec.column_sizes)


def pack_context(built: list[Features], now: np.ndarray) -> np.ndarray:
    """Time, slots and profile of each row as one tensor, int64: every tensor of a step costs its time.

    Args:
        built: features of b rows.
        now: unix seconds [b, 1].
    """
    rows = [np.concatenate([f.slot_ads, f.slots.ravel(), f.profile]) for f in built]
    return np.concatenate([now.astype(np.int64), np.stack(rows)], axis=1)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One row of a request, as the record has it.

    Attributes:
        request_id: None where the client gave none that fits.
        user_id: number or key; None where the client gave none.
        context: int64, a row of `pack_context`.
        plan: int32 [T + 2], beam widths, and whether they are less than the configured ones.
        context_rows: S + H.
        num_ads: asked for.
        rank_by: order of the ads.
        reranked: the ranking stage orders them once more.
    """

    request_id: str | None
    user_id: int | str | None
    context: np.ndarray
    plan: np.ndarray
    context_rows: int
    num_ads: int
    rank_by: RankBy
    reranked: bool

    def answered(self, ads: Ads, *, model_version: int, index_version: int, written: float) -> ServedRecord:
        """The record. Nothing is checked again: all of it comes from what has answered."""
        found = ads.ad_ids != NO_AD
        slot_ads, rest = np.split(self.context[1:], [self.context_rows])
        shape = (self.context_rows, EVENT_COLUMNS)
        return ServedRecord.model_construct(
            request_id=self.request_id,
            user_id=self.user_id,
            timestamp=int(self.context[0]),
            written=written,
            model_version=model_version,
            index_version=index_version,
            slot_ads=slot_ads.tolist(),
            slots=rest[: np.prod(shape)].reshape(shape).tolist(),
            profile=rest[np.prod(shape) :].tolist(),
            ad_ids=ads.ad_ids[found].tolist(),
            sids=ads.sids[found].tolist(),
            scores=ads.scores[found].tolist(),
            expected_value=ads.expected_value[found].tolist(),
            num_ads=self.num_ads,
            beam_widths=self.plan[:-1].tolist(),
            degraded=bool(self.plan[-1]),
            rank_by=self.rank_by,
            reranked=self.reranked,
        )


Tell = Callable[[Mapping[str, int]], None]
"""Is told of records since the last time, by what became of them."""


class ServedLog:
    """Of one resolver. Nothing here may fail or hold up a request."""

    def __init__(self, writer: ServedLogWriter, *, share: float, context_rows: int, tell: Tell) -> None:
        """Wire up; see `make_served_log`.

        Args:
            writer: takes records.
            share: of the requests.
            context_rows: S + H.
            tell: called between batches.
        """
        self._writer, self._share, self._rows, self._tell = writer, share, context_rows, tell
        self._told, self._told_at = Counter[str](), time.monotonic()

    def asked(
        self,
        request_id: str,
        user_id: int | str | None,
        *,
        rows: int,
        array: Callable[[str], np.ndarray | None],
        rank_by: RankBy,
        reranked: bool,
    ) -> list[Asked | None]:
        """What the records of a request's rows will say of it; None for one that leaves none.

        Args:
            request_id: empty where the client gave none.
            user_id: number or key.
            rows: b.
            array: an input tensor of the resolver, by its name.
            rank_by: order of the ads.
            reranked: the ranking stage orders them once more.
        """
        try:
            named = request_id if 0 < len(request_id) <= MAX_REQUEST_ID else None
            if not is_sampled(named, share=self._share):
                return [None] * rows
            # Copies: the tensors lie in memory that the server takes back.
            context, plan, num_ads = (
                np.array(array(name)) for name in ("served_context", "served_plan", "num_ads")
            )
            return [
                Asked(
                    request_id=named if named is None or rows == 1 else f"{named}#{i}",
                    user_id=user_id,
                    context=context[i],
                    plan=plan[i],
                    context_rows=self._rows,
                    num_ads=int(num_ads[i, 0]),
                    rank_by=rank_by,
                    reranked=reranked,
                )
                for i in range(rows)
            ]
        except Exception:
            self._failed(rows)
            return [None] * rows

    def answered(self, asked: Asked | None, ads: Ads, *, model_version: int, index_version: int) -> None:
        """Have a record written of one row."""
        if asked is None:
            return
        made = functools.partial(
            asked.answered,
            ads,
            model_version=model_version,
            index_version=index_version,
            written=time.time(),
        )
        self._writer.add(made)

    def tell(self) -> None:
        """Tell what became of records, at most once in `TELL_EVERY_S`; call between batches."""
        now = time.monotonic()
        if now - self._told_at >= TELL_EVERY_S:
            counts = Counter[str](self._writer.counts)
            self._tell(counts - self._told)
            self._told, self._told_at = counts, now

    def close(self) -> None:
        """Write what waits, for a moment."""
        self._writer.close()
        self._told_at = 0.0
        self.tell()

    def _failed(self, rows: int) -> None:
        if not self._writer.counts["failed"]:
            logger.exception("served log: a request left no record; further ones are counted only")
        self._writer.counts["failed"] += rows


def make_served_log(settings: ModelSettings, *, tell: Tell) -> ServedLog | None:
    """As configured; None for none.

    Raises:
        ValueError: a URL is none of Redis.
    """
    config = settings.serving.served_log
    sink: Sink
    if config.sink == "off":
        return None
    if config.sink == "redis":
        url = os.environ.get(URL) or config.url
        sink = RedisStreamWriter(url, stream=config.stream, max_length=config.max_length)
    else:
        sink = SegmentWriter(
            settings.served_log_folder, file_bytes=config.file_mb << 20, keep_files=config.keep_files
        )
    writer = ServedLogWriter(sink, queue=config.queue)
    return ServedLog(writer, share=config.share, context_rows=settings.features.rows, tell=tell)
