"""The connection: durability, locks, waiting, and what a disk or another program may do to it."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import support
from support import (
    HttpServer,
    JsonObject,
    Process,
    StdioClient,
    opened_files,
    server_script,
    sse,
    stdio,
    wait_until,
)

import config
import database
import locks
import store as store_module
from config import SERVER_NAME
from database import Database
from errors import Busy, NotFound, StorageError, StoreFailure
from models import ClaimFilter, NewTask, Report, TaskFilter
from sessions import Caller
from store import Store
from tools import Workplace, call_tool

NOTES = [["CREATE TABLE notes (id INTEGER NOT NULL PRIMARY KEY, note TEXT NOT NULL)"]]
INSERT = "INSERT INTO notes (id, note) VALUES (?, ?)"
COUNT = ("SELECT count(*) FROM notes", ())
NEW = NewTask(task_id="t", title="Title", goal="Goal", repo_path=None, remaining_steps=[])
A = Caller("a", "session of a")
SHORT = 0.1  # seconds to wait for a lock that does not come


def open_notes(folder: Path) -> Database:
    """Open a database of one small table."""
    return Database(str(folder / "notes.db"), 7, NOTES)


def open_store(folder: Path) -> Store:
    """Open the store that a server with `environment(folder)` uses."""
    (folder / "artifacts").mkdir(exist_ok=True)
    return Store(str(folder / "tasks.db"), str(folder / "artifacts"))


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Database]:
    """Yield an open database of one small table."""
    opened = open_notes(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Yield an open store."""
    opened = open_store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for other writers for a moment only."""
    monkeypatch.setattr(database, "BUSY_SECONDS", SHORT)
    monkeypatch.setattr(Database.read, "__kwdefaults__", {"seconds": SHORT})
    monkeypatch.setattr(store_module, "HEALTH_SECONDS", SHORT)


@contextmanager
def outsider(path: Path, *statements: str) -> Iterator[sqlite3.Connection]:
    """Yield another program's connection, after it has executed `statements`."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        for statement in statements:
            connection.execute(statement).fetchall()
        yield connection
    finally:
        connection.close()


def integrity(path: Path) -> str:
    with outsider(path) as connection:
        verdict: str = connection.execute("PRAGMA integrity_check").fetchone()[0]
    return verdict


def set_hook(monkeypatch: pytest.MonkeyPatch, opened: Database, before: Callable[[str], None]) -> None:
    """Have `before` see every statement of `opened` first; it may raise in its place."""
    execute = opened.execute

    def hooked(statement: str, values: Sequence[Any] = ()) -> list[database.Row]:
        before(statement)
        return execute(statement, values)

    monkeypatch.setattr(opened, "execute", hooked)


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("simulated")
    error.sqlite_errorcode = code
    return error


def call(tool: str, workplace: Workplace, **arguments: Any) -> JsonObject:
    """Call a tool that must succeed; return its answer."""
    answer, is_refusal = call_tool(tool, arguments, workplace)
    assert not is_refusal, answer
    assert isinstance(answer, dict)
    return answer


def error_code(tool: str, workplace: Workplace, **arguments: Any) -> str:
    """Call a tool that must be refused; return the code."""
    answer, is_refusal = call_tool(tool, arguments, workplace)
    assert is_refusal, answer
    assert isinstance(answer, dict)
    code: str = answer["error"]["code"]
    return code


# --- Durability ---------------------------------------------------------------------------------------


def test_the_journal_persists_and_every_commit_is_synced(store: Store) -> None:
    """The store's own connection is in PERSIST mode with synchronous FULL."""
    assert store._db.read(("PRAGMA journal_mode", ()), ("PRAGMA synchronous", ())) == [[("persist",)], [(2,)]]


def test_a_commit_leaves_a_zeroed_journal_behind(tmp_path: Path) -> None:
    """Seen from outside: after an acknowledged write the journal is still there, and says nothing."""
    with stdio(tmp_path) as server:
        server.call("create_task", task_id="t", title="Title", goal="Goal")
        journal = (tmp_path / "tasks.db-journal").read_bytes()
    assert len(journal) > 512
    assert journal[:28] == bytes(28)
    assert not list(tmp_path.glob("tasks.db-wal")) + list(tmp_path.glob("tasks.db-shm"))


def test_a_wal_database_stays_one(tmp_path: Path) -> None:
    """A database that is in WAL mode already is served in it, with synchronous FULL."""
    open_store(tmp_path).close()
    with outsider(tmp_path / "tasks.db", "PRAGMA journal_mode = WAL"):
        pass
    store = open_store(tmp_path)
    store.create_task(NEW)
    assert store._db.read(("PRAGMA journal_mode", ()), ("PRAGMA synchronous", ())) == [[("wal",)], [(2,)]]
    with outsider(tmp_path / "tasks.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT task_id FROM tasks").fetchall() == [("t",)]
    assert store.get_task("t").version == 1
    store.close()


# --- Files that are not ours --------------------------------------------------------------------------


def make_garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(8192))


def make_text(path: Path) -> None:
    path.write_text("my notes\n")


def make_foreign(path: Path) -> None:
    with outsider(path, "CREATE TABLE bookmarks (url TEXT)", "INSERT INTO bookmarks VALUES ('x')"):
        pass


def make_claimed(path: Path) -> None:
    with outsider(path, "PRAGMA application_id = 1", "PRAGMA user_version = 1"):
        pass


def make_newer(path: Path) -> None:
    open_store(path.parent).close()
    with outsider(path, "PRAGMA user_version = 99"):
        pass


def make_damaged(path: Path) -> None:
    open_store(path.parent).close()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 1000)


