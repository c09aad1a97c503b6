"""The whole way on real logs: tables, semantic IDs, training, evaluation, export, index, server, requests.

python -m examples.demo --config configs/demo.yaml --run build/demo      (or: make demo)
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import tritonclient.http

from examples.client import Catalogue, problems, send
from examples.new_ad import NUM_ADS, create_like_the_best, describe
from examples.request import format_answer
from export.render import SOURCE
from launcher.indexer_process import IndexerError, IndexerProcess
from launcher.processes import end_process, start_process
from launcher.server_files import ServerError
from launcher.triton_server import TritonServer
from serving.index.reader import IndexReader
from serving.model.bundle import read_manifest
from serving.model.current import current_version
from training.evaluation.compared import compared
from training.loop.retention import open_checkpoint
from training.preset.preset import ConfigError, Preset, add_preset_arguments

QUICK = (
    "training.steps=60",
    "training.validate_every=30",
    "training.validation_requests=64",
    "evaluation.requests=100",
)
NEW_ADS = 5  # created, each like another user's best
_ENDS_S = 30.0  # for a step that is told to stop, before it is killed


class PeakMemory:
    """Largest memory (PSS: shared pages once) of this process and all below it, sampled twice a second."""

    def __enter__(self) -> PeakMemory:
        """Start sampling."""
        self.bytes, self._end = 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop sampling."""
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._end.wait(0.5):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it ended between the listing and the look
            self.bytes = max(self.bytes, total)


def step(title: str, module: str, *options: str | Path) -> float:
    """Run a module as a process that ends with this one; returns seconds. A failed step ends the demo."""
    print(f"\n== {title}", flush=True)
    began = time.monotonic()
    process = start_process([sys.executable, "-m", module, *map(str, options)])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        end_process(process, kill_after_s=_ENDS_S)
        raise
    if code:
        raise SystemExit(f"demo: step '{title}' failed with status {code}")
    return time.monotonic() - began


