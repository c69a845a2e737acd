"""The store: every write is one transaction, nothing written is overwritten, and no row lacks its file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import JsonObject, server_script, stdio

import artifact_files
import store as store_module
from database import Row
from errors import Conflict, InvalidState, NotFound, NotOwner, StorageError, TooLarge, ToolError
from models import NewTask, Report, Status, TaskFilter, TestRun
from store import Store

Call = Callable[[Store], Any]
Statement = tuple[str, Sequence[Any]]
Dump = dict[str, list[Row]]

EVERYTHING = Report(
    completed_steps=["one"],
    remaining_steps=["two"],
    resume_prompt="Go on.",
    test_results=[TestRun(summary="fine")],
    decisions=["this"],
    dead_ends=["not that"],
    files=["a.py"],
)


def new_task(task_id: str | None, title: str = "Title") -> NewTask:
    return NewTask(
        task_id=task_id, title=title, goal="Goal", repo_path="/repo", remaining_steps=["two"], agent="a"
    )


def attach(store: Store, content: bytes = b"bytes", name: str = "name", task_id: str = "t") -> JsonObject:
    return store.attach_artifact(task_id, name, "log", [content[:2], content[2:]], "a")


# Every method that writes, for a store that has the task "t", which nobody owns.
WRITES: dict[str, Call] = {
    "create_task": lambda store: store.create_task(new_task("new")),
    "create_task without an id": lambda store: store.create_task(new_task(None)),
    "save_checkpoint": lambda store: store.save_checkpoint("t", "a", EVERYTHING, "save"),
    "handoff_task": lambda store: store.handoff_task("t", "a", "b", "tired", EVERYTHING, "hand"),
    "mark_exhausted": lambda store: store.mark_exhausted("t", "a", "empty", EVERYTHING, "mark"),
    "update_task": lambda store: store.update_task("t", {"title": "Better", "files": []}, None, "put"),
    "attach_artifact": attach,
}


def open_store(folder: Path) -> Store:
    """Open the store that a server with `environment(folder)` uses."""
    (folder / "artifacts").mkdir(exist_ok=True)
    return Store(str(folder / "tasks.db"), str(folder / "artifacts"))


@pytest.fixture
def empty_store(tmp_path: Path) -> Iterator[Store]:
    """Yield a store without a task."""
    store = open_store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def store(empty_store: Store) -> Store:
    """Return a store with the task "t"."""
    empty_store.create_task(new_task("t", "Before"))
    return empty_store


def dump(store: Store) -> Dump:
    """Return all rows of all tables."""
    tables = ("tasks", "checkpoints", "events")
    found = store._db.read(*((f"SELECT * FROM {table} ORDER BY 1, 2", ()) for table in tables))
    return dict(zip(tables, found, strict=True))


def rows(store: Store, statement: str, *values: Any) -> list[Row]:
    return store._db.read((statement, values))[0]


def files_in(store: Store) -> list[str]:
    return sorted(os.listdir(store.artifacts_dir))


def hook(patch: pytest.MonkeyPatch, store: Store, before: Callable[[str, Sequence[Any]], None]) -> None:
    """Have `before` see every statement of the store first; it may raise in its place."""
    execute = store._db.execute

    def hooked(statement: str, values: Sequence[Any] = ()) -> list[Row]:
        before(statement, values)
        return execute(statement, values)

    patch.setattr(store._db, "execute", hooked)


# --- One transaction per method -----------------------------------------------------------------------


class Crash(BaseException):
    """Something that nobody in the store expects."""


def full_disk() -> BaseException:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


def is_reached(store: Store, number: int, error: BaseException, write: Call) -> bool:
    """Carry out `write` with `error` in place of its statement `number`; return whether it has so many."""
    executed = 0

    def fail(statement: str, values: Sequence[Any]) -> None:
        nonlocal executed
        if statement == "ROLLBACK":  # SQLite carries it out, whatever else fails
            return
        executed += 1
        if executed == number:
            raise error

    with pytest.MonkeyPatch.context() as patch:
        hook(patch, store, fail)
        try:
            write(store)
        except (StorageError, Crash):
            return True
    assert executed < number, "the failure was swallowed"
    return False


@pytest.mark.parametrize("make_error", [full_disk, Crash])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_failure_at_any_statement_changes_nothing(
    store: Store, write: Call, make_error: Callable[[], BaseException]
) -> None:
    """Whichever statement of a write fails, and however: no row has changed, and the same call then works."""
    before, number = dump(store), 1
    while is_reached(store, number, make_error(), write):
        assert dump(store) == before
        number += 1
    assert number > 5, "there are at least BEGIN, the task read, its event, the task written, COMMIT"
    after = dump(store)
    assert len(after["events"]) == len(before["events"]) + 1
    assert write(store)["version"] in (1, 2)
    assert dump(store) == after


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_that_is_repeated_changes_nothing(store: Store, write: Call) -> None:
    """The same call again answers the same and leaves every row and file as it was."""
    answer = write(store)
    before, files = dump(store), files_in(store)
    assert write(store) == answer
    assert (dump(store), files_in(store)) == (before, files)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_is_one_event(store: Store, write: Call) -> None:
    """A change is one event with the next number, and the task carries its number and version."""
    before = dump(store)["events"]
    task_id = write(store)["task_id"]
    after = dump(store)["events"]
    assert after[:-1] == before
    event_id, of_task, version = after[-1][:3]
    assert (event_id, of_task) == (before[-1][0] + 1, task_id)
    statement = "SELECT version, changed FROM tasks WHERE task_id = ?"
    assert rows(store, statement, task_id) == [(version, event_id)]


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (lambda store: store.create_task(new_task("t", "Other")), Conflict),
        (lambda store: store.save_checkpoint("nobody", "a", EVERYTHING, "1"), NotFound),
        (lambda store: store.save_checkpoint("taken", "a", EVERYTHING, "1"), NotOwner),
        (lambda store: store.handoff_task("taken", "a", "c", "why", EVERYTHING, "1"), NotOwner),
        (lambda store: store.mark_exhausted("done", "a", "why", EVERYTHING, "1"), InvalidState),
        (lambda store: store.update_task("t", {"title": "New"}, 7, "1"), Conflict),
        (lambda store: store.update_task("done", {"title": "New"}, None, "1"), InvalidState),
        (lambda store: attach(store, task_id="nobody"), NotFound),
    ],
)
def test_a_refused_write_changes_nothing(store: Store, refused: Call, error: type[ToolError]) -> None:
    """A call that breaks a rule leaves every row and file as it was."""
    store.create_task(new_task("taken"))
    store.save_checkpoint("taken", "b", EVERYTHING, "0")
    store.create_task(new_task("done"))
    store.update_task("done", {"status": Status.DONE}, None, "0")
    before = dump(store)
    with pytest.raises(error):
        refused(store)
    assert (dump(store), files_in(store)) == (before, [])


def test_threads_lose_no_update(store: Store) -> None:
    """Threads that change one task at once get one version each, without gaps."""

    def write(name: int) -> list[int]:
        return [
            store.update_task("t", {"title": f"{name} {n}"}, None, f"{name} {n}")["version"]
            for n in range(10)
        ]

    with ThreadPoolExecutor(8) as pool:
        versions = [version for found in pool.map(write, range(8)) for version in found]
    assert sorted(versions) == list(range(2, 82))
    statement = "SELECT version FROM events WHERE task_id = 't' ORDER BY event_id"
    assert rows(store, statement) == [(version,) for version in range(1, 82)]


# --- Any calls in any order ---------------------------------------------------------------------------

AGENTS, IDS = st.sampled_from(["a", "b"]), st.sampled_from(["t", "u"])
REPORTS = st.sampled_from([Report(), EVERYTHING, Report(remaining_steps=["one"]), Report(decisions=["more"])])
FIELDS = st.sampled_from(
    [{"title": "New"}, {"decisions": []}, {"status": Status.DONE}, {"status": Status.OPEN}]
)
OPERATIONS = st.one_of(
    st.tuples(st.just("create"), IDS, st.sampled_from(["Title", "Other"])),
    st.tuples(st.just("save"), IDS, AGENTS, REPORTS),
    st.tuples(st.just("hand"), IDS, AGENTS, AGENTS, REPORTS),
    st.tuples(st.just("mark"), IDS, AGENTS, REPORTS),
    st.tuples(st.just("put"), IDS, FIELDS, st.sampled_from([None, 1, 2, 3])),
    st.tuples(st.just("attach"), IDS, st.sampled_from([b"one", b"two"])),
)


def carry_out(store: Store, operation: tuple[Any, ...]) -> JsonObject:
    call = repr(operation)
    match operation:
        case ("create", task_id, title):
            return store.create_task(new_task(task_id, title))
        case ("save", task_id, agent, report):
            return store.save_checkpoint(task_id, agent, report, call)
        case ("hand", task_id, from_agent, to_agent, report):
            return store.handoff_task(task_id, from_agent, to_agent, "why", report, call)
        case ("mark", task_id, agent, report):
            return store.mark_exhausted(task_id, agent, "why", report, call)
        case ("put", task_id, fields, expected_version):
            return store.update_task(task_id, fields, expected_version, call)
        case (_, task_id, content):
            return attach(store, content, task_id=task_id)
    raise AssertionError(operation)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(OPERATIONS, st.integers(1, 12)), min_size=4, max_size=16))
def test_history_only_grows(calls: list[tuple[tuple[Any, ...], int]]) -> None:
    """Whatever is called, and wherever it fails: all of it happens as one event, or nothing does.

    Events and checkpoints that are there stay as they are; versions and checkpoints have no gaps.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder))
        after = dump(store)
        for operation, failing_statement in calls:
            before = after
            try:
                if is_reached(store, failing_statement, Crash(), partial(carry_out, operation=operation)):
                    assert dump(store) == before
                answer = carry_out(store, operation)
            except ToolError:
                answer = None
            after = dump(store)
            assert_grown(before, after, answer)
        store.close()


