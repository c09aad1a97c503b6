"""What the gateway costs: the same requests to it and to Triton's own HTTP server, in turn.

    python -m benchmarks.gateway                        on the demo's bundle and index
    python -m benchmarks.gateway --caddy PATH           beside it a Caddy as reverse proxy

Load control is off: widths that follow the load would hide the difference.

Triton's own HTTP server is off in every deployment; here it is on, to be compared with.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http

from benchmarks.report import stamp
from examples.client import OUTPUTS, Catalogue
from export.render import render
from launcher.ports import choose_ports
from launcher.triton_server import TritonServer
from serving.backend.settings import ServingConfig
from training.preset.preset import Preset, add_preset_arguments

Tensors = dict[str, np.ndarray]
_COMPARED = ("ad_ids", "sids", "scores")


def main() -> int:
    """Measure, print, write; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_preset_arguments(parser, default="configs/demo.yaml")
    add("--run", type=Path, default=Path("build/demo"), help="run folder with bundle and index [build/demo]")
    add("--requests", type=int, default=300, help="lone requests of each way and encoding [300]")
    add("--rounds", type=int, default=6, help="of saturation, each way in turn [6]")
    add("--seconds", type=float, default=6.0, help="of one way in a round [6]")
    add("--clients", type=int, default=8, help="at saturation [8]")
    add("--caddy", type=Path, help="the caddy program, to measure it beside")
    add("--out", type=Path, default=Path("build/bench/gateway.json"), help="[build/bench/gateway.json]")
    options = parser.parse_args()
    serving = Preset.load(options.config, options.overrides).serving
    result = stamp() | compare(
        options.run,
        serving,
        requests=options.requests,
        rounds=options.rounds,
        seconds=options.seconds,
        clients=options.clients,
        caddy=options.caddy,
    )
    text = json.dumps(result, indent=1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n")
    print(text)
    return 0


def compare(
    run: Path,
    serving: ServingConfig,
    *,
    requests: int = 300,
    rounds: int = 6,
    seconds: float = 6.0,
    clients: int = 8,
    caddy: Path | None = None,
) -> dict[str, Any]:
    """Figures of all ways to one server.

    Args:
        run: folder with bundles, index and tables.
        serving: settings to render with; load control and cache are left out.
        requests: lone requests of each way and encoding.
        rounds: of saturation, each way in turn; 0 for none.
        seconds: of one way in a round.
        clients: at saturation.
        caddy: the program, to measure it beside.

    Returns:
        `lone` by encoding (`p50_ms`, `p95_ms`, `added_p50_ms`), and `saturated` (`qps`, `qps_ratio`).

    Raises:
        ValueError: two ways answer differently.
    """
    catalogue = Catalogue.load(run)
    asked = [catalogue.request(user, num_ads=20) for user in catalogue.users["user_id"].sample(20, seed=0)]
    fixed = serving.model_copy(update={"load_control": "fixed", "cache": "off"})
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        render(run / "bundles", repository, index=run / "index", config=fixed)
        with servers(repository, caddy) as ways:
            same_answers(ways, asked)
            result: dict[str, Any] = {
                "lone": {
                    encoding: lone(ways, asked, binary=encoding == "binary", count=requests)
                    for encoding in ("binary", "json")
                }
            }
            if rounds:
                result["saturated"] = saturated(ways, asked, rounds=rounds, seconds=seconds, clients=clients)
    return result


@contextlib.contextmanager
def servers(repository: Path, caddy: Path | None) -> Iterator[dict[str, str]]:
    """Ways to one Triton, by name: host:port of its own HTTP server, of the gateway, of Caddy."""
    services = ("http", "caddy")
    ports = choose_ports(dict.fromkeys(services), hosts=dict.fromkeys(services, "127.0.0.1"))
    own = [f"--http-port={ports['http']}", "--http-address=127.0.0.1", "--allow-http=true"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(TritonServer(repository, extra_args=own))
        ways = {"triton": f"127.0.0.1:{ports['http']}", "gateway": server.http_url}
        if caddy is not None:
            ways["caddy"] = f"127.0.0.1:{ports['caddy']}"
            command = [
                str(caddy),
                "reverse-proxy",
                "--from",
                f"http://{ways['caddy']}",
                "--to",
                ways["triton"],
            ]
            proxy = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            stack.callback(proxy.wait)
            stack.callback(proxy.terminate)
            time.sleep(1.0)
        yield ways


def same_answers(ways: dict[str, str], asked: list[Tensors]) -> None:
    """Check before anything is timed.

    Raises:
        ValueError: two ways answer differently.
    """
    for tensors in asked[:5]:
        answers = {
            name: ask(tritonclient.http.InferenceServerClient(url), tensors) for name, url in ways.items()
        }
        for name, answer in answers.items():
            for output in _COMPARED:
                if not np.allclose(answer.as_numpy(output), answers["triton"].as_numpy(output), atol=1e-5):
                    raise ValueError(f"{name} answers other {output} than Triton's own HTTP server")


def ask(client: Any, tensors: Tensors, *, binary: bool = True) -> Any:
    """One request, searched anew."""
    inputs = []
    for name, values in tensors.items():
        datatype = {"int32": "INT32", "int64": "INT64"}[values.dtype.name]
        inputs.append(tritonclient.http.InferInput(name, list(values.shape), datatype))
        inputs[-1].set_data_from_numpy(values, binary_data=binary)
    outputs = [tritonclient.http.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
    return client.infer("gr4ad", inputs, outputs=outputs, parameters={"cache": "bypass"})


def lone(ways: dict[str, str], asked: list[Tensors], *, binary: bool, count: int) -> dict[str, Any]:
    """Milliseconds of one request at a time, and what each way adds to Triton's own."""
    clients = {name: tritonclient.http.InferenceServerClient(url) for name, url in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for i in range(count + 10):
        for name in names[i % len(names) :] + names[: i % len(names)]:  # each is first as often
            began = time.perf_counter()
            ask(clients[name], asked[i % len(asked)], binary=binary)
            if i >= 10:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    p95 = {name: 1e3 * float(np.percentile(values, 95)) for name, values in seconds.items()}
    added = {name: medians[name] - medians["triton"] for name in names if name != "triton"}
    return {"p50_ms": _rounded(medians), "p95_ms": _rounded(p95), "added_p50_ms": _rounded(added)}


def saturated(
    ways: dict[str, str], asked: list[Tensors], *, rounds: int, seconds: float, clients: int
) -> dict[str, Any]:
    """Requests a second with all clients at work, and the median over rounds of the share of Triton's own."""
    qps: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            qps[name].append(_closed_loop(ways[name], asked, seconds=seconds, clients=clients))
    ratios = {
        name: statistics.median(mine / own for mine, own in zip(qps[name], qps["triton"], strict=True))
        for name in names
        if name != "triton"
    }
    return {
        "qps": _rounded({name: statistics.median(values) for name, values in qps.items()}),
        "qps_ratio": _rounded(ratios, 3),
    }


def _closed_loop(url: str, asked: list[Tensors], *, seconds: float, clients: int) -> float:
    answered = [0] * clients
    began = time.perf_counter()

    def client(number: int) -> None:
        connection = tritonclient.http.InferenceServerClient(url)
        at = number
        while time.perf_counter() - began < seconds:
            ask(connection, asked[at % len(asked)])
            answered[number], at = answered[number] + 1, at + 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(answered) / (time.perf_counter() - began)


def _rounded(values: dict[str, float], digits: int = 2) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}


if __name__ == "__main__":
    raise SystemExit(main())
