"""The program: ``python -m prefold``, and the console script ``prefold``."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the program on the arguments of this process and gives its exit code."""
    import os
    import signal

    from prefold import _native

    # The program handles signals itself, as it does without an interpreter around it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _native.main(["prefold", *map(os.fspath, sys.argv[1:])])


if __name__ == "__main__":
    sys.exit(main())
