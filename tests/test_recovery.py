"""Backup and verification as commands, beside running servers, on sound files and on damaged ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support import (
    PATIENCE,
    SERVER,
    HttpServer,
    McpClient,
    Process,
    StdioClient,
    create,
    environment,
    held_database,
    server_script,
    stdio,
    wait_until,
)

from config import SERVER_NAME

KEPT, OTHER = "kept", "other " * 30_000  # two artifacts, one of them larger than the database
OLD = time.time() - 3600


class Outcome(NamedTuple):
    """How a command ended, and what it wrote."""

    status: int
    lines: list[str]
    errors: list[str]


def command(folder: Path, *arguments: str, cwd: Path | None = None, **settings: str) -> Outcome:
    """Run the server's command on what is in `folder`; it may complain, but never with a traceback."""
    done = subprocess.run(
        [sys.executable, str(SERVER), *arguments],
        cwd=cwd,
        env=environment(folder, **settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    errors = done.stderr.splitlines()
    assert all(line.startswith(f"{SERVER_NAME}: ") for line in errors), done.stderr
    return Outcome(done.returncode, done.stdout.splitlines(), errors)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a database of three tasks, and two artifacts in three places."""
    folder = tmp_path_factory.mktemp("original")
    with stdio(folder) as client:
        for task_id in ("t1", "t2", "t3"):
            create(client, task_id)
        for task_id, content in (("t1", KEPT), ("t2", KEPT), ("t2", OTHER)):
            client.call("attach_artifact", task_id=task_id, name="n", content=content)
        assert client.close() == 0
    for content in (KEPT, OTHER):
        os.utime(file_of(folder, content), (OLD, OLD))
    return folder


@pytest.fixture
def state(original: Path, tmp_path: Path) -> Path:
    """Return a copy of the original that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "state"))


SOUND = f"3 tasks, 3 artifacts ({len(KEPT) + len(OTHER)} bytes)"


def file_of(folder: Path, content: str) -> Path:
    return folder / "artifacts" / hashlib.sha256(content.encode()).hexdigest()


def everything(folder: Path) -> dict[str, bytes | None]:
    """Return all that lies in a folder, but for logs and locks, which say nothing about what is stored."""
    passing = (".log", ".lock", "-shm")
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.name.endswith(passing) and path.parent.name != "tasks.db.sessions"
    }


# --- Backup -------------------------------------------------------------------------------------------


def write_without_end(
    client: StdioClient | McpClient, name: str, kept: list[str], is_over: threading.Event
) -> None:
    """Make tasks with artifacts, and note in `kept` what has been acknowledged."""
    while not is_over.is_set():
        task_id = create(client, f"{name}-{len(kept)}")
        client.call("attach_artifact", task_id=task_id, name="n", content=f"of {task_id}")
        kept.append(task_id)


