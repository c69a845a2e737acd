"""The SQLite connection: how it is opened, how it writes, how long it waits. No table is named here.

Durability: rollback journal in PERSIST mode with `synchronous=FULL`, every write in an
explicit BEGIN IMMEDIATE, committed only on success; what was committed survives `kill -9` and power loss.
Not WAL: below SQLite 3.51.3 two processes can corrupt a WAL file. Several processes share the file:
writers take turns (locks.py) and every lock is waited for in short, jittered pauses, because SQLite's
own busy handler lets some of them starve. Only SQLite opens the database file in this process: closing
any other descriptor on it would drop SQLite's POSIX locks. Before and after each write, and before each
read, the path must still name the file that is open: nothing is acknowledged that only an unlinked file has.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any, NoReturn, Protocol, TypeVar
from urllib.parse import quote

from config import BUSY_SECONDS, CLOSE_SECONDS
from errors import Alone, Busy, StorageError, StoreBusy, StoreFailure, ToolError
from locks import WriterTurns, sync_left_file
from log import say

Row = tuple[Any, ...]
Statement = tuple[str, Sequence[Any]]
T = TypeVar("T")
_IsRecorded = Callable[[], bool]  # reads back whether a commit of unknown outcome took place

_FIRST_PAUSE, _LONGEST_PAUSE = 20e-6, 2e-3  # seconds between two attempts to get a lock
_GROUP_SECONDS = 0.25  # a group waits this long for others, in all; then its calls are made one by one
_TRY_LATER = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class _Lock(Protocol):
    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...
    def release(self) -> None: ...


class DatabaseDamaged(StoreFailure):
    """The file is damaged, or no database at all."""


class Database:
    """One connection to one database file, for all threads of this process.

    Threads take it in turns; rows are fetched whole, so that no cursor outlives a call.
    """

    def __init__(
        self,
        path: str,
        application_id: int,
        migrations: Sequence[Sequence[str]],
        patience: float | None = None,
    ) -> None:
        """Open the file and bring its schema up to date: `migrations[n]` leads from version n to n+1.

        Raises StoreBusy if other writers keep it for `patience` seconds, BUSY_SECONDS by default, and
        StoreFailure for a file that is damaged, not ours or newer than this program, and leaves it as it
        is. A file that cannot be written is opened all the same, for reading.
        """
        self._path = path
        self._application_id = application_id
        self._migrations = migrations
        self._patience = patience  # None: BUSY_SECONDS
        self._turns = WriterTurns(path + ".lock")
        self._writer = threading.Lock()  # held by the thread whose transaction it is, or will be
        self._lock = threading.RLock()  # held by whoever uses the connection
        self._inode: tuple[int, int] | None = None  # with the device: of the file that is open, once known
        self._has_failed = False
        self._is_open = False
        self._commits = 0  # of ours; SQLite's own count of changes has those of temporary tables, too
        self._errors_told = _ErrorsTold(self._tell, self._tell_busy)
        self._groups: dict[int, _Group] = {}  # of transactions that are committed together, by thread
        with self._opening():
            self._connection = self._connect()
        try:
            with self._opening():
                self._prepare()
        except BaseException:
            self.close()
            raise
        self._patience = None
        self._is_open = True

    def close(self) -> None:
        """Close the connection after the statement in hand; one that does not end is left to the system."""
        self._is_open = False  # who still reads is told so, and it is nothing to say
        deadline = time.monotonic() + CLOSE_SECONDS
        is_turn_free = self._writer.acquire(timeout=CLOSE_SECONDS)
        if self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            self._connection.close()
            self._lock.release()
        if is_turn_free:
            self._turns.close()
            self._writer.release()

    def transaction(self, is_recorded: _IsRecorded | None = None) -> AbstractContextManager[None]:
        """One write, all or nothing: committed when the block ends well, rolled back otherwise.

        `is_recorded` reads back, after a commit of unknown outcome, whether it took place. Raises Busy
        after BUSY_SECONDS, StorageError when the disk refuses, StoreFailure when nothing can be
        promised any more.

        Inside `together` it is a part of the group: undone alone if the block raises, else committed with
        the others. Raises Alone there if the group is lost, or has no time to wait.
        """
        group = self._own_group()
        return self._transaction(self._deadline(), is_recorded) if group is None else group.part(is_recorded)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Group commit: commit all transactions of this thread inside the block as one, when it ends.

        One that raises is undone alone. Nothing read or written in the block may be told before it has
        ended. Raises Alone if the group could not begin in _GROUP_SECONDS, was undone, or could not be
        committed: nothing is changed then.
        """
        group = self._groups[threading.get_ident()] = _Group(self._transaction, self._savepoint)
        try:
            with group.whole():
                yield
        except ToolError as error:
            raise Alone from error
        finally:
            del self._groups[threading.get_ident()]

    def require_alone(self) -> None:
        """Raise Alone inside a block of `together`: before what takes long, or tells others of a change."""
        if self._own_group() is not None:
            raise Alone

    @contextmanager
    def _transaction(self, deadline: float, is_recorded: _IsRecorded | None) -> Iterator[None]:
        turn = self._turns.turn(deadline)
        with self._errors_told, _Held(self._writer, deadline), turn as was_cut_short:
            if was_cut_short:
                self._sync_journal()
            # Until it begins nothing holds the connection: others may read while this one waits.
            self._patiently(deadline, lambda: self._begin(deadline))
            try:
                self._require_in_place()
                self._require_own_version()
                yield
                self._commit(deadline, is_recorded)
            except BaseException:
                if self._connection.in_transaction and not self._has_failed:
                    self.execute("ROLLBACK")
                raise
            finally:
                self._lock.release()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        """Run a statement of the transaction in hand and return all its rows."""
        if self._has_failed:
            raise StoreFailure(f"{self._path}: the database failed before")
        return self._connection.execute(statement, values).fetchall()

    def read(self, *statements: Statement) -> list[list[Row]]:
        """Return the rows of each statement, all from one state of the database.

        Waits up to BUSY_SECONDS for writers, then raises Busy; raises StorageError when the disk refuses.
        """
        deadline = self._deadline()
        with self._errors_told:
            self._require_in_place()
            return self._patiently(deadline, lambda: self._snapshot(statements, deadline))

    def fetch(self, statement: str, values: Sequence[Any] = (), seconds: float | None = None) -> list[Row]:
        """Return the rows of one statement, which needs no transaction; in `together` it sees its changes.

        Waits up to `seconds` for writers, BUSY_SECONDS by default, and raises as read does.
        """
        deadline = self._deadline() if seconds is None else time.monotonic() + seconds
        with self._errors_told:
            self._require_in_place()
            return self._patiently(deadline, lambda: self._fetch_once(statement, values, deadline))

    def change_marker(self) -> tuple[int, int]:
        """Return a value that differs after any process has committed a change; costs next to nothing.

        SQLite's data_version tells of the others, a count of our own of ourselves.
        """
        [(version,)] = self.fetch("PRAGMA data_version")
        return version, self._commits

    # --- Opening --------------------------------------------------------------------------------------

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """Turn what an agent would be told into the line that ends a process: nobody has called yet."""
        try:
            with self._errors_told:
                yield
        except ToolError as error:
            kind = StoreBusy if isinstance(error, Busy) else StoreFailure
            raise kind(f"{self._path}: {error.message}") from error

    def _connect(self) -> sqlite3.Connection:
        if os.path.exists(self._path + "-wal"):
            # Closing it would fold the log into the file. Look first, in a way that changes neither.
            with closing(_look_at(self._path, "ro")) as looking:
                self._judge(self._identity_of(looking))
        return sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)

    def _identity_of(self, looking: sqlite3.Connection) -> list[list[Row]]:
        deadline = self._deadline()
        return self._patiently(deadline, lambda: [looking.execute(text).fetchall() for text, _ in _IDENTITY])

    def _prepare(self) -> None:
        deadline = self._deadline()
        self._judge(self.read(*_IDENTITY))
        self._inode = _inode_at(self._path)  # not before: SQLite opens the file with the first statement
        self._patiently(deadline, self._choose_durability)
        self.execute("PRAGMA temp_store = MEMORY")  # what a query gathers needs no file
        if self._patiently(deadline, self._schema_version) < len(self._migrations):
            with self.transaction():
                self._migrate()

    def _judge(self, identity: list[list[Row]]) -> None:
        """Raise StoreFailure unless the file is ours, or empty; `identity` is what _IDENTITY returned."""
        version, application_id = identity[0][0][0], identity[1][0][0]
        is_empty = not identity[2]
        if application_id != self._application_id and not (is_empty and application_id == version == 0):
            raise StoreFailure(f"{self._path} is a database of another program")
        if version > len(self._migrations):
            raise StoreFailure(
                f"{self._path} has schema version {version}, this program knows {len(self._migrations)}: "
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
        """Inside a transaction: another process may have made the file into what it is meanwhile."""
        self._judge([self.execute(*statement) for statement in _IDENTITY])
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

    # --- Groups of transactions -----------------------------------------------------------------------

    def _own_group(self) -> _Group | None:
        return self._groups.get(threading.get_ident()) if self._groups else None

    @contextmanager
    def _savepoint(self, on_lost: Callable[[], None]) -> Iterator[None]:
        """Undo what the block does if it raises; calls `on_lost` if the whole transaction is gone then."""
        with self._errors_told:
            self.execute("SAVEPOINT part")
            try:
                yield
            except BaseException:
                if self._has_failed or not self._connection.in_transaction:  # as when the disk is full
                    on_lost()
                else:
                    self._undo_part(on_lost)
                raise
            try:
                self.execute("RELEASE part")
            except BaseException:
                on_lost()  # what is refused must not be committed with the others
                raise

    def _undo_part(self, on_lost: Callable[[], None]) -> None:
        try:
            self.execute("ROLLBACK TO part")
            self.execute("RELEASE part")
        except BaseException:
            on_lost()
            raise

    # --- Transactions ---------------------------------------------------------------------------------

    def _commit(self, deadline: float, is_recorded: _IsRecorded | None) -> None:
        """Commit. A commit that failed may have happened all the same: read back before answering.

        After an I/O error nothing can be promised: a second fsync reports success for pages that the
        kernel has dropped. StoreFailure then ends the process.
        """
        try:
            self._patiently(deadline, lambda: self.execute("COMMIT"))
        except sqlite3.Error as error:
            if _primary_code(error) == sqlite3.SQLITE_IOERR:
                self._fail(f"input/output error ({error})", error)
            if self._connection.in_transaction:
                self.execute("ROLLBACK")
            if is_recorded is None or not self._patiently(deadline, is_recorded):
                raise
        if self._inode is not None and self._inode != _inode_at(self._path):
            self._fail("the database was moved or replaced during a write")
        self._commits += 1

    def _require_in_place(self) -> None:
        """Refuse to go on with a file that the path no longer names.

        A file that is put back is served again. With another one in its place there are two truths, and
        only a new start can choose between them.
        """
        found = _inode_at(self._path)
        if self._inode is None or found == self._inode:
            return
        if found is not None:
            self._fail("another file has taken the place of the database")
        raise StorageError(
            "The database file has been moved or deleted.",
            "Nothing was changed. Tell the user to put the file back; then repeat the call.",
        )

    def _sync_journal(self) -> None:
        """Make durable what a writer that was killed left unsynced: maybe the mark that it had committed.

        SQLite takes the mark for granted. Others would acknowledge what a loss of power can still undo,
        and write over a journal that could then be played back by half.
        """
        try:
            for suffix in ("-journal", "-wal"):
                sync_left_file(self._path + suffix)
        except OSError as error:
            self._fail(f"input/output error ({error.strerror})")

    def _require_own_version(self) -> None:
        """Stop before writing to what was emptied, or migrated by a newer program, since it was opened."""
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if self._is_open and version != len(self._migrations):
            self._fail("the database was emptied, or made newer, by another program")

    def _begin(self, deadline: float) -> None:
        """Begin, and keep the connection; gives it back if that fails."""
        _acquire(self._lock, deadline)
        try:
            self.execute("BEGIN IMMEDIATE")
        except BaseException:
            self._lock.release()
            raise

    def _fetch_once(self, statement: str, values: Sequence[Any], deadline: float) -> list[Row]:
        _acquire(self._lock, deadline)
        try:
            return self.execute(statement, values)
        finally:
            self._lock.release()

    def _snapshot(self, statements: Sequence[Statement], deadline: float) -> list[list[Row]]:
        with _Held(self._lock, deadline):
            if self._connection.in_transaction:  # of `together`: whoever holds the lock has begun it
                return [self.execute(*statement) for statement in statements]
            self.execute("BEGIN")
            try:
                return [self.execute(*statement) for statement in statements]
            finally:
                if self._connection.in_transaction:
                    self.execute("COMMIT")

    def _fail(self, reason: str, error: sqlite3.Error | None = None) -> NoReturn:
        """Nobody else is to be answered either: what they would hear cannot be relied on."""
        self._has_failed = True
        raise StoreFailure(f"{self._path}: {reason}") from error

    # --- Waiting and errors ---------------------------------------------------------------------------

    def _deadline(self) -> float:
        if (group := self._own_group()) is not None:
            return group.deadline
        return time.monotonic() + (BUSY_SECONDS if self._patience is None else self._patience)

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

    def _tell_busy(self) -> NoReturn:
        self.require_alone()  # where there is more time to wait
        raise _busy() from None

    def _tell(self, error: sqlite3.Error) -> NoReturn:
        """Turn what SQLite raised into what an agent can act on, or into the end of the process."""
        code = _primary_code(error)
        if code in _TRY_LATER:
            self._tell_busy()
        if getattr(error, "sqlite_errorcode", 0) in _UNSYNCED:
            self._fail(f"input/output error ({error})", error)
        if code in _DAMAGED:
            self._has_failed = True
            raise DatabaseDamaged(f"{self._path}: {_DAMAGED[code]}") from error
        if self._is_open:  # else it ends the process, with one line of its own
            say(f"{self._path}: {error}")
        raise StorageError(
            _REASONS.get(code, "The database cannot carry this out."),
            "Nothing was changed. Tell the user that the task database needs attention; once it "
            "is mended, the same call can be repeated.",
        ) from error


class _ErrorsTold:
    """Has the errors of SQLite and of waiting told in its block. Written out, since every read passes it."""

    def __init__(self, tell: Callable[[sqlite3.Error], NoReturn], tell_busy: Callable[[], NoReturn]) -> None:
        self._tell = tell
        self._tell_busy = tell_busy

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TimeoutError):
            self._tell_busy()
        if isinstance(error, sqlite3.Error):
            self._tell(error)


