"""Nobody without the launcher's key changes a server, or makes it run code."""

from __future__ import annotations

import base64
import json
import os
import shutil
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from examples.client import send
from export.render import render
from launcher.paths import DEFAULT_CACHE
from launcher.server_files import ServerFiles, prepare_server
from launcher.stubs import stubs
from launcher.triton_server import TritonServer
from tests.pipeline import Pipeline, copy_of, serving_config
from tests.serving.ask import request

CONFIG = json.dumps({"backend": "python", "max_batch_size": 0})
GRPC = {
    "index": lambda c: c.get_model_repository_index(),
    "unload": lambda c: c.unload_model("gr4ad"),
    "config": lambda c: c.get_model_config("gr4ad"),
    "statistics": lambda c: c.get_inference_statistics("gr4ad"),
    "register": lambda c: c.register_system_shared_memory("own", "/gr4ad", 16),
    "regions": lambda c: c.get_system_shared_memory_status(),
    "cuda": lambda c: c.get_cuda_shared_memory_status(),
    "log": lambda c: c.update_log_settings({"log_file": "/tmp/x"}),
    "trace": lambda c: c.update_trace_settings(settings={"trace_file": "/tmp/x"}),
}


def _code(note: Path) -> str:
    text = f"open({str(note)!r}, 'w').write('ran')\nclass TritonPythonModel:\n    pass\n"
    return base64.b64encode(text.encode()).decode()


def test_a_web_page_cannot_load_code(server, tmp_path):
    note = tmp_path / "note"
    body = {"parameters": {"config": CONFIG, "file:1/model.py": _code(note)}}
    for origin in ({}, {"Origin": "http://evil.example", "Host": "evil.example"}):
        headers = {"Content-Type": "text/plain", **origin}
        url = f"http://{server.http_url}/v2/repository/models/x/load"
        ask = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(ask, timeout=10)
        assert caught.value.code in (403, 421)
    assert not note.exists()


def test_grpc_without_the_key_loads_no_code(server, tmp_path):
    note = tmp_path / "note"
    client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
    for key in (None, "", "0" * 64):
        headers = None if key is None else {"triton-grpc-protocol-gr4ad-key": key}
        files = {"file:1/model.py": base64.b64decode(_code(note))}
        with pytest.raises(InferenceServerException, match="restricted"):
            client.load_model("x", headers=headers, config=CONFIG, files=files)
    client.close()
    assert not note.exists()
    assert len(send(server.grpc_url, request())["ad_ids"]) == 1


@pytest.mark.parametrize("what", GRPC)
def test_grpc_without_the_key_changes_and_reads_nothing_of_the_server(server, what):
    client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
    with pytest.raises(InferenceServerException, match="restricted"):
        GRPC[what](client)
    client.close()


def test_inference_metadata_and_health_need_no_key(server):
    client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("gr4ad")
    assert client.get_model_metadata("gr4ad").name == "gr4ad"
    client.close()


def test_the_key_is_long_new_and_in_no_log(server):
    assert len(bytes.fromhex(server.key)) == 32
    assert TritonServer("/").key != TritonServer("/").key
    assert server.key not in server.log_tail(1000)
    assert server.key not in "".join(os.environ.values())


def _files_that_note_exits(folder: Path) -> ServerFiles:
    """The server's files with a stub that writes down with which status it ends."""
    files = prepare_server(DEFAULT_CACHE)
    assert files.backend_directory is not None
    shutil.copytree(files.backend_directory, folder / "backends")
    stub = folder / "backends" / "python" / "triton_python_backend_stub"
    real = folder / stub.name  # of the same name: by that the launcher knows it
    stub.rename(real)
    stub.write_text(f'#!/bin/bash\n"{real}" "$@"\necho "$? $1" >> {folder}/exits\n')
    stub.chmod(0o755)
    return replace(files, backend_directory=folder / "backends")


def test_a_stop_ends_every_process_in_order(pipeline: Pipeline, tmp_path: Path) -> None:
    """Metrics that were left to the end of the interpreter made four of them segfault at every stop (139)."""
    adaptive = copy_of(pipeline, tmp_path / "own")
    config = serving_config().model_copy(update={"load_control": "adaptive"})  # the entry has metrics, too
    render(adaptive.bundles, adaptive.repository, index=adaptive.index, config=config)
    with TritonServer(adaptive.repository, files=_files_that_note_exits(tmp_path)) as server:
        assert len(send(server.grpc_url, request())["ad_ids"]) == 1
        processes = len(stubs(server.shm_prefix))
    exits = [line.split() for line in (tmp_path / "exits").read_text().splitlines()]
    exits = [line for line in exits if len(line) == 2]  # Triton tries the program without a model, too
    assert len(exits) == processes >= 8
    assert {status for status, _ in exits} == {"0"}, exits
