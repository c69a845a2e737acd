"""The tasks, and the artifacts that go with them.

A public method writes in one transaction, or one part of a group commit, or not at all.

The statements are in the plain dialect that PostgreSQL understands too (the full-text index apart), with
values only as parameters; the tables are schema.py's, the connection database.py's. Nothing here knows
JSON-RPC, and the rules of a task's life are lifecycle.py's: the store loads a task, lets a rule decide,
and writes down what came of it: the task, its checkpoint, an event.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import lifecycle
from artifact_files import ArtifactFiles, KeptFile
from config import DEFAULT_AGENT_IDLE_SECONDS, GROUPED_BYTES, HEALTH_SECONDS, ID_CHARACTERS, TASK_ARTIFACTS
from database import Database, Row
from dependencies import Dependencies
from errors import Busy, Conflict, InvalidArguments, NotFound, StorageError, TooLarge
from event_log import EventLog, Happening
from lifecycle import agent_key
from listing import Listing, TaskPage, claim_conditions
from models import (
    ANYONE,
    Artifact,
    ArtifactType,
    Change,
    Checkpoint,
    ClaimFilter,
    ClaimKind,
    NewTask,
    OwnerState,
    Progress,
    Report,
    Status,
    Task,
    TaskFilter,
)
from notices import Notices
from presence import Presence
from schema import (
    APPLICATION_ID,
    COLUMNS,
    EXHAUSTED_QUEUE,
    MIGRATIONS,
    OPEN_QUEUE,
    body_of,
    column_values,
    handoff_queue,
    json_or_none,
    owner_key_of,
    queue_of,
    reserved,
    session_queue,
    task_of,
    text_of,
)
from sessions import FOLDER_SUFFIX, Caller, ProcessLocks

JsonObject = dict[str, Any]
Rule = Callable[[Task, str], Task]  # a task as it is and the time -> the task as it shall be

_ROW_AND_OWNER = f"SELECT {COLUMNS}, status = 'in_progress', owner_session FROM tasks WHERE task_id = ?"
_ACKNOWLEDGED = ("task_id", "title", "status", "current_owner", "updated_at", "version")


class Claim(NamedTuple):
    """A task that was claimed, how it came, and from whom, if from anybody.

    `former` and `former_session` are the task and its session as they were.
    """

    task: Task
    how: ClaimKind
    sender: str | None
    notice: str | None
    former: Task
    former_session: str | None


class Store:
    """The tasks of one database file and one artifacts folder, shared with other processes.

    Safe to use from several threads: one connection, one lock, and no cursor that outlives a call.
    """

    def __init__(
        self,
        db_path: str,
        artifacts_dir: str,
        idle_seconds: int = DEFAULT_AGENT_IDLE_SECONDS,
        patience: float | None = None,
    ) -> None:
        """Open the database, making or migrating it as needed.

        Agents without a connection are gone after `idle_seconds`. Raises StoreBusy if other writers keep the
        database for `patience` seconds, BUSY_SECONDS by default. Raises StoreFailure for a file that is
        no database of ours, is damaged, or is newer than this program; such a file is left untouched.
        """
        # SQLite keeps its journal beside the file itself, so all is named after that one, links followed.
        db_path = os.path.realpath(db_path)
        self._path = db_path
        self.artifacts_dir = artifacts_dir
        self._files = ArtifactFiles(artifacts_dir)
        self._locks = ProcessLocks(db_path + FOLDER_SUFFIX)
        self._db = Database(db_path, APPLICATION_ID, MIGRATIONS, patience)
        self._presence = Presence(self._db, self._locks, idle_seconds)
        self._listing = Listing(self._db, self._presence)
        self._dependencies = Dependencies(self._db)
        self._notices = Notices(self._db)
        self._events = EventLog(self._db)

    def close(self) -> None:
        """Close the database; waits for the transaction in hand."""
        self._db.close()
        self._locks.release()

    def own_files(self) -> list[str]:
        """Return the paths of the database and the files beside it, which nobody else may open."""
        return [self._path + suffix for suffix in ("", "-journal", "-wal", "-shm", ".lock")]

    def together(self) -> AbstractContextManager[None]:
        """Commit all that this thread changes inside the block at once, when it ends.

        Nothing may be acknowledged before. Raises Alone if nothing could be committed: nothing was changed,
        and each call is to be made again by itself. A call inside that raises Alone was undone; the caller
        catches that in the block, and the others go on.
        """
        return self._db.together()

    def require_alone(self) -> None:
        """Raise Alone inside of `together`: before what takes long, or tells others of a change."""
        self._db.require_alone()

    # --- Writing --------------------------------------------------------------------------------------

    def create_task(self, new: NewTask, caller: Caller | None = None) -> JsonObject:
        """Make a task and return its acknowledgement; equal content returns the task that is there.

        Raises Conflict when the id is taken by a task with other content, and InvalidArguments for
        dependencies that do not exist.
        """
        content = new.model_dump(exclude={"task_id"})
        call = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        said = _said(call, caller)
        task_id = new.task_id or ""
        with self._db.transaction(lambda: self._is_recorded(task_id, said)):
            task_id, found = self._place_for(new.task_id, call)
            if found is not None:
                return _acknowledgement(found, self._made_by(task_id, said))
            now = _timestamp()
            task = Task(
                **content, task_id=task_id, status=Status.OPEN, current_owner=None,
                completed_steps=[], resume_prompt=None, test_results=[], decisions=[],
                dead_ends=[], files=[], artifacts=[], handoffs=[],
                created_at=now, updated_at=now, version=1,
            )  # fmt: skip
            made = self._heard(caller, task_id)
            self._insert(task, call, said, made, None if caller is None else caller.agent)
        return _acknowledgement(task, made)

    def save_checkpoint(
        self, task_id: str, caller: Caller, report: Report, call: str, repository: JsonObject | None = None
    ) -> JsonObject:
        """Merge `report` into the task, keep the result as a checkpoint, and make the caller the owner.

        `call` identifies the call (as in all methods below): the same one again changes nothing.
        `repository` is the state of the work tree. Returns the acknowledgement, with warnings for steps
        that vanished. Raises NotFound, NotOwner, InvalidState or TooLarge.
        """
        return self._change(
            task_id,
            call,
            lambda task, now: lifecycle.checkpoint(task, caller.agent, report),
            Happening("checkpoint", caller.agent),
            _Saving(report, repository, True),
            caller,
        )[0]

    def handoff_task(
        self,
        task_id: str,
        caller: Caller,
        to_agent: str,
        reason: str,
        report: Report,
        call: str,
        repository: JsonObject | None = None,
    ) -> tuple[JsonObject, bool]:
        """Pass the task on, with a checkpoint if `report` says anything; raises as save_checkpoint.

        Returns the acknowledgement, and whether this call is what handed the task over.
        """
        sender = caller.agent
        return self._change(
            task_id,
            call,
            lambda task, now: lifecycle.handoff(task, sender, to_agent, reason, report, now),
            Happening("handoff", sender, {"to_agent": to_agent, "reason": reason}, to_agent),
            _Saving(report, repository, not report.is_empty()),
            caller,
        )

    def mark_exhausted(
        self,
        task_id: str,
        caller: Caller,
        reason: str,
        report: Report,
        call: str,
        repository: JsonObject | None = None,
    ) -> JsonObject:
        """Free the task of an agent that cannot go on; otherwise as save_checkpoint."""
        return self._change(
            task_id,
            call,
            lambda task, now: lifecycle.exhaust(task, caller.agent, reason, report, now),
            Happening("exhausted", caller.agent, {"reason": reason}),
            _Saving(report, repository, not report.is_empty()),
            caller,
        )[0]

    def update_task(
        self, task_id: str, fields: JsonObject, expected_version: int | None, call: str
    ) -> JsonObject:
        """Set fields of the task; the values they replace go to the event log.

        Raises NotFound, InvalidState, InvalidArguments for dependencies that do not exist or go in a
        circle, or Conflict when the task is not at `expected_version`.
        """
        return self._change(
            task_id,
            call,
            lambda task, now: lifecycle.update(task, fields, expected_version),
            Happening("updated", None),
        )[0]

    def attach_artifact(
        self,
        task_id: str,
        name: str,
        artifact_type: ArtifactType,
        chunks: Iterable[bytes],
        caller: Caller | None = None,
    ) -> JsonObject:
        """Store the bytes of `chunks` and attach them; the same file under the same name only once.

        Raises NotFound, TooLarge or StorageError.
        """
        _require_room(self.get_task(task_id), name)  # before a file is written for nothing
        kept = self._files.keep(chunks)
        call = _said(f"artifact:{artifact_type}:{kept.sha256}:{name}", caller)
        with self._db.transaction(lambda: self._is_recorded(task_id, call)):
            loaded = self._load(task_id)
            task, agent = loaded.task, caller and caller.agent
            number = _number_of(task, name, artifact_type, kept)
            made = json.loads(loaded.last_made) if call == loaded.last_call else self._heard(caller, task_id)
            if number is None:
                number = len(task.artifacts) + 1
                task = _with_artifact(task, name, artifact_type, kept, agent, _timestamp())
                detail = {"number": number, "name": name, "sha256": kept.sha256}
                event_id = self._events.append_in_transaction(
                    task, Happening("artifact", agent, detail), loaded.last_event
                )
                self._update(task, loaded, event_id, loaded.session_id, call, made)
            self._follow(loaded, caller)
        return _acknowledgement(task, {"artifact": task.artifacts[number - 1].model_dump(), **made})

    def claim_task(self, caller: Caller, task_id: str | None, wanted: ClaimFilter) -> Claim | None:
        """Make the caller the owner of a task: of `task_id`, or of the next one there is for it.

        Of any number of callers exactly one gets a task. Returns None when there is nothing to take.
        Raises NotFound, NotOwner or InvalidState where `task_id` cannot be had.
        """
        claim: Claim | None = None
        session_id = ""
        with self._db.transaction(lambda: claim is not None and self._is_claimed(claim.task, session_id)):
            if task_id is None:
                task_id = self._next_for(caller.agent, wanted, self._db.execute)
            if task_id is None:
                return None
            loaded = self._load(task_id)
            before = loaded.task
            task, how, sender = lifecycle.claim(before, caller.agent, self._owner_state(loaded))
            session_id = self._presence.register_in_transaction(caller)
            if task is before:
                self._move(before, session_id)
            else:
                task = self._record_claim(loaded, task, how, sender, caller.agent, session_id)
            notice = self._notices.take_in_transaction(caller.agent, task_id)
            claim = Claim(task, how, sender, notice, before, loaded.session_id)
        return claim

    def return_claim(self, claim: Claim) -> None:
        """Give a task back that was claimed for somebody who is no longer there, unless it went on since."""
        with self._db.transaction():
            loaded = self._load(claim.task.task_id)
            if claim.how is ClaimKind.MINE or loaded.task.version != claim.task.version:
                return
            task = claim.former.model_copy(
                update={"updated_at": _timestamp(), "version": claim.task.version + 1}
            )
            event_id = self._events.append_in_transaction(
                task, Happening("returned", claim.task.current_owner), loaded.last_event
            )
            self._update(task, loaded, event_id, claim.former_session, f"returned:{event_id}", {})

    def is_claimable(self, agent: str, wanted: ClaimFilter) -> bool:
        """Return whether claim_task would find a task, without taking any lock for writing."""
        return self._next_for(agent, wanted, self._db.fetch) is not None

    def take_notice(self, agent: str) -> str | None:
        """Return what the agent should be told and was not told yet."""
        if self._notices.has_news(agent):
            with self._db.transaction():
                return self._notices.take_in_transaction(agent, None)
        return None

    def end_session(self, session_id: str, observe: Callable[[str | None], JsonObject | None]) -> None:
        """Record that a session has ended in good order, and how `observe` finds its repositories."""
        if not self._presence.is_known(session_id):
            return
        in_session = f"SELECT {COLUMNS}, last_event FROM tasks WHERE queue = ?"
        queue = (session_queue(session_id),)
        paths = {task_of(row[:-1]).repo_path for row in self._db.fetch(in_session, queue)}
        states = {path: observe(path) for path in paths}
        with self._db.transaction():
            self._presence.forget_in_transaction(session_id)
            for *row, last_event in self._db.execute(in_session, queue):
                task = task_of(tuple(row)).model_copy(update={"updated_at": _timestamp()})
                ended = Happening(
                    "session_ended", task.current_owner, {"repository": states.get(task.repo_path)}
                )
                event_id = self._events.append_in_transaction(task, ended, last_event)
                update = "UPDATE tasks SET last_event = ? WHERE task_id = ?"
                self._db.execute(update, (event_id, task.task_id))
        self._presence.drop(session_id)

    # --- Reading --------------------------------------------------------------------------------------

    def get_task(self, task_id: str) -> Task:
        """Return the task; raises NotFound."""
        return self.get_task_and_owner(task_id)[0]

    def get_task_and_owner(self, task_id: str) -> tuple[Task, OwnerState | None]:
        """Return the task, and of one in progress whether its owner's session lives; raises NotFound."""
        row, owner_state = self._row_and_owner(task_id)
        return task_of(row), owner_state

    def _row_and_owner(self, task_id: str) -> tuple[Row, OwnerState | None]:
        rows = self._db.fetch(_ROW_AND_OWNER, (task_id,))
        if not rows:
            raise _no_such_task(task_id)
        *row, is_in_progress, session_id = rows[0]
        self._require_small(row)
        if not is_in_progress or session_id is None:
            return tuple(row), None
        return tuple(row), self._presence.states([session_id], self._db.fetch)[session_id]

    def get_task_text(self, task_id: str) -> str:
        """Return the JSON text of the task as get_task shows it; raises NotFound."""
        row, owner_state = self._row_and_owner(task_id)
        return text_of(row, owner_state)

    def repo_path(self, task_id: str) -> str | None:
        """Return the task's repo_path; None also where there is no such task."""
        rows = self._db.fetch("SELECT repo_path FROM tasks WHERE task_id = ?", (task_id,))
        return rows[0][0] if rows else None

    def list_tasks(self, wanted: TaskFilter, limit: int, cursor: str | None) -> tuple[TaskPage, int]:
        """Return a page of the tasks that fit `wanted`, and how many fit in all.

        `cursor` is the `next_cursor` of the page before; raises InvalidArguments for anything else.
        """
        return self._listing.page(wanted, limit, cursor)

    def recent_tasks(self, limit: int, cursor: str | None) -> TaskPage:
        """Return a page of all tasks, without counting them; otherwise as list_tasks."""
        return self._listing.recent(limit, cursor)

    def get_checkpoint(self, task_id: str, number: int) -> Checkpoint:
        """Return checkpoint `number` of the task, as it was saved; raises NotFound."""
        rows = self._db.fetch(
            "SELECT agent, created_at, progress, dropped_steps FROM checkpoints "
            "WHERE task_id = ? AND number = ?",
            (task_id, number),
        )
        if not rows:
            self._require(task_id)
            raise NotFound(
                f"Task '{task_id}' has no checkpoint {number}.",
                "Checkpoints are numbered from 1; get_task with view history lists them.",
            )
        agent, created_at, progress, dropped_steps = rows[0]
        self._require_small(rows[0])
        return Checkpoint(
            task_id=task_id,
            number=number,
            agent=agent,
            created_at=created_at,
            progress=Progress.model_validate_json(progress),
            dropped_steps=json.loads(dropped_steps),
        )

    def last_checkpoint_facts(self, task_id: str) -> tuple[str | None, str | None, JsonObject | None]:
        """Return who made the latest checkpoint and when, and the state of the work tree then."""
        rows = self._db.fetch(
            "SELECT agent, created_at, repository FROM checkpoints "
            "WHERE task_id = ? ORDER BY number DESC LIMIT 1",
            (task_id,),
        )
        if not rows:
            return None, None, None
        agent, created_at, repository = rows[0]
        return agent, created_at, None if repository is None else json.loads(repository)

    def history(self, task_id: str, limit: int, cursor: str | None) -> tuple[list[JsonObject], str | None]:
        """Return a page of the task's events, newest first, and the next page's cursor; raises NotFound."""
        self._require(task_id)
        return self._events.page(task_id, limit, cursor)

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
        if offset > artifact.size:
            raise InvalidArguments(
                f"offset {offset} is past the end of artifact {number}, which has {artifact.size} bytes.",
                "Leave offset out to read from the start.",
            )
        return artifact, self._files.read(artifact.sha256, offset, length)

    def complete_task_id(self, prefix: str, limit: int) -> tuple[list[str], int]:
        """Return up to `limit` task ids that start with `prefix`, newest change first, and their number."""
        # No character of an id sorts after the tilde.
        where, values = "task_id >= ? AND task_id < ?", (prefix, prefix + "~")
        ids, count = self._db.read(
            (f"SELECT task_id FROM tasks WHERE {where} ORDER BY changed DESC LIMIT ?", (*values, limit)),
            (f"SELECT count(*) FROM tasks WHERE {where}", values),
        )
        return [task_id for (task_id,) in ids], count[0][0]

    def change_marker(self) -> object:
        """Return a value that differs, at little cost, after any process changed anything."""
        return self._db.change_marker()

    def last_position(self) -> int:
        """Return the position of the newest change in the event log."""
        return self._events.last_position()

    def changes_since(self, position: int) -> list[Change]:
        """Return the changes after `position`, oldest first."""
        return self._events.changes_since(position)

    def is_session_known(self, session_id: str) -> bool:
        """Return whether end_session would have anything to record."""
        return self._presence.is_known(session_id)

    def check(self) -> bool:
        """Return whether the database answers at this moment."""
        try:
            self._db.fetch("SELECT task_id FROM tasks LIMIT 1", seconds=HEALTH_SECONDS)
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
        saving: _Saving | None = None,
        caller: Caller | None = None,
    ) -> tuple[JsonObject, bool]:
        """Apply a rule; returns the acknowledgement, and whether anything was changed."""
        with self._db.transaction(lambda: self._is_recorded(task_id, call)):
            loaded = self._load(task_id)
            before = loaded.task
            if call == loaded.last_call:
                self._follow(loaded, caller)
                return _acknowledgement(before, json.loads(loaded.last_made)), False
            now = _timestamp()
            task = rule(before, now)
            if task == before and (saving is None or not saving.is_checkpoint):
                return _acknowledgement(before, {}), False
            task = task.model_copy(update={"updated_at": now, "version": before.version + 1})
            if happening.what == "updated":
                happening = happening._replace(detail={"before": _replaced(before, task)})
            made = {} if saving is None or caller is None else self._save(before, task, caller.agent, saving)
            made |= self._heard(caller, task_id)  # before this call adds to the news itself
            event_id = self._events.append_in_transaction(
                task, happening, loaded.last_event, made.get("checkpoint")
            )
            session_id = self._session_for(loaded, task, caller)
            self._update(task, loaded, event_id, session_id, call, made)
        return _acknowledgement(task, made), True

    def _heard(self, caller: Caller | None, task_id: str) -> JsonObject:
        """Take note that an agent is there; returns what its answer says beside the rest, if anything."""
        if caller is None:
            return {}
        self._presence.note_in_transaction(caller)
        notice = self._notices.take_in_transaction(caller.agent, task_id)
        return {} if notice is None else {"notice": notice}

    def _load(self, task_id: str) -> _Loaded:
        row = self._one(
            f"SELECT {COLUMNS}, changed, last_event, owner_session, waits_for, last_call, last_made "
            "FROM tasks WHERE task_id = ?",
            task_id,
        )
        if row is None:
            raise _no_such_task(task_id)
        self._require_small(row)
        return _Loaded(task_of(row[:-6]), *row[-6:])

    def _require_small(self, row: Sequence[Any]) -> None:
        """Have a call for much text made alone: others must not wait for it."""
        if sum(len(value) for value in row if isinstance(value, str)) > GROUPED_BYTES:
            self._db.require_alone()

    def _made_by(self, task_id: str, call: str) -> JsonObject:
        """Return what the latest change of a task answered beside the task, if that was this call."""
        loaded = self._load(task_id)
        made: JsonObject = json.loads(loaded.last_made) if loaded.last_call == call else {}
        return made

    def _insert(self, task: Task, call: str, said: str, made: JsonObject, agent: str | None) -> None:
        """Write a new task; `made` is kept for the same call again."""
        self._dependencies.require(task)
        waits_for = self._dependencies.unfinished(task.depends_on)
        event_id = self._events.append_in_transaction(task, Happening("created", agent), None)
        values = (
            *column_values(task), event_id, event_id, event_id, None, None, waits_for,
            queue_of(task.status, None, None, waits_for), call, said, json.dumps(made),
        )  # fmt: skip
        self._db.execute(
            f"INSERT INTO tasks ({COLUMNS}, born, changed, last_event, owner_key, owner_session, waits_for, "
            f"queue, created_call, last_call, last_made) VALUES ({', '.join('?' * len(values))})",
            values,
        )
        self._dependencies.link(task)
        self._listing.index_in_transaction(task, event_id)

    def _update(
        self,
        task: Task,
        loaded: _Loaded,
        event_id: int,
        session_id: str | None,
        call: str,
        made: JsonObject,
    ) -> None:
        before, waits_for = loaded.task, loaded.waits_for
        if task.depends_on != before.depends_on:
            self._dependencies.require(task)
            self._dependencies.unlink(task.task_id)
            self._dependencies.link(task)
            waits_for = self._dependencies.unfinished(task.depends_on)
        owner_key = owner_key_of(task)
        self._db.execute(
            "UPDATE tasks SET (title, goal, status, current_owner, repo_path, body, priority, updated_at, "
            "version, changed, last_event, owner_key, owner_session, waits_for, queue, last_call, last_made) "
            "= (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) WHERE task_id = ?",
            (
                task.title, task.goal, task.status, task.current_owner, task.repo_path, body_of(task),
                task.priority, task.updated_at, task.version, event_id, event_id, owner_key, session_id,
                waits_for, queue_of(task.status, owner_key, session_id, waits_for), call,
                json.dumps(made), task.task_id,
            ),
        )  # fmt: skip
        self._listing.unindex_in_transaction(before, loaded.changed)
        self._listing.index_in_transaction(task, event_id)
        if (task.status is Status.DONE) != (before.status is Status.DONE):
            self._dependencies.settle_dependents(task.task_id)

    def _save(self, before: Task, task: Task, agent: str, saving: _Saving) -> JsonObject:
        """Keep a checkpoint, if this change is one; returns what the acknowledgement says of it."""
        if not saving.is_checkpoint:
            return {}
        number = self._next("number", "checkpoints WHERE task_id = ?", task.task_id)
        self._db.execute(
            "INSERT INTO checkpoints "
            "(task_id, number, agent, created_at, progress, dropped_steps, repository) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                task.task_id, number, agent, task.updated_at, task.progress().model_dump_json(),
                json.dumps(saving.report.dropped_steps or []), json_or_none(saving.repository),
            ),
        )  # fmt: skip
        made: JsonObject = {"checkpoint": number}
        if warnings := lifecycle.step_warnings(before, task, saving.report):
            made["warnings"] = warnings
        return made

    def _session_for(self, loaded: _Loaded, task: Task, caller: Caller | None) -> str | None:
        """Return the session that a changed task is worked on in."""
        if task.status is not Status.IN_PROGRESS or task.current_owner is None:
            return None
        if caller is not None and agent_key(caller.agent) == agent_key(task.current_owner):
            return self._presence.register_in_transaction(caller)
        if loaded.session_id is not None and owner_key_of(task) == owner_key_of(loaded.task):
            return loaded.session_id
        return self._presence.heard_of_in_transaction(task.current_owner)  # assigned by a supervisor

    def _follow(self, loaded: _Loaded, caller: Caller | None) -> None:
        """Let a call of the owner that does not itself change who works on the task move it all the same.

        The owner goes on in the session that it last called through.
        """
        if caller is None:
            return
        self._presence.note_in_transaction(caller)
        session_id = self._session_for(loaded, loaded.task, caller)
        if session_id is not None and session_id != loaded.session_id:
            self._move(loaded.task, session_id)

    # --- Claims ---------------------------------------------------------------------------------------

    def _next_for(self, agent: str, wanted: ClaimFilter, fetch: _Fetch) -> str | None:
        """Return the id of the task that `agent` should take: line by line, by priority, then oldest."""
        me = agent_key(agent)
        lines = [
            (handoff_queue(me),),
            (handoff_queue(ANYONE),),
            (EXHAUSTED_QUEUE, reserved(EXHAUSTED_QUEUE, me)),
            tuple(map(session_queue, self._presence.sessions_in(OwnerState.GONE, fetch))),
            (OPEN_QUEUE, reserved(OPEN_QUEUE, me)),
        ]
        conditions, values = claim_conditions(wanted)
        first = f"SELECT priority, born, task_id FROM tasks WHERE queue = ?{conditions} "
        for queues in lines:
            # One by one, since the index has each queue in order, but not several together.
            found = [
                row
                for queue in queues
                for row in fetch(first + "ORDER BY priority, born LIMIT 1", (queue, *values))
            ]
            if found:
                task_id: str = min(found)[2]
                return task_id
        return None

    def _owner_state(self, loaded: _Loaded) -> OwnerState | None:
        if loaded.session_id is None:
            return None
        return self._presence.states([loaded.session_id], self._db.execute)[loaded.session_id]

    def _record_claim(
        self,
        loaded: _Loaded,
        task: Task,
        how: ClaimKind,
        sender: str | None,
        agent: str,
        session_id: str,
    ) -> Task:
        version = loaded.task.version + 1
        task = task.model_copy(update={"updated_at": _timestamp(), "version": version})
        happening = Happening("claimed", agent, {"how": how, "from": sender})
        if how is ClaimKind.GONE:
            happening = Happening("takeover", agent, {"from": sender}, sender)
        event_id = self._events.append_in_transaction(task, happening, loaded.last_event)
        self._update(task, loaded, event_id, session_id, f"claim:{event_id}", {})
        return task

    def _move(self, task: Task, session_id: str) -> None:
        """Note that the owner goes on with a task in another session; the task itself is unchanged."""
        self._db.execute(
            "UPDATE tasks SET owner_session = ?, queue = ? WHERE task_id = ?",
            (session_id, session_queue(session_id), task.task_id),
        )

    # --- Small things ---------------------------------------------------------------------------------

    def _place_for(self, task_id: str | None, call: str) -> tuple[str, Task | None]:
        """Return the id for a new task, and the task that the same call has made already, if any.

        An id of ours is derived from the content, so that a repeated call finds what it made. Once
        somebody worked on that task, equal content means another task and gets the next id.
        """
        attempt = 0
        while True:
            candidate = task_id or _short_id(call, attempt)
            row = self._one(f"SELECT {COLUMNS}, created_call FROM tasks WHERE task_id = ?", candidate)
            if row is None:
                return candidate, None
            found, is_equal = task_of(row[:-1]), row[-1] == call
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
        if not self._db.fetch("SELECT 1 FROM tasks WHERE task_id = ?", (task_id,)):
            raise _no_such_task(task_id)

    def _next(self, column: str, source: str, *values: str) -> int:
        number: int = self._db.execute(f"SELECT coalesce(max({column}), 0) + 1 FROM {source}", values)[0][0]
        return number

    def _one(self, statement: str, *values: str) -> Row | None:
        rows = self._db.execute(statement, values)
        return rows[0] if rows else None

    def _is_claimed(self, task: Task, session_id: str) -> bool:
        row = self._one("SELECT version, owner_session FROM tasks WHERE task_id = ?", task.task_id)
        return row == (task.version, session_id)

    def _is_recorded(self, task_id: str, call: str) -> bool:
        return self._one("SELECT last_call FROM tasks WHERE task_id = ?", task_id) == (call,)


