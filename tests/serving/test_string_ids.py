"""A log with texts for ids of ads, users and requests on its whole way: commands, a real server."""

import json
import subprocess
import sys
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tritonclient.grpc
import tritonclient.http

from examples.client import AD_KEYS, OUTPUTS, Catalogue, infer_inputs, problems, requested_outputs, send
from launcher.triton_server import TritonServer
from serving.keys import id_of
from tests.indexer_process import IndexerProcess
from tests.pipeline import WIDTHS
from tests.tiny_log import CONFIG, write_run
from tests.waiting import wait_until

HOME = Path(__file__).parents[2]
TOKENIZER = {"codebook_sizes": [6, 5], "hash_size": 16, "embedding_dim": 8}
SERVING = {"widths": WIDTHS, "max_num_ads": 40, "max_exclude": 50, "max_batch_size": 8}
QUIET = {"load_control": "fixed", "cache": "off"}
CONTENT = {"account_id": "a1", "conversion_type": "plain", "text": "apple cheese size 2"}


def ad(number):
    """Keys of all kinds: words, other scripts, numbers, one that looks like another's id."""
    return [f"shoes/{number}?a=b", f"обувь {number} 👟", str(number), f"{number}.0"][number % 4]


def user(number):
    return f"user {number}"


def keyed_log(folder):
    """The log of `tests.tiny_log` with texts in place of its ids; a folder of tables."""
    write_run(folder)
    source, keyed = folder / "source", folder / "keyed"
    keyed.mkdir()
    names = {
        "ad_id": pl.col("ad_id").map_elements(ad, return_dtype=pl.String),
        "user_id": pl.col("user_id").map_elements(user, return_dtype=pl.String),
    }
    for name in ("ads", "users", "events"):
        table = pl.read_parquet(source / f"{name}.parquet")
        table = table.with_columns(**{c: e for c, e in names.items() if c in table.columns})
        if name == "events":
            table = table.with_columns(request_id=pl.format("request {}", "timestamp"))
        table.write_parquet(keyed / f"{name}.parquet")
    return keyed


