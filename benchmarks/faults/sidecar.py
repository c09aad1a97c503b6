"""Faults of the sidecar. Each function brings one about on a running sidecar and returns its figures.

`failed` counts requests without the answer they should have, `lost` what was acknowledged and is gone.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.faults.probe import Probe, ask
from indexer.sidecar.checker import StartCheck
from launcher.indexer_process import IndexerProcess
from serving.index.layout import IndexStoreError

LINES = "application/x-ndjson"
BIG = b'{"' + b"\xff" * (64 << 10)  # no event, and in JSON five times as long
NESTED = (
    b'{"kind":"create","ad_id":1,"version":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"kind":"pause","ad_id":1,"version":' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}",
    b'{"kind":"pause","ad_id":1,"version":[' + b"[]," * 1000 + b"[]]}",
    b"[" * 3000,
)


def big_dead_letters(url: str, *, ad_id: int, letters: int = 1000, readers: int = 4) -> dict[str, Any]:
    """Dead letters of 64 KiB, read by several clients at once from the first to the last."""
    for _ in range(0, letters, 50):
        ask(url, "POST", "/events/bulk", b"\n".join([BIG] * 50), kind=LINES)
    largest, read = 0, [0] * readers

    def reading(reader: int) -> None:
        nonlocal largest
        after: int | None = -1
        while after is not None:
            _, raw = ask(url, "GET", f"/dead-letters?limit=1000&after={after}")
            largest = max(largest, len(raw))
            page = json.loads(raw)
            read[reader] += len(page["dead_letters"])
            after = page["next"]

    took, figures = _beside(url, [lambda r=r: reading(r) for r in range(readers)], ad_id=ad_id)
    lost = sum(max(letters - count, 0) for count in read)
    return figures | {"lost": lost, "seconds": took, "largest_answer_bytes": largest}


def nested_bulk(
    url: str, *, ad_id: int, rows: int = 10_000, kinds: tuple[bytes, ...] = NESTED
) -> dict[str, Any]:
    """Bulks of rows that nest, one after the other, of each kind."""
    statuses = []

    def sending() -> None:
        for row in kinds:
            statuses.append(ask(url, "POST", "/events/bulk", b"\n".join([row] * rows), kind=LINES)[0])
            statuses.append(ask(url, "POST", "/events/bulk", b"[" + b",".join([row] * rows) + b"]")[0])

    took, figures = _beside(url, [sending], ad_id=ad_id)
    wrong = sum(status not in (200, 422) for status in statuses)
    return figures | {"wrong": wrong, "seconds": took, "statuses": statuses}


def silent_connections(url: str, *, ad_id: int, count: int = 1200, hold_s: float = 3.0) -> dict[str, Any]:
    """Connections that are opened and never say a word."""
    address = urlsplit(url)
    held: list[socket.socket] = []

    def holding() -> None:
        with contextlib.suppress(OSError):
            for _ in range(count):
                held.append(socket.create_connection((address.hostname, address.port), timeout=10))
        time.sleep(hold_s)

    try:
        took, figures = _beside(url, [holding], ad_id=ad_id)
    finally:
        for connection in held:
            connection.close()
    return figures | {"lost": 0, "seconds": took, "connections": len(held)}


def few_files(url: str, *, ad_id: int, pid: int, log: Path, hold_s: float = 5.0) -> dict[str, Any]:
    """The process may open no further file while 100 connections come; then it may again."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    size, ticks = log.stat().st_size, _cpu_s(pid)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 5, before[1]))
    address = urlsplit(url)
    held = [socket.create_connection((address.hostname, address.port), timeout=10) for _ in range(100)]
    try:
        time.sleep(hold_s)
        spent = _cpu_s(pid) - ticks
    finally:
        for connection in held:
            connection.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    began, failed = time.monotonic(), 0
    while time.monotonic() - began < 60:
        try:
            if ask(url, "GET", "/healthz", timeout_s=1.0)[0] == 200:
                break
        except (OSError, http.client.HTTPException):
            failed += 1
    return {
        "failed": failed,
        "recovery_s": round(time.monotonic() - began, 2),
        "lost": 0,
        "log_bytes": log.stat().st_size - size,
        "cpu_share": round(spent / hold_s, 2),
    }


def trimmed_stream(
    process: IndexerProcess, client: Any, *, stream: str, events: int = 1000, keep: int = 10, token: str = ""
) -> dict[str, Any]:
    """While the sidecar is away its Redis stream gets events and is trimmed below the committed position.

    `client` is redis-py's. `lost` counts events of which nobody is told; `recovery_s` is the time from the
    start to readiness, which somebody's acknowledgement is part of.
    """
    process.stop()
    for version in range(events):
        event = {"kind": "pause", "ad_id": 1, "version": (1 << 41) + version}
        client.xadd(stream, {"event": json.dumps(event)})
    client.xtrim(stream, maxlen=keep, approximate=False)
    began = time.monotonic()
    process.start(ready=False)
    told = _until(lambda: _gaps(process.url, stream), timeout_s=30)
    unready = any("are gone" in problem for problem in _problems(process.url))
    path = f"/gaps/acknowledge?source=redis:{stream}"
    acknowledged = ask(process.url, "POST", path, b"", headers=_authorised(token))[0]
    recovered = _until(lambda: not any("are gone" in p for p in _problems(process.url)), timeout_s=30)
    return {
        "failed": int(acknowledged != 200),
        "recovery_s": round(time.monotonic() - began, 2),
        "recovered": bool(recovered),
        "lost": events - keep - sum(gap["lost"] for gap in told or []),
        "false_health": int(not unready),
    }


