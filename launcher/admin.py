"""The command `python -m launcher.admin`: looks after the models of the server that a run file describes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.run_file import DEFAULT_RUN_FILE, RunFile
from launcher.server_files import ServerError
from launcher.triton_admin import Admin


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0 fine, 1 the server refused or is not there)."""
    parser = argparse.ArgumentParser(
        prog="python -m launcher.admin", description="Looks after the models of a running server."
    )
    add = parser.add_argument
    add("--run-file", type=Path, default=DEFAULT_RUN_FILE, help="what the launcher wrote [%(default)s]")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("models", help="every model, its versions and their states")
    text = "loads new versions; without names, of every model that serves all of its versions side by side"
    commands.add_parser("load", help=text).add_argument("model", nargs="*")
    commands.add_parser("unload", help="unloads models").add_argument("model", nargs="+")
    options = parser.parse_args(arguments)
    try:
        run = RunFile.read(options.run_file)
        with Admin(run.grpc_url, key=run.key) as admin:
            if options.command == "models":
                for version in admin.versions():
                    print(f"{version.model:<24} {version.version:>6}  {version.state:<12} {version.reason}")
                return 0
            models = options.model or admin.side_by_side()
            for model in models:
                (admin.load if options.command == "load" else admin.unload)(model)
                print(f"{model}: {options.command}ed", flush=True)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