def make_truncated(path: Path) -> None:
    open_store(path.parent).close()
    os.truncate(path, 8192)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_garbage, "The file is not a database."),
        (make_text, "The file is not a database."),
        (make_foreign, "is a database of another program"),
        (make_claimed, "is a database of another program"),
        (make_newer, "was made by a newer mcp-task-server"),
        (make_damaged, "The database is damaged."),
        (make_truncated, "The database is damaged."),
    ],
)
def test_a_file_that_is_not_ours_is_refused_and_untouched(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    """The server says in one line why it does not take the file, exits 1 and leaves every byte."""
    path = tmp_path / "tasks.db"
    make(path)
    before = path.read_bytes()
    for arguments in ((), ("--http", "--port", "0")):
        with Process(tmp_path, *arguments) as server:
            assert server.process.wait(support.PATIENCE) == 1
            line = server.stderr()
        assert line.startswith(f"{SERVER_NAME}: ")
        assert reason in line
        assert line.count("\n") == 1
    assert path.read_bytes() == before


FOREIGN_WAL = """
import os, sqlite3
connection = sqlite3.connect("tasks.db")
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("CREATE TABLE bookmarks (url)")
connection.commit()
os._exit(0)
"""


def test_a_foreign_write_ahead_log_is_left_untouched(tmp_path: Path) -> None:
    """Another program's database, all of it still in the log of its crash, is refused and stays as it is."""
    subprocess.run([sys.executable, "-c", FOREIGN_WAL], cwd=tmp_path, check=True)
    before = {name: (tmp_path / name).read_bytes() for name in ("tasks.db", "tasks.db-wal")}
    assert len(before["tasks.db-wal"]) > 4096
    with Process(tmp_path) as server:
        assert server.process.wait(support.PATIENCE) == 1
        assert "is a database of another program" in server.stderr()
    assert {name: (tmp_path / name).read_bytes() for name in before if (tmp_path / name).exists()} == before


def test_an_empty_file_is_taken(tmp_path: Path) -> None:
    """An empty file, as `mktemp` or an interrupted first start leave it, becomes the database."""
    (tmp_path / "tasks.db").touch()
    with stdio(tmp_path) as server:
        server.call("create_task", task_id="t", title="Title", goal="Goal")
        assert server.close() == 0
    assert integrity(tmp_path / "tasks.db") == "ok"


def test_an_unusable_path_is_refused(tmp_path: Path) -> None:
    """A folder in the database's place is a setting that cannot be used, said in one clear line."""
    (tmp_path / "tasks.db").mkdir()
    with Process(tmp_path) as server:
        assert server.process.wait(support.PATIENCE) == 2
        said = f"MCP_TASK_DB_PATH: {tmp_path / 'tasks.db'} is a folder, not a database file"
        assert server.stderr() == f"{SERVER_NAME}: {said}\n"


@pytest.mark.parametrize(
    "migrations", [NOTES, [[*NOTES[0], "CREATE NONSENSE"]]], ids=["foreign", "migration"]
)
def test_a_refused_database_is_closed(tmp_path: Path, migrations: list[list[str]]) -> None:
    """A store that does not open keeps no descriptor, on the database or on the turns."""
    if migrations is NOTES:
        with outsider(tmp_path / "notes.db", "CREATE TABLE foreign_one (x)"):
            pass
    before = descriptors()
    with pytest.raises(StoreFailure):
        Database(str(tmp_path / "notes.db"), 7, migrations)
    assert descriptors() == before


def test_a_mode_that_is_not_durable_is_refused() -> None:
    """Where SQLite does not give the mode that was asked for, the store does not open."""
    with pytest.raises(StoreFailure, match="not durable"):
        Database(":memory:", 7, NOTES)


def test_a_failed_migration_leaves_nothing(tmp_path: Path) -> None:
    """A migration that fails half-way is rolled back whole, and a better one starts from there."""
    with pytest.raises(StoreFailure):
        Database(str(tmp_path / "notes.db"), 7, [[*NOTES[0], "CREATE NONSENSE"]])
    with outsider(tmp_path / "notes.db") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
        assert connection.execute("PRAGMA user_version").fetchone() == (0,)
    open_notes(tmp_path).close()


def test_a_folder_that_is_made_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entries of new folders in their parents are synced: a lost folder would be rows without files."""
    synced, fsync = [], os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    config.make_folder(str(tmp_path / "state" / "artifacts"), "MCP_TASK_ARTIFACTS_DIR")
    assert synced == [str(tmp_path), str(tmp_path / "state")]
    config.make_folder(str(tmp_path / "state" / "artifacts"), "MCP_TASK_ARTIFACTS_DIR")
    assert len(synced) == 2


# --- Opening together ---------------------------------------------------------------------------------


def test_eight_processes_start_on_a_missing_database(tmp_path: Path) -> None:
    """Servers that start at the same moment all open the database that one of them makes, and write."""
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        servers = [StdioClient(folder) for _ in range(8)]
        try:
            for number, server in enumerate(servers):
                server.initialize()
                server.call("create_task", task_id=f"task-{number}", title="Title", goal="Goal")
            assert servers[0].call("list_tasks")["total"] == 8
            assert [server.close() for server in servers] == [0] * 8
            assert [server.stderr() for server in servers] == [""] * 8
        finally:
            for server in servers:
                server.__exit__(None, None, None)
        assert integrity(folder / "tasks.db") == "ok"


def test_a_schema_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds no schema, and waits for its turn to make it, sees that another one has made it."""
    begin = Database.transaction

    def begin_late(self: Database) -> AbstractContextManager[None]:
        monkeypatch.setattr(Database, "transaction", begin)
        open_notes(tmp_path).close()
        return begin(self)

    monkeypatch.setattr(Database, "transaction", begin_late)
    late = open_notes(tmp_path)
    assert late.read(("PRAGMA user_version", ())) == [[(1,)]]
    late.close()


def test_opening_waits_for_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start while another program has the database locked waits until it is free."""
    open_notes(tmp_path).close()
    pauses, sleep = [], time.sleep
    with outsider(tmp_path / "notes.db", "BEGIN EXCLUSIVE") as other:

        def unlock_at_the_third_pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                other.execute("ROLLBACK")
            sleep(seconds)

        monkeypatch.setattr(time, "sleep", unlock_at_the_third_pause)
        open_notes(tmp_path).close()
    assert len(pauses) == 3
    assert all(0 < pause <= 0.002 for pause in pauses)


def test_a_database_that_appears_while_it_is_looked_at_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    """A start that looks at the file while another process makes the schema takes it for its own."""
    execute = Database.execute

    def late(self: Database, statement: str, values: Sequence[Any] = ()) -> list[database.Row]:
        if "sqlite_master" in statement:
            monkeypatch.setattr(Database, "execute", execute)
            with suppress(StoreFailure):  # where the look is one transaction, nobody can commit during it
                open_notes(tmp_path).close()
        return execute(self, statement, values)

    monkeypatch.setattr(Database, "execute", late)
    opened = open_notes(tmp_path)
    assert opened.read(COUNT) == [[(0,)]]
    opened.close()


@pytest.mark.parametrize("newcomer", ["newer program", "other program"])
def test_a_file_is_judged_again_before_it_is_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newcomer: str
) -> None:
    """Whoever waits for its turn to make the schema leaves alone what somebody else has made meanwhile."""
    begin, path = Database.transaction, tmp_path / "notes.db"

    def begin_late(self: Database) -> AbstractContextManager[None]:
        monkeypatch.setattr(Database, "transaction", begin)
        if newcomer == "newer program":
            Database(str(path), 7, [*NOTES, ["CREATE TABLE more (x INTEGER)"]]).close()
        else:
            with outsider(path, "CREATE TABLE bookmarks (url TEXT)"):
                pass
        return begin(self)

    monkeypatch.setattr(Database, "transaction", begin_late)
    with pytest.raises(StoreFailure):
        open_notes(tmp_path)
    with outsider(path) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    assert version == (2 if newcomer == "newer program" else 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_that_waits_to_open(tmp_path: Path, number: signal.Signals) -> None:
    """A server that waits for a locked database at its start ends within 2 s, with 0, without a traceback."""
    open_store(tmp_path).close()
    with outsider(tmp_path / "tasks.db", "BEGIN EXCLUSIVE"), Process(tmp_path) as server:
        path = str(tmp_path / "tasks.db")
        wait_until(lambda: path in opened_files(server.process.pid), "it opens the file")
        server.process.send_signal(number)
        assert server.process.wait(2) == 0
        assert server.stderr() == ""


# --- Transactions -------------------------------------------------------------------------------------


def test_a_transaction_is_all_or_nothing(notes: Database) -> None:
    """Whatever leaves the block by an exception is undone, and the next transaction works."""

    class Interrupted(BaseException):
        pass

    def fail(error: BaseException) -> None:
        with notes.transaction():
            notes.execute(INSERT, (1, "one"))
            raise error

    for error in (ValueError(), NotFound("no", "hint"), Interrupted()):
        with pytest.raises(type(error)):
            fail(error)
        assert notes.read(COUNT) == [[(0,)]]
    with notes.transaction():
        notes.execute(INSERT, (1, "one"))
    assert notes.read(COUNT) == [[(1,)]]


def test_a_transaction_has_the_write_lock_from_its_first_moment(notes: Database, tmp_path: Path) -> None:
    """What a transaction reads first cannot be changed by others before it writes."""
    is_locked = pytest.raises(sqlite3.OperationalError, match="database is locked")
    with notes.transaction(), outsider(tmp_path / "notes.db") as other, is_locked:
        other.execute("BEGIN IMMEDIATE")


def test_a_reader_never_sees_half_of_a_transaction(notes: Database, tmp_path: Path) -> None:
    """While two rows are always written together, a reader on another connection finds both or neither."""
    reader = open_notes(tmp_path)
    is_open, is_read = threading.Barrier(2, timeout=support.PATIENCE), threading.Event()

    def write() -> None:
        for number in range(50):
            with notes.transaction():
                notes.execute(INSERT, (number, "a"))
                if number == 0:  # a read takes place for certain while half is written
                    is_open.wait()
                    assert is_read.wait(support.PATIENCE)
                notes.execute(INSERT, (-number - 1, "b"))

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        is_open.wait()
        assert reader.read(COUNT) == [[(0,)]]
        is_read.set()
        while not writing.done():
            assert reader.read(COUNT)[0][0][0] % 2 == 0
        writing.result()
    assert reader.read(COUNT) == [[(100,)]]
    reader.close()


def test_the_statements_of_one_read_see_one_state(
    notes: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    """Nobody can commit between two statements of one read."""
    reader, executed = open_notes(tmp_path), []

    def write_before_the_last_statement(statement: str) -> None:
        executed.append(statement)
        if executed == ["BEGIN", COUNT[0], COUNT[0]]:
            with pytest.raises(Busy), notes.transaction():
                notes.execute(INSERT, (1, "one"))

    set_hook(monkeypatch, reader, write_before_the_last_statement)
    assert reader.read(COUNT, COUNT) == [[(0,)], [(0,)]]
    assert executed == ["BEGIN", COUNT[0], COUNT[0], "COMMIT"]
    reader.close()


def test_threads_share_one_connection(notes: Database) -> None:
    """Threads that read a number and write the next one never write the same one twice."""

    def count_up() -> None:
        for _ in range(20):
            with notes.transaction():
                notes.execute(INSERT, (notes.execute(*COUNT)[0][0], "next"))
            notes.read(COUNT, COUNT)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(count_up) for _ in range(8)]:
            future.result()
    assert notes.read(COUNT) == [[(160,)]]


def test_closing_waits_for_the_transaction_in_hand(notes: Database, tmp_path: Path) -> None:
    """Another thread that closes the database does so after the commit."""
    with ThreadPoolExecutor(1) as pool:
        with notes.transaction():
            closing = pool.submit(notes.close)
            notes.execute(INSERT, (1, "one"))
            assert not closing.done()
        closing.result()
    with outsider(tmp_path / "notes.db") as connection:
        assert connection.execute(COUNT[0]).fetchone() == (1,)


def test_closing_right_after_a_commit_does_not_spoil_it(
    notes: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who closes the database while a writer gives its turn back does not make a write of it that failed."""
    flock, closing = fcntl.flock, list[Future[None]]()
    with ThreadPoolExecutor(1) as pool:

        def close_first(descriptor: int, operation: int) -> None:
            if operation == fcntl.LOCK_UN and not closing:
                closing.append(pool.submit(notes.close))
                wait([closing[0]], SHORT)
            flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", close_first)
        write_note(notes, 1)
        closing[0].result(support.PATIENCE)


def test_closing_does_not_wait_for_ever(
    notes: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that does not end keeps nobody from closing; what it belongs to is left to the system."""
    monkeypatch.setattr(database, "CLOSE_SECONDS", SHORT)
    with ThreadPoolExecutor(1) as pool, notes.transaction():
        notes.execute(INSERT, (1, "one"))
        pool.submit(notes.close).result(support.PATIENCE)
    assert notes.read(COUNT) == [[(1,)]]


def test_the_cause_of_a_failed_read_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An I/O error in the second statement of a read is reported, not that its transaction is over."""
    execute = store._db.execute

    def fail(statement: str) -> None:
        if "count" in statement:
            execute("ROLLBACK")  # as SQLite does
            raise sqlite_error(sqlite3.SQLITE_IOERR_READ)

    set_hook(monkeypatch, store._db, fail)
    with pytest.raises(StorageError, match="The disk reports an input/output error"):
        store.list_tasks(TaskFilter(), 5, None)


def test_an_error_names_no_table(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What SQLite says about a statement goes to the log in one line, not to the client: it may hold SQL."""
    with outsider(tmp_path / "tasks.db", "DROP TABLE tasks"):
        pass
    with pytest.raises(StorageError) as refusal:
        store.get_task("t")
    assert "tasks" not in refusal.value.message + refusal.value.hint
    assert capsys.readouterr().err == f"{SERVER_NAME}: {tmp_path / 'tasks.db'}: no such table: tasks\n"


# --- A busy database ----------------------------------------------------------------------------------


def test_a_busy_database_is_a_tool_error_that_passes(store: Store, tmp_path: Path, impatient: None) -> None:
    """Calls on a locked database are refused with `busy`; the same calls succeed once it is free."""
    workplace = Workplace(store, ())
    create = {"task_id": "t", "title": "Title", "goal": "Goal"}
    with outsider(tmp_path / "tasks.db", "BEGIN EXCLUSIVE"):
        assert error_code("create_task", workplace, **create) == "busy"
        assert error_code("claim_task", workplace, agent="a", task_id="t") == "busy"
        assert error_code("list_tasks", workplace) == "busy"
        assert store.check() is False
    assert call("create_task", workplace, **create)["version"] == 1
    assert call("list_tasks", workplace)["total"] == 1
    assert store.check() is True


def test_readers_are_not_in_the_way_of_readers(store: Store, tmp_path: Path, impatient: None) -> None:
    """Reading goes on while another program reads, or prepares to write."""
    store.create_task(NEW)
    with outsider(tmp_path / "tasks.db", "BEGIN IMMEDIATE", "UPDATE tasks SET title = 'x'"):
        assert store.get_task("t").title == "Title"


def test_a_busy_commit_is_tried_again(
    notes: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that keeps a COMMIT from happening delays it, and does not undo it."""
    commits = 0
    with outsider(tmp_path / "notes.db") as reader:

        def stop_reading_at_the_third_attempt(statement: str) -> None:
            nonlocal commits
            if statement == "COMMIT":
                commits += 1
                if commits == 3:
                    reader.execute("ROLLBACK")

        set_hook(monkeypatch, notes, stop_reading_at_the_third_attempt)
        with notes.transaction():
            notes.execute(INSERT, (1, "one"))
            reader.execute("BEGIN")
            assert reader.execute(COUNT[0]).fetchall() == [(0,)]
    assert commits == 3
    assert notes.read(COUNT) == [[(1,)]]


def test_a_commit_that_stays_busy_is_undone(notes: Database, tmp_path: Path, impatient: None) -> None:
    """A reader that does not go away makes the write `busy`: nothing is written, and the next one works."""
    with outsider(tmp_path / "notes.db", "BEGIN", COUNT[0]):
        with pytest.raises(Busy), notes.transaction():
            notes.execute(INSERT, (1, "one"))
        assert notes.read(COUNT) == [[(0,)]]
    with notes.transaction():
        notes.execute(INSERT, (2, "two"))
    assert notes.read(COUNT) == [[(1,)]]


def test_the_wait_for_a_thread_of_this_process_is_limited_too(notes: Database, impatient: None) -> None:
    """A thread that waits for another thread's transaction gives up like one that waits for a process."""
    with notes.transaction(), ThreadPoolExecutor(1) as pool, pytest.raises(Busy):
        pool.submit(notes.fetch, *COUNT, seconds=SHORT).result()
    assert notes.read(COUNT) == [[(0,)]]


# --- Turns --------------------------------------------------------------------------------------------


def descriptors(pid: int | None = None) -> list[str]:
    """Return what the descriptors of a process, by default this one, point at."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("there is no /proc here to list descriptors")
    return opened_files(pid or os.getpid())


@contextmanager
def turn_taken(path: Path) -> Iterator[None]:
    """Hold the writers' turn of the database at `path`, as a process does that hangs."""
    file = os.open(f"{path}.lock", os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def test_a_hanging_writer_costs_a_busy_and_no_more(store: Store, tmp_path: Path, impatient: None) -> None:
    """When somebody keeps the turn, a write is `busy` after the limit; reads and later writes go on."""
    store.create_task(NEW)
    with turn_taken(tmp_path / "tasks.db"):
        with pytest.raises(Busy):
            store.save_checkpoint("t", A, Report(decisions=["d"]), "call")
        assert store.get_task("t").version == 1
    assert store.save_checkpoint("t", A, Report(decisions=["d"]), "call")["version"] == 2


def test_fifty_waits_in_vain_leave_nothing_behind(
    notes: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the turn is free again, no thread and no descriptor is left of the waits that timed out."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.005)
    before, threads = len(descriptors()), threading.active_count()
    with turn_taken(tmp_path / "notes.db"):
        for _ in range(50):
            with pytest.raises(Busy), notes.transaction():
                pytest.fail("the turn was taken")
    wait_until(lambda: threading.active_count() <= threads, "the waiting threads end")
    monkeypatch.undo()
    with notes.transaction():
        notes.execute(INSERT, (1, "one"))
    wait_until(lambda: len(descriptors()) <= before, "the descriptors are closed")


def test_waits_in_vain_do_not_add_up(
    notes: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody keeps the turn, fifty writes that give up leave one waiting thread at the most."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.005)
    before, threads = len(descriptors()), threading.active_count()
    with turn_taken(tmp_path / "notes.db"):
        for _ in range(50):
            with pytest.raises(Busy), notes.transaction():
                pytest.fail("the turn was taken")
        assert threading.active_count() <= threads + 1
        assert len(descriptors()) <= before + 2
    wait_until(lambda: threading.active_count() == threads, "the waiting thread ends")
    monkeypatch.undo()
    for number in range(3):
        with notes.transaction():
            notes.execute(INSERT, (number, "one"))
    assert len(descriptors()) <= before


def test_a_wait_in_vain_is_taken_up_again(notes: Database, tmp_path: Path) -> None:
    """A writer that comes while the thread of an earlier one still waits gets the turn that it is given."""
    with ThreadPoolExecutor(1) as pool:
        with turn_taken(tmp_path / "notes.db"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(database, "BUSY_SECONDS", 0.005)
                with pytest.raises(Busy), notes.transaction():
                    pytest.fail("the turn was taken")
            threads = threading.active_count()
            writing = pool.submit(write_note, notes, 1)
            wait_until(lambda: threading.active_count() == threads + 1, "the pool has started")
            assert not writing.done()
        writing.result()
    assert notes.read(COUNT) == [[(1,)]]


def write_note(notes: Database, number: int) -> None:
    with notes.transaction():
        notes.execute(INSERT, (number, "note"))


def test_closing_does_not_disturb_who_waited_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is closed while a thread still waits for the turn leaves nothing, and says nothing."""
    opened = open_notes(tmp_path)
    failures: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.005)
    threads = threading.active_count()
    with turn_taken(tmp_path / "notes.db"):
        with pytest.raises(Busy), opened.transaction():
            pytest.fail("the turn was taken")
        opened.close()
    wait_until(lambda: threading.active_count() == threads, "the waiting thread ends")
    assert failures == []
    monkeypatch.undo()
    again = open_notes(tmp_path)
    write_note(again, 1)
    again.close()


def test_a_writer_in_line_is_refused_when_the_database_is_closed(tmp_path: Path) -> None:
    """Who waits for the turn of a database that is closed meanwhile is told so, and writes nothing."""
    opened = open_notes(tmp_path)
    threads = threading.active_count()
    with ThreadPoolExecutor(1) as pool:
        with turn_taken(tmp_path / "notes.db"):
            writing = pool.submit(write_note, opened, 1)
            wait_until(lambda: threading.active_count() == threads + 2, "the writer stands in line")
            opened.close()
        assert isinstance(writing.exception(support.PATIENCE), StorageError | StoreFailure | Busy)
    again = open_notes(tmp_path)
    assert again.read(COUNT) == [[(0,)]]
    again.close()


def test_reads_go_on_while_a_writer_of_this_process_waits(store: Store, tmp_path: Path) -> None:
    """A process that keeps the turn stops the writers of a service, not its readers or its health."""
    store.create_task(NEW)
    threads = threading.active_count()
    with ThreadPoolExecutor(1) as pool:
        with turn_taken(tmp_path / "tasks.db"):
            writing = pool.submit(store.update_task, "t", {"title": "New"}, None, "1")
            wait_until(lambda: threading.active_count() == threads + 2, "the writer stands in line")
            assert store.check() is True
            assert store.get_task("t").title == "Title"
        assert writing.result()["version"] == 2


def test_a_turn_passes_to_whoever_waits(notes: Database, tmp_path: Path) -> None:
    """A writer in line writes as soon as the writer before it is done."""
    other = open_notes(tmp_path)

    def write() -> None:
        with other.transaction():
            other.execute(INSERT, (other.execute(*COUNT)[0][0], "second"))

    with ThreadPoolExecutor(1) as pool:
        with notes.transaction():
            threads = threading.active_count()
            waiting = pool.submit(write)
            wait_until(lambda: threading.active_count() == threads + 2, "the other writer stands in line")
            notes.execute(INSERT, (0, "first"))
        waiting.result()
    assert notes.read(("SELECT note FROM notes ORDER BY id", ())) == [[("first",), ("second",)]]
    other.close()


@pytest.mark.parametrize("obstacle", ["no flock", "no place for the file"])
def test_without_turns_the_retries_serve_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    """Where there is no lock to order writers, concurrent writers still all succeed."""
    if obstacle == "no flock":
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        (tmp_path / "notes.db.lock").mkdir()
    databases = [open_notes(tmp_path) for _ in range(4)]

    def count_up(opened: Database) -> None:
        for _ in range(20):
            with opened.transaction():
                opened.execute(INSERT, (opened.execute(*COUNT)[0][0], "next"))

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(count_up, opened) for opened in databases]:
            future.result()
    assert databases[0].read(COUNT) == [[(80,)]]
    for opened in databases:
        opened.close()


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_filesystem_without_flock_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Where the call is there but the filesystem refuses it, the retries serve alone."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    opened = open_notes(tmp_path)
    write_note(opened, 1)
    assert opened.read(COUNT) == [[(1,)]]
    opened.close()


# --- Commits that fail --------------------------------------------------------------------------------


class FaultyConnection(sqlite3.Connection):
    """A connection whose next COMMIT fails with the SQLite error `code`, before or after it has happened."""

    code: int | None = None
    has_happened = False

    def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        if statement == "COMMIT" and self.code is not None:
            error, self.code = sqlite_error(self.code), None
            if self.has_happened:
                super().execute("COMMIT")
            raise error
        return super().execute(statement, values)

    def fail(self, code: int, has_happened: bool) -> None:
        self.code, self.has_happened = code, has_happened


@pytest.fixture
def faulty(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyConnection]:
    """Yield the store's connection, exchanged for one that can fail, with a task in the store."""
    store.create_task(NEW)
    path = str(tmp_path / "tasks.db")
    connection = FaultyConnection(path, timeout=0, isolation_level=None, check_same_thread=False)
    with monkeypatch.context() as patch:
        patch.setattr(store._db, "_connection", connection)
        yield connection
    connection.close()


WRITES: dict[str, Callable[[Store], JsonObject]] = {
    "save_checkpoint": lambda store: store.save_checkpoint("t", A, Report(decisions=["d"]), "call"),
    "handoff_task": lambda store: store.handoff_task("t", A, "b", "why", Report(), "call")[0],
    "mark_exhausted": lambda store: store.mark_exhausted("t", A, "why", Report(files=["f"]), "call"),
    "update_task": lambda store: store.update_task("t", {"title": "New"}, None, "call"),
    "attach_artifact": lambda store: store.attach_artifact("t", "name", "file", [b"bytes"], A),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_commit_that_failed_but_happened_is_acknowledged(
    store: Store, faulty: FaultyConnection, write: str
) -> None:
    """The outcome of a failed COMMIT is read back: what is stored is acknowledged as if nothing had been."""
    faulty.fail(sqlite3.SQLITE_FULL, has_happened=True)
    answer = WRITES[write](store)
    assert answer["version"] == store.get_task("t").version == 2
    assert WRITES[write](store) == answer


@pytest.mark.parametrize("write", WRITES)
def test_a_commit_that_failed_and_did_not_happen_is_refused(
    store: Store, faulty: FaultyConnection, write: str
) -> None:
    """The outcome of a failed COMMIT is read back: what is not stored is an error, and can be repeated."""
    faulty.fail(sqlite3.SQLITE_FULL, has_happened=False)
    with pytest.raises(StorageError, match="The disk is full"):
        WRITES[write](store)
    assert store.get_task("t").version == 1
    assert WRITES[write](store)["version"] == store.get_task("t").version == 2


def test_a_create_that_was_not_committed_is_refused(store: Store, faulty: FaultyConnection) -> None:
    """A task whose COMMIT failed is not there; the same call makes it."""
    other = NEW.model_copy(update={"task_id": "other"})
    faulty.fail(sqlite3.SQLITE_FULL, has_happened=False)
    with pytest.raises(StorageError):
        store.create_task(other)
    with pytest.raises(NotFound):
        store.get_task("other")
    assert store.create_task(other)["version"] == 1


@pytest.mark.parametrize("task_id", ["other", None])
def test_a_create_whose_commit_failed_but_happened_is_acknowledged(
    store: Store, faulty: FaultyConnection, task_id: str | None
) -> None:
    """The outcome of a failed COMMIT is read back for a new task too, whoever chose its id."""
    faulty.fail(sqlite3.SQLITE_FULL, has_happened=True)
    answer = store.create_task(NEW.model_copy(update={"task_id": task_id, "title": "Other"}))
    assert store.get_task(answer["task_id"]).version == answer["version"] == 1


def test_a_claim_whose_commit_failed_but_happened_is_acknowledged(
    store: Store, faulty: FaultyConnection
) -> None:
    """A claim that took place is not said to have changed nothing."""
    faulty.fail(sqlite3.SQLITE_FULL, has_happened=True)
    claim = store.claim_task(A, None, ClaimFilter())
    assert claim is not None
    assert (claim.task.current_owner, claim.task.version) == ("a", 2)
    assert store.get_task("t") == claim.task


def test_a_claim_that_was_not_committed_is_refused(store: Store, faulty: FaultyConnection) -> None:
    """A claim whose COMMIT failed leaves the task where it was, for whoever comes next."""
    faulty.fail(sqlite3.SQLITE_FULL, has_happened=False)
    with pytest.raises(StorageError, match="The disk is full"):
        store.claim_task(A, "t", ClaimFilter())
    assert (store.get_task("t").current_owner, store.get_task("t").version) == (None, 1)
    claim = store.claim_task(Caller("b", None), None, ClaimFilter())
    assert claim is not None
    assert claim.task.current_owner == "b"


def test_reading_back_waits_for_a_busy_database(
    store: Store, faulty: FaultyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that is locked while a COMMIT is read back is waited for: `busy` would be a lie."""
    refusals: list[str] = []

    def busy_once(statement: str) -> None:
        if statement.startswith("SELECT last_call") and not refusals:
            refusals.append(statement)
            raise sqlite_error(sqlite3.SQLITE_BUSY)

    set_hook(monkeypatch, store._db, busy_once)
    faulty.fail(sqlite3.SQLITE_FULL, has_happened=True)
    assert WRITES["save_checkpoint"](store)["version"] == 2
    assert len(refusals) == 1


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "INSERT", "UPDATE"])
@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC])
def test_an_fsync_that_fails_before_the_commit_ends_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch, statement: str, code: int
) -> None:
    """SQLite also syncs when it rolls back a hot journal or its cache spills: that is as bad as in COMMIT."""
    store.create_task(NEW)

    def fail(executed: str) -> None:
        if executed.startswith(statement):
            raise sqlite_error(code)

    with monkeypatch.context() as patch:
        set_hook(patch, store._db, fail)
        with pytest.raises(StoreFailure):
            WRITES["save_checkpoint"](store)
    with pytest.raises(StoreFailure):
        store.get_task("t")


def test_an_fsync_that_fails_in_a_read_ends_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader rolls back the hot journal of a writer that crashed, and syncs what it writes."""

    def fail(executed: str) -> None:
        raise sqlite_error(sqlite3.SQLITE_IOERR_FSYNC)

    with monkeypatch.context() as patch:
        set_hook(patch, store._db, fail)
        with pytest.raises(StoreFailure):
            store.get_task("t")
    with pytest.raises(StoreFailure):
        store.check()


def test_nothing_is_acknowledged_after_the_store_has_failed(store: Store, faulty: FaultyConnection) -> None:
    """Other threads of a service, which wait for their turn meanwhile, are not answered any more."""
    faulty.fail(sqlite3.SQLITE_IOERR_FSYNC, has_happened=False)
    with pytest.raises(StoreFailure):
        WRITES["save_checkpoint"](store)
    calls: list[Callable[[], Any]] = [
        lambda: store.create_task(NEW.model_copy(update={"task_id": "later"})),
        lambda: store.claim_task(A, None, ClaimFilter()),
        lambda: store.get_task("t"),
        lambda: store.list_tasks(TaskFilter(), 1, None),
        lambda: store.check(),
    ]
    for call in calls:
        with pytest.raises(StoreFailure):
            call()


@pytest.mark.parametrize("has_happened", [True, False])
def test_an_io_error_in_a_commit_ends_the_store(
    store: Store, faulty: FaultyConnection, has_happened: bool
) -> None:
    """After an I/O error in a COMMIT no answer is given, whatever can be read back."""
    faulty.fail(sqlite3.SQLITE_IOERR_FSYNC, has_happened)
    with pytest.raises(StoreFailure, match="input/output error"):
        WRITES["save_checkpoint"](store)


FAULTY_SERVER = """
import os, runpy, signal, sqlite3, sys
sys.path.insert(0, os.path.dirname({server}))
connect, flag, fault = sqlite3.connect, {flag}, {fault}

class Connection(sqlite3.Connection):
    def execute(self, statement, values=()):
        if statement == "COMMIT" and os.path.exists(flag):
            getattr(self, fault)()
        return super().execute(statement, values)

    def hang(self):
        open(flag + ".reached", "w").close()
        while True:
            signal.pause()

    def fail(self):
        super().execute("ROLLBACK")  # as SQLite does
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

sqlite3.connect = lambda path, **options: connect(path, factory=Connection, **options)
runpy.run_path({server}, run_name="__main__")
"""


@contextmanager
def faulty_server(folder: Path, fault: str) -> Iterator[Path]:
    """Have the servers of the block do `fault` in every COMMIT while the file that is yielded exists."""
    flag = folder / "fault"
    with server_script(folder, FAULTY_SERVER, flag=str(flag), fault=fault):
        yield flag


def test_an_io_error_in_a_commit_ends_a_stdio_server(tmp_path: Path) -> None:
    """The server does not answer the call, says why in one line and exits 1; a new one carries on."""
    with faulty_server(tmp_path, "fail") as flag, stdio(tmp_path) as server:
        server.call("create_task", task_id="t", title="Title", goal="Goal")
        flag.touch()
        save = {"name": "save_checkpoint", "arguments": {"task_id": "t", "agent": "a"}}
        server.send({"jsonrpc": "2.0", "id": 99, "method": "tools/call", "params": save})
        assert server.process.stdout is not None
        assert server.process.stdout.read() == b""
        assert server.process.wait(support.PATIENCE) == 1
        assert server.stderr().startswith(f"{SERVER_NAME}: ")
        assert "input/output error (disk I/O error)" in server.stderr()
        assert server.stderr().count("\n") == 1
    with stdio(tmp_path) as server:
        assert server.call("get_task", task_id="t")["version"] == 1
        assert server.call("save_checkpoint", task_id="t", agent="a")["version"] == 2


def test_an_io_error_in_a_commit_ends_the_http_service(tmp_path: Path) -> None:
    """The service does not answer the call, says why in one line and exits 1."""
    with faulty_server(tmp_path, "fail") as flag, HttpServer(tmp_path) as server, sse(server) as client:
        client.call("create_task", task_id="t", title="Title", goal="Goal")
        flag.touch()
        with pytest.raises((ConnectionError, AssertionError)):  # the post, or the stream, is cut off
            client.call("save_checkpoint", task_id="t", agent="a")
        assert server.process.wait(support.PATIENCE) == 1
        lines = server.stderr().splitlines()
        assert len(lines) == 2
        assert "input/output error (disk I/O error)" in lines[1]
    with stdio(tmp_path) as one:
        assert one.call("get_task", task_id="t")["version"] == 1


def test_a_writer_that_is_killed_gives_everything_back(tmp_path: Path) -> None:
    """A server waits while another one hangs in a COMMIT; after kill -9 of that one it writes at once."""
    with faulty_server(tmp_path, "hang") as flag:
        hanging = stdio(tmp_path)
    with hanging, stdio(tmp_path) as waiting:
        waiting.call("create_task", task_id="t", title="Title", goal="Goal")
        flag.touch()
        lost = {"name": "update_task", "arguments": {"task_id": "t", "title": "Lost"}}
        hanging.send({"jsonrpc": "2.0", "id": 99, "method": "tools/call", "params": lost})
        wait_until(Path(f"{flag}.reached").exists, "the server hangs in its COMMIT")
        kept = {"name": "update_task", "arguments": {"task_id": "t", "status": "done"}}
        waiting.send({"jsonrpc": "2.0", "id": 99, "method": "tools/call", "params": kept})
        assert waiting.is_silent(0.3)
        hanging.kill()
        assert waiting.receive(5)["result"]["structuredContent"]["version"] == 2
        task = waiting.call("get_task", task_id="t")
        assert (task["title"], task["status"], task["version"]) == ("Title", "done", 2)
    assert integrity(tmp_path / "tasks.db") == "ok"


# --- Disks that refuse --------------------------------------------------------------------------------

UNPRIVILEGED_SERVER = """
import os, sys
prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
command = [*prefix, sys.executable, {server}, *sys.argv[1:]]
os.execvp(command[0], command)
"""


@pytest.mark.parametrize("read_only", ["tasks.db", "."], ids=["file", "folder"])
def test_a_read_only_database_still_serves_reads(tmp_path: Path, read_only: str) -> None:
    """Reading works on a file, or in a folder, that the server must not write; writes say why they cannot."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root is not bound by file modes, and there is no setpriv to change that")
    state = tmp_path / "state"
    state.mkdir()
    with stdio(state) as server:
        server.call("create_task", task_id="t", title="Title", goal="Goal")
        server.call("attach_artifact", task_id="t", name="log", content="text")
    before = (state / "tasks.db").read_bytes()
    (state / "tasks.db").chmod(0o400)
    (state / read_only).chmod(0o500)
    try:
        with server_script(tmp_path, UNPRIVILEGED_SERVER):
            server = stdio(tmp_path, **placed_in(state))
        with server:
            assert server.call("get_task", task_id="t")["title"] == "Title"
            assert server.call("get_task", task_id="t", artifact=1)["text"] == "text"
            assert server.call("list_tasks")["total"] == 1
            for _ in range(2):
                refusal = server.refusal("save_checkpoint", task_id="t", agent="a")
                assert (refusal["code"], refusal["message"]) == (
                    "storage_error",
                    "The database is read-only.",
                )
            assert server.call("get_task", task_id="t")["version"] == 2
            assert server.close() == 0
    finally:
        state.chmod(0o700)
    assert (state / "tasks.db").read_bytes() == before


def placed_in(folder: Path) -> dict[str, Any]:
    """Return the settings of a server that keeps its state in `folder`."""
    return {"MCP_TASK_DB_PATH": str(folder / "tasks.db"), "MCP_TASK_ARTIFACTS_DIR": str(folder / "artifacts")}


SMALL_DISK_SERVER = """
import os, sys
namespace = "-m" if os.geteuid() == 0 else "-rm"
mount = 'mount -t tmpfs -o size=768k tmpfs "$0" && head -c 262144 /dev/zero > "$0/ballast" && exec "$@"'
command = ["unshare", namespace, "sh", "-c", mount, {disk}, sys.executable, {server}, *sys.argv[1:]]
os.execvp(command[0], command)
"""


def test_a_full_disk_costs_no_data(tmp_path: Path) -> None:
    """A full disk refuses writes with `storage_error` and undoes them; once there is space, they succeed."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to mount a small disk with")
    disk = tmp_path / "disk"
    disk.mkdir()
    with server_script(tmp_path, SMALL_DISK_SERVER, disk=str(disk)):
        server = StdioClient(tmp_path, **placed_in(disk))
    with server:
        try:
            server.initialize()
        except AssertionError:
            if "unshare" in server.stderr() or "mount" in server.stderr():
                pytest.skip(f"no small disk can be mounted here: {server.stderr()}")
            raise
        inside = Path(f"/proc/{server.process.pid}/root{disk}")
        kept = fill(server, inside / "ballast")
        artifact = {"task_id": "t", "name": "log", "content": "y" * 65536}
        assert server.refusal("attach_artifact", **artifact)["code"] == "storage_error"
        assert os.listdir(inside / "artifacts") == []
        (inside / "ballast").unlink()
        assert server.call("attach_artifact", **artifact)["artifact"]["number"] == 1
        assert (
            server.call("save_checkpoint", task_id="t", agent="a", decisions=["last"])["checkpoint"]
            == len(kept) + 1
        )
        assert server.call("get_task", task_id="t")["decisions"] == [*kept, "last"]
        shutil.copy(inside / "tasks.db", tmp_path / "copy.db")
        assert server.close() == 0
        refusal = f"{SERVER_NAME}: {disk / 'tasks.db'}: database or disk is full"
        assert set(server.stderr().splitlines()) == {refusal}
    assert integrity(tmp_path / "copy.db") == "ok"


def fill(server: StdioClient, ballast: Path) -> list[str]:
    """Save checkpoints on a disk that fills up and is freed page by page; return the decisions kept."""
    server.call("create_task", task_id="t", title="Title", goal="Goal")
    kept: list[str] = []
    refused = 0
    while refused < 24:
        decision = f"{len(kept)}: {'x' * 2000}"
        call = {
            "name": "save_checkpoint",
            "arguments": {"task_id": "t", "agent": "a", "decisions": [decision]},
        }
        answer = server.result("tools/call", call)["structuredContent"]
        if "error" in answer:
            assert answer["error"]["code"] == "storage_error"
            assert server.call("get_task", task_id="t")["decisions"] == kept
            refused += 1
            os.truncate(ballast, ballast.stat().st_size - 4096)
        else:
            kept.append(decision)
    return kept


# --- Only SQLite opens the database -------------------------------------------------------------------


def test_nobody_but_sqlite_opens_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attaching the database or a file beside it is refused before it is opened, by whatever name."""
    store, opened = open_store(tmp_path), list[str]()
    workplace = Workplace(store, (str(tmp_path),))
    open_file = os.open

    def recorded(path: str, *arguments: Any, **options: Any) -> int:
        opened.append(os.path.realpath(path))
        return open_file(path, *arguments, **options)

    store.create_task(NEW)
    (tmp_path / "symbolic").symlink_to(tmp_path / "tasks.db")
    (tmp_path / "hard").hardlink_to(tmp_path / "tasks.db")
    (tmp_path / "allowed").write_text("text")
    monkeypatch.setattr(os, "open", recorded)
    own = ["tasks.db", "tasks.db-journal", "tasks.db.lock", "symbolic", "hard"]
    for name in own:
        own_file = {"task_id": "t", "name": name, "path": str(tmp_path / name)}
        assert error_code("attach_artifact", workplace, **own_file) == "invalid_arguments"
    assert opened == []
    call("attach_artifact", workplace, task_id="t", name="allowed", path=str(tmp_path / "allowed"))
    assert str(tmp_path / "allowed") in opened
    store.close()


def test_the_journal_of_a_linked_database_is_an_own_file(tmp_path: Path) -> None:
    """The journal lies beside the file that a symbolic link leads to: attaching that one is refused."""
    (tmp_path / "real").mkdir()
    (tmp_path / "tasks.db").symlink_to(tmp_path / "real" / "tasks.db")
    store = open_store(tmp_path)
    workplace = Workplace(store, (str(tmp_path),))
    store.create_task(NEW)
    for suffix in ("", "-journal", ".lock"):
        own_file = {"task_id": "t", "name": "n", "path": str(tmp_path / "real" / f"tasks.db{suffix}")}
        assert error_code("attach_artifact", workplace, **own_file) == "invalid_arguments"
    store.close()


def test_the_server_has_one_descriptor_on_the_database(tmp_path: Path) -> None:
    """After attempts to attach the database, after writes and reads, SQLite's descriptor is the only one."""
    with stdio(tmp_path) as server:
        server.call("create_task", task_id="t", title="Title", goal="Goal")
        server.call("save_checkpoint", task_id="t", agent="a", files=["first"])  # opens the session's lock
        before = descriptors(server.process.pid)
        for name in ("tasks.db", "tasks.db-journal", "tasks.db.lock"):
            refusal = server.refusal("attach_artifact", task_id="t", name="n", path=str(tmp_path / name))
            assert refusal["code"] == "invalid_arguments"
        server.call("save_checkpoint", task_id="t", agent="a")
        server.call("list_tasks")
        assert descriptors(server.process.pid) == before
        assert before.count(str(tmp_path / "tasks.db")) == 1
