"""The store: every write is one transaction, nothing written is overwritten, and no row lacks its file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import PATIENCE, SERVER, JsonObject, environment, server_script, stdio

import artifact_files
import schema
import store as store_module
import word_index
from database import Row
from errors import (
    Conflict,
    InvalidArguments,
    InvalidState,
    NotFound,
    NotOwner,
    StorageError,
    TooLarge,
    ToolError,
)
from models import ClaimFilter, ClaimKind, NewTask, OwnerState, Report, Status, TaskFilter, TestRun
from sessions import Caller
from store import Claim, Store

Call = Callable[[Store], Any]
Statement = tuple[str, Sequence[Any]]
Dump = dict[str, list[Row]]
TABLES = (
    "tasks",
    "task_tags",
    "dependencies",
    "checkpoints",
    "events",
    "agents",
    "sessions",
    "recent_words",
    "task_words_config",
    "task_words_data",
    "task_words_docsize",
    "task_words_idx",
)

EVERYTHING = Report(
    completed_steps=["one"],
    remaining_steps=["two"],
    resume_prompt="Go on.",
    test_results=[TestRun(summary="fine")],
    decisions=["this"],
    dead_ends=["not that"],
    files=["a.py"],
)
ANY_TASK = ClaimFilter()
A, B, C = (Caller(agent, f"session of {agent}") for agent in "abc")


def new_task(task_id: str | None, title: str = "Title", **more: Any) -> NewTask:
    new = NewTask(task_id=task_id, title=title, goal="Goal", repo_path="/repo", remaining_steps=["two"])
    return new.model_copy(update=more)


def attach(store: Store, content: bytes = b"bytes", name: str = "name", task_id: str = "t") -> JsonObject:
    return store.attach_artifact(task_id, name, "log", [content[:2], content[2:]], A)


# Every method that changes a task, for a store that has the task "t", which nobody owns.
WRITES: dict[str, Call] = {
    "create_task": lambda store: store.create_task(new_task("new", tags=["x"], depends_on=["t"]), A),
    "create_task without an id": lambda store: store.create_task(new_task(None)),
    "save_checkpoint": lambda store: store.save_checkpoint("t", A, EVERYTHING, "save", {"branch": "main"}),
    "handoff_task": lambda store: store.handoff_task("t", A, "b", "tired", EVERYTHING, "hand")[0],
    "mark_exhausted": lambda store: store.mark_exhausted("t", A, "empty", EVERYTHING, "mark"),
    "update_task": lambda store: store.update_task("t", {"title": "Better", "tags": ["y"]}, None, "put"),
    "attach_artifact": attach,
}


class Turn(NamedTuple):
    """What a session does: `prepare` returns what `act` is given; `events` are what that leaves behind."""

    prepare: Call
    act: Callable[[Store, Any], Any]
    events: list[str]


def say_nothing(path: str | None) -> None:
    """Observe no repository."""


def claimed(store: Store) -> Claim:
    claim = store.claim_task(A, "t", ANY_TASK)
    assert claim is not None
    return claim


def left_behind(store: Store) -> None:
    """Have an agent take the task, and end."""
    store.save_checkpoint("t", B, EVERYTHING, "1")
    store.end_session(B.session_id or "", say_nothing)


# Every other method that writes.
TURNS: dict[str, Turn] = {
    "claim_task": Turn(
        lambda store: store.handoff_task("t", B, "a", "tired", EVERYTHING, "hand"),
        lambda store, _: store.claim_task(A, None, ANY_TASK),
        ["claimed"],
    ),
    "claim_task by id": Turn(
        lambda store: None, lambda store, _: store.claim_task(A, "t", ANY_TASK), ["claimed"]
    ),
    "claim_task from the dead": Turn(
        left_behind,
        lambda store, _: store.claim_task(A, None, ANY_TASK),
        ["takeover"],
    ),
    "claim_task again": Turn(
        claimed, lambda store, _: store.claim_task(Caller("A", "other session"), "t", ANY_TASK), []
    ),
    "return_claim": Turn(claimed, lambda store, claim: store.return_claim(claim), ["returned"]),
    "end_session": Turn(
        claimed, lambda store, _: store.end_session(A.session_id or "", say_nothing), ["session_ended"]
    ),
    "take_notice": Turn(
        lambda store: store.handoff_task("t", B, "a", "tired", EVERYTHING, "hand"),
        lambda store, _: store.take_notice("a"),
        [],
    ),
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


@pytest.fixture(autouse=True, scope="module")
def _words_are_indexed_often() -> Iterator[None]:
    """Have the full-text index told of changes so often that these tests see it happen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_index, "CHANGES_AT_ONCE", 2)
        yield


