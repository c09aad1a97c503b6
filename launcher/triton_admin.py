"""What the operator of a Triton may ask it, over gRPC and with its key.

Triton's protocols for the repository, shared memory, configs, statistics, traces and logs are locked: a load
request may carry a model's code, and shared memory of the server may be registered as a client's. The
launcher makes the key and keeps it in its run file; `python -m launcher.admin` reads it there.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Any, NamedTuple

import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from launcher.server_files import ServerError

RESTRICTED = ("model-repository", "shared-memory", "model-config", "statistics", "trace", "logging")
"""Protocols that take the key; inference, metadata and health do not."""

_KEY_NAME = "gr4ad-key"
_LOAD_TIMEOUT_S = 120.0


def new_key() -> str:
    """32 random bytes, as hexadecimal digits."""
    return secrets.token_hex(32)


def lock_options(key: str) -> list[str]:
    """Options of `tritonserver` that lock what `Admin` does."""
    return [f"--grpc-restricted-protocol={','.join(RESTRICTED)}:{_KEY_NAME}={key}"]


class ModelVersion(NamedTuple):
    """One version of a model; its state is READY, LOADING, UNLOADING, UNAVAILABLE or empty (never loaded)."""

    model: str
    version: str
    state: str
    reason: str


class Admin:
    """One connection to one server. Methods raise `ServerError` when it does not answer or refuses."""

    def __init__(self, url: str, *, key: str, timeout_s: float = 5.0) -> None:
        """Prepare.

        Args:
            url: host:port of the server's gRPC.
            key: what the server was started with.
            timeout_s: of every call but `load` and `unload`, which take `_LOAD_TIMEOUT_S`.
        """
        self._client = tritonclient.grpc.InferenceServerClient(url)
        self._headers = {f"triton-grpc-protocol-{_KEY_NAME}": key}
        self._timeout_s = timeout_s

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Admin:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def is_ready(self, timeout_s: float = 2.0) -> bool:
        """Whether the server takes requests at all; False also where nobody answers."""
        try:
            return bool(self._client.is_server_ready(client_timeout=timeout_s))
        except InferenceServerException:
            return False

    def versions(self) -> list[ModelVersion]:
        """Every model of the repository, by version."""
        found = self._call("get_model_repository_index")
        return [ModelVersion(m.name, m.version, m.state, m.reason) for m in found.models]

    def config(self, model: str) -> dict[str, Any]:
        """Config of a loaded model, as JSON has it."""
        found: dict[str, Any] = self._call("get_model_config", model, as_json=True)["config"]
        return found

    def public(self) -> list[str]:
        """Loaded models that are for clients: the ensembles, or all where there is none."""
        configs = {v.model: self.config(v.model) for v in self.versions() if v.state == "READY"}
        ensembles = [model for model, config in configs.items() if "ensemble_scheduling" in config]
        return sorted(ensembles or configs)

    def side_by_side(self) -> list[str]:
        """Loaded models that serve all of their versions, which is what a new version is published to."""
        loaded = sorted({v.model for v in self.versions() if v.state == "READY"})
        return [model for model in loaded if "all" in self.config(model).get("version_policy", {})]

    def statistics(self) -> list[Any]:
        """Statistics of every version of every loaded model (`ModelStatistics` of Triton's protocol)."""
        return list(self._call("get_inference_statistics").model_stats)

    def load(self, model: str) -> None:
        """Loads what is new of a model; versions that have not changed stay as they are."""
        self._call("load_model", model, timeout_s=_LOAD_TIMEOUT_S)

    def reload(self, model: str) -> None:
        """Loads all versions of a model anew and swaps them in; the old ones answer until then.

        Triton does nothing for a model whose files and config are as they were. So the config carries the
        time.
        """
        config = self.config(model)
        config.setdefault("parameters", {})["gr4ad_reloaded"] = {"string_value": f"{time.time():.3f}"}
        self._call("load_model", model, config=json.dumps(config), timeout_s=_LOAD_TIMEOUT_S)

    def unload(self, model: str) -> None:
        """Unloads all versions of a model."""
        self._call("unload_model", model, timeout_s=_LOAD_TIMEOUT_S)

    def _call(self, name: str, *arguments: Any, timeout_s: float | None = None, **options: Any) -> Any:
        method = getattr(self._client, name)
        timeout = timeout_s or self._timeout_s
        try:
            return method(*arguments, headers=self._headers, client_timeout=timeout, **options)
        except InferenceServerException as error:
            what = " ".join([name, *map(str, arguments)])
            raise ServerError(f"{what}: {error.message()}") from error