def assert_grown(before: Dump, after: Dump, answer: JsonObject | None) -> None:
    if answer is None or after == before:
        assert after == before
        return
    assert after["events"][:-1] == before["events"]
    event_id, task_id, version = after["events"][-1][:3]
    assert event_id == len(after["events"])
    assert (task_id, version) == (answer["task_id"], answer["version"])
    others = [row for row in before["tasks"] if row[0] != task_id]
    assert [row for row in after["tasks"] if row[0] != task_id] == others
    versions = [row[2] for row in after["events"] if row[1] == task_id]
    assert versions == list(range(1, version + 1))
    assert set(before["checkpoints"]) <= set(after["checkpoints"])
    numbers = [row[1] for row in after["checkpoints"] if row[0] == task_id]
    assert numbers == list(range(1, len(numbers) + 1))


def test_checkpoints_stay_as_they_were_saved(store: Store) -> None:
    """A checkpoint is numbered from 1 and reads back the same, whatever happens to the task later."""
    assert store.save_checkpoint("t", "a", EVERYTHING, "1")["checkpoint"] == 1
    saved = store.get_checkpoint("t", 1)
    assert saved.progress == store.get_task("t").progress()
    assert (saved.agent, saved.created_at) == ("a", store.get_task("t").updated_at)
    assert store.handoff_task("t", "a", "b", "why", Report(decisions=["more"]), "2")["checkpoint"] == 2
    store.update_task("t", {"decisions": [], "completed_steps": []}, None, "3")
    assert "checkpoint" not in store.handoff_task("t", "b", "c", "why", Report(), "4")
    assert store.mark_exhausted("t", "c", "why", Report(decisions=["last"]), "5")["checkpoint"] == 3
    assert store.get_checkpoint("t", 1) == saved
    assert [store.get_checkpoint("t", number).progress.decisions for number in (1, 2, 3)] == [
        ["this"],
        ["this", "more"],
        ["last"],
    ]
    for number in (0, 4):
        with pytest.raises(NotFound):
            store.get_checkpoint("t", number)


