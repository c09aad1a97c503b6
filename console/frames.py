"""Figures of the page, made from looks at the sources: one frame a look, the same for every viewer."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from console.learning import Earned, Learnt
from console.reading import BUNDLES, INDEXER, LOOP, SERVER, TRAINER, Reading
from console.scrape import Scrape, increase, increase_by, quantile

WINDOW_S = 5.0  # of rates and quantiles
_TOLERATED_S = 2.0  # a look or two that a busy machine did not answer in time make no source stale
_SILENT_S = {TRAINER: 60.0, LOOP: 10.0}  # after its last record a source is gone
_MODEL, _SCHEDULER = "gr4ad", "beam_scheduler"
_BEAMS = "gr4ad_level_beams"
_HAS = {SERVER: "nv_inference_request_success", INDEXER: "gr4ad_indexer_sequence"}
"""A page of that source has this; the gateway shows its own figures alone while Triton is away."""

Figures = dict[str, Any]


class Frames:
    """Makes frames of looks.

    A frame is plain JSON: `t`; `sources`, of each `ok`, `age_s` since it last was, `problem`; `figures` of
    the sources that are there, None where nothing tells; `versions` of the model. Times are milliseconds
    where the name ends with `_ms`, seconds with `_s`, rates are events a second over `WINDOW_S`.
    """

    def __init__(self) -> None:
        """Nothing was seen."""
        self._windows: dict[str, deque[Scrape]] = {SERVER: deque(), INDEXER: deque()}
        self._last_ok: dict[str, float] = {}

    def add(self, reading: Reading) -> dict[str, Any]:
        """The frame of one look."""
        figures: Figures = {}
        problems = dict(reading.problems)
        for source, of in ((SERVER, _server), (INDEXER, _indexer)):
            page = reading.pages.get(source)
            if page is None:
                continue
            try:
                scrape = Scrape.parse(page, at=reading.at)
                if _HAS[source] not in scrape.samples:
                    problems[source] = f"its metrics lack {_HAS[source]}: what is behind it does not answer"
                    continue
                figures |= of(self._before(source, scrape), scrape)
                self._last_ok[source] = reading.at
            except ValueError as error:
                problems[source] = f"expected metrics in text form, got {error}"
        expected = {*reading.pages, *problems}
        if reading.versions is not None:
            self._last_ok[BUNDLES] = reading.at
            expected.add(BUNDLES)
        if reading.learnt is not None:
            problems |= self._record(TRAINER, reading.learnt.time, at=reading.at)
            figures |= _learnt(reading.learnt)
        if reading.earned is not None:
            problems |= self._record(LOOP, reading.earned.at, at=reading.at)
            figures |= _earned(reading.earned)
        expected |= {*problems} | {name for name in (TRAINER, LOOP) if name in self._last_ok}
        return {
            "t": reading.at,
            "sources": {name: self._state(name, reading.at, problems.get(name)) for name in sorted(expected)},
            "figures": _finite(figures),
            "versions": None if reading.versions is None else reading.versions.model_dump(),
        }

    def _record(self, source: str, written: float, *, at: float) -> dict[str, str]:
        """Take a record's time down; the problem where the last one is too old."""
        self._last_ok[source] = written
        silent = at - written
        return {source: f"its last record is {silent:.0f} s old"} if silent > _SILENT_S[source] else {}

    def _before(self, source: str, scrape: Scrape) -> Scrape:
        """The look that rates are counted from: the new one itself at first, and behind a gap."""
        window = self._windows[source]
        window.append(scrape)
        while len(window) > 1 and (
            window[1].at <= scrape.at - WINDOW_S or window[0].at < scrape.at - 2 * WINDOW_S
        ):
            window.popleft()
        return window[0]

    def _state(self, source: str, at: float, problem: str | None) -> dict[str, Any]:
        last = self._last_ok.get(source)
        age = None if last is None else round(max(at - last, 0.0), 1)
        ok = problem is None or (age is not None and age <= _TOLERATED_S)
        return {"ok": ok, "age_s": age, "problem": None if ok else problem}