class _Group:
    """The transactions of one thread that are committed together: parts of one, each with a savepoint."""

    def __init__(
        self,
        begin: Callable[[float, _IsRecorded], AbstractContextManager[None]],
        savepoint: Callable[[Callable[[], None]], AbstractContextManager[None]],
    ) -> None:
        self._begin = begin
        self._savepoint = savepoint
        self._stack = ExitStack()
        self.deadline = time.monotonic() + _GROUP_SECONDS  # for all its waits, those of its reads included
        self._are_recorded: list[_IsRecorded | None] = []  # of the parts
        self._has_begun = False
        self._is_lost = False  # SQLite has undone all of it, or it could not begin

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Commit what was begun when the block ends well; raises Alone if there is nothing left of it."""
        with self._stack:
            yield
            if self._is_lost:
                raise Alone

    def part(self, is_recorded: _IsRecorded | None) -> AbstractContextManager[None]:
        """Return a context that undoes what it holds, and only that, if it raises.

        The first one begins the group. Raises Alone once the group is lost. `is_recorded` is as in
        Database.transaction: after a commit of unknown outcome all parts are read back.
        """
        self._are_recorded.append(is_recorded)
        if not self._has_begun:
            self._has_begun = True
            try:
                self._stack.enter_context(self._begin(self.deadline, self._is_recorded))
            except (ToolError, Alone):  # each will find out for itself
                self._lose()
        if self._is_lost:
            raise Alone
        return self._savepoint(self._lose)

    def _is_recorded(self) -> bool:
        return all(is_recorded is not None and is_recorded() for is_recorded in self._are_recorded)

    def _lose(self) -> None:
        self._is_lost = True


class DatabaseCopy(Database):
    """One state of a database, copied while others write: to be kept, or to be looked at in peace.

    The original is read only. What a crash cut off in it is undone first, as by any server that reads it.
    """

    def __init__(
        self, path: str, application_id: int, migrations: Sequence[Sequence[str]], target: str = ""
    ) -> None:
        """Copy the file at `path` to `target`, durably, or to a file without a name that ends with us.

        Raises DatabaseDamaged, or StoreFailure for a file that is not ours, holds nothing yet or is newer
        than this program, and when writers or the disk do not let it be copied.
        """
        self._target = target
        super().__init__(path, application_id, migrations)

    def problems(self) -> list[str]:
        """Return what SQLite finds wrong with the structure of the file, one line each."""
        [structure, references] = self.read(("PRAGMA integrity_check", ()), ("PRAGMA foreign_key_check", ()))
        lines = [line for (text,) in structure for line in text.splitlines() if text != "ok"]
        return lines + [f"row {row[1]} of {row[0]} refers to no row of {row[2]}" for row in references]

    def _connect(self) -> sqlite3.Connection:
        """Copy in one step: one in several begins anew with each write of another, and may never end."""
        # With a write-ahead log, closing a connection that may write would fold the log into the file.
        mode = "ro" if os.path.exists(self._path + "-wal") else "rw"
        with closing(_look_at(self._path, mode)) as original:
            original.execute("BEGIN")
            self._judge(self._identity_of(original))
            copy = sqlite3.connect(self._target, timeout=0, isolation_level=None)
            try:
                copy.text_factory = lambda text: text.decode(errors="surrogateescape")  # damaged text, too
                copy.execute("PRAGMA synchronous = FULL")
                original.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")  # one file: also of a WAL database
            except BaseException:
                copy.close()
                raise
        return copy

    def _prepare(self) -> None:
        version = self._schema_version()
        if not version:
            raise StoreFailure(f"{self._path} holds no tasks yet: no server has used it")
        if version < len(self._migrations):  # the copy is brought up to date, the original stays as it is
            self.execute("BEGIN")
            self._migrate()
            self.execute("COMMIT")


# What tells whose file it is, and whether it is anybody's.
_IDENTITY: tuple[Statement, ...] = (
    ("PRAGMA user_version", ()),
    ("PRAGMA application_id", ()),
    ("SELECT 1 FROM sqlite_master LIMIT 1", ()),
)

# SQLite syncs not only in a commit: also when it rolls a dead writer back, or runs out of cache.
_UNSYNCED = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)

# More writes would make it worse.
_DAMAGED = {
    sqlite3.SQLITE_CORRUPT: "The database is damaged.",
    sqlite3.SQLITE_NOTADB: "The file is not a database.",
}

_REASONS = {
    sqlite3.SQLITE_FULL: "The disk is full.",
    sqlite3.SQLITE_READONLY: "The database is read-only.",
    sqlite3.SQLITE_CANTOPEN: "The database or its journal cannot be opened.",
    sqlite3.SQLITE_IOERR: "The disk reports an input/output error.",
}


def _look_at(path: str, mode: str) -> sqlite3.Connection:
    """Open a file that must exist; `mode` is `ro` or `rw`, as in SQLite's URIs."""
    uri = f"file:{quote(os.fsencode(path))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None)


def _inode_at(path: str) -> tuple[int, int] | None:
    """Return device and inode of the file at `path`; None if there is none, or none that we may see."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _busy() -> Busy:
    return Busy(
        f"Other writers kept the database busy for {BUSY_SECONDS:.0f} seconds.",
        "Nothing was changed. Call again: repeating a call is always safe.",
    )


def _acquire(lock: _Lock, deadline: float) -> None:
    if not lock.acquire(blocking=False) and not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
        raise TimeoutError


class _Held:
    """Holds a lock in its block; raises TimeoutError if it cannot be had before `deadline`."""

    __slots__ = ("_deadline", "_lock")

    def __init__(self, lock: _Lock, deadline: float) -> None:
        self._lock = lock
        self._deadline = deadline

    def __enter__(self) -> None:
        _acquire(self._lock, self._deadline)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code: the low byte of the extended one; 0 where there is none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
