"""`python -m launcher`: see `launcher.command`."""

import signal
import sys

from launcher.signals import signals_held


def main() -> int:
    """Runs the command; Ctrl-C and SIGTERM end it in order, also in its first second. Its exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with signals_held():
            from launcher.command import main
        return main()
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 0


if __name__ == "__main__":
    sys.exit(main())