def ask(server: TritonServer, catalogue: Catalogue, *, requests: int, num_ads: int) -> dict:
    """Send requests of different users one after the other; check every answer; time the gRPC ones."""
    users = catalogue.users["user_id"].to_list()[:: max(1, catalogue.users.height // requests)][:requests]
    tensors = catalogue.request(users[0], num_ads=num_ads)
    for protocol, url in (("http", server.http_url), ("grpc", server.grpc_url)):
        first = send(url, tensors, protocol=protocol, outputs=catalogue.outputs)
    print(f"\nuser {users[0]}, {tensors['history_ad_ids'].shape[1]} events of history")
    print(format_answer(first, catalogue=catalogue, history=tensors["history_ad_ids"][0]))
    seconds = []
    for user in users:
        tensors = catalogue.request(user, num_ads=num_ads)
        began = time.perf_counter()
        answer = send(server.grpc_url, tensors)
        seconds.append(time.perf_counter() - began)
        wrong = problems(answer, catalogue=catalogue, num_ads=num_ads, exclude=[])
        if wrong:
            raise SystemExit(f"demo: wrong answer for user {user}: {'; '.join(wrong)}")
    return {
        "requests": len(seconds),
        "request_p50_ms": float(np.percentile(seconds, 50) * 1e3),
        "request_p95_ms": float(np.percentile(seconds, 95) * 1e3),
        "model_version": int(answer["model_version"][0, 0]),
        "index_version": int(answer["index_version"][0, 0]),
    }


def new_ad(server: TritonServer, catalogue: Catalogue, run: Path, *, among: int) -> dict:
    """The index sidecar takes ads that no model was trained on, and they are in answers."""
    paths = f"--index={run / 'index'}", f"--bundles={run / 'bundles'}"
    with IndexerProcess(*paths, log_file=run / "indexer.log") as sidecar:
        shown = []
        for user in catalogue.users["user_id"].to_list()[:NEW_ADS]:
            shown.append(
                create_like_the_best(sidecar.url, server.grpc_url, catalogue, user=user, among=among)
            )
            print(describe(shown[-1], user=user), flush=True)
    return {
        "new_ad_ranks": [s.rank for s in shown],
        "new_ad_servable_ms": float(np.median([s.seconds for s in shown])) * 1e3,
    }


def server_version(url: str) -> str:
    """What the server says it is."""
    client = tritonclient.http.InferenceServerClient(url)
    try:
        metadata = client.get_server_metadata()
        return f"{metadata['name']} {metadata['version']}"
    finally:
        client.close()


def run_demo(
    config: str, run: Path, *, overrides: Sequence[str] = (), quick: bool = False, repository: Path = SOURCE
) -> dict:
    """Every step; returns the report."""
    values = [*(QUICK if quick else ()), *overrides]
    preset = ["--config", config, *(word for value in values for word in ("--set", value))]
    common = [*preset, "--run", str(run)]
    most_ads = Preset.load(config, values).serving.max_num_ads
    began = time.monotonic()
    for folder in ("model", "bundles", "index"):
        shutil.rmtree(run / folder, ignore_errors=True)  # the demo shows the whole way, not a resumed one
    with PeakMemory() as memory:
        step("logs to tables", "training.data.prepare", *preset, "--out", str(run / "data"), "--fresh")
        step(
            "semantic IDs",
            "training.tokenizer",
            *preset,
            "--data",
            str(run / "data"),
            "--out",
            str(run / "tokenizer"),
            "--fresh",
        )
        train_seconds = step("training", "training.recipes.pretrain", *common, "--fresh")
        correct = [*common, *(("--requests", "500") if quick else ())]
        step("correction of the expected value", "training.evaluation.correct_values", *correct)
        step("evaluation on the test weeks", "training.evaluation", *common)
        step("export to ONNX, model repository", "export", *common, "--repository", str(repository))
        step(
            "semantic-ID index",
            "indexer",
            "build",
            *("--bundles", run / "bundles"),
            *("--ads", run / "data" / "ads.parquet"),
            *("--sids", run / "tokenizer" / "sids.parquet"),
            *("--out", run / "index"),
        )
        print("\n== Triton", flush=True)
        with TritonServer(repository, log_file=run / "server.log") as server:
            version = server_version(server.http_url)
            print(f"{version} ready: http {server.http_url}, grpc {server.grpc_url}")
            catalogue = Catalogue.load(run)
            answers = ask(server, catalogue, requests=20 if quick else 200, num_ads=min(10, most_ads))
            print("\n== new ads", flush=True)
            answers |= new_ad(server, catalogue, run, among=min(NUM_ADS, most_ads))
    stats = json.loads((run / "data" / "stats.json").read_text())
    quality = json.loads((run / "tokenizer" / "quality.json").read_text())
    evaluation = json.loads((run / "model" / "evaluation.json").read_text())
    model = open_checkpoint(run / "model").model
    manifest = read_manifest(run / "bundles" / str(current_version(run / "bundles")), verify=False)
    reader = IndexReader(run / "index")
    ads = len(reader.snapshot.leaf_ad_ids)
    reader.close()
    return {
        "rows_read": stats["rows_read"],
        "users": stats["users"],
        "ads": ads,
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": round(train_seconds, 1),
        "total_seconds": round(time.monotonic() - began, 1),
        "peak_memory_gb": round(memory.bytes / 1e9, 2),
        **{k: evaluation[k] for k in ("recall", "ndcg", "value_recall", "recall_of", "invalid_rate")},
        **compared(evaluation),
        **{k: quality[k] for k in ("compression", "collision", "utilisation")},
        "export_max_error": manifest.parity_max_error,
        **answers,
        "server_version": version,
        "quick": quick,
        "provenance": stats["provenance"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser, default="configs/demo.yaml")
    parser.add_argument("--run", type=Path, default=Path("build/demo"))
    parser.add_argument("--repository", type=Path, default=SOURCE)
    parser.add_argument(
        "--quick", action="store_true", help="a minute of training: shows that it runs, not how well"
    )
    arguments = parser.parse_args()
    try:
        report = run_demo(
            arguments.config,
            arguments.run,
            overrides=arguments.overrides,
            quick=arguments.quick,
            repository=arguments.repository,
        )
    except (ConfigError, ServerError, IndexerError) as error:
        raise SystemExit(f"demo: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("\ndemo: stopped") from None
    path = arguments.run / "report.json"
    path.write_text(json.dumps(report, indent=2))
    recall = report["recall"]
    print(
        f"\n{report['total_seconds']:.0f} s in all, {report['train_seconds']:.0f} s of training; at most "
        f"{report['peak_memory_gb']} GB; request p50 {report['request_p50_ms']:.0f} ms, "
        f"p95 {report['request_p95_ms']:.0f} ms"
    )
    cutoff = "50" if "50" in recall["model"] else next(iter(recall["model"]))
    print(
        f"recall@{cutoff}: "
        + ", ".join(f"{name.replace('_', ' ')} {v[cutoff]:.3f}" for name, v in recall.items())
    )
    print(
        f"report: {path}; now: make serve, and in other terminals make request, make console (with the same "
        "PRESET=)\n"
        f"{report['provenance']}"
    )


if __name__ == "__main__":
    main()
