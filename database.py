"""The SQLite connection: how it is opened, how it writes, how long it waits. No table is named here.

Durability (design section 5): rollback journal in PERSIST mode with `synchronous=FULL`, every write in an
explicit BEGIN IMMEDIATE, committed only on success; what was committed survives `kill -9` and power loss.
Not WAL: below SQLite 3.51.3 two processes can corrupt a WAL file. Several processes share the file:
writers take turns (locks.py) and every lock is waited for in short, jittered pauses, because SQLite's
own busy handler lets some of them starve. Only SQLite opens the database file in this process: closing
any other descriptor on it would drop SQLite's POSIX locks.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from config import BUSY_SECONDS
from errors import Busy, StorageError, StoreFailure, ToolError
from locks import WriterTurns

Row = tuple[Any, ...]
Statement = tuple[str, Sequence[Any]]
T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 20e-6, 2e-3  # seconds between two attempts to get a lock
_TRY_LATER = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_NO_DATABASE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


class Database:
    """One connection to one database file, for all threads of this process.

    Threads take it in turns; rows are fetched whole, so that no cursor outlives a call.
    """

    def __init__(self, path: str, application_id: int, migrations: Sequence[Sequence[str]]) -> None:
        """Open the file and bring its schema up to date: `migrations[n]` leads from version n to n+1.

        Raises StoreFailure for a file that is damaged, not ours or newer than this program, and leaves
        it as it is. A file that cannot be written is opened all the same, for reading.
        """
        self._path = path
        self._application_id = application_id
        self._migrations = migrations
        self._turns = WriterTurns(path + ".lock")
        self._lock = threading.RLock()
        try:
            with self._errors_told():
                self._connection = sqlite3.connect(
                    path, timeout=0, isolation_level=None, check_same_thread=False
                )
                self._prepare()
        except ToolError as error:
            raise StoreFailure(f"{path}: {error.message}") from error

    def close(self) -> None:
        """Close the connection; waits for the transaction in hand."""
        with self._lock:
            self._connection.close()
            self._turns.close()

    @contextmanager
    def transaction(self, is_recorded: Callable[[], bool] | None = None) -> Iterator[None]:
        """One write, all or nothing: committed when the block ends well, rolled back otherwise.

        `is_recorded` reads back, after a commit of unknown outcome, whether it took place. Raises Busy
        after BUSY_SECONDS, StorageError when the disk refuses, StoreFailure when nothing can be
        promised any more.
        """
        deadline = time.monotonic() + BUSY_SECONDS
        with self._errors_told(), self._held(deadline), self._turns.turn(deadline):
            self._patiently(deadline, lambda: self.execute("BEGIN IMMEDIATE"))
            try:
                yield
                self._commit(deadline, is_recorded)
            except BaseException:
                if self._connection.in_transaction:
                    self.execute("ROLLBACK")
                raise

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        """Run a statement of the transaction in hand and return all its rows."""
        return self._connection.execute(statement, values).fetchall()

    def read(self, *statements: Statement, seconds: float = BUSY_SECONDS) -> list[list[Row]]:
        """Return the rows of each statement, all from one state of the database.

        Waits up to `seconds` for writers, then raises Busy; raises StorageError when the disk refuses.
        """
        deadline = time.monotonic() + seconds
        with self._errors_told(), self._held(deadline):
            return self._patiently(deadline, lambda: self._snapshot(statements))

    # --- Opening --------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        deadline = time.monotonic() + BUSY_SECONDS
        self._patiently(deadline, self._refuse_foreign_file)
        self._patiently(deadline, self._choose_durability)
        if self._patiently(deadline, self._schema_version) < len(self._migrations):
            with self.transaction():
                self._migrate()

    def _refuse_foreign_file(self) -> None:
        version, known = self._schema_version(), len(self._migrations)
        application_id = self._pragma("application_id")
        if version == 0 and application_id == 0:
            if self.execute("SELECT 1 FROM sqlite_master LIMIT 1"):
                raise StoreFailure(f"{self._path} is a database of another program")
        elif application_id != self._application_id:
            raise StoreFailure(f"{self._path} is a database of another program")
        elif version > known:
            raise StoreFailure(
                f"{self._path} has schema version {version}, this program knows {known}: "
                "it was made by a newer mcp-task-server"
            )

    def _choose_durability(self) -> None:
        mode = self._pragma("journal_mode")
        if mode != "wal":  # a WAL database is served as it is: others may have it open
            mode = self._pragma("journal_mode = PERSIST")
        self._connection.execute("PRAGMA synchronous = FULL")
        if mode not in ("persist", "wal") or self._pragma("synchronous") != 2:
            raise StoreFailure(f"{self._path}: the journal mode is {mode}, which is not durable")

    def _migrate(self) -> None:
        """Inside a transaction: another process may have migrated while this one waited for it."""
        version = self._schema_version()
        for statements in self._migrations[version:]:
            for statement in statements:
                self.execute(statement)
        self.execute(f"PRAGMA application_id = {self._application_id}")
        self.execute(f"PRAGMA user_version = {len(self._migrations)}")

    def _schema_version(self) -> int:
        version: int = self._pragma("user_version")
        return version

    def _pragma(self, pragma: str) -> Any:
        return self.execute(f"PRAGMA {pragma}")[0][0]

    # --- Transactions ---------------------------------------------------------------------------------

    def _commit(self, deadline: float, is_recorded: Callable[[], bool] | None) -> None:
        """Commit. A commit that failed may have happened all the same: read back before answering.

        After an I/O error nothing can be promised: a second fsync reports success for pages that the
        kernel has dropped. StoreFailure then ends the process.
        """
        try:
            self._patiently(deadline, lambda: self.execute("COMMIT"))
        except sqlite3.Error as error:
            if _primary_code(error) == sqlite3.SQLITE_IOERR:
                raise StoreFailure(f"{self._path}: input/output error in a commit") from error
            if self._connection.in_transaction:
                self.execute("ROLLBACK")
            if is_recorded is None or not is_recorded():
                raise

    def _snapshot(self, statements: Sequence[Statement]) -> list[list[Row]]:
        if len(statements) == 1:
            return [self.execute(*statements[0])]
        self.execute("BEGIN")
        try:
            return [self.execute(*statement) for statement in statements]
        finally:
            self.execute("COMMIT")

    # --- Waiting and errors ---------------------------------------------------------------------------

    @contextmanager
    def _held(self, deadline: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        try:
            yield
        finally:
            self._lock.release()

    def _patiently(self, deadline: float, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns, trying again while other processes hold the database."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return attempt()
            except sqlite3.OperationalError as error:
                if _primary_code(error) not in _TRY_LATER or time.monotonic() >= deadline:
                    raise
            time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 (jitter, not a secret)
            pause = min(2 * pause, _LONGEST_PAUSE)

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        """Turn what SQLite and the locks raise into what an agent can act on."""
        try:
            yield
        except TimeoutError:
            raise _busy() from None
        except sqlite3.Error as error:
            code = _primary_code(error)
            if code in _TRY_LATER:
                raise _busy() from error
            raise StorageError(
                _REASONS.get(code, f"The database reports: {error}."),
                "Nothing was changed. Tell the user that the task database needs attention; once it "
                "is mended, the same call can be repeated.",
            ) from error


_REASONS = {
    sqlite3.SQLITE_FULL: "The disk is full.",
    sqlite3.SQLITE_READONLY: "The database is read-only.",
    sqlite3.SQLITE_CANTOPEN: "The database or its journal cannot be opened.",
    sqlite3.SQLITE_IOERR: "The disk reports an input/output error.",
    sqlite3.SQLITE_CORRUPT: "The database is damaged.",
    sqlite3.SQLITE_NOTADB: "The file is not a database.",
}


def _busy() -> Busy:
    return Busy(
        f"Other writers kept the database busy for {BUSY_SECONDS:.0f} seconds.",
        "Nothing was changed. Call again: repeating a call is always safe.",
    )


def _primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code: the low byte of the extended one; 0 where there is none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
