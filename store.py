"""The tables, and the artifacts that go with them. Every public method is one transaction.

All SQL but the connection's own (database.py: PRAGMA, BEGIN, COMMIT) stands here, with values only as
parameters, in the plain dialect that PostgreSQL understands too. Nothing here knows JSON-RPC, and the
rules of a task's life are lifecycle.py's: the store loads a task, lets a rule decide, and writes down
what came of it: the task, its checkpoint, and an event.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import lifecycle
from artifact_files import ArtifactFiles, KeptFile
from config import HEALTH_SECONDS, TASK_ARTIFACTS
from database import Database, Row, Statement
from errors import Busy, Conflict, InvalidArguments, NotFound, StorageError, TooLarge
from lifecycle import agent_key
from models import (
    Artifact,
    ArtifactType,
    Checkpoint,
    NewTask,
    Progress,
    Report,
    Status,
    Task,
    TaskFilter,
)

JsonObject = dict[str, Any]
Rule = Callable[[Task, str], Task]  # a task as it is and the time -> the task as it shall be

_APPLICATION_ID = 0x4D435054  # "MCPT" in the file's header: nobody else's database is touched

# A task's scalars are columns; what only ever travels as a whole is the JSON object `body`. `changed` is
# the number of the task's latest event: unlike a clock it never repeats or goes back, so it orders
# lists and is their cursor. `last_call` and `last_made` let the same call be answered twice.
_MIGRATIONS = (
    (
        """CREATE TABLE tasks (
        task_id TEXT NOT NULL PRIMARY KEY,
        title TEXT NOT NULL,
        goal TEXT NOT NULL,
        status TEXT NOT NULL,
        current_owner TEXT,
        repo_path TEXT,
        body TEXT NOT NULL,
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL,
        version INTEGER NOT NULL,
        changed INTEGER NOT NULL,
        owner_key TEXT,
        search TEXT NOT NULL,
        created_call TEXT NOT NULL,
        last_call TEXT NOT NULL,
        last_made TEXT NOT NULL
    )""",
        "CREATE INDEX tasks_changed ON tasks (changed)",
        "CREATE INDEX tasks_status ON tasks (status, changed)",
        "CREATE INDEX tasks_owner ON tasks (owner_key, changed)",
        "CREATE INDEX tasks_repo ON tasks (repo_path, changed)",
        """CREATE TABLE checkpoints (
        task_id TEXT NOT NULL REFERENCES tasks (task_id),
        number INTEGER NOT NULL,
        agent TEXT NOT NULL,
        created_at TEXT NOT NULL,
        progress TEXT NOT NULL,
        PRIMARY KEY (task_id, number)
    )""",
        """CREATE TABLE events (
        event_id INTEGER NOT NULL PRIMARY KEY,
        task_id TEXT NOT NULL REFERENCES tasks (task_id),
        version INTEGER NOT NULL,
        at TEXT NOT NULL,
        what TEXT NOT NULL,
        agent TEXT,
        detail TEXT
    )""",
        "CREATE INDEX events_task ON events (task_id, event_id)",
    ),
)
_COLUMNS = "task_id, title, goal, status, current_owner, repo_path, body, created_at, updated_at, version"
_COLUMN_NAMES = tuple(_COLUMNS.split(", "))
_BODY_FIELDS = {*Progress.model_fields, "artifacts", "handoffs"}
_SUMMARY_COLUMNS = "task_id, title, status, current_owner, repo_path, version, updated_at"
_SUMMARY_FIELDS = tuple(_SUMMARY_COLUMNS.split(", "))
_ACKNOWLEDGED = {"task_id", "title", "status", "current_owner", "version", "updated_at"}


class Happening(NamedTuple):
    """What a change is in the event log: `what` happened, by whom, and details worth keeping."""

    what: str
    agent: str | None
    detail: JsonObject | None = None


class TaskPage(NamedTuple):
    """A page of task summaries, newest change first; `next_cursor` is None on the last one."""

    tasks: list[JsonObject]
    next_cursor: str | None


class Store:
    """The tasks of one database file and one artifacts folder, shared with other processes.

    Safe to use from several threads: one connection, one lock, and no cursor that outlives a call.
    """

    def __init__(self, db_path: str, artifacts_dir: str) -> None:
        """Open the database, making or migrating it as needed.

        Raises StoreFailure for a file that is no database of ours, is damaged, or is newer than this
        program; such a file is left untouched.
        """
        self._path = db_path
        self.artifacts_dir = artifacts_dir
        self._files = ArtifactFiles(artifacts_dir)
        self._db = Database(db_path, _APPLICATION_ID, _MIGRATIONS)

    def close(self) -> None:
        """Close the database; waits for the transaction in hand."""
        self._db.close()

    def own_files(self) -> list[str]:
        """Return the paths of the database and the files beside it, which nobody else may open."""
        return [self._path + suffix for suffix in ("", "-journal", "-wal", "-shm", ".lock")]

    # --- Writing --------------------------------------------------------------------------------------

    def create_task(self, new: NewTask) -> JsonObject:
        """Make a task and return its acknowledgement; equal content returns the task that is there.

        Raises Conflict when the id is taken by a task with other content.
        """
        content = new.model_dump(exclude={"task_id", "agent"})
        call = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        with self._db.transaction():
            task_id, found = self._place_for(new.task_id, call)
            if found is not None:
                return _acknowledgement(found, {})
            now = _timestamp()
            task = Task(
                **content, task_id=task_id, status=Status.OPEN, current_owner=None,
                completed_steps=[], resume_prompt=None, test_results=[], decisions=[],
                dead_ends=[], files=[], artifacts=[], handoffs=[],
                created_at=now, updated_at=now, version=1,
            )  # fmt: skip
            self._insert(task, call, self._log(task, Happening("created", new.agent)))
        return _acknowledgement(task, {})

    def save_checkpoint(self, task_id: str, agent: str, report: Report, call: str) -> JsonObject:
        """Merge `report` into the task, keep the result as a checkpoint, and make `agent` the owner.

        `call` identifies the call (as in all methods below): the same one again changes nothing.
        Returns the acknowledgement. Raises NotFound, NotOwner, InvalidState or TooLarge.
        """
        return self._change(
            task_id,
            call,
            lambda task, now: lifecycle.checkpoint(task, agent, report),
            Happening("checkpoint", agent),
            checkpoint_by=agent,
        )

    def handoff_task(
        self, task_id: str, from_agent: str, to_agent: str, reason: str, report: Report, call: str
    ) -> JsonObject:
        """Pass the task on, with a checkpoint if `report` says anything; raises as save_checkpoint."""
        return self._change(
            task_id,
            call,
            lambda task, now: lifecycle.handoff(task, from_agent, to_agent, reason, report, now),
            Happening("handoff", from_agent, {"to_agent": to_agent, "reason": reason}),
            checkpoint_by=None if report.is_empty() else from_agent,
        )

    def mark_exhausted(self, task_id: str, agent: str, reason: str, report: Report, call: str) -> JsonObject:
        """Free the task of an agent that cannot go on; otherwise as handoff_task."""
        return self._change(
            task_id,
            call,
            lambda task, now: lifecycle.exhaust(task, agent, reason, report, now),
            Happening("exhausted", agent, {"reason": reason}),
            checkpoint_by=None if report.is_empty() else agent,
        )

    def update_task(
        self, task_id: str, fields: JsonObject, expected_version: int | None, call: str
    ) -> JsonObject:
        """Set fields of the task; the values they replace go to the event log.

        Raises NotFound, InvalidState, or Conflict when the task is not at `expected_version`.
        """
        return self._change(
            task_id,
            call,
            lambda task, now: lifecycle.update(task, fields, expected_version),
            Happening("updated", None),
        )

    def attach_artifact(
        self,
        task_id: str,
        name: str,
        artifact_type: ArtifactType,
        chunks: Iterable[bytes],
        agent: str | None,
    ) -> JsonObject:
        """Store the bytes of `chunks` and attach them; the same file under the same name only once.

        Raises NotFound, TooLarge or StorageError.
        """
        self._require(task_id)  # before a file is written for nothing
        kept = self._files.keep(chunks)
        call = f"artifact:{artifact_type}:{kept.sha256}:{name}"
        with self._db.transaction(lambda: self._is_recorded(task_id, call)):
            task = self._load(task_id).task
            number = _number_of(task, name, artifact_type, kept)
            if number is None:
                number = len(task.artifacts) + 1
                task = _with_artifact(task, name, artifact_type, kept, agent, _timestamp())
                detail = {"number": number, "name": name, "sha256": kept.sha256}
                self._update(task, self._log(task, Happening("artifact", agent, detail)), call, {})
        return _acknowledgement(task, {"artifact": task.artifacts[number - 1].model_dump()})

    # --- Reading --------------------------------------------------------------------------------------

    def get_task(self, task_id: str) -> Task:
        """Return the task; raises NotFound."""
        rows = self._db.read((f"SELECT {_COLUMNS} FROM tasks WHERE task_id = ?", (task_id,)))[0]
        if not rows:
            raise _no_such_task(task_id)
        return _task_of(rows[0])

    def list_tasks(self, wanted: TaskFilter, limit: int, cursor: str | None) -> tuple[TaskPage, int]:
        """Return a page of the tasks that fit `wanted`, and how many fit in all.

        `cursor` is the `next_cursor` of the page before; raises InvalidArguments for anything else.
        """
        where, values = _conditions(wanted)
        counting = (f"SELECT count(*) FROM tasks WHERE {where}", values)
        rows, count = self._db.read(_page(where, values, limit, cursor), counting)
        return _page_of(rows, limit), count[0][0]

    def recent_tasks(self, limit: int, cursor: str | None) -> TaskPage:
        """Return a page of all tasks, without counting them; otherwise as list_tasks."""
        return _page_of(self._db.read(_page("1 = 1", [], limit, cursor))[0], limit)

    def get_checkpoint(self, task_id: str, number: int) -> Checkpoint:
        """Return checkpoint `number` of the task, as it was saved; raises NotFound."""
        statement = "SELECT agent, created_at, progress FROM checkpoints WHERE task_id = ? AND number = ?"
        rows = self._db.read((statement, (task_id, number)))[0]
        if not rows:
            self._require(task_id)
            raise NotFound(
                f"Task '{task_id}' has no checkpoint {number}.",
                "Checkpoints are numbered from 1; save_checkpoint answers with the number.",
            )
        agent, created_at, progress = rows[0]
        return Checkpoint(
            task_id=task_id,
            number=number,
            agent=agent,
            created_at=created_at,
            progress=Progress.model_validate_json(progress),
        )

    def read_artifact(self, task_id: str, number: int, offset: int, length: int) -> tuple[Artifact, bytes]:
        """Return artifact `number` of the task and up to `length` bytes of it from `offset`.

        Raises NotFound, or StorageError when the file is gone.
        """
        artifacts = self.get_task(task_id).artifacts
        if not 1 <= number <= len(artifacts):
            has = f"artifacts 1 to {len(artifacts)}" if artifacts else "no artifacts"
            raise NotFound(
                f"Task '{task_id}' has no artifact {number}; it has {has}.",
                "The task's `artifacts` list them with their numbers.",
            )
        artifact = artifacts[number - 1]
        return artifact, self._files.read(artifact.sha256, offset, length)

    def check(self) -> bool:
        """Return whether the database answers at this moment."""
        try:
            self._db.read(("SELECT task_id FROM tasks LIMIT 1", ()), seconds=HEALTH_SECONDS)
        except (Busy, StorageError):
            return False
        return True

    # --- One change of a task -------------------------------------------------------------------------

    def _change(
        self,
        task_id: str,
        call: str,
        rule: Rule,
        happening: Happening,
        checkpoint_by: str | None = None,
    ) -> JsonObject:
        with self._db.transaction(lambda: self._is_recorded(task_id, call)):
            before, last_call, last_made = self._load(task_id)
            if call == last_call:
                return _acknowledgement(before, json.loads(last_made))
            now = _timestamp()
            task = rule(before, now)
            if task == before and checkpoint_by is None:
                return _acknowledgement(before, {})
            task = task.model_copy(update={"updated_at": now, "version": before.version + 1})
            if happening.what == "updated":
                happening = happening._replace(detail={"before": _replaced(before, task)})
            made = {} if checkpoint_by is None else self._add_checkpoint(task, checkpoint_by)
            self._update(task, self._log(task, happening), call, made)
        return _acknowledgement(task, made)

    def _load(self, task_id: str) -> _Loaded:
        row = self._one(f"SELECT {_COLUMNS}, last_call, last_made FROM tasks WHERE task_id = ?", task_id)
        if row is None:
            raise _no_such_task(task_id)
        return _Loaded(_task_of(row[:-2]), *row[-2:])

    def _insert(self, task: Task, call: str, event_id: int) -> None:
        values = (
            *_column_values(task), event_id, None, _search_text(task), call, call, "{}",
        )  # fmt: skip
        self._db.execute(
            f"INSERT INTO tasks ({_COLUMNS}, changed, owner_key, search, created_call, last_call, "
            f"last_made) VALUES ({', '.join('?' * len(values))})",
            values,
        )

    def _update(self, task: Task, event_id: int, call: str, made: JsonObject) -> None:
        owner = task.current_owner
        self._db.execute(
            "UPDATE tasks SET (title, goal, status, current_owner, repo_path, body, updated_at, "
            "version, changed, owner_key, search, last_call, last_made) "
            "= (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) WHERE task_id = ?",
            (
                task.title, task.goal, task.status, owner, task.repo_path, _body_of(task),
                task.updated_at, task.version, event_id, owner and agent_key(owner),
                _search_text(task), call, json.dumps(made), task.task_id,
            ),
        )  # fmt: skip

    def _add_checkpoint(self, task: Task, agent: str) -> JsonObject:
        number = self._next("number", "checkpoints WHERE task_id = ?", task.task_id)
        self._db.execute(
            "INSERT INTO checkpoints (task_id, number, agent, created_at, progress) VALUES (?, ?, ?, ?, ?)",
            (task.task_id, number, agent, task.updated_at, task.progress().model_dump_json()),
        )
        return {"checkpoint": number}

    def _log(self, task: Task, happening: Happening) -> int:
        """Append to the event log and return the event's number."""
        event_id = self._next("event_id", "events")
        detail = None if happening.detail is None else json.dumps(happening.detail)
        self._db.execute(
            "INSERT INTO events (event_id, task_id, version, at, what, agent, detail) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (event_id, task.task_id, task.version, task.updated_at, *happening[:2], detail),
        )
        return event_id

    def _place_for(self, task_id: str | None, call: str) -> tuple[str, Task | None]:
        """Return the id for a new task, and the task that the same call has made already, if any.

        An id of ours is derived from the content, so that a repeated call finds what it made. Once
        somebody worked on that task, equal content means another task and gets the next id.
        """
        attempt = 0
        while True:
            candidate = task_id or _short_id(call, attempt)
            row = self._one(f"SELECT {_COLUMNS}, created_call FROM tasks WHERE task_id = ?", candidate)
            if row is None:
                return candidate, None
            found, is_equal = _task_of(row[:-1]), row[-1] == call
            if is_equal and (task_id or found.version == 1):
                return candidate, found
            if task_id:
                raise Conflict(
                    f"Task '{task_id}' exists already, with other content.",
                    "Read it with get_task; to change it call update_task, to make another one "
                    "choose another task_id or leave it out.",
                )
            attempt += 1

    def _require(self, task_id: str) -> None:
        if not self._db.read(("SELECT 1 FROM tasks WHERE task_id = ?", (task_id,)))[0]:
            raise _no_such_task(task_id)

    def _next(self, column: str, table: str, *values: str) -> int:
        row = self._one(f"SELECT coalesce(max({column}), 0) + 1 FROM {table}", *values)
        number: int = row[0] if row else 1
        return number

    def _one(self, statement: str, *values: str) -> Row | None:
        rows = self._db.execute(statement, values)
        return rows[0] if rows else None

    def _is_recorded(self, task_id: str, call: str) -> bool:
        return self._one("SELECT last_call FROM tasks WHERE task_id = ?", task_id) == (call,)