@pytest.fixture
def store(empty_store: Store) -> Store:
    """Return a store with the task "t"."""
    empty_store.create_task(new_task("t", "Before"))
    return empty_store


def dump(store: Store) -> Dump:
    """Return all rows of all tables; the full-text index is in the last four."""
    found = store._db.read(*((f"SELECT * FROM {table} ORDER BY 1, 2", ()) for table in TABLES))
    versions = rows(store, "SELECT task_id, version FROM tasks ORDER BY task_id")
    return {"versions": versions, **dict(zip(TABLES, found, strict=True))}


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
    assert_consistent(store)
    assert write(store)["version"] in (1, 2)
    assert dump(store) == after


@pytest.mark.parametrize("make_error", [full_disk, Crash])
@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_a_failure_at_any_statement_of_a_claim_changes_nothing(
    store: Store, turn: Turn, make_error: Callable[[], BaseException]
) -> None:
    """The same of claims, notices and ends of sessions: nothing has changed, and the same call then works."""
    prepared = turn.prepare(store)
    before, number = dump(store), 1
    while is_reached(store, number, make_error(), lambda store: turn.act(store, prepared)):
        assert dump(store) == before
        number += 1
    assert number > 4, "there are at least BEGIN, something read, something written, COMMIT"
    after = dump(store)
    assert after != before
    new_events = after["events"][len(before["events"]) :]
    assert [(row[1], row[4]) for row in new_events] == [("t", what) for what in turn.events]
    assert_consistent(store)


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
        (lambda store: store.create_task(new_task("new", depends_on=["t", "nobody"])), InvalidArguments),
        (lambda store: store.save_checkpoint("nobody", A, EVERYTHING, "1"), NotFound),
        (lambda store: store.save_checkpoint("taken", A, EVERYTHING, "1"), NotOwner),
        (lambda store: store.handoff_task("taken", A, "c", "why", EVERYTHING, "1"), NotOwner),
        (lambda store: store.mark_exhausted("taken", A, "why", EVERYTHING, "1"), NotOwner),
        (lambda store: store.mark_exhausted("done", A, "why", EVERYTHING, "1"), InvalidState),
        (lambda store: store.update_task("t", {"title": "New"}, 7, "1"), Conflict),
        (lambda store: store.update_task("done", {"title": "New"}, None, "1"), InvalidState),
        (lambda store: store.update_task("t", {"depends_on": ["nobody"]}, None, "1"), InvalidArguments),
        (lambda store: store.update_task("t", {"depends_on": ["t"]}, None, "1"), InvalidArguments),
        (lambda store: store.update_task("t", {"depends_on": ["needs t"]}, None, "1"), InvalidArguments),
        (lambda store: attach(store, task_id="nobody"), NotFound),
        (lambda store: store.claim_task(A, "nobody", ANY_TASK), NotFound),
        (lambda store: store.claim_task(A, "taken", ANY_TASK), NotOwner),
        (lambda store: store.claim_task(A, "handed", ANY_TASK), NotOwner),
        (lambda store: store.claim_task(A, "done", ANY_TASK), InvalidState),
    ],
)
def test_a_refused_write_changes_nothing(store: Store, refused: Call, error: type[ToolError]) -> None:
    """A call that breaks a rule leaves every row and file as it was."""
    store.create_task(new_task("taken"))
    store.save_checkpoint("taken", B, EVERYTHING, "0")
    store.create_task(new_task("handed"))
    store.handoff_task("handed", B, "c", "why", EVERYTHING, "0")
    store.create_task(new_task("needs t", depends_on=["t"]))
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
CALLERS = st.sampled_from([A, B, Caller("A", None), Caller("b", "session of a")])
REPORTS = st.sampled_from([Report(), EVERYTHING, Report(remaining_steps=["one"]), Report(decisions=["more"])])
FIELDS = st.sampled_from(
    [
        {"title": "New"},
        {"decisions": []},
        {"status": Status.DONE},
        {"status": Status.OPEN},
        {"status": Status.IN_PROGRESS, "current_owner": "b"},
        {"tags": ["x", "y"]},
        {"depends_on": ["t"]},
        {"depends_on": ["u"], "priority": 0},
        {"depends_on": []},
    ]
)
OPERATIONS = st.one_of(
    st.tuples(st.just("create"), IDS, st.sampled_from(["Title", "Other"])),
    st.tuples(st.just("save"), IDS, CALLERS, REPORTS),
    st.tuples(st.just("hand"), IDS, CALLERS, st.sampled_from(["a", "b", "any"]), REPORTS),
    st.tuples(st.just("mark"), IDS, CALLERS, REPORTS),
    st.tuples(st.just("put"), IDS, FIELDS, st.sampled_from([None, 1, 2, 3])),
    st.tuples(st.just("attach"), IDS, st.sampled_from([b"one", b"two"])),
    st.tuples(st.just("claim"), st.sampled_from(["t", "u", None]), CALLERS, st.booleans()),
    st.tuples(st.just("end"), st.sampled_from([A, B])),
    st.tuples(st.just("notice"), AGENTS),
)
SMALL = settings(deadline=None, derandomize=True, database=None)