def _server(old: Scrape, new: Scrape) -> Figures:
    """Of gateway and Triton."""
    ended = new.by("gr4ad_requests_total", "outcome")
    grown = increase_by(old, new, "gr4ad_requests_total", "outcome")
    within = increase_by(old, new, "gr4ad_answered_within_total", "le")
    over_http = increase_by(old, new, "gr4ad_gateway_request_seconds_bucket", "le")
    batch = increase_by(old, new, "gr4ad_batch_seconds_bucket", "le")
    searched = increase(old, new, "gr4ad_searches_total")
    lookups = increase_by(old, new, "gr4ad_cache_lookups_total", "result")
    spent = increase(old, new, "nv_inference_request_duration_us", model=_MODEL)
    waited = increase(old, new, "nv_inference_queue_duration_us", model=_SCHEDULER)
    asked, taken = (increase(old, new, _HAS[SERVER], model=model) for model in (_MODEL, _SCHEDULER))
    processes = len(new.values("gr4ad_beam_rows")) or 1
    rejects = increase_by(old, new, "gr4ad_rejected_total", "reason")
    return {
        **{f"{outcome}_total": ended.get(outcome) for outcome in ("answered", "refused", "rejected")},
        **{f"{outcome}_total": ended.get(outcome) for outcome in ("cancelled", "failed")},
        "offered_qps": _rate(sum(grown.values()) if grown else None, old, new),
        "answered_qps": _rate(grown.get("answered"), old, new),
        "p50_ms": _ms(quantile(0.5, within)),
        "p99_ms": _ms(quantile(0.99, within)),
        "http_p50_ms": _ms(quantile(0.5, over_http)),
        "http_p99_ms": _ms(quantile(0.99, over_http)),
        "batch_p50_ms": _ms(quantile(0.5, batch)),
        "mean_ms": _ratio(spent, asked, per=1e3),
        "wait_ms": _ratio(waited, taken, per=1e3),
        "slo_ms": _ms(new.highest("gr4ad_slo_seconds")),
        "queue": new.total("nv_inference_pending_request_count", model=_SCHEDULER),
        "max_queue": new.highest("gr4ad_max_queue"),
        "rows": _ratio(new.total("gr4ad_beam_rows"), processes),
        "rows_base": new.highest("gr4ad_beam_rows_base"),
        "rung": _ratio(new.total("gr4ad_rungs_above_base"), processes),
        "beams": {level: beams / processes for level, beams in sorted(new.by(_BEAMS, "level").items())},
        "degraded_share": _ratio(increase(old, new, "gr4ad_degraded_total"), searched),
        "cache_hit_share": _ratio(lookups.get("hit"), sum(lookups.values())),
        "rejects": {reason: _rate(count, old, new) for reason, count in rejects.items()},
        "index_version": new.highest("gr4ad_index_version"),
        "index_lag_s": new.highest("gr4ad_index_lag_seconds"),
        # 0 until the process has had a batch.
        "models": {name: v for name, v in new.by("gr4ad_model_version", "process").items() if v},
        "versions_refused": sorted(
            reason for reason, on in new.by("gr4ad_version_refused", "reason").items() if on
        ),
        "ready": new.total("gr4ad_gateway_ready"),
    }


def _indexer(old: Scrape, new: Scrape) -> Figures:
    """Of the sidecar."""
    events = increase_by(old, new, "gr4ad_indexer_events_total", "result")
    return {
        "sequence": new.total("gr4ad_indexer_sequence"),
        "ads_active": new.highest("gr4ad_indexer_ads", status="active"),
        "events_qps": _rate(sum(events.values()) if events else None, old, new),
        "events_waiting": new.total("gr4ad_indexer_queue_depth"),
        "dead_letters": new.total("gr4ad_indexer_dead_letters"),
    }


def _learnt(record: Learnt) -> Figures:
    """Of the trainer."""
    return {
        "online_step": record.step,
        "online_offset": record.offset,
        "online_lag_s": record.lag_seconds,
        "online_loss": record.train_total,
        "probe_loss": record.probe_loss,
    }


def _earned(line: Earned) -> Figures:
    """Of the loop."""
    return {
        "revenue_online": line.revenue_online,
        "revenue_frozen": line.revenue_frozen,
        "revenue_ratio": _ratio(line.revenue_online, line.revenue_frozen),
        "loop_day": line.day,
        "loop_requests": line.requests,
        "loop_failed": line.failed,
    }


def _finite(value: Any) -> Any:
    """None for what JSON has no number for; the lag of an index without any sign of life is infinite."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rate(count: float | None, old: Scrape, new: Scrape) -> float | None:
    return None if count is None or new.at <= old.at else count / (new.at - old.at)


def _ratio(count: float | None, of: float | None, *, per: float = 1.0) -> float | None:
    return None if count is None or not of else count / of / per


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
