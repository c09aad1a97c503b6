"""A loop on a tiny run, as `make loop` plays it: weights learn what was served, and Ctrl-C ends all of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from benchmarks.closed_loop.settings import CANDIDATES
from console.learning import read_earned, read_learnt
from feedback.store.samples import Samples
from serving.files import read_object
from tests.once import made_once
from tests.online_run import OnlineRun
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    *("serving.widths=4-8-16:6",),
    *(
        "online.batch_size=8",
        "online.checkpoint_seconds=1",
        "online.wait_seconds=0.2",
        "online.warmup_steps=2",
    ),
    *("online.probe_requests=12", "online.max_loss_rise=5", "publish.gate_requests=8"),
    *("publish.max_recall50_loss=1", "publish.max_value_change=100"),
)

NEW_AD = 90  # requests after which there has been a new ad: 30 of them come in the 2,400 of five minutes


def test_a_loop_learns_publishes_reports_and_stops(tmp_path_factory, tmp_path):
    made = made_once(tmp_path_factory, "closed_loop_run", lambda folder: OnlineRun(folder) and None)
    run, out = made / "run", tmp_path / "loop"
    words = ["--config", made / "preset.yaml", "--run", run, "--out", out, "--minutes", "5", "--users", "12"]
    words += ["--qps", "8", *(word for setting in SETTINGS for word in ("--set", setting))]
    command = [sys.executable, "-m", "benchmarks.closed_loop", *map(str, words)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def said() -> str:
        return (tmp_path / "log").read_text()

    def answers_by_later_versions() -> bool:
        assert process.poll() is None, said()
        line = out / "run" / "loop.jsonl"
        found = [json.loads(x) for x in line.read_text().splitlines()[:-1]] if line.is_file() else []
        return any(x["version"] >= 3 and x["requests"] > NEW_AD for x in found)

    try:
        wait_until(answers_by_later_versions, timeout_s=480, every_s=0.5, what="three versions")
        earned, learnt = read_earned(out / "run"), read_learnt(out / "run")
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) > 8  # two servers with their models and gateways, and four processes more
        process.send_signal(signal.SIGINT)
        assert process.wait(180) == 130, said()
    finally:
        process.terminate()  # not killed: it stops what it has started
        process.wait(180)
    assert not [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    report = read_object(out / "loop.json")
    (of,) = report["by_seed"]
    assert (of["failed_requests"], of["feedback_rejected"], of["publishes_refused"]) == (0, 0, 0), of
    assert of["ended"] == {}
    assert of["requests"] >= earned.requests > 20
    assert of["steps"] >= learnt.step > 0
    assert of["versions"] >= 3
    assert of["feedback_measured"] > 0
    assert 0 < of["feedback_to_weights_p50_s"] < 60
    assert of["new_ads"] > 0
    assert report["revenue_ratio"] is not None
    assert {row["ratio"] for row in of["series"][:1]} == {1.0}  # the first version is the frozen one
    assert (out / "loop.png").stat().st_size > 10_000
    with Samples(out / "run" / "feedback") as samples:
        records = [sample.record for sample in samples.read(after=0, limit=1_000)]
    assert {record.model_version for record in records} >= {1, 2}
    assert all(record.num_ads == CANDIDATES for record in records)
