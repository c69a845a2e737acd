"""Turns for writers: an advisory lock on a small file beside the database.

SQLite's own busy handler lets writers starve for seconds; with turns, four busy processes wait some
milliseconds. The lock orders writers, and its file tells whether the latest was cut short in its turn. The
database is safe without the order, so where there is no `flock`, or no place for the file, there is simply no
turn to wait for; each writer then takes the one before for cut short.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

try:
    import fcntl as fcntl  # for sessions.py too
except ImportError:  # no flock on this platform
    fcntl = None  # type: ignore[assignment]

_SOON_SECONDS, _PAUSE_SECONDS = 20e-3, 100e-6
_NEXT_BYTE = 1  # of the lock file: locked by whoever is next
_BEGUN, _THROUGH = b"1", b"0"  # what the lock file says of the latest turn


class WriterTurns:
    """The turns of all processes that write to one database. Used by one thread at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._waiter: _Waiter | None = None

    @contextmanager
    def turn(self, deadline: float) -> Iterator[bool]:
        """Hold the turn inside the block; raises TimeoutError after `deadline` (time.monotonic).

        Yields whether the turn before this one may have been cut short: its holder says in the file when
        it begins and when it is through. That outlives the process. It need not outlive the power, since
        nothing that was unsynced does.
        """
        held = self._take(deadline)
        try:
            if held is None:
                yield True
            else:
                was_cut_short = os.pread(held, 1, 0) == _BEGUN
                _say(held, _BEGUN)
                yield was_cut_short
                _say(held, _THROUGH)
        finally:
            if held is not None:
                fcntl.flock(held, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give back the file descriptor."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _take(self, deadline: float) -> int | None:
        """Return the descriptor that holds the lock; None where there is no such lock."""
        if self._file is None:
            self._file = self._open()
        if self._file is None:
            return None
        if self._waiter is None or not self._waiter.is_taken_up():
            try:
                if _taken_soon(self._file):
                    return self._file
            except OSError:
                return None  # a filesystem without locks
            self._waiter = _Waiter(self._file)
        return self._wait(self._file, self._waiter, deadline)

    def _open(self) -> int | None:
        if fcntl is None:
            return None
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None

    def _wait(self, file: int, waiter: _Waiter, deadline: float) -> int:
        """Wait in line. flock has no time limit of its own, so a thread stands there in our place.

        When time runs out the thread goes on waiting, and is taken up by the next turn.
        """
        if not waiter.granted.wait(max(0.0, deadline - time.monotonic())) and waiter.is_abandoned():
            raise TimeoutError
        self._waiter = None
        return file


def _taken_soon(file: int) -> bool:
    """Try for some milliseconds to get the lock; returns whether it was had.

    Most turns are over by then, and a thread that waits in line would take longer to begin and to be heard.
    Whoever is next holds a second lock meanwhile, which all others must get first: else the one whose turn
    has just ended would often be the first to ask again.
    """
    line_up_at = time.monotonic() + _SOON_SECONDS
    is_next = False
    try:
        while True:
            try:
                if not is_next:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _NEXT_BYTE)
                    is_next = True
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= line_up_at:
                    return False
                time.sleep(_PAUSE_SECONDS)
            else:
                return True
    finally:
        if is_next:
            fcntl.lockf(file, fcntl.LOCK_UN, 1, _NEXT_BYTE)


def _say(file: int, what: bytes) -> None:
    with suppress(OSError):  # no room: then nothing can be committed either
        os.pwrite(file, what, 0)


def sync_left_file(path: str) -> None:
    """Make durable what another process has written to a file, if it is there; raises OSError."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(file)
    finally:
        os.close(file)


class _Waiter:
    """A thread that waits for the lock. Left alone, it gives the lock back as soon as it has it."""

    def __init__(self, file: int) -> None:
        self.granted = threading.Event()
        self._file = file
        self._guard = threading.Lock()
        self._is_wanted = True
        self._has_ended = False
        threading.Thread(target=self._run, name="writer-turn", daemon=True).start()

    def is_abandoned(self) -> bool:
        """Stop wanting the lock; False if it has come all the same, and is held."""
        with self._guard:
            self._is_wanted = self.granted.is_set()
            return not self._is_wanted

    def is_taken_up(self) -> bool:
        """Want the lock again; False if the thread has ended meanwhile."""
        with self._guard:
            self._is_wanted = not self._has_ended
            return self._is_wanted

    def _run(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError:
            pass  # closed meanwhile
        with self._guard:
            self._has_ended = True
            if self._is_wanted:
                self.granted.set()
            else:
                with suppress(OSError):  # closed meanwhile, which gives it back too
                    fcntl.flock(self._file, fcntl.LOCK_UN)