def carry_out(store: Store, operation: tuple[Any, ...]) -> Any:
    call = repr(operation)
    match operation:
        case ("create", task_id, title):
            return store.create_task(new_task(task_id, title))
        case ("save", task_id, caller, report):
            return store.save_checkpoint(task_id, caller, report, call)
        case ("hand", task_id, caller, to_agent, report):
            return store.handoff_task(task_id, caller, to_agent, "why", report, call)
        case ("mark", task_id, caller, report):
            return store.mark_exhausted(task_id, caller, "why", report, call)
        case ("put", task_id, fields, expected_version):
            return store.update_task(task_id, fields, expected_version, call)
        case ("attach", task_id, content):
            return attach(store, content, task_id=task_id)
        case ("claim", task_id, caller, is_kept):
            claim = store.claim_task(caller, task_id, ANY_TASK)
            return claim if is_kept or claim is None else store.return_claim(claim)
        case ("end", caller):
            return store.end_session(caller.session_id, say_nothing)
        case ("notice", agent):
            return store.take_notice(agent)
    raise AssertionError(operation)


@contextmanager
def quick_store() -> Iterator[Store]:
    """Yield an empty store that trusts the power supply."""
    with tempfile.TemporaryDirectory() as folder:
        opened = open_store(Path(folder))
        opened._db._connection.execute("PRAGMA synchronous = OFF")
        yield opened
        opened.close()


@settings(SMALL, max_examples=60)
@given(st.lists(st.tuples(OPERATIONS, st.integers(1, 16)), min_size=4, max_size=16))
def test_history_only_grows(calls: list[tuple[tuple[Any, ...], int]]) -> None:
    """Whatever is called, wherever it fails: it happens as one event or not at all, and history stays."""
    with quick_store() as store:
        after = dump(store)
        for operation, failing_statement in calls:
            before, is_refused = after, False
            try:
                if operation[0] != "claim" or operation[3]:  # a claim that is returned is two changes
                    call = partial(carry_out, operation=operation)
                    if is_reached(store, failing_statement, Crash(), call):
                        assert dump(store) == before
                carry_out(store, operation)
            except ToolError:
                is_refused = True
            after = dump(store)
            assert_grown(before, after, is_refused)
            assert_consistent(store)


def assert_grown(before: Dump, after: Dump, is_refused: bool) -> None:
    """Check that a call left what was recorded before, and one event for the task that it changed."""
    if is_refused:
        assert after == before
    assert after["events"][: len(before["events"])] == before["events"]
    assert set(before["checkpoints"]) <= set(after["checkpoints"])
    new_events = [row for row in after["events"][len(before["events"]) :] if row[4] != "session_ended"]
    changed = {row[1] for row in new_events}
    happened = [row[4] for row in new_events]
    assert len(new_events) <= 1 or happened[1] == "returned"
    assert {row[0] for row in set(after["versions"]) - set(before["versions"])} == changed


def assert_consistent(store: Store) -> None:
    """Check all that is derived: numbers without gaps, and what lists, queues and queries go by."""
    found = dump(store)
    tasks = {row[0]: store.get_task(row[0]) for row in found["tasks"]}
    assert [row[0] for row in found["events"]] == list(range(1, len(found["events"]) + 1))
    facts = "SELECT born, changed, owner_key, owner_session, waits_for, queue FROM tasks WHERE task_id = ?"
    for task_id, task in tasks.items():
        events = [(row[0], row[2]) for row in found["events"] if row[1] == task_id]
        ends = {row[0] for row in found["events"] if row[4] == "session_ended"}
        changes = [event for event in events if event[0] not in ends]
        assert [version for _, version in changes] == list(range(1, task.version + 1))
        assert [version for _, version in events] == sorted(version for _, version in events)
        [(born, changed, owner_key, session_id, waits_for, queue)] = rows(store, facts, task_id)
        assert (born, changed) == (changes[0][0], changes[-1][0])
        chain = [number for number, _ in events]
        assert [row[-1] for row in found["events"] if row[1] == task_id] == [None, *chain[:-1]]
        assert rows(store, "SELECT last_event FROM tasks WHERE task_id = ?", task_id) == [(chain[-1],)]
        assert owner_key == schema.owner_key_of(task)
        is_worked_on = task.status is Status.IN_PROGRESS and owner_key is not None
        assert (session_id is not None) == is_worked_on
        assert waits_for == sum(tasks[needed].status is not Status.DONE for needed in task.depends_on)
        assert queue == schema.queue_of(task.status, owner_key, session_id, waits_for)
        numbers = [row[1] for row in found["checkpoints"] if row[0] == task_id]
        assert numbers == list(range(1, len(numbers) + 1))
    pairs = {table: Counter(found[table]) for table in ("task_tags", "dependencies")}
    changed = dict(rows(store, "SELECT task_id, changed FROM tasks"))
    tagged = ((task_id, tag, changed[task_id]) for task_id in tasks for tag in tasks[task_id].tags)
    assert pairs["task_tags"] == Counter(tagged)
    needs = ((task_id, needed) for task_id in tasks for needed in tasks[task_id].depends_on)
    assert pairs["dependencies"] == Counter(needs)
    assert_words_are_known(found, set(changed.values()))


