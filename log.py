"""What goes to stderr: for the person who runs the server, never for a client, and never an obstacle."""

from __future__ import annotations

import sys

from config import SERVER_NAME


def say(line: str) -> None:
    """Write one line; a stderr that nobody reads any more is no reason to fail."""
    try:
        print(f"{SERVER_NAME}: {' '.join(line.split())}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def say_exception() -> None:
    """Write the traceback of the exception in hand."""
    import traceback  # only here: it should not be needed, and takes long to load

    try:
        traceback.print_exc(file=sys.stderr)
    except (OSError, ValueError):
        pass