def back_up_beside_writers(folder: Path, writers: int, backups: int, seconds: float) -> None:
    """Make backups while `writers` servers write, and compare each with what was acknowledged before it."""
    is_over = threading.Event()
    kept: list[list[str]] = [[] for _ in range(writers)]
    with contextlib.ExitStack() as ends:
        service = ends.enter_context(HttpServer(folder))
        clients = [McpClient(service), *(ends.enter_context(stdio(folder)) for _ in range(writers - 1))]
        threads = [
            threading.Thread(target=write_without_end, args=(client, f"w{number}", kept[number], is_over))
            for number, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        try:
            for number in range(backups):
                due = time.monotonic() + seconds / backups
                wait_until(lambda: all(kept) and time.monotonic() >= due, "all have written")  # noqa: B023
                before = [task_id for tasks in kept for task_id in tasks]
                copy = folder / f"backup-{number}"
                assert command(folder, "--backup", str(copy)).status == 0
                require_backup(copy, before)
        finally:
            is_over.set()
            for thread in threads:
                thread.join(PATIENCE)
        after = sum(map(len, kept))
        assert command(folder, "--verify").lines[-1].startswith(f"sound: {after} tasks, {after} artifacts ")


def require_backup(copy: Path, acknowledged: list[str]) -> None:
    """Require that a backup is sound, and has each task that was acknowledged, with its artifact."""
    found = everything(copy)
    assert command(copy, "--verify").status == 0
    assert everything(copy) == found
    with contextlib.closing(sqlite3.connect(copy / "tasks.db")) as database:
        bodies = dict(database.execute("SELECT task_id, body FROM tasks"))
    for task_id in acknowledged:
        [artifact] = json.loads(bodies[task_id])["artifacts"]
        assert artifact["sha256"] == file_of(copy, f"of {task_id}").name
        assert file_of(copy, f"of {task_id}").read_text() == f"of {task_id}"


def test_a_backup_beside_writers_holds_all_that_was_acknowledged(tmp_path: Path) -> None:
    """While three servers write, a backup is sound, and has each write that was acknowledged before it."""
    back_up_beside_writers(tmp_path, writers=3, backups=2, seconds=0.5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_backups_beside_many_writers_hold_all_that_was_acknowledged(tmp_path: Path) -> None:
    """While eight servers write, each of ten backups has all that was acknowledged before it."""
    back_up_beside_writers(tmp_path, writers=8, backups=10, seconds=20)


def test_a_backup_is_private(state: Path, tmp_path: Path) -> None:
    """Whatever the umask: files of a backup are 0600, its folders 0700."""
    before = os.umask(0)
    try:
        command(state, "--backup", "new/backup", cwd=tmp_path)
    finally:
        os.umask(before)
    modes = {
        path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new", *tmp_path.rglob("new/**/*"))
    }
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}


def test_a_backup_holds_what_tasks_name_and_nothing_else(state: Path, tmp_path: Path) -> None:
    """One line tells what was copied: the database, and each artifact that a task has, once."""
    (state / "artifacts" / ("0" * 64)).write_text("of no task")
    target = tmp_path / "backup"
    target.mkdir()  # an empty one is as good as none
    assert command(state, "--backup", str(target)) == (0, [f"copied to {target}: {SOUND}"], [])
    assert sorted(everything(target)) == sorted(
        ["tasks.db", "artifacts", *(f"artifacts/{file_of(state, text).name}" for text in (KEPT, OTHER))]
    )
    assert file_of(target, OTHER).read_text() == OTHER
    assert command(target, "--verify") == (0, [f"sound: {SOUND}"], [])


def newer(state: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / "tasks.db")) as database:
        database.execute("PRAGMA user_version = 99")


def foreign(state: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / "tasks.db")) as database:
        database.execute("PRAGMA application_id = 7")


def gone(state: Path) -> None:
    (state / "tasks.db").unlink()


def empty(state: Path) -> None:
    (state / "tasks.db").write_bytes(b"")


def garbage(state: Path) -> None:
    (state / "tasks.db").write_bytes(b"no database " * 1000)


def truncated(state: Path) -> None:
    os.truncate(state / "tasks.db", 3 * 4096)