_Fetch = Callable[[str, tuple[Any, ...]], list[Row]]


class _Loaded(NamedTuple):
    task: Task
    changed: int
    last_event: int
    session_id: str | None
    waits_for: int
    last_call: str
    last_made: str


class _Saving(NamedTuple):
    """What a change keeps as a checkpoint, if it is one."""

    report: Report
    repository: JsonObject | None
    is_checkpoint: bool


def _no_such_task(task_id: str) -> NotFound:
    return NotFound(
        f"There is no task '{task_id[:ID_CHARACTERS]}'.", "list_tasks shows the tasks that there are."
    )


def _said(call: str, caller: Caller | None) -> str:
    """Return what makes a call the same again, whoever is told something in its answer included."""
    return call if caller is None else f"{call}:{agent_key(caller.agent)}"


def _acknowledgement(task: Task, made: JsonObject) -> JsonObject:
    return {name: getattr(task, name) for name in _ACKNOWLEDGED} | made


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


def _require_room(task: Task, name: str | None = None) -> None:
    """Raise TooLarge if the task is full; `name` may be attached already, which takes no room."""
    if len(task.artifacts) >= TASK_ARTIFACTS and name not in [one.name for one in task.artifacts]:
        raise TooLarge(
            f"Task '{task.task_id}' has {TASK_ARTIFACTS} artifacts, which is the limit.",
            "Put several files into one archive, or go on in a new task.",
        )


def _with_artifact(
    task: Task,
    name: str,
    artifact_type: ArtifactType,
    kept: KeptFile,
    agent: str | None,
    now: str,
) -> Task:
    _require_room(task)
    number = len(task.artifacts) + 1
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


# --- Ids and times ------------------------------------------------------------------------------------


def _short_id(call: str, attempt: int) -> str:
    digest = hashlib.sha256(f"{call}:{attempt}".encode()).digest()
    return base64.b32encode(digest[:5]).decode().lower()


def _timestamp() -> str:
    """Return the time: UTC, RFC 3339 with milliseconds."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{clock}.{nanoseconds // 1_000_000:03}Z"