def test_what_an_update_replaces_is_in_the_log(store: Store) -> None:
    """The eraser loses nothing: the event keeps the values that an update took away."""
    store.save_checkpoint("t", "a", EVERYTHING, "1")
    store.update_task("t", {"title": "New", "decisions": []}, None, "2")
    detail = json.loads(rows(store, "SELECT detail FROM events ORDER BY event_id")[-1][0])
    assert detail == {"before": {"title": "Before", "decisions": ["this"]}}


def test_order_does_not_depend_on_the_clock(empty_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are in the order of changes, page by page, even when the clock goes back an hour each time."""
    hours = iter(range(500_000, 0, -1))
    monkeypatch.setattr(time, "time_ns", lambda: next(hours) * 3_600_000_000_000)
    for number in range(5):
        empty_store.create_task(new_task(f"t{number}", f"Title {number}"))
    empty_store.update_task("t1", {"title": "New"}, None, "1")
    listed, cursor = [], None
    while True:
        page, total = empty_store.list_tasks(TaskFilter(), 2, cursor)
        assert total == 5
        listed += page.tasks
        if (cursor := page.next_cursor) is None:
            break
    assert [task["task_id"] for task in listed] == ["t1", "t4", "t3", "t2", "t0"]
    times = [task["updated_at"] for task in listed]
    assert times == sorted(times)
    assert empty_store.recent_tasks(10, None).tasks == listed


# --- Artifacts ----------------------------------------------------------------------------------------


def test_a_file_is_durable_before_its_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is: all bytes, fsync of the file, rename, fsync of the folder, and only then BEGIN."""
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename
    synced: list[int] = []

    def record_fsync(descriptor: int) -> None:
        facts = os.fstat(descriptor)
        is_folder = stat.S_ISDIR(facts.st_mode)
        if is_folder:
            assert os.path.samestat(facts, os.stat(store.artifacts_dir))
        else:
            assert (facts.st_size, stat.S_IMODE(facts.st_mode)) == (5, 0o600)
            synced.append(facts.st_ino)
        steps.append("fsync folder" if is_folder else "fsync file")
        fsync(descriptor)

    def record_rename(source: str, target: str) -> None:
        assert os.stat(source).st_ino == synced[-1]
        assert os.path.dirname(source) == os.path.dirname(target) == store.artifacts_dir
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    hook(monkeypatch, store, lambda statement, values: steps.append(statement.split()[0]))
    attach(store)
    durable = ["fsync file", "rename", "fsync folder"]
    assert steps == ["SELECT", *durable, "BEGIN", "SELECT", "SELECT", "INSERT", "UPDATE", "COMMIT"]


CRASHING_SERVER = """
import os, runpy, signal, sqlite3, sys
sys.path.insert(0, os.path.dirname({server}))
connect, flag, steps = sqlite3.connect, {flag}, []

def crash_before(step):
    if os.path.exists(flag):
        steps.append(step)
        if len(steps) == int(open(flag).read()):
            os.kill(os.getpid(), signal.SIGKILL)

def crashing(name):
    function = getattr(os, name)
    def call(*arguments):
        crash_before(name)
        return function(*arguments)
    setattr(os, name, call)

class Connection(sqlite3.Connection):
    def execute(self, statement, values=()):
        if not statement.startswith("SELECT"):
            crash_before(statement)
        return super().execute(statement, values)

for name in ("fsync", "rename", "write"):
    crashing(name)
sqlite3.connect = lambda path, **options: connect(path, factory=Connection, **options)
runpy.run_path({server}, run_name="__main__")
"""


def test_a_crash_leaves_no_row_without_its_file(tmp_path: Path) -> None:
    """A server that dies before any step of attaching leaves nothing, or a file without a row.

    The steps are fsync, rename, fsync, BEGIN, INSERT, UPDATE, COMMIT and the answer: the last one can be
    lost after the row was committed. In any case the call can be repeated.
    """
    flag = tmp_path / "crash-before-step"
    for step in range(1, 9):
        arguments = {"task_id": f"t{step}", "name": "log", "content": f"content {step}"}
        with server_script(tmp_path, CRASHING_SERVER, flag=str(flag)):
            server = stdio(tmp_path)
        with server:
            server.call("create_task", task_id=f"t{step}", title="Title", goal="Goal")
            flag.write_text(str(step))
            call = {"name": "attach_artifact", "arguments": arguments}
            server.send({"jsonrpc": "2.0", "id": 99, "method": "tools/call", "params": call})
            assert server.process.wait(20) == -9
        flag.unlink()
        digest = hashlib.sha256(arguments["content"].encode()).hexdigest()
        store = open_store(tmp_path)
        artifacts = store.get_task(f"t{step}").artifacts
        assert [artifact.sha256 for artifact in artifacts] == ([digest] if step == 8 else [])
        assert (digest in files_in(store)) is (step > 2)
        store.attach_artifact(f"t{step}", "log", "file", [arguments["content"].encode()], None)
        assert store.read_artifact(f"t{step}", 1, 0, 100)[1] == arguments["content"].encode()
        assert store.get_task(f"t{step}").version == 2
        store.close()


def test_the_same_content_is_one_file(store: Store) -> None:
    """Equal bytes are stored once, whoever attaches them; each attachment has its own row."""
    store.create_task(new_task("u"))
    for task_id, name in (("t", "one"), ("t", "two"), ("u", "one"), ("t", "one")):
        attach(store, name=name, task_id=task_id)
    assert files_in(store) == [hashlib.sha256(b"bytes").hexdigest()]
    assert [artifact.name for artifact in store.get_task("t").artifacts] == ["one", "two"]
    assert [artifact.number for artifact in store.get_task("t").artifacts] == [1, 2]
    assert store.read_artifact("u", 1, 1, 3)[1] == b"yte"


def test_files_are_private(store: Store) -> None:
    """A stored file is for its owner only, whatever the umask says."""
    umask = os.umask(0)
    try:
        attach(store)
    finally:
        os.umask(umask)
    (name,) = files_in(store)
    assert stat.S_IMODE(os.stat(os.path.join(store.artifacts_dir, name)).st_mode) == 0o600


def fail_with_no_space(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["open", "fsync", "rename"])
def test_a_file_that_cannot_be_stored_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """When the disk refuses a file, the call says so, and neither a file nor a row is left."""
    before = dump(store)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail_with_no_space)
        with pytest.raises(StorageError, match="No space left on device"):
            attach(store)
    assert (dump(store), files_in(store)) == (before, [])
    assert attach(store)["artifact"]["number"] == 1