@pytest.mark.parametrize(
    ("change", "status", "complaint"),
    [
        (gone, 2, "MCP_TASK_DB_PATH: there is no database file"),
        (newer, 1, "schema version 99"),
        (foreign, 1, "is a database of another program"),
        (empty, 2, "is empty"),
        (garbage, 1, "The file is not a database."),
        (truncated, 1, "The database is damaged."),
    ],
)
def test_a_database_that_cannot_be_served_is_not_copied(
    state: Path, tmp_path: Path, change: Callable[[Path], None], status: int, complaint: str
) -> None:
    """What a server would refuse, a backup refuses in one line; nothing is made or changed."""
    change(state)
    before = everything(state)
    outcome = command(state, "--backup", str(tmp_path / "backup"))
    assert (outcome.status, outcome.lines, len(outcome.errors)) == (status, [], 1)
    assert complaint in outcome.errors[0]
    assert everything(state) == before
    assert not (tmp_path / "backup" / "tasks.db").exists()


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("state", "is not empty"),
        ("state/tasks.db", "is a file, not a folder"),
        ("state/tasks.db/backup", "is a file, not a folder"),
        ("state/artifacts/backup", "lies in the folder of the artifacts"),
        ("link/backup", "lies in the folder of the artifacts"),
        ("state/artifacts", "lies in the folder of the artifacts"),
        ("/proc/backup", "cannot be made"),
    ],
)
def test_a_folder_that_cannot_take_a_backup_is_refused(
    state: Path, tmp_path: Path, target: str, complaint: str
) -> None:
    """A place that is taken, no folder, or among the artifacts gets one line and exit status 2."""
    (tmp_path / "link").symlink_to(state / "artifacts")
    before = everything(tmp_path)
    outcome = command(state, "--backup", str(tmp_path / target))
    assert (outcome.status, outcome.lines, len(outcome.errors)) == (2, [], 1)
    assert complaint in outcome.errors[0]
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--backup", "x", "--verify"],
        ["--verify", "--http"],
        ["--backup", "x", "--http"],
        ["--verify", "--port", "1"],
        ["--backup", "x", "--host", "localhost"],
        ["--backup"],
    ],
    ids=" ".join,
)
def test_options_that_contradict_each_other_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    """A backup, a verification and a service exclude each other: exit status 2, and nothing is made."""
    done = subprocess.run(
        [sys.executable, str(SERVER), *arguments],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")
    assert os.listdir(tmp_path) == []


def test_a_backup_of_what_is_damaged_has_all_that_is_sound(state: Path, tmp_path: Path) -> None:
    """Each damaged artifact is named on stderr and left out; the rest is there, and the exit status is 1."""
    file_of(state, KEPT).unlink()
    outcome = command(state, "--backup", str(tmp_path / "backup"))
    assert outcome.status == 1
    complaint = f"({file_of(state, KEPT).name}): its file cannot be read: No such file or directory"
    assert outcome.errors == [f"{SERVER_NAME}: task {task}, artifact 1 {complaint}" for task in ("t1", "t2")]
    found = f"3 tasks, 1 artifact ({len(OTHER)} bytes); damaged in 2 places"
    assert outcome.lines == [f"copied to {tmp_path / 'backup'}: {found}"]
    with stdio(tmp_path / "backup") as client:
        assert client.call("list_tasks")["total"] == 3
        assert client.call("get_task", task_id="t2", artifact=2)["text"] == OTHER[: 32 * 1024]


SMALL_FILES = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


@pytest.mark.parametrize("largest", [65_536, 150_000], ids=["no database", "no artifact"])
def test_a_disk_that_refuses_leaves_no_backup(state: Path, tmp_path: Path, largest: int) -> None:
    """What cannot be written ends the backup with 1 and one line, and without a database of its name."""
    assert (state / "tasks.db").stat().st_size < 150_000 < len(OTHER)
    target = tmp_path / "backup"
    with Process(state, "--backup", str(target), prelude=SMALL_FILES.format(largest)) as backup:
        assert backup.process.wait(PATIENCE) == 1
        (error,) = backup.stderr().splitlines()
    assert f"the backup in {target} is not finished: " in error
    assert not (target / "tasks.db").exists()
    assert command(state, "--verify").status == 0


HANGING = """
import os, signal, sqlite3
connect, fsync, rename, stage, flag = sqlite3.connect, os.fsync, os.rename, {stage!r}, {flag!r}

def hang(at):
    if at == stage:
        open(flag, "w").close()
        while True:
            signal.pause()

class Connection(sqlite3.Connection):
    def backup(self, *arguments):
        super().backup(*arguments)
        hang("database")

def slow_fsync(descriptor):
    fsync(descriptor)
    hang("artifact")

def slow_rename(source, target):
    if target.endswith("tasks.db"):
        hang("name")
    rename(source, target)

sqlite3.connect = lambda *arguments, **options: connect(*arguments, factory=Connection, **options)
os.fsync, os.rename = slow_fsync, slow_rename
"""


@pytest.mark.parametrize(
    ("stage", "end"),
    [
        ("database", signal.SIGKILL),
        ("artifact", signal.SIGTERM),
        ("artifact", signal.SIGINT),
        ("name", signal.SIGKILL),
    ],
)
def test_a_backup_that_is_cut_off_is_none(
    state: Path, tmp_path: Path, stage: str, end: signal.Signals
) -> None:
    """Wherever a backup dies, it has no tasks.db and no exit status 0, and servers could write meanwhile."""
    target, flag = tmp_path / "backup", tmp_path / "flag"
    target.mkdir()  # else its entry is the first that is synced
    prelude = HANGING.format(stage=stage, flag=str(flag))
    with Process(state, "--backup", str(target), prelude=prelude) as backup:
        wait_until(flag.exists, "the backup has come so far")
        if stage != "database":  # which nobody can write while it is copied
            with stdio(state) as client:
                create(client, "meanwhile")
        backup.process.send_signal(end)
        assert backup.process.wait(PATIENCE) == -end
        assert backup.stderr() == ""
    assert os.listdir(target)
    assert not (target / "tasks.db").exists()
    assert command(target, "--verify").status == 2
    assert command(state, "--backup", str(target)).status == 2
    assert command(state, "--verify").status == 0


@pytest.mark.parametrize(("option", "status"), [("--verify", 2), ("--backup", 1)])
def test_a_database_that_stays_busy_is_not_waited_for_without_end(
    state: Path, tmp_path: Path, option: str, status: int
) -> None:
    """Like a server, both commands give up on a database that another process keeps, in one line."""
    arguments = [option] if option == "--verify" else [option, str(tmp_path / "backup")]
    with held_database(state):
        impatient = "import config\nconfig.BUSY_SECONDS = 0.3"
        with Process(state, *arguments, prelude=impatient) as waiting:
            assert waiting.process.wait(PATIENCE) == status
            assert "Other writers kept the database busy" in waiting.stderr()
            assert waiting.stderr().count("\n") == 1
    assert not (tmp_path / "backup" / "tasks.db").exists()


# --- Verification -------------------------------------------------------------------------------------


def flip_bytes_of_an_artifact(state: Path) -> None:
    file_of(state, KEPT).write_bytes(b"kepT")


def cut_an_artifact(state: Path) -> None:
    os.truncate(file_of(state, OTHER), 100)


def delete_an_artifact(state: Path) -> None:
    file_of(state, OTHER).unlink()


def make_a_folder_of_an_artifact(state: Path) -> None:
    file_of(state, OTHER).unlink()
    file_of(state, OTHER).mkdir()


def delete_all_artifacts(state: Path) -> None:
    shutil.rmtree(state / "artifacts")


def execute(state: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(state / "tasks.db", isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


def spoil_rows(state: Path) -> None:
    """Store what is no object, what is no JSON, and what is no text."""
    for task_id, column in (
        ("t1", "body = '[]'"),
        ("t2", "body = '{'"),
        ("t3", "goal = CAST(x'ff' AS TEXT)"),
    ):
        execute(state, f"UPDATE tasks SET {column} WHERE task_id = '{task_id}'")


def spoil_a_name(state: Path) -> None:
    name = f"'{file_of(state, OTHER).name}', '../\\u0000'"
    execute(state, f"UPDATE tasks SET body = replace(body, {name}) WHERE task_id = 't2'")


def lose_a_row_of_an_index(state: Path) -> None:
    """Make the schema forget an index for as long as a row comes, so that the index never hears of it."""
    row = "SELECT name, rootpage, sql FROM sqlite_master WHERE name = 'tasks_status'"
    with contextlib.closing(sqlite3.connect(state / "tasks.db", isolation_level=None)) as database:
        ((name, root, sql),) = database.execute(row).fetchall()
        database.execute("PRAGMA writable_schema = ON")
        database.execute("DELETE FROM sqlite_master WHERE name = ?", (name,))
        database.execute("PRAGMA writable_schema = RESET")
        database.execute("UPDATE tasks SET status = 'done' WHERE task_id = 't1'")
        database.execute("PRAGMA writable_schema = ON")
        database.execute("INSERT INTO sqlite_master VALUES ('index', ?, 'tasks', ?, ?)", (name, root, sql))


def lose_a_reference(state: Path) -> None:
    execute(state, "UPDATE events SET task_id = 'nobody' WHERE event_id = 1")


def lose_recent_words(state: Path) -> None:
    execute(
        state, "DELETE FROM recent_words WHERE changed = (SELECT changed FROM tasks WHERE task_id = 't3')"
    )


def index_all(state: Path) -> None:
    """Have the full-text index know all words, as after many more changes."""
    execute(state, "INSERT INTO task_words (rowid, words) SELECT changed, words FROM recent_words")
    execute(state, "DELETE FROM recent_words")


def break_a_history(state: Path) -> None:
    execute(state, "UPDATE tasks SET last_event = born WHERE task_id = 't1'")


def lose_words(state: Path) -> None:
    index_all(state)
    execute(
        state, "DELETE FROM task_words_docsize WHERE id = (SELECT changed FROM tasks WHERE task_id = 't3')"
    )


def spoil_words(state: Path) -> None:
    index_all(state)
    execute(state, "UPDATE task_words_data SET block = zeroblob(20) WHERE id > 100")


def spoil_a_page(state: Path) -> None:
    spoil_page_of(state, "tasks")


def spoil_page_of(state: Path, table: str) -> None:
    """Overwrite a table's root page but for its header."""
    with contextlib.closing(sqlite3.connect(state / "tasks.db")) as database:
        root = f"SELECT rootpage FROM sqlite_master WHERE name = '{table}'"
        ((page,),) = database.execute(root).fetchall()
    with (state / "tasks.db").open("r+b") as file:
        file.seek((page - 1) * 4096 + 8)
        file.write(b"\xff" * 200)


@pytest.mark.parametrize(
    ("damage", "told", "places"),
    [
        (flip_bytes_of_an_artifact, "t1, artifact 1 ({kept}): its file does not have the SHA-256", 2),
        (cut_an_artifact, "t2, artifact 2 ({other}): its file has 100 bytes and not", 1),
        (delete_an_artifact, "t2, artifact 2 ({other}): its file cannot be read: No such file", 1),
        (make_a_folder_of_an_artifact, "t2, artifact 2 ({other}): its file has", 1),
        (delete_all_artifacts, "t1, artifact 1 ({kept}): its file cannot be read: No such file", 3),
        (spoil_rows, "task t3: its row makes no task", 3),
        (spoil_a_name, "task t2, artifact 2 (../?): no file has such a name", 1),
        (lose_a_row_of_an_index, "database: row 1 missing from index tasks_status", 1),
        (lose_a_reference, "database: row 1 of events refers to no row of tasks", 1),
        (break_a_history, "task t1: its history is not whole", None),
        (lose_recent_words, "task t3: the full-text index does not have it", None),
        (lose_words, "task t3: the full-text index does not have it", None),
        (spoil_words, "database: the full-text index is damaged", None),
        (spoil_a_page, "tasks.db: The database is damaged.", None),
        (garbage, "tasks.db: The file is not a database.", 1),
        (truncated, "tasks.db: The database is damaged.", 1),
    ],
)
def test_damage_is_found(state: Path, damage: Callable[[Path], None], told: str, places: int | None) -> None:
    """Each damage has a line that names its place, the summary counts them, and nothing is changed."""
    damage(state)
    before = everything(state)
    outcome = command(state, "--verify")
    assert (outcome.status, outcome.errors) == (1, [])
    names = {"kept": file_of(state, KEPT).name, "other": file_of(state, OTHER).name}
    *damages, summary = outcome.lines  # and nothing is called left over, which a damaged row may name
    assert all(line.startswith("damaged: ") for line in damages)
    assert told.format(**names) in "\n".join(damages)
    assert places in (None, len(damages))
    assert summary.startswith("sound: ")
    assert summary.endswith(f"; damaged in {len(damages)} place{'s' * (len(damages) > 1)}")
    assert everything(state) == before


@pytest.mark.parametrize("change", [gone, newer, foreign, empty])
def test_what_cannot_be_looked_at_is_told(state: Path, change: Callable[[Path], None]) -> None:
    """Where there is no database of ours, verification says so in one line, with exit status 2."""
    change(state)
    before = everything(state)
    outcome = command(state, "--verify")
    assert (outcome.status, outcome.lines, len(outcome.errors)) == (2, [], 1)
    assert "MCP_TASK_DB_PATH: " in outcome.errors[0]
    assert everything(state) == before


def test_artifacts_that_are_no_folder_are_told(state: Path) -> None:
    """A file in the place of the artifacts is a setting that cannot be used."""
    (state / "file").touch()
    outcome = command(state, "--verify", MCP_TASK_ARTIFACTS_DIR=str(state / "file"))
    assert (outcome.status, outcome.lines) == (2, [])
    assert "MCP_TASK_ARTIFACTS_DIR: " in outcome.errors[0]


def test_what_a_crash_left_over_is_no_damage(state: Path) -> None:
    """Old files without a task and locks of killed servers are told; young files and living locks are not."""
    artifacts = state / "artifacts"
    for name, age in (("a" * 64, 0), (".incoming-a", 0), ("b" * 64, 1), (".incoming-b", 1), ("notes", 1)):
        (artifacts / name).touch()
        if age:
            os.utime(artifacts / name, (OLD, OLD))
    with stdio(state) as living, stdio(state) as dead:
        for agent, client in (("living", living), ("dead", dead)):
            client.call("save_checkpoint", task_id={"living": "t1", "dead": "t2"}[agent], agent=agent)
        (locks := state / "tasks.db.sessions").stat()
        before = set(os.listdir(locks))
        dead.kill()
        outcome = command(state, "--verify")
        assert set(os.listdir(locks)) == before
    assert (outcome.status, outcome.errors) == (0, [])
    *told, summary = outcome.lines
    assert summary == f"sound: {SOUND}"
    assert told[:2] == [
        f"left over: {artifacts / name}, which no task has" for name in (".incoming-b", "b" * 64)
    ]
    (lock,) = told[2:]
    assert Path(lock.removeprefix("left over: ").partition(",")[0]).name in before


def hot_journal(state: Path, folder: Path) -> None:
    """Have in `folder` what a power cut in the middle of a large commit leaves: half of it, and a journal."""
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(state / "tasks.db", isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = PERSIST")
        database.execute("PRAGMA cache_size = 1")
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE tasks SET title = 'lost', goal = ?", ("x" * 100_000,))
        shutil.copytree(state, folder, dirs_exist_ok=True)
        database.execute("ROLLBACK")


@pytest.mark.parametrize("option", ["--verify", "--backup"])
def test_a_write_that_was_cut_off_is_undone(state: Path, tmp_path: Path, option: str) -> None:
    """After a crash in the middle of a commit both commands see the state before it, as a server does."""
    hot_journal(state, tmp_path / "crashed")
    assert (tmp_path / "crashed" / "tasks.db").read_bytes() != (state / "tasks.db").read_bytes()
    target = [str(tmp_path / "backup")] if option == "--backup" else []
    outcome = command(tmp_path / "crashed", option, *target)
    assert (outcome.status, outcome.errors) == (0, [])
    assert outcome.lines[-1].endswith(SOUND)
    with stdio(Path(*target) if target else tmp_path / "crashed") as client:
        assert client.call("get_task", task_id="t1")["title"] == "Title of t1"


@pytest.fixture
def wal_state(state: Path) -> Path:
    """Return a folder with a database in WAL mode whose last write is in the log alone, after a crash."""
    crash = (
        "import os, sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "database.execute('PRAGMA journal_mode = WAL')\n"
        "database.execute(\"UPDATE tasks SET title = 'in the log' WHERE task_id = 't1'\")\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", crash, str(state / "tasks.db")], check=True, timeout=PATIENCE)
    assert (state / "tasks.db-wal").stat().st_size
    return state


def test_a_database_with_a_log_is_looked_at_and_copied(wal_state: Path, tmp_path: Path) -> None:
    """Of a WAL database the log is neither forgotten nor folded in, and its copy is one file."""
    before = everything(wal_state)
    assert command(wal_state, "--verify").lines == [f"sound: {SOUND}"]
    target = tmp_path / "backup"
    assert command(wal_state, "--backup", str(target)).status == 0
    assert everything(wal_state) == before
    assert sorted(os.listdir(target)) == ["artifacts", "tasks.db"]
    assert (target / "tasks.db").read_bytes()[18:20] == b"\x01\x01"  # read and written without a log
    with stdio(target) as client:
        assert client.call("get_task", task_id="t1")["title"] == "in the log"


UNPRIVILEGED = """
import os, sys
prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
command = [*prefix, sys.executable, {server}, *sys.argv[1:]]
os.execvp(command[0], command)
"""


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take the right to write away from all that lies in a folder."""
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(modes[path] & 0o500)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(modes[path])


def test_what_cannot_be_written_can_be_looked_at_and_copied(state: Path, tmp_path: Path) -> None:
    """Both commands work on files and folders that their user may only read, as on a medium or a snapshot."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root is not bound by file modes, and there is no setpriv to change that")
    import support

    with server_script(tmp_path, UNPRIVILEGED), read_only(state):
        for arguments in (["--verify"], ["--backup", str(tmp_path / "backup")]):
            done = subprocess.run(
                [sys.executable, str(support.SERVER), *arguments],
                env=environment(state),
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.endswith(f"{SOUND}\n")
    assert command(tmp_path / "backup", "--verify").status == 0


def test_a_closed_stdout_is_no_obstacle(state: Path) -> None:
    """Where nobody reads the findings any more, the exit status still tells what was found."""
    delete_all_artifacts(state)
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, str(SERVER), "--verify"],
        env=environment(state),
        stdout=write_end,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


def test_what_is_told_cannot_steer_a_terminal(state: Path) -> None:
    """Text from a damaged row is printed without its control characters."""
    execute(state, "UPDATE tasks SET body = '', task_id = 't1' || char(27) || '[2J' WHERE task_id = 't1'")
    assert "damaged: task t1?[2J: its row makes no task" in command(state, "--verify").lines
