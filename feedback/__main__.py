"""Feedback: `python -m feedback COMMAND`, each with --help."""

from __future__ import annotations

import argparse
import sys

from feedback.commands import export, serve, status
from feedback.store.layout import FeedbackStoreError


def main() -> None:
    """Command line."""
    given = sys.argv[1:]
    if given[:1] == ["serve"]:
        raise SystemExit(serve.main(given[1:]))
    parser = argparse.ArgumentParser(prog="python -m feedback", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="take feedback and join it to what was served")  # handled above
    for group in (status, export):
        group.add(commands)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except (FeedbackStoreError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
