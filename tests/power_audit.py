"""What must be there after a loss of power, as the server finds it: a sound database, and its word kept."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

from support import JsonObject

from config import ConfigError, make_folder
from errors import StoreFailure, ToolError
from models import NewTask, Progress, TaskFilter
from store import Store

_EVENTS = {
    "create_task": {"created"},
    "claim_task": {"claimed", "takeover"},
    "save_checkpoint": {"checkpoint"},
    "handoff_task": {"handoff"},
    "mark_exhausted": {"exhausted"},
    "update_task": {"updated"},
    "attach_artifact": {"artifact"},
}
_ADDED = ("completed_steps", "decisions", "dead_ends", "files")  # to what earlier checkpoints said


class Corrupt(AssertionError):
    """The database does not open, or is not sound."""


class Lost(AssertionError):
    """The database is sound, but not all that a client was told is in it."""


class Acknowledged(NamedTuple):
    """A call of a tool that writes, and what the server answered."""

    tool: str
    arguments: JsonObject
    answer: JsonObject

    @property
    def task(self) -> JsonObject:
        """Return what the answer says of the task."""
        task: JsonObject = self.answer.get("task") or self.answer
        return task


def audit(place: str, acknowledged: list[Acknowledged]) -> str:
    """Start on what is left in `place`, and check it. Returns a digest of all that the database holds.

    Raises Corrupt or Lost.
    """
    with _opened(place) as store:
        content = _sound_content(os.path.join(place, "tasks.db"))
        try:
            _check_whole(store)
            for one in acknowledged:
                _check_recorded(store, one)
            for latest in {one.task["task_id"]: one for one in acknowledged}.values():
                _check_task(store, latest)
            _check_goes_on(store)
        except ToolError as error:
            raise Lost(f"the store says: {error.message}") from error
        except (StoreFailure, ValueError) as error:  # what integrity_check does not see: words, rows' content
            raise Corrupt(f"what is stored makes no sense: {error}") from error
    return content


@contextmanager
def _opened(place: str) -> Iterator[Store]:
    """Open the store as the server does when it starts."""
    artifacts = os.path.join(place, "artifacts")
    try:
        make_folder(place, "place")
        make_folder(artifacts, "artifacts")
        store = Store(os.path.join(place, "tasks.db"), artifacts)
    except (StoreFailure, ConfigError) as error:
        raise Corrupt(f"the server does not start: {error}") from error
    try:
        yield store
    finally:
        store.close()


def _sound_content(path: str) -> str:
    """Return a digest of all rows of all tables; raises Corrupt if anything is wrong with them."""
    digest = hashlib.sha256()
    try:
        with closing(sqlite3.connect(path)) as connection:
            _require(Corrupt, connection.execute("PRAGMA integrity_check").fetchall(), [("ok",)], "integrity")
            _require(Corrupt, connection.execute("PRAGMA foreign_key_check").fetchall(), [], "foreign keys")
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            for (table,) in tables.fetchall():
                for row in connection.execute(f"SELECT * FROM {table}"):
                    digest.update(repr((table, row)).encode())
    except sqlite3.DatabaseError as error:
        raise Corrupt(f"SQLite says: {error}") from error
    return digest.hexdigest()


def _check_whole(store: Store) -> None:
    """Check that no call is there by half, acknowledged or not, and no row without its file."""
    for row in store.recent_tasks(100, None).tasks:
        task = store.get_task(row["task_id"])
        changes = _changes(store, task.task_id)
        _require(Corrupt, len(changes), task.version, f"the changes of {task.task_id}")
        saved = [event["checkpoint"] for event in changes if "checkpoint" in event]
        for number in saved:
            store.get_checkpoint(task.task_id, number)
        _require(Corrupt, saved, list(range(1, len(saved) + 1)), f"the checkpoints of {task.task_id}")
        for artifact in task.artifacts:
            _, content = store.read_artifact(task.task_id, artifact.number, 0, artifact.size + 1)
            found = hashlib.sha256(content).hexdigest()
            _require(Lost, found, artifact.sha256, f"artifact {artifact.number} of {task.task_id}")


def _changes(store: Store, task_id: str) -> list[JsonObject]:
    """Return the events that made the task's versions, oldest first."""
    events, _ = store.history(task_id, 1000, None)
    return [event for event in reversed(events) if event["what"] != "session_ended"]


def _check_recorded(store: Store, one: Acknowledged) -> None:
    """Check that the history has the call, and that its checkpoint or artifact says what the client said."""
    task_id, version = one.task["task_id"], one.task["version"]
    changes = _changes(store, task_id)
    _require(Lost, len(changes) >= version, True, f"version {version} of {task_id}, {one.tool}")
    event = changes[version - 1]
    _require(Lost, event["what"] in _EVENTS[one.tool], True, f"{one.tool} of {task_id}, not {event['what']}")
    _require(Lost, event["at"], one.task.get("updated_at", event["at"]), f"the time of {one.tool}")
    if "checkpoint" in one.answer:
        saved = store.get_checkpoint(task_id, one.answer["checkpoint"]).progress.model_dump(mode="json")
        for name in Progress.model_fields.keys() & one.arguments.keys():
            told, kept = one.arguments[name], saved[name]
            is_kept = set(told) <= set(kept) if name in _ADDED else told == kept
            _require(Lost, is_kept, True, f"{name} of checkpoint {one.answer['checkpoint']} of {task_id}")
    if one.tool == "attach_artifact":
        number, told = one.answer["artifact"]["number"], one.arguments["content"].encode()
        _, content = store.read_artifact(task_id, number, 0, len(told) + 1)
        _require(Lost, content == told, True, f"the bytes of artifact {number} of {task_id}")


def _check_task(store: Store, latest: Acknowledged) -> None:
    """Check that the task is what the latest acknowledgement says, or newer, and that words find it."""
    task = store.get_task(latest.task["task_id"])
    if task.version == latest.task["version"]:
        shown = task.model_dump(mode="json")
        for name in latest.task.keys() & {"title", "status", "current_owner", "updated_at"}:
            _require(Lost, shown[name], latest.task[name], f"{name} of {task.task_id}")
    page, _ = store.list_tasks(TaskFilter(query=task.goal.split()[0]), 10, None)
    _require(
        Lost, task.task_id in [row["task_id"] for row in page.tasks], True, f"{task.task_id} by its words"
    )


def _check_goes_on(store: Store) -> None:
    new = NewTask(task_id="after", title="Title", goal="Goal", repo_path=None, remaining_steps=[])
    _require(Lost, store.create_task(new)["version"], 1, "the first write after the loss")


def _require(kind: type[AssertionError], found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise kind(f"{what}: {found!r} instead of {wanted!r}"[:500])
