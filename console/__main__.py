"""The command `python -m console`: one page that shows a running deployment live."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from console.reading import Feed

TOKEN, INDEXER_TOKEN = "GR4AD_CONSOLE_TOKEN", "GR4AD_INDEXER_TOKEN"
_EPILOG = f"""examples:
  python -m console                                   of `make serve`, on http://127.0.0.1:8030
  python -m console --record build/console.jsonl.xz   and keep what it reads
  python -m console --replay build/console.jsonl.xz   play that back, without a server
  GR4AD_CONSOLE_TOKEN=... python -m console           with actions, for those who have the token

environment: {TOKEN} (token of those who act), {INDEXER_TOKEN} (the sidecar's, for events of ads)
"""


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = argparse.ArgumentParser(
        prog="python -m console",
        description="Shows a running deployment on one page: rates, times against the SLO, beams, rejects, "
        "index, model versions, one request unfolded. It only reads, unless it has a token. Ctrl-C ends it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--host", default="127.0.0.1", help="address to listen on [127.0.0.1]")
    add("--port", type=int, default=8030, help="0 for any free one [8030]")
    add("--name", action="append", default=[], help="name in Host that is this service's; repeat [addresses]")
    add("--hz", type=float, default=2.0, help="looks a second, 2 to 5 [2]")
    add("--token-file", type=Path, help=f"file with the token of those who act [${TOKEN}]")
    sources = made.add_argument_group("sources")
    add = sources.add_argument
    add("--run", type=Path, default=Path("build/demo"), help="run folder that is served [build/demo]")
    add("--url", default="127.0.0.1:8001", help="gRPC of the server [127.0.0.1:8001]")
    add("--metrics-url", default="http://127.0.0.1:8002/metrics", help="its metrics page [%(default)s]")
    add("--indexer", default="http://127.0.0.1:8010", help="the index sidecar, or none [%(default)s]")
    recording = made.add_argument_group("recordings")
    add = recording.add_argument
    add("--record", type=Path, metavar="FILE", help="write what is read (.xz)")
    add("--replay", type=Path, metavar="FILE", help="show a recording instead of a deployment")
    add("--speed", type=float, default=1.0, help="how fast to play it [1]")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (0 stopped, 1 failed, 2 wrong options)."""
    made = parser()
    options = made.parse_args(arguments)
    if not 2 <= options.hz <= 5:
        made.error(f"--hz: expected 2 to 5, got {options.hz:g}")
    if not options.speed > 0:
        made.error(f"--speed: expected more than 0, got {options.speed:g}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # SIGTERM ends like Ctrl-C, so that it stops the service in order also while that is still starting.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _serve(options, made)
    except KeyboardInterrupt:
        pass
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)
    print("stopped", flush=True)
    return 0


def _serve(options: argparse.Namespace, made: argparse.ArgumentParser) -> None:
    from console.actions import Actions  # these take a second to import; --help need not wait for it
    from console.app import HEALTH, Console, create_app
    from console.ask import Asker
    from console.board import Board
    from console.guard import Guard
    from console.watch import Watch
    from web.answers import error_body
    from web.connections import ConnectionLimits, Connections
    from web.server import bind, listen, serve
    from web.tokens import read_token

    try:
        token = read_token(options.token_file, variable=TOKEN)
    except ValueError as error:
        made.error(str(error))
    indexer = None if options.indexer == "none" else options.indexer.rstrip("/")
    run = options.run if options.replay is None and options.run.is_dir() else None
    bundles = run and run / "bundles"
    actions = Actions()
    if options.replay is None:
        actions = Actions(
            indexer=indexer,
            indexer_token=os.environ.get(INDEXER_TOKEN),
            bundles=bundles,
            load=run and ["--run", str(run), "--url", options.url, "--metrics-url", options.metrics_url],
        )
    connections = Connections(ConnectionLimits(), body_of=error_body, health=HEALTH)
    board = Board(stopping=lambda: connections.draining_since is not None)
    app = create_app(
        Console(
            board=board,
            guard=Guard(options.host, token=token, names=frozenset(options.name)),
            actions=actions,
            asker=run and Asker(run, url=options.url),
            replay=options.replay is not None,
        )
    )
    with bind(options.host, options.port) as listener, Watch(board, _feed(options, indexer, run)):
        url = listen(listener)
        print(f"console on {url} (pid {os.getpid()}), {'with' if token else 'without'} actions", flush=True)
        try:
            serve(app, listener, connections=connections, grace_s=3.0)
        finally:
            actions.close()


def _feed(options: argparse.Namespace, indexer: str | None, run: Path | None) -> Feed:
    from console.feeds import LiveFeed, Recorded, Replay
    from console.reading import INDEXER, SERVER

    if options.replay is not None:
        return Replay(options.replay, speed=options.speed)
    urls = {SERVER: options.metrics_url} | ({INDEXER: f"{indexer}/metrics"} if indexer else {})
    live = LiveFeed(urls, bundles=run and run / "bundles", hz=options.hz, run=run)
    return live if options.record is None else Recorded(live, options.record)


if __name__ == "__main__":
    sys.exit(main())