def assert_words_are_known(found: Dump, changed: set[int]) -> None:
    """Check that each task is in the index or waits for it, and what is no task's is forgotten or waits."""
    indexed = {row[0] for row in found["task_words_docsize"]}
    added = {row[0] for row in found["recent_words"] if row[1]}
    forgotten = {row[0] for row in found["recent_words"] if not row[1]}
    assert forgotten <= indexed
    assert indexed - forgotten | added == changed
    assert not added or min(added) > max(indexed, default=0)


def made_older(path: Path) -> None:
    """Make a database into one of schema version 2 that has the same in it."""
    newer = path.rename(path.with_name("newer.db"))
    with closing(sqlite3.connect(path)) as older:
        for statement in (statement for migration in schema.MIGRATIONS[:2] for statement in migration):
            older.execute(statement)
        older.execute("ATTACH ? AS newer", (str(newer),))
        for table in TABLES:
            columns = ", ".join(row[1] for row in older.execute(f"PRAGMA main.table_info({table})"))
            if columns:
                older.execute(f"DELETE FROM main.{table}")
                older.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM newer.{table}")
        older.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        older.execute("PRAGMA user_version = 2")
        older.commit()
    newer.unlink()


def test_an_older_database_is_brought_up_to_date(tmp_path: Path) -> None:
    """What a server of schema version 2 has stored is all there, found and told as before."""
    older = open_store(tmp_path)
    for task_id in ("t", "u", "v"):
        older.create_task(new_task(task_id, f"Title of {task_id}"))
    for number, task_id in enumerate("tutu"):
        older.save_checkpoint(task_id, A, Report(decisions=[f"decided {number}"]), str(number))
    older.end_session(A.session_id or "", say_nothing)
    older.update_task("v", {"title": "Other"}, None, "1")  # the tenth event: all words are indexed
    before, histories = dump(older), [older.history(task_id, 50, None) for task_id in "tuv"]
    assert not before["recent_words"]
    older.close()
    made_older(tmp_path / "tasks.db")
    kept = (tmp_path / "tasks.db").read_bytes()
    for command in (["--verify"], ["--backup", str(tmp_path / "backup")]):
        done = subprocess.run([sys.executable, SERVER, *command], env=environment(tmp_path), timeout=PATIENCE)
        assert done.returncode == 0
    assert (tmp_path / "tasks.db").read_bytes() == kept
    store = open_store(tmp_path)
    assert dump(store) == before
    assert_consistent(store)
    assert [store.history(task_id, 50, None) for task_id in "tuv"] == histories
    assert store.list_tasks(TaskFilter(query="decided"), 5, None)[1] == 2
    store.save_checkpoint("t", A, Report(decisions=["further"]), "later")
    assert [event["what"] for event in store.history("t", 2, None)[0]] == ["checkpoint", "session_ended"]
    assert_consistent(store)
    store.close()


def test_a_history_is_read_page_by_page(store: Store) -> None:
    """The pages hold each event once, newest first; a number that is no event of the task leads nowhere."""
    store.create_task(new_task("u"))
    for number in range(6):
        for task_id in ("t", "u"):
            store.update_task(task_id, {"title": f"Title {number}"}, None, str(number))
    seen, cursor = store.history("t", 3, None)
    while cursor is not None:
        page, cursor = store.history("t", 3, cursor)
        seen += page
    assert seen == store.history("t", 50, None)[0]
    assert len(seen) == 7
    assert store.history("t", 3, "2") == store.history("t", 3, "999") == ([], None)


# --- Ready, or waiting for others ---------------------------------------------------------------------

