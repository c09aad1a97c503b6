"""What tests of the sidecar need: a bundle that is a manifest only, an encoder that is a hash, a client."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient

from indexer.events.content import Content
from indexer.events.event import CONTENT_FIELDS
from indexer.http.api import Api, ApiLimits
from indexer.http.app import create_app
from indexer.http.guard import Guard
from indexer.sidecar.bundle_watch import BundleWatch
from indexer.sidecar.config import SidecarConfig
from indexer.sidecar.sidecar import Sidecar
from serving.model.bundle import MANIFEST
from serving.model.current import CURRENT
from serving.model.features import FeatureSpec
from tests.manifest import manifest

LEVEL_SIZES = (6, 5, 7)


class HashEncoder:
    """Codes are digits of a hash of the content; every tokenizer gives others."""

    from_content = True

    def __init__(self, tokenizer_id: str, level_sizes: tuple[int, ...] = LEVEL_SIZES) -> None:
        self.tokenizer_id, self.level_sizes = tokenizer_id, level_sizes

    def refusal(self, content: Content) -> str | None:
        return None

    def encode(self, ad_ids: np.ndarray, contents: Sequence[Content]) -> np.ndarray:
        rows = []
        for content in contents:
            if "poison" in content["text"]:
                raise RuntimeError("the encoder does not like it")
            words = json.dumps([self.tokenizer_id, *(content[name] for name in CONTENT_FIELDS)]).encode()
            rows.append(
                [b % size for b, size in zip(hashlib.sha256(words).digest(), self.level_sizes, strict=False)]
            )
        return np.array(rows, np.int32).reshape(len(ad_ids), len(self.level_sizes))

    def knows(self, text: str) -> bool:
        return True


def write_manifest(bundles: Path, version: int, tokenizer_id: str, *, current: bool = True) -> None:
    """A bundle without graphs."""
    folder = bundles / str(version)
    folder.mkdir(parents=True)
    features = FeatureSpec(levels=len(LEVEL_SIZES))
    (folder / MANIFEST).write_text(
        json.dumps(manifest(version, tokenizer_id, features=features, level_sizes=LEVEL_SIZES))
    )
    if current:
        (bundles / CURRENT).write_text(f"{version}\n")


def load_hash_encoder(bundle: Path) -> HashEncoder:
    """In place of `bundle_encoder.load_encoder`."""
    return HashEncoder(json.loads((bundle / MANIFEST).read_text())["tokenizer_id"])


@contextmanager
def sidecar_client(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    token: str | None = None,
    limits: ApiLimits | None = None,
    base_url: str = "http://127.0.0.1:8010",
    **settings: object,
) -> Iterator[TestClient]:
    """Client of a running sidecar on FOLDER/index and FOLDER/bundles; `client.sidecar` is the sidecar."""
    watch = functools.partial(BundleWatch, load=load_hash_encoder)
    config = SidecarConfig(folder / "index", folder / "bundles", **settings)  # type: ignore[arg-type]
    sidecar = Sidecar(config, watch=watch)
    api = Api(
        store=sidecar.store,
        worker=sidecar.worker,
        metrics=sidecar.metrics,
        gaps=sidecar.gaps,
        guard=Guard(host, token=token),
        ready=sidecar.ready,
        limits=limits or ApiLimits(),
    )
    sidecar.start()
    try:
        client = TestClient(create_app(api), base_url=base_url, raise_server_exceptions=False)
        client.sidecar = sidecar  # type: ignore[attr-defined]
        yield client
    finally:
        assert sidecar.stop()
