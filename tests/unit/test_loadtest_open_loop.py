"""The whole load test against a stand-in server; workers are processes of their own (gevent patches them)."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import polars as pl
import psutil
import pytest

from loadtest.arrivals import poisson_arrivals
from loadtest.report import FILES
from loadtest.run import main
from loadtest.shapes import Shape
from tests.fake_inference import Behaviour, right_answer, serve_grpc, serve_http, write_bundle

HOME = Path(__file__).parents[2]
SERVE = {"grpc": serve_grpc, "http": serve_http}
REJECT = grpc.StatusCode.UNAVAILABLE

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path):
    return write_bundle(tmp_path / "run")


def _options(url, run, *more):
    options = ["--url", url, "--run", str(run), "--synthetic-ads", "1000"]
    options += ["--metrics-url", "none", "--out", str(run / "out"), "--name", "t"]
    return options + [str(each) for each in more]


def _command(*options):
    return [sys.executable, "-m", "loadtest", *_options(*options)]


def _load(url, run, *more):
    """Exit status, requests and summary of a test."""
    status = main(_options(url, run, *more))
    assert status in (0, 1)
    folder = run / "out" / "t"
    requests = pl.read_csv(folder / "requests.csv")
    return status, requests, json.loads((folder / "summary.json").read_text())


def _planned(qps, seconds):
    return poisson_arrivals(Shape("steady", qps, seconds), seed=0)


@pytest.mark.alone
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_open_loop_shows_a_stall(run, protocol):
    behaviour = Behaviour(seconds=0.005, stall=(0.5, 1.4))
    with SERVE[protocol](behaviour) as url:
        status, requests, found = _load(
            url, run, "--protocol", protocol, "--qps", 40, "--duration", 2, "--max-p99-ms", 5000
        )
    assert status == 0
    assert found["outcomes"] == {"ok": requests.height}
    # The arrivals are those of the seed, and the stall slows none of them: they reach the server in it, too.
    planned = _planned(40, 2)
    np.testing.assert_allclose(requests["intended_s"], planned, atol=1e-3)
    began = behaviour.arrived[1]
    within = sum(began + 0.55 < t < began + 1.35 for t in behaviour.arrived)
    assert within == pytest.approx(
        ((planned - planned[0] > 0.55) & (planned - planned[0] < 1.35)).sum(), abs=4
    )
    assert requests["late_ms"].median() < 20
    # Counted from the intended start: what is left of the stall after it.
    since = requests["intended_s"] - requests["intended_s"][0]
    stalled = requests.filter((since > 0.52) & (since < 1.3))
    expected = (1.4 - (stalled["intended_s"] - requests["intended_s"][0])) * 1e3
    assert stalled.height > 20
    assert (stalled["latency_ms"] - expected).abs().median() < 150
    assert (requests["latency_ms"] > 500).mean() > 0.1
    assert requests["beam_rows"].unique().to_list() == [256]
    assert requests["index_version"].unique().to_list() == [17]
    assert (requests["response_bytes"] > 100).all()


@pytest.mark.alone
def test_a_closed_loop_hides_the_same_stall(run):
    behaviour = Behaviour(seconds=0.005, stall=(0.5, 1.4))
    with serve_grpc(behaviour) as url:
        _, requests, found = _load(url, run, "--closed", "--users", 3, "--duration", 2)
    assert found["outcomes"] == {"ok": requests.height}
    assert (requests["latency_ms"] > 500).sum() == 3  # one request of each user
    assert requests["latency_ms"].quantile(0.95) < 250
    began = behaviour.arrived[1]
    assert sum(began + 0.6 < t < began + 1.35 for t in behaviour.arrived) == 0  # and nobody came meanwhile


@pytest.mark.alone
def test_a_stall_of_the_client_counts_too(run):
    behaviour = Behaviour(seconds=0.005)
    with serve_grpc(behaviour) as url:
        process = subprocess.Popen(_command(url, run, "--qps", 40, "--duration", 2.5), cwd=HOME)
        while len(behaviour.arrived) < 20:
            assert process.poll() is None
            time.sleep(0.02)
        (worker,) = psutil.Process(process.pid).children()
        worker.suspend()
        time.sleep(0.8)
        worker.resume()
        assert process.wait(30) == 0
    requests = pl.read_csv(run / "out" / "t" / "requests.csv")
    late = requests.filter(pl.col("late_ms") > 300)
    assert late.height > 5
    assert (late["latency_ms"] > late["late_ms"]).all()
    assert requests.height == len(_planned(40, 2.5))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_rejections_are_failures(run, protocol, capsys):
    behaviour = Behaviour(fail=lambda number: REJECT if number and number % 4 == 0 else None)
    with SERVE[protocol](behaviour) as url:
        status, requests, found = _load(
            url, run, "--protocol", protocol, "--qps", 60, "--duration", 1.5, "--max-failures-pct", 1
        )
    rejected = sum(n % 4 == 0 for n in range(1, len(behaviour.arrived)))
    assert status == 1
    assert found["outcomes"] == {"ok": requests.height - rejected, "rejected": rejected}
    assert requests.height == len(behaviour.arrived) - 1 == len(_planned(60, 1.5))  # without the warm-up
    assert requests.filter(pl.col("outcome") == "rejected")["error"].str.contains("Exceeds maximum").all()
    assert "MISSED  failures_pct: expected <= 1, got" in capsys.readouterr().out


@pytest.mark.alone
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_prompt_answers_do_not_wait_for_slow_ones(run, protocol):
    """With 30 slow requests outstanding, more than gevent has threads, a rejection counts what it took."""

    def rejected(number):
        return number > 0 and number % 4 == 0

    behaviour = Behaviour(
        seconds=lambda number: 0.0 if not number or rejected(number) else 0.7,
        fail=lambda number: REJECT if rejected(number) else None,
    )
    with SERVE[protocol](behaviour) as url:
        _, requests, _ = _load(url, run, "--protocol", protocol, "--qps", 70, "--duration", 1.5)
    latency = {name: requests.filter(pl.col("outcome") == name)["latency_ms"] for name in ("ok", "rejected")}
    assert len(latency["rejected"]) > 20
    assert latency["rejected"].median() < 300
    assert 700 <= latency["ok"].min() <= latency["ok"].median() < 1500


@pytest.mark.alone
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_deadlines_are_failures(run, protocol):
    behaviour = Behaviour(seconds=0.001, stall=(0.3, 1.1))
    with SERVE[protocol](behaviour) as url:
        _, requests, found = _load(
            url, run, "--protocol", protocol, "--qps", 40, "--duration", 0.9, "--deadline-ms", 150
        )
    late = requests.filter(pl.col("outcome") == "deadline")
    assert set(found["outcomes"]) == {"ok", "deadline"}
    assert late.height > 10
    assert late["latency_ms"].min() >= 145
    assert late["latency_ms"].median() < 400
    assert found["figures"]["p99_ms"] >= 145  # who gave up has waited


def test_wrong_answers_are_failures(run):
    def answer(num_ads):
        found = right_answer(num_ads)
        if len(behaviour.requests) % 3 == 0:
            found["ad_ids"][0, -1] = -1
        return found

    behaviour = Behaviour(answer=answer)
    with serve_grpc(behaviour) as url:
        options = ("--num-ads", 5, "--widths", "8-8-8:4", "--width-cap", 7, "--parameter", "level=2")
        _, requests, found = _load(url, run, "--qps", 40, "--duration", 1, *options)
    assert found["outcomes"]["wrong_answer"] == pytest.approx(requests.height / 3, abs=2)
    wrong = requests.filter(pl.col("outcome") == "wrong_answer")
    assert set(wrong["error"]) == {"expected 5 ads, got 4"}
    assert behaviour.parameters[5] == {"widths": "8-8-8:4", "width_cap": 7, "level": 2}


@pytest.mark.alone
def test_what_the_client_could_not_send_is_counted(run):
    behaviour = Behaviour(seconds=0.001, stall=(0.3, 1.3))
    with serve_grpc(behaviour) as url:
        _, requests, found = _load(url, run, "--qps", 60, "--duration", 1.6, "--max-outstanding", 6)
    planned = _planned(60, 1.6)
    assert requests.height == len(planned)  # nothing is dropped silently
    saturated = requests.filter(pl.col("outcome") == "client_saturated")["intended_s"] - planned[0]
    inside = ((planned - planned[0] > 0.3) & (planned - planned[0] < 1.3)).sum()
    assert len(saturated) == pytest.approx(inside - 6, abs=4)
    assert saturated.is_between(0.28, 1.4).all()
    assert found["outcomes"]["ok"] + len(saturated) == requests.height
    assert len(behaviour.arrived) - 1 == found["outcomes"]["ok"]


@pytest.mark.alone
def test_what_is_never_answered_fails_with_its_age(run):
    behaviour = Behaviour(stall=(0.5, 8.0))
    with serve_grpc(behaviour) as url:
        _, requests, found = _load(url, run, "--qps", 30, "--duration", 1, "--drain", 0.5)
    lost = requests.filter(pl.col("outcome") == "unanswered")
    assert set(found["outcomes"]) == {"ok", "unanswered"}
    ends = lost["intended_s"] + lost["latency_ms"] / 1e3
    assert lost.height > 5
    assert ends.max() - ends.min() < 0.01  # all of them when the test ended
    assert ends.min() == pytest.approx(_planned(30, 1)[-1] + 0.5, abs=0.4)
    assert requests.height == len(_planned(30, 1))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_goes_away(run, protocol):
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, protocol], cwd=HOME, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        _, requests, _ = _load(url, run, "--protocol", protocol, "--qps", 30, "--duration", 2, "--workers", 2)
        assert process.wait(5) == 0  # it ended by itself, a second after the first requests
    finally:
        process.kill()
        process.wait()
    assert set(requests["outcome"]) == {"ok", "connection"}
    assert requests["worker"].unique().sort().to_list() == [0, 1]
    shape = Shape("steady", 30, 2)
    planned = [poisson_arrivals(shape, seed=0, worker=w, workers=2) for w in range(2)]
    assert requests.height == sum(map(len, planned))


_SERVER = """
import os, sys, time
from tests.fake_inference import Behaviour, serve_grpc, serve_http
behaviour = Behaviour()
with (serve_grpc if sys.argv[1] == "grpc" else serve_http)(behaviour) as url:
    print(url, flush=True)
    while len(behaviour.arrived) < 25:
        time.sleep(0.02)
    os._exit(0)