CHAIN = ["t0", "t1", "t2", "t3"]
NEEDS = st.lists(st.sampled_from(CHAIN), unique=True, max_size=3)
STATUSES = st.sampled_from([Status.DONE, Status.DONE, Status.OPEN, Status.HANDOFF_READY])
MOVES = st.one_of(
    st.tuples(st.sampled_from(CHAIN), st.fixed_dictionaries({"status": STATUSES})),
    st.tuples(st.sampled_from(CHAIN), st.fixed_dictionaries({"depends_on": NEEDS})),
    st.tuples(st.sampled_from(CHAIN), st.fixed_dictionaries({"status": STATUSES, "depends_on": NEEDS})),
)


class Modelled(NamedTuple):
    """A task as the model has it."""

    status: Status
    depends_on: list[str]


def leads_to(model: dict[str, Modelled], start: list[str], task_id: str) -> bool:
    """Return whether the dependencies of `start` lead to a task."""
    return any(one == task_id or leads_to(model, model[one].depends_on, task_id) for one in start)


@example(
    [
        ("t2", {"depends_on": ["t0", "t1"]}),
        ("t0", {"status": Status.DONE}),
        ("t1", {"status": Status.DONE}),
        ("t0", {"status": Status.OPEN}),
        ("t2", {"depends_on": ["t1"]}),
        ("t1", {"depends_on": ["t2"], "status": Status.OPEN}),
    ]
)
@settings(SMALL, max_examples=60)
@given(st.lists(MOVES, min_size=3, max_size=20))
def test_a_task_is_ready_once_all_it_needs_is_done(moves: list[tuple[str, JsonObject]]) -> None:
    """Tasks that are done, reopened and made to need others: a plain model says the same of each of them."""
    model = {task_id: Modelled(Status.OPEN, []) for task_id in CHAIN}
    with quick_store() as store:
        for task_id in CHAIN:
            store.create_task(new_task(task_id))
        for number, (task_id, fields) in enumerate(moves):
            before = model[task_id]
            wanted = before._replace(**fields)
            if wanted == before:
                expected = True
            elif before.status is Status.DONE and fields.get("status") is not Status.OPEN:
                expected = False
            else:
                others = {**model, task_id: wanted}
                is_new = sorted(wanted.depends_on) != sorted(before.depends_on)
                expected = not (is_new and leads_to(model, wanted.depends_on, task_id))
                model = others if expected else model
            try:
                store.update_task(task_id, fields, None, str(number))
            except (InvalidArguments, InvalidState):
                assert not expected
            else:
                assert expected
            assert_ready(store, model)


def assert_ready(store: Store, model: dict[str, Modelled]) -> None:
    opened = {task_id for task_id, task in model.items() if task.status is Status.OPEN}
    done = {task_id for task_id, task in model.items() if task.status is Status.DONE}
    ready = {task_id for task_id in opened if set(model[task_id].depends_on) <= done}
    assert found_by(store, ready=True) == ready
    assert found_by(store, ready=False) == opened - ready
    assert_consistent(store)


def found_by(store: Store, **wanted: Any) -> set[str]:
    page, total = store.list_tasks(TaskFilter(**wanted), 100, None)
    assert total == len(page.tasks)
    return {task["task_id"] for task in page.tasks}


# --- Queries ------------------------------------------------------------------------------------------

ALPHABET = "aAbBzZ019éÉ\u0301日ωΩ _-.,;:!?\"'`*^()[]{}<>+=~#/\\%&|@\t\n\0\U0001f600"
WRITING = st.text(ALPHABET, max_size=12) | st.sampled_from(
    ["foo_bar", "NOT b", "a OR b", 'NEAR("a")', "words : a"]
)


def words_in(text: str) -> list[str]:
    """Return the words of a text: letters and digits, without case and accents."""
    plain = "".join(one for one in unicodedata.normalize("NFD", text.casefold()) if one != "\u0301")
    return re.findall(r"[^\W_]+", plain)


def is_found(task: JsonObject, query: str) -> bool:
    """Return whether each word of the query starts a word of some field of the task.

    A blank query asks for nothing in particular; one without any word asks for what no task has.
    """
    if not query.strip():
        return True
    known = [
        word
        for text in task.values()
        for word in words_in(text if isinstance(text, str) else "\n".join(text))
    ]
    return all(any(one.startswith(word) for one in known) for word in words_in(query)) and bool(
        words_in(query)
    )


TEXTS = st.lists(WRITING, max_size=2)
EDITS = st.one_of(
    st.tuples(st.sampled_from(["title", "goal", "resume_prompt"]), WRITING),
    st.tuples(st.sampled_from(["completed_steps", "remaining_steps", "decisions", "dead_ends"]), TEXTS),
    st.tuples(st.sampled_from(["status", "save", "hand", "mark", "claim", "attach", "files"]), TEXTS),
)


