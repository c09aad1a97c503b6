"""Liveness of the Triton in this container: `python -m deploy.alive` exits with 0, or with 1 and says why.

Triton does not restart a Python model whose process died, and its own health endpoints stay green. The
launcher has `launcher.stub_watch` for that; a bare `tritonserver` has this probe, and whoever runs it
restarts the container. No inference request is sent, so a long queue never makes a live server look dead.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from collections import Counter
from typing import Any

from launcher.server_process import instances_of, model_of, stub_models

HTTP_PORT = 8000
SHM_PREFIX = "gr4ad_"  # --backend-config=python,shm-region-prefix-name= of the Dockerfile


def problem(*, host: str, port: int, shm_prefix: str, timeout_s: float) -> str | None:
    """What is wrong with the server, None when nothing is.

    Args:
        host: address of the server.
        port: its HTTP port.
        shm_prefix: prefix of its shared-memory regions, by which its Python processes are known.
        timeout_s: seconds that each answer may take.
    """
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        _ask(connection, "GET", "/v2/health/live")
        ready = _ask(connection, "POST", "/v2/repository/index", body='{"ready": true}')
        names = sorted({model["name"] for model in ready})
        configs = {name: _ask(connection, "GET", f"/v2/models/{name}/config") for name in names}
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return f"no healthy server at {host}:{port}: {error or type(error).__name__}"
    finally:
        connection.close()
    living: Counter[str] = Counter()
    for path, count in stub_models(shm_prefix).items():
        living[model_of(path)] += count
    python = {name: config for name, config in configs.items() if config.get("backend") == "python"}
    dead = sorted(name for name, config in python.items() if living[name] < instances_of(config))
    return f"a process of the Python model {', '.join(dead)} is gone" if dead else None


def _ask(connection: http.client.HTTPConnection, method: str, url: str, *, body: str | None = None) -> Any:
    connection.request(method, url, body)
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise ValueError(f"{method} {url}: expected HTTP 200, got {response.status}")
    return json.loads(content) if content else None


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.alive", description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address of the server [127.0.0.1]")
    add("--port", type=int, default=HTTP_PORT, help=f"its HTTP port [{HTTP_PORT}]")
    add("--shm-prefix", default=SHM_PREFIX, help=f"prefix of its shared memory [{SHM_PREFIX}]")
    add("--timeout", type=float, default=3.0, help="seconds that each answer may take [3]")
    options = parser.parse_args()
    found = problem(
        host=options.host, port=options.port, shm_prefix=options.shm_prefix, timeout_s=options.timeout
    )
    if found:
        print(found, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