def test_a_folder_that_cannot_be_synced_leaves_no_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that is not known to be durable is not followed by a row."""
    before, fsync = dump(store), os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fail_with_no_space()
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse_folders)
        with pytest.raises(StorageError):
            attach(store)
    assert dump(store) == before
    assert not [name for name in files_in(store) if name.startswith(".")]
    assert attach(store)["artifact"]["number"] == 1


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), ValueError("no"), Crash()])
def test_a_source_that_breaks_off_leaves_nothing(store: Store, error: BaseException) -> None:
    """When the bytes stop coming by an error, what has come is removed."""
    before = dump(store)

    def chunks() -> Iterator[bytes]:
        yield b"bytes"
        raise error

    with pytest.raises((StorageError, ValueError, Crash)):
        store.attach_artifact("t", "name", "file", chunks(), None)
    assert (dump(store), files_in(store)) == (before, [])


def test_an_artifact_is_limited(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many bytes as the limit are stored; one more is refused, and leaves nothing."""
    monkeypatch.setattr(artifact_files, "ARTIFACT_BYTES", 10)
    assert attach(store, b"0123456789")["artifact"]["size"] == 10
    before, files = dump(store), files_in(store)
    with pytest.raises(TooLarge):
        attach(store, b"0123456789+")
    assert (dump(store), files_in(store)) == (before, files)


