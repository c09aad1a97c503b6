"""Figures of a test against figures counted by hand, thresholds, samples of the server, the files."""

import json
import math
import os
import re

import matplotlib.image
import polars as pl
import pytest

from loadtest import report, summary
from loadtest.outcomes import OUTCOMES, WAITED
from loadtest.picture import step_for
from loadtest.recorder import COLUMNS, Recorder
from loadtest.sampler import columns, parse_metrics, process_sample
from loadtest.shapes import Shape
from loadtest.thresholds import LIMITS, judge

NAN = float("nan")


def _requests(tmp_path, rows):
    """Requests given as (intended_s, latency_ms, outcome), through the recorder and its file."""
    path = tmp_path / "worker-0.csv"
    recorder = Recorder(path, worker=0)
    for intended, latency, outcome in rows:
        facts = {
            "beam_rows": 512,
            "beam_widths": "64:8",
            "model_version": 1,
            "index_version": 2,
            "degraded": 0,
        }
        recorder.on_request(
            response_time=latency,
            response_length=100,
            record={"intended_s": intended, "late_ms": 0.5, "outcome": outcome, "repeat": 0, "error": ""}
            | (facts if outcome == "ok" else {"error": f'a "{outcome}", indeed'}),
        )
    recorder.close()
    return summary.read_requests([path])


def test_percentiles_are_latencies_that_were_seen(tmp_path):
    latencies = [7.0, 1.0, 5.0, 3.0, 9.0, 2.0, 8.0, 4.0, 6.0, 10.0]
    found = summary.summarise(
        _requests(tmp_path, [(i, v, "ok") for i, v in enumerate(latencies)]), [], seconds=10
    )
    assert found.latency_ms[0.5] == 5.0  # five of ten are not above it
    assert found.latency_ms[0.9] == 9.0
    assert found.latency_ms[0.95] == found.latency_ms[0.99] == found.latency_ms[1.0] == 10.0
    assert math.isnan(summary.percentile(pl.Series([], dtype=pl.Float64).to_numpy(), 0.5))


def test_who_waited_counts_in_percentiles_and_every_failure_is_a_failure(tmp_path):
    rows = [(i, 10.0, "ok") for i in range(10)]
    rows += [(10 + i, 1000.0 if name in WAITED else 0.1, name) for i, name in enumerate(OUTCOMES[1:])]
    found = summary.summarise(_requests(tmp_path, rows), [], seconds=20, cpu_s=2.0, workers=2)
    assert found.requests == 19
    assert found.outcomes == {"ok": 10} | dict.fromkeys(OUTCOMES[1:], 1)
    # 13 waited: deadline, unanswered and wrong answers for a second. The quick failures do not help.
    assert (found.figures["p50_ms"], found.figures["p95_ms"]) == (10.0, 1000.0)
    assert found.figures["failures_pct"] == pytest.approx(100 * 9 / 19)
    assert found.figures["rejected_pct"] == pytest.approx(100 / 19)
    assert found.figures["ok_qps"] == 0.5
    assert found.figures["client_cpu_ms"] == pytest.approx(2000 / 18)  # what was not sent cost nothing
    assert found.figures["client_cpu_pct"] == pytest.approx(5.0)
    assert sorted(found.errors)[0] == ("client_error", 'a "client_error", indeed', 1)


def test_the_timeline_puts_waiting_where_it_began(tmp_path):
    rows = [(0.1, 50, "ok"), (0.2, 2500, "ok"), (0.9, 300, "ok"), (1.5, 0, "rejected"), (1.6, 10, "ok")]
    samples = [{"second": 0.01, "pending": 0.0}, {"second": 1.02, "pending": 7.0, "gr4ad_beam_rows": 96.0}]
    table = summary.timeline(_requests(tmp_path, rows), samples, shape=Shape("steady", 2, 2))
    assert table["second"].to_list() == [0, 1, 2]
    assert table["offered_qps"].to_list() == [2, 2, 0]
    assert table["arrived_qps"].to_list() == [3, 2, 0]
    assert table["completed_qps"].to_list() == [1, 2, 1]  # the slow one came in the third second
    assert table["p99_ms"].to_list() == [2500, 10, None]
    assert table["p50_ms"].to_list() == [300, 10, None]
    assert table["rejected"].to_list() == [0, 1, 0]
    assert table["pending"].to_list() == [0, 7, None]
    assert table["gr4ad_beam_rows"].to_list() == [None, 96, None]
    assert table["beam_rows"].to_list() == [512, 512, None]


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    _requests(tmp_path, [(0.0, 1.0, "ok"), (1.0, 2.0, "ok")])
    path = tmp_path / "worker-0.csv"
    path.write_bytes(path.read_bytes()[:-9])
    assert summary.read_requests([path])["latency_ms"].to_list() == [1.0]


def _ramp(tmp_path, *, bend, recovers=False):
    """Ramp from 10 to 40 / s within 60 s; from `bend` on everything takes a second."""
    times = [i / 25 for i in range(1500)]
    slow = [bend <= t < 50 if recovers else t >= bend for t in times]
    return _requests(tmp_path, [(t, 1000.0 if s else 20.0, "ok") for t, s in zip(times, slow, strict=True)])