"""


@pytest.mark.alone
def test_ctrl_c_leaves_the_report_of_what_ran(run):
    behaviour = Behaviour(seconds=0.01)
    with serve_grpc(behaviour) as url:
        command = _command(url, run, "--qps", 40, "--duration", 600)
        process = subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, text=True)
        try:
            while len(behaviour.arrived) < 40:
                assert process.poll() is None
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGINT)
            text, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 130
    folder = run / "out" / "t"
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    found = json.loads((folder / "summary.json").read_text())
    assert found["outcomes"] == {"ok": len(behaviour.arrived) - 1}
    assert found["figures"]["ok_qps"] == pytest.approx(40, rel=0.5)  # by the time it ran, not by the plan
    assert "stopped after" in text
    assert "of 600 s" in found["notes"][0]


def test_what_cannot_be_run_ends_with_2(run, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{taken.getsockname()[1]}"
        for more, message in (
            (("--workers", 2), f"the first request to {url} failed"),
            (("--qps", "-1"), "qps: expected a number above 0, got -1"),
            (("--parameter", "x"), "--parameter: expected NAME=VALUE, got 'x'"),
            (("--repository", "/nowhere"), "no model repository at /nowhere"),
        ):
            assert main(_options(url, run, "--deadline-ms", 500, *more)) == 2
            out, err = capsys.readouterr()
            assert out == ""
            assert f"error: could not run: {message}" in err


def test_a_client_does_not_hold_the_process_whether_closed_or_not(run):
    """A close in a destructor waited for ever at the end, at random where there had been one before."""
    with serve_grpc(Behaviour()) as url:
        command = [sys.executable, "-c", _CLIENTS, url, str(run)]
        done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=15)
    assert (done.stdout, done.returncode) == ("answered\n" * 2, 0), done.stderr


_CLIENTS = """
import locust  # patches the process
import sys
from pathlib import Path
from loadtest.clients import Client
from loadtest.mix import build_mix
url, run = sys.argv[1:]
mix = build_mix(Path(run), users=1, num_ads=5, repeats=0.0, window_s=1.0, synthetic_ads=100)
closed, left = (Client(url, protocol="grpc", deadline_s=5, connections=1) for _ in range(2))
for client in (closed, left):
    client.infer(mix.users[0], None)
    print("answered", flush=True)