def test_artifacts_per_task_are_limited(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many artifacts as the limit are attached; one more is refused, a repeated one is not."""
    monkeypatch.setattr(store_module, "TASK_ARTIFACTS", 2)
    assert [attach(store, name=name)["artifact"]["number"] for name in ("one", "two")] == [1, 2]
    before = dump(store)
    with pytest.raises(TooLarge):
        attach(store, name="three")
    assert attach(store, name="two")["artifact"]["number"] == 2
    assert dump(store) == before


def test_a_missing_file_is_reported(store: Store) -> None:
    """A file that somebody removed is a `storage_error`; the task itself still reads."""
    attach(store)
    os.unlink(os.path.join(store.artifacts_dir, files_in(store)[0]))
    with pytest.raises(StorageError, match="No such file"):
        store.read_artifact("t", 1, 0, 10)
    assert store.get_task("t").artifacts[0].size == 5
    assert attach(store)["artifact"]["number"] == 1
    assert store.read_artifact("t", 1, 0, 10)[1] == b"bytes"


# --- The SQL ------------------------------------------------------------------------------------------

# Every method that runs SQL, after `WRITES`.
READS: dict[str, list[Call]] = {
    "get_task": [lambda store: store.get_task("t")],
    "list_tasks": [
        lambda store: store.list_tasks(TaskFilter(status=Status.OPEN), 2, "9"),
        lambda store: store.list_tasks(TaskFilter(current_owner="a"), 2, "9"),
        lambda store: store.list_tasks(TaskFilter(repo_path="/repo"), 2, "9"),
        lambda store: store.list_tasks(TaskFilter(status=Status.OPEN, current_owner="a"), 2, None),
        lambda store: store.list_tasks(TaskFilter(), 2, "9"),
        lambda store: store.list_tasks(TaskFilter(), 2, None),
        lambda store: store.list_tasks(TaskFilter(query="Title goal"), 2, None),
    ],
    "recent_tasks": [lambda store: store.recent_tasks(2, None), lambda store: store.recent_tasks(2, "9")],
    "get_checkpoint": [lambda store: store.get_checkpoint("t", 1)],
    "read_artifact": [lambda store: store.read_artifact("t", 1, 0, 10)],
    "check": [lambda store: store.check()],
}
WITHOUT_SQL = {"close", "own_files"}


@pytest.fixture
def statements(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Statement]:
    """Return all statements, with values, that the methods of the store run."""
    methods = {name.split()[0] for name in WRITES} | set(READS) | WITHOUT_SQL
    assert methods == {name for name, value in vars(Store).items() if callable(value) and name[0] != "_"}
    recorded: list[Statement] = []
    with monkeypatch.context() as patch:
        hook(patch, store, lambda statement, values: recorded.append((statement, values)))
        for call in ["save_checkpoint", "attach_artifact", "handoff_task", "update_task"]:
            WRITES[call](store)
        WRITES["create_task"](store)
        WRITES["create_task without an id"](store)
        store.mark_exhausted("t", "b", "empty", EVERYTHING, "mark")
        for calls in READS.values():
            for call_store in calls:
                call_store(store)
    return recorded


def test_every_statement_uses_an_index(store: Store, statements: list[Statement]) -> None:
    """Rows are searched by key or index and never sorted; only counts, queries and whole lists scan."""
    seen = 0
    for statement, values in statements:
        if not statement.startswith(("SELECT", "UPDATE", "INSERT")):
            continue
        plan = [row[3] for row in store._db.read((f"EXPLAIN QUERY PLAN {statement}", values))[0]]
        may_scan = statement.endswith(("WHERE 1 = 1", "WHERE 1 = 1 ORDER BY changed DESC LIMIT ?", "LIMIT 1"))
        for step in plan:
            seen += 1
            is_search = step.startswith("SEARCH ")
            is_index_scan = re.match("SCAN [a-z]+ USING (COVERING )?INDEX", step) is not None
            is_query = "LIKE" in statement and step.startswith("SCAN ")
            assert is_search or is_query or (is_index_scan and may_scan), (statement, step)
    assert seen > 30


def test_the_sql_is_plain(statements: list[Statement]) -> None:
    """No statement needs more than what PostgreSQL understands too, and none holds a caller's text."""
    schema = [statement for migration in store_module._MIGRATIONS for statement in migration]
    special = r"AUTOINCREMENT|ROWID|INSERT OR|REPLACE|IGNORE|json|->|GLOB|STRICT|IFNULL|datetime|==|`|\[|\""
    for statement in [*schema, *(statement for statement, _ in statements)]:
        assert not re.search(special, statement, re.IGNORECASE), statement
        assert set(re.findall("'[^']*'", statement)) <= {"'!'"}, statement
    assert {text.split()[0] for text, _ in statements} == {"BEGIN", "COMMIT", "SELECT", "INSERT", "UPDATE"}
    assert {text.split()[1] for text, _ in statements if text.startswith("UPDATE")} == {"tasks"}
