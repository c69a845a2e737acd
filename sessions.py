"""Whether an agent's session still lives, without heartbeats: the connection is the heartbeat.

Each process holds an operating-system lock on a small file of its own for as long as it lives; the kernel
releases it even on `kill -9`. Names are random and never used again, so neither a process id that was
given out twice nor a file left behind nor a copied database can make a dead session look alive. The files
lie in a folder beside the database; the database itself is never touched.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from locks import fcntl

FOLDER_SUFFIX = ".sessions"  # of the database's path: where its lock files are


class Caller(NamedTuple):
    """Who calls: an agent's name, and the session it calls through.

    `session_id` is None where calls have no connection (/mcp): then the agent's last call counts.
    `is_gone` tells whether the connection has ended meanwhile.
    """

    agent: str
    session_id: str | None
    is_gone: Callable[[], bool] = lambda: False


class ProcessLocks:
    """The lock files of all processes on one database, and the one of this process."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._guard = threading.Lock()
        self._own: tuple[str, int] | None = None

    def own_name(self) -> str | None:
        """Return the name of this process's lock file, made and locked at the first call.

        It is made again if somebody has removed it meanwhile. None where the platform has no such locks
        or the folder takes no files: the idle rule serves.
        """
        with self._guard:
            if self._own is not None and os.fstat(self._own[1]).st_nlink == 0:
                os.close(self._own[1])
                self._own = None
            if self._own is None and fcntl is not None:
                self._own = self._acquire()
                self._sweep()
            return None if self._own is None else self._own[0]

    def is_held(self, name: str) -> bool:
        """Return whether the process that made lock file `name` is alive."""
        if self._own is not None and self._own[0] == name:
            return True
        return self._probe(name, lambda: None)

    def release(self) -> None:
        """Let go, as the kernel does when the process dies, and leave no file behind."""
        with self._guard:
            if self._own is not None:
                name, file = self._own
                self._own = None
                _unlink(self._path(name))
                os.close(file)

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _acquire(self) -> tuple[str, int] | None:
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            while True:
                name = os.urandom(8).hex()
                file = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file).st_nlink:
                    return name, file
                os.close(file)  # somebody's sweep took it for a dead one before it was locked
        except OSError:
            return None

    def _probe(self, name: str, if_dead: Callable[[], None]) -> bool:
        """Return whether `name` is locked; if it is not, run `if_dead` while nobody can lock it."""
        try:
            file = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            # A shared lock, so that two who ask at the same moment do not see each other.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if_dead()
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(file)
        return False

    def _sweep(self) -> None:
        """Remove the files that dead processes left behind: a missing file says the same."""
        try:
            found = os.listdir(self._folder)
        except OSError:
            return
        for name in found:
            if self._own is None or name != self._own[0]:
                self._probe(name, lambda name=name: _unlink(self._path(name)))  # type: ignore[misc]


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # somebody else was faster
