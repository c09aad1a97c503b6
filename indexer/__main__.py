"""The index: `python -m indexer COMMAND`, each with --help."""

from __future__ import annotations

import argparse
import sys

from indexer.commands import ads, build, dead_letters, gaps, maintenance, serve, status
from serving.index.layout import IndexStoreError
from serving.model.bundle import BundleError


def main() -> None:
    """Command line."""
    given = sys.argv[1:]
    if not given or given[0] == "serve" or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        raise SystemExit(serve.main(given[1:] if given[:1] == ["serve"] else given))
    parser = argparse.ArgumentParser(prog="python -m indexer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="take ad events; what no command means, too")  # handled above
    for group in (build, ads, status, maintenance, dead_letters, gaps):
        group.add(commands)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except (BundleError, IndexStoreError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
