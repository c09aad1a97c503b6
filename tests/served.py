"""Served records for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving.served_log.record import ServedRecord
from serving.served_log.segments import read_lines, segments


def served(request_id: str | None = "r1", **changes: Any) -> ServedRecord:
    """A record of two ads, 30 and 40, in answer to user 7 at time 1000."""
    values: dict[str, Any] = {
        "request_id": request_id,
        "user_id": 7,
        "timestamp": 1_000,
        "written": 50_000.25,
        "model_version": 3,
        "index_version": 12,
        "slot_ads": [11, -1],
        "slots": [[2, 1, 1], [0, 0, 0]],
        "profile": [1, 0],
        "ad_ids": [30, 40],
        "sids": [[1, 2, 3], [1, 2, 4]],
        "scores": [-1.5, -2.25],
        "expected_value": [0.5, 2.0],
        "num_ads": 2,
        "beam_widths": [4, 8, 16, 6],
        "degraded": False,
        "rank_by": "value",
        "reranked": False,
    }
    return ServedRecord(**values | changes)


def written_records(folder: Path) -> list[ServedRecord]:
    """All whole records of a log, in the order of its files."""
    lines: list[bytes] = []
    for row in segments(folder).values():
        for segment in row:
            lines += read_lines(folder, segment, start=0, limit=1 << 26)[0]
    return [ServedRecord.decode(line) for line in lines]
