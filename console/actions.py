"""What a person with the token may do: each is a command or an endpoint that exists without the console."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.error import HTTPError
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from examples.new_ad import post
from serving.model.bundle import BundleError, read_manifest
from serving.model.current import point_current
from web.errors import HttpError
from web.pages import read_page

_Text = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"\S")]
_AdId = Annotated[int | str, Field(description="number, or key where ids are texts")]
_STOP_S = 5.0


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoadSpike(_Body):
    """Requests at a rate that rises to its peak and falls again (`python -m loadtest --shape spike`)."""

    qps: float = Field(5.0, gt=0, le=200)
    peak: float = Field(4.0, ge=1, le=20)
    seconds: float = Field(20.0, ge=2, le=120)


class NewAd(_Body):
    """An ad that no model saw (event `create` of the sidecar)."""

    ad_id: _AdId
    account_id: _Text
    conversion_type: _Text
    text: _Text


class PauseAd(_Body):
    """Takes an ad out of all answers (event `pause` of the sidecar)."""

    ad_id: _AdId


class ResumeAd(_Body):
    """Brings it back (event `resume`)."""

    ad_id: _AdId


class Rollback(_Body):
    """Has CURRENT name another version that is there (`python -m export rollback`)."""

    version: int = Field(ge=1)


class Actions:
    """Those that this deployment has.

    Args:
        indexer: URL of the sidecar; None for no events.
        indexer_token: what it asks writers for.
        bundles: folder of model versions; None for no rollback.
        load: options of the load test that say whom to ask, and for whom; None for no load.
    """

    def __init__(
        self,
        *,
        indexer: str | None = None,
        indexer_token: str | None = None,
        bundles: Path | None = None,
        load: list[str] | None = None,
    ) -> None:
        """Do nothing yet."""
        self._indexer, self._indexer_token, self._bundles, self._load = indexer, indexer_token, bundles, load
        self._spike: subprocess.Popen[bytes] | None = None
        self._known: dict[str, tuple[type[_Body], Callable[[Any], str]]] = {}
        if load is not None:
            self._known["load_spike"] = (LoadSpike, self._start_spike)
        if indexer is not None:
            self._known |= {
                "new_ad": (NewAd, self._create),
                "pause_ad": (PauseAd, lambda body: self._switch("pause", body.ad_id)),
                "resume_ad": (ResumeAd, lambda body: self._switch("resume", body.ad_id)),
            }
        if bundles is not None:
            self._known["rollback"] = (Rollback, self._roll_back)

    def describe(self) -> list[dict[str, Any]]:
        """Of each: `name`, `text`, and `fields` with `name`, `default` and whether it is a `number`."""
        return [
            {
                "name": name,
                "text": body.__doc__,
                "fields": [_field(n, f) for n, f in body.model_fields.items()],
            }
            for name, (body, _) in self._known.items()
        ]

    def perform(self, name: str, body: bytes) -> str:
        """Do it; what was done, in words. Slow ones take seconds: not for an event loop.

        Raises:
            HttpError: 404 no such action here, 422 a malformed body, 409 refused, 502 a service is away.
        """
        if name not in self._known:
            raise HttpError(
                404, "unknown_action", f"expected one of {', '.join(self._known)}, got {name[:60]!a}"
            )
        kind, run = self._known[name]
        try:
            return run(kind.model_validate_json(body))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "body"
            raise HttpError(
                422, "invalid", f"{where}: {first['msg']}, got {first['input']!r:.100}"
            ) from error
        except (RuntimeError, BundleError) as error:  # of the sidecar, of a bundle
            raise HttpError(409, "refused", str(error)) from error
        except OSError as error:
            raise HttpError(502, "away", str(error)) from error

    def close(self) -> None:
        """End a load that runs."""
        if self._spike is not None and self._spike.poll() is None:
            self._spike.terminate()
            try:
                self._spike.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._spike.kill()

    def _start_spike(self, body: LoadSpike) -> str:
        assert self._load is not None
        if self._spike is not None and self._spike.poll() is None:
            raise RuntimeError("a load is running already")
        command = [sys.executable, "-m", "loadtest", "--shape", "spike", "--name", "console", *self._load]
        command += [f"--qps={body.qps:g}", f"--peak={body.peak:g}", f"--duration={body.seconds:g}"]
        self._spike = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return (
            f"load between {body.qps:g} and {body.qps * body.peak:g} requests a second for {body.seconds:g} s"
        )

    def _create(self, body: NewAd) -> str:
        return self._event({"kind": "create", "version": 1, **body.model_dump()})

    def _switch(self, kind: str, ad_id: int | str) -> str:
        return self._event({"kind": kind, "ad_id": ad_id, "version": self._next_version(ad_id)})

    def _next_version(self, ad_id: int | str) -> int:
        """Above those of the ad: what is done here comes after whatever was done to it."""
        by_key = isinstance(ad_id, str)
        path = f"ads?key={quote(str(ad_id), safe='')}&" if by_key else f"ads/{ad_id}?"
        try:
            ad = json.loads(read_page(f"{self._indexer}/{path}neighbours=0", timeout_s=_STOP_S))
        except HTTPError as error:
            raise RuntimeError(f"ad {ad_id!r}: the sidecar answers {error.code} {error.reason}") from error
        return int(max(ad["status_version"], ad["content_version"])) + 1

    def _event(self, event: dict[str, object]) -> str:
        assert self._indexer is not None
        post(self._indexer, event, token=self._indexer_token)
        return f"{event['kind']} of ad {event['ad_id']} is applied"

    def _roll_back(self, body: Rollback) -> str:
        assert self._bundles is not None
        read_manifest(self._bundles / str(body.version))
        point_current(self._bundles, body.version)
        return f"CURRENT names version {body.version}: servers take it once they have checked it"


def _field(name: str, field: Any) -> dict[str, Any]:
    default = None if field.is_required() else field.default
    return {"name": name, "default": default, "number": field.annotation in (int, float)}
