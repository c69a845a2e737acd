"""Backup and verification: for people, beside running servers. What is looked at is not changed.

Both work on a copy of one state of the database, so that writers wait for the copying and no longer. The
artifacts are read where they lie: a file is written before the row that names it and is never removed, so
every row of the copy has its file.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing

from artifact_files import ArtifactFiles, Unsound, sync_folder
from config import ConfigError, make_folder
from database import DatabaseCopy, DatabaseDamaged, Row
from errors import StoreFailure, ToolError
from log import say
from models import Artifact, Task
from schema import APPLICATION_ID, COLUMNS, MIGRATIONS, task_of
from sessions import FOLDER_SUFFIX, ProcessLocks

Tell = Callable[[str], None]

_TASKS_AT_ONCE = 100
_LEFT_OVER_SECONDS = 600  # a file that is younger may belong to a call that is still at work


def back_up(db_path: str, artifacts_dir: str, folder: str, tell: Tell) -> bool:
    """Copy the database and its artifacts into `folder`, new or empty, and tell in one line what was copied.

    Returns whether all of it is sound; what is not is said on stderr, and an artifact that is not is left
    out. The copy of the database gets its name last: without `tasks.db` a backup is not finished. Raises
    ConfigError where it cannot begin, and StoreFailure where it cannot be finished.
    """
    db_path, folder = os.path.realpath(db_path), os.path.abspath(folder)
    _require_database(db_path)
    _make_empty(folder, artifacts_dir)
    unfinished = os.path.join(folder, "unfinished.db")
    findings = _Findings(say)
    try:
        with closing(DatabaseCopy(db_path, APPLICATION_ID, MIGRATIONS, unfinished)) as copy:
            kept = os.path.join(folder, "artifacts")
            make_folder(kept, "--backup")
            source, target = ArtifactFiles(artifacts_dir), ArtifactFiles(kept)
            _examine(copy, findings, lambda sha256, size: target.keep(source.sound_bytes(sha256, size)))
        os.rename(unfinished, os.path.join(folder, "tasks.db"))
        sync_folder(folder)
    except (StoreFailure, ToolError, OSError) as error:
        raise StoreFailure(f"the backup in {folder} is not finished: {error}") from error
    tell(f"copied to {folder}: {findings}")
    return findings.damages == 0


def verify(db_path: str, artifacts_dir: str, tell: Tell) -> bool:
    """Tell what is damaged and what is left over, a line each, and a summary; return whether all is sound.

    Raises ConfigError where there is nothing that can be looked at.
    """
    db_path = os.path.realpath(db_path)  # beside this one the servers keep their locks
    _require_database(db_path)
    files = ArtifactFiles(artifacts_dir)
    findings = _Findings(lambda what: tell(f"damaged: {what}"))
    left_over = _old_names(files, artifacts_dir)  # before the rows, of which more may be written meanwhile
    try:
        with closing(DatabaseCopy(db_path, APPLICATION_ID, MIGRATIONS)) as copy:
            _examine(copy, findings, lambda sha256, size: deque(files.sound_bytes(sha256, size), maxlen=0))
    except DatabaseDamaged as error:
        findings.damage(str(error))
    except (StoreFailure, ToolError) as error:
        raise ConfigError(f"MCP_TASK_DB_PATH: {error}") from error
    if findings.damages == 0:  # else a file may belong to a task that could not be read
        for name in sorted(left_over - findings.files.keys()):
            tell(f"left over: {os.path.join(artifacts_dir, name)}, which no task has")
    for path in _dead_locks(db_path + FOLDER_SUFFIX):
        tell(f"left over: {path}, the lock of a server that was killed")
    tell(f"sound: {findings}")
    return findings.damages == 0


class _Findings:
    """How much was found to be sound, and in how many places there is damage, which is told at once."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self.tasks = self.artifacts = self.bytes = self.damages = 0
        self.files: dict[str, str | None] = {}  # what is wrong with each, if anything

    def damage(self, what: str) -> None:
        """Count and tell a damage."""
        self.damages += 1
        self._tell(what)

    def __str__(self) -> str:
        sound = f"{_count(self.tasks, 'task')}, {_count(self.artifacts, 'artifact')} ({self.bytes} bytes)"
        return sound + (f"; damaged in {_count(self.damages, 'place')}" if self.damages else "")