def dead_readers(url: str, index: Path, *, ad_id: int, count: int = 8, writes: int = 300) -> dict[str, Any]:
    """Processes that read the store are killed inside their transactions while events come."""
    reads = "import lmdb, sys, time; e = lmdb.open(sys.argv[1], readonly=True, max_dbs=64)\n"
    reads += "t = e.begin(); t.get(b'meta'); print('in', flush=True); time.sleep(600)"
    readers = [
        subprocess.Popen([sys.executable, "-c", reads, index / "store"], stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    for reader in readers:
        assert reader.stdout is not None
        reader.stdout.readline()
        reader.kill()
        reader.wait()
        reader.stdout.close()
    began = time.monotonic()
    cleared = _until(lambda: _metric(url, "dead_readers_total") >= count, timeout_s=30)
    took, size, failed = time.monotonic() - began, (index / "store/data.mdb").stat().st_size, 0
    for version in range(writes):
        event = {"kind": ("pause", "resume")[version % 2], "ad_id": ad_id, "version": (1 << 42) + version}
        failed += ask(url, "POST", "/events", json.dumps(event).encode())[0] != 200
    grown = (index / "store/data.mdb").stat().st_size - size
    return {
        "failed": failed,
        "recovery_s": round(took, 2),
        "recovered": bool(cleared),
        "lost": 0,
        "grown_bytes": grown,
    }


def broken_base(url: str, index: Path, *, cut_bytes: int = 4096) -> dict[str, Any]:
    """Base arrays are cut off while servers and sidecar run. Ready again means that there are new ones."""
    file = max(index.glob("base/*/*/ad_keys.npy"), key=lambda path: int(path.parent.name))
    began = time.monotonic()
    with file.open("r+b") as opened:
        opened.truncate(max(file.stat().st_size - cut_bytes, 0))
    seen = _until(lambda: any("base arrays" in p for p in _problems(url)), timeout_s=30)
    told_s = time.monotonic() - began
    healed = _until(lambda: not any("base arrays" in p for p in _problems(url)), timeout_s=60)
    return {
        "failed": 0,
        "recovery_s": round(time.monotonic() - began, 2),
        "recovered": bool(healed),
        "told_s": round(told_s, 2),
        "false_health": int(not seen),
        "lost": 0,
    }


def flipped_bits(index: Path, work: Path, *, flips: int = 40, seed: int = 0) -> dict[str, Any]:
    """Bits flip in a copy of the store, one at a time, as far as its records go: is each found at the start?

    `wrong` counts those that the check misses though LMDB reads other records then; a bit in a free page or
    in the unused part of one changes nothing.
    """
    shutil.copytree(index, work)
    file, generator = work / "store/data.mdb", random.Random(seed)
    good = file.read_bytes()
    whole, found, wrong = _dump(work), 0, 0
    for _ in range(flips):
        at = generator.randrange(len(good))
        file.write_bytes(good[:at] + bytes([good[at] ^ 1 << generator.randrange(8)]) + good[at + 1 :])
        (work / "store/lock.mdb").unlink(missing_ok=True)
        try:
            StartCheck(work, wait_s=600)
        except IndexStoreError:
            found += 1
        else:
            wrong += _dump(work) != whole
    shutil.rmtree(work)
    return {"failed": 0, "lost": 0, "wrong": wrong, "found": found, "harmless": flips - found - wrong}


def _dump(index: Path) -> str:
    """Digest of every record as LMDB reads it, in a process of its own, which a damaged page may end."""
    code = (
        "import hashlib, lmdb, sys\n"
        "e = lmdb.open(sys.argv[1], readonly=True, lock=False, max_dbs=64)\n"
        "t, h = e.begin(), hashlib.sha256()\n"
        "for name in [bytes(n) for n in t.cursor().iternext(values=False)]:\n"
        "    flags = dict(dupsort=True, dupfixed=True) if name.startswith(b'sids') else {}\n"
        "    for pair in t.cursor(db=e.open_db(name, txn=t, create=False, **flags)):\n"
        "        h.update(repr(pair).encode())\n"
        "print(h.hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code, index / "store"], capture_output=True, text=True)
    return done.stdout or f"{done.returncode} {done.stderr[-100:]}"


def _until(wanted: Callable[[], Any], *, timeout_s: float) -> Any:
    """The first value that is true, or the last one."""
    deadline = time.monotonic() + timeout_s
    while not (value := wanted()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def _problems(url: str) -> list[str]:
    return list(json.loads(ask(url, "GET", "/readyz")[1])["problems"])


def _gaps(url: str, stream: str) -> list[dict[str, Any]]:
    gaps = json.loads(ask(url, "GET", "/gaps")[1])["gaps"]
    return [gap for gap in gaps if gap["source"] == f"redis:{stream}" and gap["unseen"]]


def _metric(url: str, name: str) -> float:
    page = ask(url, "GET", "/metrics")[1].decode()
    found = re.search(rf"^gr4ad_indexer_{name} (.*)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _authorised(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _beside(url: str, work: list[Any], *, ad_id: int) -> tuple[float, dict[str, Any]]:
    began = time.monotonic()
    with Probe(url, ad_id=ad_id) as probe:
        threads = [threading.Thread(target=one) for one in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return round(time.monotonic() - began, 2), probe.figures()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
