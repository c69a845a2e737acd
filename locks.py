"""Turns for writers: an advisory lock on a small file beside the database.

SQLite's own busy handler lets writers starve for seconds; with turns, four busy processes wait about a
millisecond (design section 5). The lock only orders writers: the database is safe without it, so where
there is no `flock`, or no place for the file, there is simply no turn to wait for.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

try:
    import fcntl
except ImportError:  # no flock on this platform
    fcntl = None  # type: ignore[assignment]


class WriterTurns:
    """The turns of all processes that write to one database. Used by one thread at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None

    @contextmanager
    def turn(self, deadline: float) -> Iterator[None]:
        """Hold the turn inside the block; raises TimeoutError after `deadline` (time.monotonic)."""
        held = self._take(deadline)
        try:
            yield
        finally:
            if held is not None:
                fcntl.flock(held, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give back the file descriptor."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _take(self, deadline: float) -> int | None:
        if self._file is None:
            self._file = self._open()
        if self._file is None:
            return None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file = self._wait(self._file, deadline)
        return self._file

    def _open(self) -> int | None:
        if fcntl is None:
            return None
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None

    def _wait(self, file: int, deadline: float) -> int | None:
        """Wait in line, and return the descriptor that holds the lock.

        flock has no time limit of its own, so a thread waits in its place. When time runs out the
        thread and its descriptor are left behind, and the next turn opens another one.
        """
        waiter = _Waiter(file)
        waiter.start()
        if waiter.granted.wait(max(0.0, deadline - time.monotonic())):
            return file
        if waiter.abandon():
            self._file = None
            raise TimeoutError
        return file


class _Waiter(threading.Thread):
    def __init__(self, file: int) -> None:
        super().__init__(daemon=True)
        self.granted = threading.Event()
        self._file = file
        self._verdict = threading.Lock()  # taken once: by whoever is first, the lock or the timeout

    def run(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        if self._verdict.acquire(blocking=False):
            self.granted.set()
        else:
            os.close(self._file)

    def abandon(self) -> bool:
        """Return True if the lock did not come in time; the thread then closes the descriptor."""
        return self._verdict.acquire(blocking=False)