def _examine(copy: DatabaseCopy, findings: _Findings, take: Callable[[str, int], object]) -> None:
    """Look at all of the copy, and have `take` read each file that it names, by its SHA-256 and size.

    `take` raises Unsound for a file that is damaged. Raises DatabaseDamaged if not all can be looked at.
    """
    for problem in copy.problems():
        findings.damage(f"database: {problem}")
    for task in _tasks(copy, findings):
        findings.tasks += 1
        for artifact in task.artifacts:
            if artifact.sha256 not in findings.files:
                findings.files[artifact.sha256] = _complaint(take, artifact)
                findings.bytes += 0 if findings.files[artifact.sha256] else artifact.size
            if complaint := findings.files[artifact.sha256]:
                where = f"task {task.task_id}, artifact {artifact.number}"
                findings.damage(f"{where} ({artifact.sha256}): {complaint}")
            else:
                findings.artifacts += 1
    _examine_losses(copy, findings)


def _complaint(take: Callable[[str, int], object], artifact: Artifact) -> str | None:
    try:
        take(artifact.sha256, artifact.size)
    except Unsound as error:
        return str(error)
    return None


def _tasks(copy: DatabaseCopy, findings: _Findings) -> Iterator[Task]:
    """Yield all tasks, with a few rows in memory at a time."""
    page = f"SELECT {COLUMNS}, changed FROM tasks WHERE changed > ? ORDER BY changed LIMIT ?"
    rows: list[Row] = [(0,)]
    while rows := copy.fetch(page, (rows[-1][-1], _TASKS_AT_ONCE)):
        for row in rows:
            try:
                task = task_of(row[:-1])
                task.model_dump_json()  # fails for text that is no UTF-8, and would in every answer
            except (TypeError, ValueError):
                findings.damage(f"task {row[0]}: its row makes no task")
            else:
                yield task


# What may be lost of a task, and the tasks that have lost it. An event that no chain leads to is missing from
# the history, which is read from a task's latest event backwards.
_LOSSES = {
    "its history is not whole": (
        "SELECT task_id FROM events WHERE event_id NOT IN (SELECT last_event FROM tasks) "
        "AND event_id NOT IN (SELECT previous FROM events WHERE previous IS NOT NULL)"
    ),
    "the full-text index does not have it": (
        "SELECT task_id FROM tasks WHERE changed NOT IN (SELECT rowid FROM task_words) "
        "AND changed NOT IN (SELECT changed FROM recent_words WHERE is_added = 1)"
    ),
}


def _examine_losses(copy: DatabaseCopy, findings: _Findings) -> None:
    for loss, statement in _LOSSES.items():
        for (task_id,) in copy.fetch(statement):
            findings.damage(f"task {task_id}: {loss}")
    try:
        # The check of the index has the form of a write, which is why only a copy can be asked for it.
        copy.fetch("INSERT INTO task_words (task_words) VALUES ('integrity-check')")
    except DatabaseDamaged:
        findings.damage("database: the full-text index is damaged")


def _require_database(path: str) -> None:
    if not os.path.isfile(path):
        raise ConfigError(f"MCP_TASK_DB_PATH: there is no database file {path}")
    if not os.path.getsize(path):  # of an empty file, SQLite would remove the journal
        raise ConfigError(f"MCP_TASK_DB_PATH: {path} is empty")


def _make_empty(folder: str, artifacts_dir: str) -> None:
    """Make the folder of a backup; raise ConfigError unless it is empty and can be written."""
    artifacts = os.path.join(os.path.realpath(artifacts_dir), "")
    if os.path.join(os.path.realpath(folder), "").startswith(artifacts):
        raise ConfigError(f"--backup: {folder} lies in the folder of the artifacts")
    make_folder(folder, "--backup")
    try:
        is_empty = not os.listdir(folder)
    except OSError as error:
        raise ConfigError(f"--backup: {folder} cannot be read: {error.strerror}") from None
    if not is_empty:
        raise ConfigError(f"--backup: {folder} is not empty")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--backup: {folder} cannot be written")


def _old_names(files: ArtifactFiles, artifacts_dir: str) -> set[str]:
    try:
        return files.names(_LEFT_OVER_SECONDS)
    except OSError as error:
        raise ConfigError(
            f"MCP_TASK_ARTIFACTS_DIR: {artifacts_dir} cannot be read: {error.strerror}"
        ) from None


def _dead_locks(folder: str) -> list[str]:
    locks = ProcessLocks(folder)
    try:
        dead = [os.path.join(folder, name) for name in os.listdir(folder) if not locks.is_held(name)]
    except OSError:
        return []
    return sorted(path for path in dead if os.path.exists(path))  # others have ended in good order meanwhile


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