@example([("u", ("decisions", ["Prefixes matter"]))], ["pref", "MATTER prefix", "refixes", "prefixes_x"])
@example([("t", ("title", "two cafe\u0301s"))], ["cafe\u0301s", "CAFÉS", "cafes"])
@example([("t", ("goal", "Ab\u0301z"))], ["ab\u0301z", "AB", "z"])
@settings(SMALL, max_examples=80)
@given(
    st.lists(st.tuples(st.sampled_from(["t", "u"]), EDITS), max_size=8),
    st.lists(WRITING, min_size=1, max_size=5),
)
def test_a_query_finds_what_holds_all_its_words(
    edits: list[tuple[str, tuple[str, Any]]], queries: list[str]
) -> None:
    """After any writes a query finds what a plain search through the tasks finds, in any case and field."""
    with quick_store() as store:
        for task_id in ("t", "u"):
            store.create_task(new_task(task_id))
        for number, (task_id, (name, value)) in enumerate(edits):
            edit(store, task_id, name, value, str(number))
        tasks = {task_id: store.get_task(task_id).model_dump(include=set(SEARCHED)) for task_id in ("t", "u")}
        shown = {
            task_id: {name: text or "" for name, text in task.items()} for task_id, task in tasks.items()
        }
        own_words = [word for task in shown.values() for word in words_in(task["title"])[:2]]
        for query in [*queries, *own_words, " ".join(own_words), "goal"]:
            expected = {task_id for task_id, task in shown.items() if is_found(task, query)}
            assert found_by(store, query=query) == expected, query
        assert_consistent(store)


SEARCHED = ("title", "goal", "completed_steps", "remaining_steps", "resume_prompt", "decisions", "dead_ends")


def edit(store: Store, task_id: str, name: str, value: Any, call: str) -> None:
    """Write to a task, whoever has it and whatever its status."""
    store.update_task(task_id, {"status": Status.OPEN}, None, f"free {call}")
    match name:
        case "save":
            store.save_checkpoint(task_id, A, Report(decisions=value), call)
        case "hand":
            store.handoff_task(task_id, A, "any", "why", Report(dead_ends=value), call)
        case "mark":
            store.mark_exhausted(task_id, A, "why", Report(completed_steps=value), call)
        case "claim":
            store.claim_task(A, task_id, ANY_TASK)
        case "attach":
            attach(store, task_id=task_id)
        case _:
            fields = {"status": Status.DONE} if name == "status" else {name: value}
            store.update_task(task_id, fields, None, call)


# --- What is kept -------------------------------------------------------------------------------------


def test_a_handoff_is_new_once(store: Store) -> None:
    """Only the call that hands a task over says that it did; the same call again does not."""
    results = [store.handoff_task("t", A, "b", "tired", EVERYTHING, "hand") for _ in range(3)]
    assert [is_new for _, is_new in results] == [True, False, False]
    assert [answer for answer, _ in results] == [results[0][0]] * 3


def test_what_is_given_up_for_somebody_else_is_not_offered(store: Store) -> None:
    """A task that is exhausted but assigned is its owner's: others are offered the next one, or none."""
    store.update_task("t", {"status": Status.AGENT_EXHAUSTED, "current_owner": "b"}, None, "1")
    assert store.claim_task(A, None, ANY_TASK) is None
    assert not store.is_claimable("a", ANY_TASK)
    store.create_task(new_task("u"))
    claim = store.claim_task(A, None, ANY_TASK)
    assert claim is not None
    assert claim.task.task_id == "u"
    of_owner = store.claim_task(B, None, ANY_TASK)
    assert of_owner is not None
    assert (of_owner.task.task_id, of_owner.how) == ("t", ClaimKind.EXHAUSTED)


def test_an_ended_session_is_recorded_for_what_it_still_has(store: Store) -> None:
    """What changed hands while the repositories are looked at is not said to have been left behind."""
    for task_id in ("u", "v"):
        store.create_task(new_task(task_id))
    for task_id in ("t", "u", "v"):
        store.save_checkpoint(task_id, A, EVERYTHING, "1")

    def observe(path: str | None) -> JsonObject:
        store.handoff_task("u", A, "b", "tired", Report(), "2")
        store.update_task("v", {"title": "Later"}, None, "2")
        return {"branch": "main"}

    store.end_session(A.session_id or "", observe)
    ended = [(row[1], row[2]) for row in dump(store)["events"] if row[4] == "session_ended"]
    assert ended == [("t", 2), ("v", 3)]
    assert_consistent(store)
    assert store.get_task_and_owner("t")[1] is OwnerState.GONE