def test_the_knee_of_a_ramp(tmp_path):
    shape = Shape("ramp", 10, 60)  # 10 + t / 2
    for slo in (500.0, None):
        knee = summary.find_knee(_ramp(tmp_path, bend=30), shape, slo_ms=slo)
        assert knee["qps"] == pytest.approx(25, abs=1.0)
        assert "p95 1000 ms" in knee["reason"]
    knee = summary.find_knee(_ramp(tmp_path, bend=99), shape, slo_ms=None)
    assert knee["qps"] is None
    assert knee["tested_qps"] == pytest.approx(40, abs=0.1)
    assert summary.find_knee(_ramp(tmp_path, bend=10, recovers=True), shape, slo_ms=500)["qps"] is None
    assert summary.find_knee(_requests(tmp_path, [(0.0, 1.0, "ok")] * 50), shape, slo_ms=1) is None


def test_a_knee_of_failures(tmp_path):
    rows = [(i / 25, 20.0, "rejected" if i >= 750 and i % 10 == 0 else "ok") for i in range(1500)]
    knee = summary.find_knee(_requests(tmp_path, rows), Shape("ramp", 10, 60), slo_ms=500)
    assert knee["qps"] == pytest.approx(25, abs=1.0)
    assert "failed" in knee["reason"]


def test_thresholds():
    figures = {"p99_ms": 120.0, "failures_pct": 1.0, "ok_qps": 20.0, "memory_mb": NAN}
    limits = dict.fromkeys(LIMITS) | {"max_p99_ms": 100.0, "max_failures_pct": 1.0, "min_qps": 20.5}
    verdicts = judge(figures, limits)
    assert [v.met for v in verdicts] == [False, True, False]
    assert str(verdicts[0]) == "MISSED  p99_ms: expected <= 100, got 120"
    assert str(verdicts[1]) == "met     failures_pct: expected <= 1, got 1"
    assert not judge(figures, {"max_memory_mb": 1e9})[0].met  # what was not measured was not met
    assert judge(figures, dict.fromkeys(LIMITS)) == []


def test_metrics_page():
    page = """# HELP nv_inference_pending_request_count Instantaneous number of pending requests
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="gr4ad",version="1"} 99
nv_inference_pending_request_count{model="beam_scheduler",version="1"} 4
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="gr4ad",version="1"} 12
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="gr4ad",reason="OTHER",version="1"} 2
nv_inference_request_failure{model="gr4ad",reason="REJECTED",version="1"} 3
nv_inference_request_failure{model="lazyar_prefix",reason="REJECTED",version="1"} 50
gr4ad_beam_rows{model="beam_scheduler"} 256
gr4ad_rejected_total{reason="queue, \\"full\\""} 1
gr4ad_rejected_total{reason="deadline"} 2
gr4ad_wait_seconds_bucket{le="0.1"} 7
gr4ad_wait_seconds_sum 0.5
"""
    assert columns(parse_metrics(page)) == {
        "pending": 4,
        "success_total": 12,
        "failure_total": 5,
        "gr4ad_beam_rows": 256,
        "gr4ad_rejected_total": 3,
        "gr4ad_wait_seconds_sum": 0.5,
    }


def test_memory_of_a_process():
    found = process_sample(os.getpid())
    assert found["server_rss_mb"] > 20
    assert found["server_cpu_s"] > 0


@pytest.mark.parametrize(
    ("requests", "seconds", "step"), [(6000, 60, 1), (427, 40, 2), (20, 60, 10), (10**6, 7200, 20), (3, 2, 1)]
)
def test_a_point_of_the_picture_holds_enough_requests(requests, seconds, step):
    assert step_for(requests, seconds) == step


def test_all_files_are_written(tmp_path):
    rows = [(i / 10, 20.0 + i, "ok" if i % 7 else "rejected") for i in range(100)]
    requests = _requests(tmp_path, rows)
    shape = Shape("spike", 5, 10)
    samples = [{"second": float(i), "pending": i, "success_total": i} for i in range(10)]
    found = summary.summarise(requests, samples, seconds=10, cpu_s=NAN)
    verdicts = judge(found.figures, {"max_p99_ms": 50.0, "min_qps": 1.0})
    settings = {"server": "here"}
    test = report.Test("a <b>", "title", "command --x '<'", "grpc", settings, shape, 100.0, ["careful"])
    report.write(tmp_path, test, requests=requests, samples=samples, found=found, verdicts=verdicts)
    assert all((tmp_path / name).stat().st_size for name in report.FILES)
    back = pl.read_csv(tmp_path / "requests.csv")
    assert back.columns == list(COLUMNS)
    assert back.height == 100
    assert pl.read_csv(tmp_path / "timeline.csv")["rejected"].sum() == 15
    stats = pl.read_csv(tmp_path / "stats.csv").row(0, named=True)
    assert (stats["Request Count"], stats["Failure Count"], stats["100%"]) == (100, 15, 119.0)
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["figures"]["client_cpu_ms"] is None  # JSON knows no NaN
    assert [t["met"] for t in content["thresholds"]] == [False, True]
    page = (tmp_path / "report.html").read_text()
    assert "a &lt;b&gt;" in page
    assert "&#x27;&lt;&#x27;" in page
    assert "careful" in page
    assert page.count("MISSED") == 1
    assert not re.search(r"https?://", page)  # nothing is loaded from elsewhere
    assert re.findall(r'src="([^,]*),', page) == ["data:image/png;base64"]
    height, width, _ = matplotlib.image.imread(tmp_path / "report.png").shape
    assert min(height, width) > 1000
    text = "\n".join(report.lines(test, found, verdicts))
    assert "MISSED  p99_ms: expected <= 50, got 119" in text  # the 85th of 85
    assert "rejected x 15" in text