class _Loaded(NamedTuple):
    task: Task
    last_call: str
    last_made: str


def _no_such_task(task_id: str) -> NotFound:
    return NotFound(f"There is no task '{task_id}'.", "list_tasks shows the tasks that there are.")


def _acknowledgement(task: Task, made: JsonObject) -> JsonObject:
    return task.model_dump(mode="json", include=_ACKNOWLEDGED) | made


def _replaced(before: Task, after: Task) -> JsonObject:
    """Return the values of `before` that differ in `after`: what an eraser took away."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    bookkeeping = ("updated_at", "version")
    return {name: old[name] for name in old if name not in bookkeeping and old[name] != new[name]}


def _number_of(task: Task, name: str, artifact_type: ArtifactType, kept: KeptFile) -> int | None:
    for artifact in task.artifacts:
        if (artifact.name, artifact.type, artifact.sha256) == (name, artifact_type, kept.sha256):
            return artifact.number
    return None


def _with_artifact(
    task: Task,
    name: str,
    artifact_type: ArtifactType,
    kept: KeptFile,
    agent: str | None,
    now: str,
) -> Task:
    number = len(task.artifacts) + 1
    if number > TASK_ARTIFACTS:
        raise TooLarge(
            f"Task '{task.task_id}' has {TASK_ARTIFACTS} artifacts, which is the limit.",
            "Put several files into one archive, or go on in a new task.",
        )
    artifact = Artifact(
        number=number, name=name, type=artifact_type, size=kept.size, sha256=kept.sha256,
        encoding="utf-8" if kept.is_text else "base64", agent=agent, created_at=now,
    )  # fmt: skip
    return task.model_copy(
        update={
            "artifacts": [*task.artifacts, artifact],
            "updated_at": now,
            "version": task.version + 1,
        }
    )


# --- Rows ---------------------------------------------------------------------------------------------


def _task_of(row: Row) -> Task:
    columns = dict(zip(_COLUMN_NAMES, row, strict=True))
    return Task.model_validate({**columns, **json.loads(columns.pop("body"))})


def _column_values(task: Task) -> Row:
    return tuple(_body_of(task) if name == "body" else getattr(task, name) for name in _COLUMN_NAMES)


def _body_of(task: Task) -> str:
    return task.model_dump_json(include=_BODY_FIELDS)


def _search_text(task: Task) -> str:
    return f"{task.title}\n{task.goal}".casefold()


def _conditions(wanted: TaskFilter) -> tuple[str, list[Any]]:
    """Return the WHERE clause for `wanted` and its values; every word of the query must occur."""
    clauses, values = ["1 = 1"], []
    for column, value in (
        ("status", wanted.status),
        ("owner_key", wanted.current_owner and agent_key(wanted.current_owner)),
        ("repo_path", wanted.repo_path),
    ):
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(value)
    for word in (wanted.query or "").replace("\0", " ").casefold().split():
        clauses.append("search LIKE ? ESCAPE '!'")
        values.append("%" + re.sub("([!%_])", r"!\1", word) + "%")
    return " AND ".join(clauses), values


def _page(where: str, values: list[Any], limit: int, cursor: str | None) -> Statement:
    """One row more than the page, to see whether there is another page."""
    if cursor is not None:
        where, values = f"{where} AND changed < ?", [*values, _position(cursor)]
    select = f"SELECT {_SUMMARY_COLUMNS}, changed FROM tasks WHERE {where}"
    return f"{select} ORDER BY changed DESC LIMIT ?", [*values, limit + 1]


def _page_of(rows: list[Row], limit: int) -> TaskPage:
    tasks = [dict(zip(_SUMMARY_FIELDS, row[:-1], strict=True)) for row in rows[:limit]]
    return TaskPage(tasks, str(rows[limit - 1][-1]) if len(rows) > limit else None)


def _position(cursor: str) -> int:
    if cursor.isascii() and cursor.isdigit() and len(cursor) < 19:
        return int(cursor)
    raise InvalidArguments(
        f"The cursor '{cursor[:40]}' is not one that a list returned.",
        "Leave it out to start at the first page.",
    )


# --- Ids and times ------------------------------------------------------------------------------------


def _short_id(call: str, attempt: int) -> str:
    digest = hashlib.sha256(f"{call}:{attempt}".encode()).digest()
    return base64.b32encode(digest[:5]).decode().lower()


def _timestamp() -> str:
    """Return the time: UTC, RFC 3339 with milliseconds."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{clock}.{nanoseconds // 1_000_000:03}Z"