closed.close()
"""


@pytest.mark.parametrize("more", [(), ("--closed",)])
def test_locust_itself_runs_the_locustfile(run, more):
    behaviour = Behaviour(seconds=0.02, fail=lambda number: REJECT if number % 10 == 9 else None)
    with serve_grpc(behaviour) as url:
        command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"]
        command += ["--host", url, "--run", str(run), "--synthetic-ads", "1000", "--qps", "20"]
        command += ["-u", "2", "-r", "2", "-t", "2s", "--json", *more]
        done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr  # locust's status where requests failed
    (row,) = json.loads(done.stdout)
    assert (row["method"], row["name"]) == ("grpc", "gr4ad")
    count, failed = row["num_requests"], row["num_failures"]
    assert count == pytest.approx(len(behaviour.arrived), abs=2)
    assert failed == pytest.approx(count / 10, abs=2)
    if not more:
        assert count == pytest.approx(80, abs=30)  # two dispatchers of 20 / s for 2 s


def test_locust_ends_at_sigterm_with_calls_outstanding(run):
    with serve_grpc(Behaviour(seconds=2.0)) as url:
        command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"]
        command += ["--host", url, "--run", str(run), "--synthetic-ads", "1000", "--qps", "20"]
        process = subprocess.Popen(command, cwd=HOME, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        while "All users spawned" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(1.0)
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert "Shutting down" in said
    assert process.returncode == 0
