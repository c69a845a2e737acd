"""The event log: what happened to each task, in order; an event is never written again.

Its numbers are what tasks are listed by, and what a listener goes on from. Each event knows the one before it
of the same task, and a task knows its latest, so that a history is read backwards without an index.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from database import Database
from errors import InvalidArguments
from lifecycle import agent_key
from models import Change, Task
from schema import json_or_none

JsonObject = dict[str, Any]

_COLUMNS = "at, what, agent, checkpoint, detail, previous, event_id"
_EVENT_COLUMNS = ", ".join(f"events.{name}" for name in _COLUMNS.split(", "))
_LATEST = "SELECT last_event FROM tasks WHERE task_id = ?"
_BEFORE = "SELECT previous FROM events WHERE task_id = ? AND event_id = ?"


class Happening(NamedTuple):
    """What a change is in the event log: `what` happened, by whom, and details worth keeping.

    `concerns` names another agent that should hear of it.
    """

    what: str
    agent: str | None
    detail: JsonObject | None = None
    concerns: str | None = None


class EventLog:
    """Appends what happens, and tells it again."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def append_in_transaction(
        self, task: Task, happening: Happening, previous: int | None, checkpoint: int | None = None
    ) -> int:
        """Append what happened to a task, as it is now, and return the event's number.

        `previous` is the task's `last_event`. The caller must write the returned number there, in this
        transaction: a history is read backwards from it.
        """
        [(event_id,)] = self._db.execute("SELECT coalesce(max(event_id), 0) + 1 FROM events")
        concerns = None if happening.concerns is None else agent_key(happening.concerns)
        self._db.execute(
            "INSERT INTO events "
            "(event_id, task_id, version, at, what, agent, checkpoint, concerns, detail, previous) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                event_id, task.task_id, task.version, task.updated_at, happening.what, happening.agent,
                checkpoint, concerns, json_or_none(happening.detail), previous,
            ),
        )  # fmt: skip
        return int(event_id)

    def page(self, task_id: str, limit: int, cursor: str | None) -> tuple[list[JsonObject], str | None]:
        """Return a page of a task's events, newest first, and the next page's cursor.

        `cursor` is the one that came with the page before; raises InvalidArguments for what is no cursor.
        """
        # No ORDER BY, which would walk the whole chain: rows come as the recursion finds them, newest first.
        select, values = (_LATEST, ()) if cursor is None else (_BEFORE, (event_number_of(cursor),))
        rows = self._db.fetch(
            f"WITH RECURSIVE past ({_COLUMNS}) AS ("
            f"SELECT {_COLUMNS} FROM events WHERE event_id = ({select}) UNION ALL "
            f"SELECT {_EVENT_COLUMNS} FROM past JOIN events ON events.event_id = past.previous"
            f") SELECT {_COLUMNS} FROM past LIMIT ?",
            (task_id, *values, limit + 1),
        )
        next_cursor = str(rows[limit - 1][-1]) if len(rows) > limit else None
        return [_shown(*row[:-2]) for row in rows[:limit]], next_cursor

    def last_position(self) -> int:
        """Return the number of the newest event; 0 if there is none."""
        return int(self._db.fetch("SELECT coalesce(max(event_id), 0) FROM events")[0][0])

    def changes_since(self, position: int) -> list[Change]:
        """Return the changes after event number `position`, oldest first."""
        statement = "SELECT event_id, task_id, what FROM events WHERE event_id > ? ORDER BY event_id"
        rows = self._db.fetch(statement, (position,))
        return [Change(event_id, task_id, what == "created") for event_id, task_id, what in rows]


def event_number_of(cursor: str) -> int:
    """Return the event number that a cursor stands for; raises InvalidArguments."""
    if cursor.isascii() and cursor.isdigit() and len(cursor) < 19:
        return int(cursor)
    raise InvalidArguments(
        f"The cursor '{cursor[:40]}' is not one that a list returned.",
        "Leave it out to start at the first page.",
    )


def _shown(at: str, what: str, agent: str | None, checkpoint: int | None, detail: str | None) -> JsonObject:
    event: JsonObject = {"at": at, "what": what, "agent": agent}
    if checkpoint is not None:
        event["checkpoint"] = checkpoint
    if detail is not None and what != "updated":
        event |= {name: value for name, value in json.loads(detail).items() if value is not None}
    elif detail is not None:
        event["fields"] = sorted(json.loads(detail)["before"])
    return event