def test_checkpoints_stay_as_they_were_saved(store: Store) -> None:
    """A checkpoint is numbered from 1 and reads back the same, whatever happens to the task later."""
    assert store.save_checkpoint("t", A, EVERYTHING, "1")["checkpoint"] == 1
    saved = store.get_checkpoint("t", 1)
    assert saved.progress == store.get_task("t").progress()
    assert (saved.agent, saved.created_at) == ("a", store.get_task("t").updated_at)
    assert store.handoff_task("t", A, "b", "why", Report(decisions=["more"]), "2")[0]["checkpoint"] == 2
    store.update_task("t", {"decisions": [], "completed_steps": []}, None, "3")
    assert "checkpoint" not in store.handoff_task("t", B, "c", "why", Report(), "4")[0]
    assert store.mark_exhausted("t", C, "why", Report(decisions=["last"]), "5")["checkpoint"] == 3
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
    store.save_checkpoint("t", A, EVERYTHING, "1")
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
    loaded, logged, indexed = ["SELECT", "SELECT"], ["SELECT", "INSERT"], ["SELECT", "DELETE", "INSERT"]
    told = ["INSERT", "INSERT", "DELETE"]  # the full-text index, of all that has changed
    assert steps == ["SELECT", *durable, "BEGIN", *loaded, *logged, "UPDATE", *indexed, *told, "COMMIT"]


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
        if not statement.startswith(("SELECT", "PRAGMA")):
            crash_before(statement)
        return super().execute(statement, values)

for name in ("fsync", "rename", "write"):
    crashing(name)