def step(module, *arguments):
    """Run a command; what it printed."""
    words = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(words, cwd=HOME, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class Deployment:
    run: Path
    repository: Path
    said: dict[str, str]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("string_ids")
    run, preset, repository = folder / "run", folder / "preset.yaml", folder / "model_repository"
    content = CONFIG | {"data": CONFIG["data"] | {"path": str(keyed_log(folder / "log"))}}
    content["training"] = CONFIG["training"] | {"steps": 10, "validate_every": 10}
    preset.write_text(json.dumps(content | {"tokenizer": TOKENIZER, "serving": SERVING | QUIET}))
    config = ("--config", preset)
    said = {"data": step("training.data.prepare", *config, "--out", run / "data")}
    step("training.tokenizer", *config, "--data", run / "data", "--out", run / "tokenizer")
    step("training.recipes.pretrain", *config, "--run", run)
    said["evaluate"] = step("training.evaluation", *config, "--run", run)
    step("export", *config, "--run", run, "--repository", repository)
    tables = ("--ads", run / "data" / "ads.parquet", "--sids", run / "tokenizer" / "sids.parquet")
    step("indexer", "build", "--bundles", run / "bundles", *tables, "--out", run / "index")
    return Deployment(run, repository, said)


@pytest.fixture(scope="module")
def server(deployment):
    with TritonServer(deployment.repository) as running:
        yield running
        assert running.poll() is None, f"the server died: {running.log_tail(30)}"


@pytest.fixture(scope="module")
def catalogue(deployment):
    return Catalogue.load(deployment.run)


@pytest.fixture(scope="module")
def sidecar(deployment):
    paths = [f"--index={deployment.run / 'index'}", f"--bundles={deployment.run / 'bundles'}"]
    process = IndexerProcess(deployment.run, *paths)
    wait_until(lambda: process.ask("GET", "/readyz")[0] == 200, timeout_s=60, what="readyz")
    yield process
    process.stop()


def texts(keys):
    return [key.decode() for key in np.ravel(keys)]


def test_the_steps_say_so(deployment):
    assert "string ids of 60 ads and 12 users: see keys/ of the data" in deployment.said["data"]
    assert "popularity" in deployment.said["evaluate"]


def test_make_request_takes_and_shows_keys(deployment, server):
    known = {ad(number) for number in range(60)}
    best = []
    for url, protocol in ((server.grpc_url, "grpc"), (server.http_url, "http")):
        out = step(
            "examples.request",
            *("--run", deployment.run, "--url", url, "--protocol", protocol),
            *("--user", user(3), "--exclude", ad(1), ad(2), "--num-ads", 40),
        )
        assert out.startswith(f"user {user(3)}: ")
        shown = [key for key in known if f"  {key:>9}  " in out]
        assert len(shown) == 40
        assert not {ad(1), ad(2)} & set(shown)
        best.append(sorted(shown))
    assert best[0] == best[1]
    refused = subprocess.run(
        [sys.executable, "-m", "examples.request", "--run", deployment.run, "--user", "nobody"],
        cwd=HOME,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "expected a user of the logs ('user 0' .. 'user 9'), got 'nobody'" in refused.stderr


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_answers_carry_the_keys_where_they_are_asked_for(server, catalogue, protocol):
    url = server.grpc_url if protocol == "grpc" else server.http_url
    tensors = catalogue.request(user(5), num_ads=40, exclude=[ad(number) for number in range(0, 60, 2)])
    answer = send(url, tensors, protocol=protocol, outputs=catalogue.outputs)
    assert problems(answer, catalogue=catalogue, num_ads=40, exclude=list(map(ad, range(0, 60, 2)))) == []
    keys = texts(answer[AD_KEYS])
    assert set(keys[:30]) == {ad(number) for number in range(1, 60, 2)}
    assert keys[30:] == [""] * 10
    assert [id_of(key) for key in keys[:30]] == answer["ad_ids"][0][:30].tolist()
    (alone,) = send(url, tensors, protocol=protocol, outputs=[AD_KEYS]).values()
    assert texts(alone) == keys
    plain = send(url, tensors, protocol=protocol)
    assert plain.keys() == set(OUTPUTS)
    for name, values in plain.items():
        np.testing.assert_allclose(values, answer[name], atol=1e-5)


def test_several_rows_and_requests_at_once(server, catalogue):
    rows = [catalogue.request(user(number), num_ads=2 + number) for number in range(3)]
    client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
    outputs = requested_outputs([AD_KEYS, "ad_ids"])
    calls = [client.infer("gr4ad", infer_inputs(row), outputs=outputs) for row in rows]
    short = min(row["history_ad_ids"].shape[1] for row in rows)
    together = {
        name: np.concatenate([r[name][:, :short] if name.startswith("history") else r[name] for r in rows])
        for name in rows[0]
    }
    answer = client.infer("gr4ad", infer_inputs(together), outputs=outputs)
    client.close()
    for found in [*calls, answer]:
        keys, ids = found.as_numpy(AD_KEYS), found.as_numpy("ad_ids")
        assert keys.shape == ids.shape
        assert [id_of(k) if k else -1 for k in texts(keys)] == ids.ravel().tolist()


@pytest.mark.parametrize("binary", [True, False])
def test_json_and_binary_of_the_gateway(server, catalogue, binary):
    tensors = catalogue.request(user(1), num_ads=7)
    client = tritonclient.http.InferenceServerClient(server.http_url)
    inputs = infer_inputs(tensors, protocol="http")
    outputs = [tritonclient.http.InferRequestedOutput(n, binary_data=binary) for n in (AD_KEYS, "ad_ids")]
    for asked in (outputs, None):
        answer = client.infer("gr4ad", inputs, outputs=asked)
        keys = answer.as_numpy(AD_KEYS)
        as_text = [key if isinstance(key, str) else key.decode() for key in keys[0]]
        assert [id_of(key) for key in as_text] == answer.as_numpy("ad_ids")[0].tolist()
    client.close()


def test_a_history_may_name_ads_that_no_mapping_has(server, catalogue):
    tensors = catalogue.request(user(1), num_ads=5, max_history=10)
    tensors["history_ad_ids"] = np.array(tensors["history_ad_ids"])
    tensors["history_ad_ids"][0, :2] = id_of("never heard of"), 17
    answer = send(server.grpc_url, tensors, outputs=catalogue.outputs)
    assert answer["ignored_history"].tolist() == [[2]]
    assert all(texts(answer[AD_KEYS]))


def test_events_of_the_sidecar_name_ads_by_key(server, catalogue, sidecar):
    """Every source hands over the same JSON; HTTP is the nearest."""
    tensors = catalogue.request(user(2), num_ads=40, exclude=[ad(number) for number in range(30)])

    def shown():
        return set(texts(send(server.grpc_url, tensors, outputs=catalogue.outputs)[AD_KEYS]))

    def post(kind, key, version, **content):
        status, outcome = sidecar.ask(
            "POST", "/events", {"kind": kind, "ad_id": key, "version": version, **content}
        )
        assert status == 200, outcome

    assert ad(31) in shown()
    post("pause", ad(31), 1)
    assert ad(31) not in shown()
    post("create", "new ad/1 👟", 1, **CONTENT)
    wait_until(lambda: "new ad/1 👟" in shown(), timeout_s=5, what="the new ad in an answer")
    status, view = sidecar.ask("GET", "/ads?" + urllib.parse.urlencode({"key": "new ad/1 👟"}))
    assert (status, view["ad_id"], view["status"]) == (200, id_of("new ad/1 👟"), "active")
    post("resume", id_of(ad(31)), 2)  # a client that hashes may send the number
    wait_until(lambda: ad(31) in shown(), timeout_s=5, what="the ad back in an answer")
    post("delete", "new ad/1 👟", 2)
    assert "new ad/1 👟" not in shown()
