"""Becomes a command that ends with its parent: `python child.py PARENT_PID COMMAND ...`.

A launcher that is killed must not leave a server without a watch behind, which holds the ports besides. Linux
sends SIGTERM to a process that asked for it when its parent dies; it has to ask by itself, between fork and
exec.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask, and become the command; does not return."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        sys.exit(f"child: prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died meanwhile
        sys.exit(f"child: expected the parent {parent}, got {os.getppid()}")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"child: {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