sqlite3.connect = lambda path, **options: connect(path, factory=Connection, **options)
runpy.run_path({server}, run_name="__main__")
"""


def test_a_crash_leaves_no_row_without_its_file(tmp_path: Path) -> None:
    """A server that dies at any step of attaching leaves a file without a row at most; the call repeats."""
    flag = tmp_path / "crash-before-step"
    for step in range(1, 11):  # fsync, rename, fsync, BEGIN, INSERT, UPDATE, INSERT, INSERT, COMMIT, write
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
        assert [artifact.sha256 for artifact in artifacts] == ([digest] if step == 10 else [])
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

# What may be asked for beside a query, alone and together.
FILTERS: list[JsonObject] = [
    {},
    {"status": Status.OPEN},
    {"current_owner": "a"},
    {"repo_path": "/repo"},
    {"tag": "x"},
    {"ready": True},
    {"ready": False},
    {"owner_state": OwnerState.LIVE},
    {"owner_state": OwnerState.UNKNOWN},
    {"status": Status.OPEN, "current_owner": "a", "repo_path": "/repo"},
    {"ready": True, "tag": "x"},
]
CLAIMS = [ClaimFilter(repo_path=path, tag=tag) for path in (None, "/nowhere") for tag in (None, "no")]


def listing(cursor: str | None, query: str | None, filters: JsonObject) -> Call:
    return lambda store: store.list_tasks(TaskFilter(query=query, **filters), 2, cursor)


def claiming(wanted: ClaimFilter) -> Call:
    return lambda store: store.is_claimable("a", wanted)


# Every method that reads, after `WRITES`.
READS: dict[str, list[Call]] = {
    "get_task": [lambda store: store.get_task("t")],
    "get_task_text": [lambda store: store.get_task_text("t")],
    "get_task_and_owner": [lambda store: store.get_task_and_owner("t")],
    "repo_path": [lambda store: store.repo_path("t")],
    "list_tasks": [
        listing(cursor, query, filters)
        for cursor in (None, "9")
        for query in (None, "title go")
        for filters in FILTERS
    ],
    "recent_tasks": [lambda store: store.recent_tasks(2, None), lambda store: store.recent_tasks(2, "9")],
    "get_checkpoint": [lambda store: store.get_checkpoint("t", 1)],
    "last_checkpoint_facts": [lambda store: store.last_checkpoint_facts("t")],
    "history": [lambda store: store.history("t", 2, None), lambda store: store.history("t", 2, "9")],
    "read_artifact": [lambda store: store.read_artifact("t", 1, 0, 10)],
    "complete_task_id": [lambda store: store.complete_task_id("t", 2)],
    "is_claimable": [claiming(wanted) for wanted in CLAIMS],
    "change_marker": [lambda store: store.change_marker()],
    "last_position": [lambda store: store.last_position()],
    "changes_since": [lambda store: store.changes_since(1)],
    "check": [lambda store: store.check()],
}
WITHOUT_SQL = {"close", "own_files", "is_session_known", "together", "require_alone"}


@pytest.fixture
def statements(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Statement]:
    """Return all statements, with values, that the methods of the store run."""
    methods = {name.split()[0] for name in (*WRITES, *TURNS)} | set(READS) | WITHOUT_SQL
    assert methods == {name for name, value in vars(Store).items() if callable(value) and name[0] != "_"}
    recorded: dict[str, Sequence[Any]] = {}
    with monkeypatch.context() as patch:
        hook(patch, store, lambda statement, values: recorded.update({statement: values}))
        for write in WRITES.values():
            write(store)
            store.update_task("t", {"status": Status.OPEN}, None, str(len(recorded)))
        store.update_task("t", {"status": Status.DONE}, None, "done")
        store.update_task("t", {"status": Status.OPEN}, None, "opened")
        store.update_task("new", {"depends_on": []}, None, "freed")
        store.update_task("new", {"status": Status.IN_PROGRESS, "current_owner": "c"}, None, "assigned")
        for number, turn in enumerate(TURNS.values()):
            turn.act(store, turn.prepare(store))
            store.update_task("t", {"status": Status.OPEN}, None, f"again {number}")
        store.save_checkpoint("t", A, EVERYTHING, "mine")
        for wanted in CLAIMS:
            store.claim_task(B, None, wanted)
        store.save_checkpoint("t", A, EVERYTHING, "mine still")
        for calls in READS.values():
            for call in calls:
                call(store)
    return list(recorded.items())


def test_every_statement_uses_an_index(store: Store, statements: list[Statement]) -> None:
    """Rows are searched by key, index or word; only living sessions and lists of all tasks are scanned."""
    seen, slow = 0, []
    for statement, values in statements:
        if statement.split()[0] in ("BEGIN", "COMMIT", "PRAGMA"):
            continue
        plan = [row[3] for row in store._db.read((f"EXPLAIN QUERY PLAN {statement}", values))[0]]
        seen += len(plan)
        slow += [(statement, step) for step in plan if not is_quick(step, statement)]
    assert slow == []
    assert seen > 60


def is_quick(step: str, statement: str) -> bool:
    """Return whether a step of a query plan looks at no more rows than it must."""
    if step.startswith("SCAN worded"):  # a row number given from outside would be one query for each row
        return "M0" in step and "=" not in step
    if step.startswith("SCAN tasks"):
        is_all = re.search("WHERE 1 = 1( ORDER BY tasks.changed DESC LIMIT [?])?$|tasks LIMIT 1$", statement)
        return is_all is not None and "INDEX" in step
    if step.startswith("USE TEMP B-TREE"):  # ids completed while somebody types
        return "repo_path = ?" not in statement
    return step.startswith("SEARCH ") or step in PARTS_OF_PLANS


PARTS_OF_PLANS = {
    "SCAN sessions",
    "SCAN recent_words",  # never many
    "SCAN past",  # history: the same
    "CO-ROUTINE past",
    "SCAN n",  # dependencies: one round of the recursion, and its result
    "SCAN needed",
    "CO-ROUTINE needed",
    "SETUP",
    "RECURSIVE STEP",
    *(f"{kind} SUBQUERY {number}" for kind in ("SCALAR", "CORRELATED SCALAR", "LIST") for number in (1, 2)),
}


LITERALS = {"'open'", "'in_progress'", "'delete'", "'delete-all'", "''", "'unicode61'"}


def test_the_sql_is_plain(statements: list[Statement]) -> None:
    """No statement needs more than what PostgreSQL understands too, and none holds a caller's text."""
    made = [statement for migration in schema.MIGRATIONS for statement in migration]
    ran = [statement for statement, _ in statements]
    full_text = re.compile("task_words|recent_index|worded")
    plain = [one for one in (*made, *ran) if not full_text.search(one) and one != "PRAGMA data_version"]
    assert len(plain) > 50
    special = (
        r"AUTOINCREMENT|ROWID|INSERT OR|REPLACE|IGNORE|json|->|GLOB|STRICT|IFNULL|datetime|==|`|\[|\"|PRAGMA"
        r"|IN \(\)|MATCH|VIRTUAL"
    )
    for statement in plain:
        assert not re.search(special, statement, re.IGNORECASE), statement
    for statement in ran:
        assert set(re.findall("'[^']*'", statement)) <= LITERALS, statement


def test_what_is_history_is_never_written_again(statements: list[Statement]) -> None:
    """Events and checkpoints are only ever added."""
    written = {tuple(text.split()[:3]) for text, _ in statements if text.split()[0] in ("UPDATE", "DELETE")}
    tables = {table for _, first, second in written for table in (first, second) if table in TABLES}
    assert tables == {"tasks", "sessions", "agents", "task_tags", "dependencies", "recent_words"}
