"""Draws docs/images/console.png: the console's page, in a headless Chromium, showing a recording.

python -m docs.console_picture       (or make console-picture)
"""

from __future__ import annotations

import argparse
from pathlib import Path

from console.feeds import Replay
from console.watch import Watch
from tests.browser import chromium
from tests.console_server import ROOT, running

FILM = ROOT / "console" / "films" / "spike.jsonl.xz"
IMAGES = ROOT / "docs" / "images"


def draw(url: str, file: Path, *, ask: bool, width: int = 1280) -> None:
    """Write a picture of a console.

    Args:
        url: where it is.
        file: PNG.
        ask: of one request, which the server is asked for; else of everything above it.
        width: of the window, pixels.
    """
    with chromium() as page:
        page.resize(width, 1000)
        page.open(url)
        page.wait_for("document.querySelectorAll('#versions li').length", what="figures")
        for _ in range(2 * ask):  # the first one after a start takes longer
            page.evaluate("document.getElementById('answer').replaceChildren()")
            page.evaluate("document.querySelector('#ask button').click()")
            page.wait_for("document.querySelectorAll('.ads li').length", what="an answer")
        if ask:
            page.evaluate(
                "document.querySelectorAll('header, section:not(#request)').forEach((e) => e.remove())"
            )
        height = page.evaluate("Math.ceil(document.querySelector('main').getBoundingClientRect().bottom)")
        page.resize(width, height)
        page.wait_for("new Promise((done) => setTimeout(() => done(true), 500))", what="charts of that size")
        page.screenshot(file)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="of a console with a run folder: draw one request of it instead")
    arguments = parser.parse_args()
    if arguments.url:
        draw(arguments.url, IMAGES / "console-request.png", ask=True)
        return
    with running(replay=True) as console, Watch(console.board, Replay(FILM, speed=1e6)):
        draw(console.url, IMAGES / "console.png", ask=False)


if __name__ == "__main__":
    main()
