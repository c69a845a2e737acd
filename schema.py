"""The tables, and how a task becomes a row and a row a task.

A task's scalars are columns; what only ever travels as a whole is the JSON object `body`. Plain SQL that
PostgreSQL would understand too, apart from the full-text index: its two tables are here, what is asked of
them is in word_index.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from json.encoder import encode_basestring
from operator import attrgetter
from typing import Any

from database import Row
from lifecycle import agent_key
from models import ANYONE, PRIORITY, Progress, Status, Task

APPLICATION_ID = 0x4D435054  # "MCPT" in the file's header: nobody else's database is touched

# `born` and `changed` are the numbers of the events of a task's first and latest change; `last_event` is
# its latest event, also one that changes nothing of the task, as the end of a session. Unlike a clock they
# never repeat or go back: they order lists, and `changed` is the cursor. `queue` is the line in which the
# task stands for claim_task (see queue_of). `last_call` and `last_made` let the same call be answered
# twice. What may be large comes last, so that lists need not read past it.
MIGRATIONS = (
    (
        """CREATE TABLE tasks (
            task_id TEXT NOT NULL PRIMARY KEY,
            title TEXT NOT NULL,
            status TEXT NOT NULL,
            current_owner TEXT,
            repo_path TEXT,
            priority INTEGER NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            version INTEGER NOT NULL,
            born INTEGER NOT NULL,
            changed INTEGER NOT NULL,
            owner_key TEXT,
            owner_session TEXT,
            waits_for INTEGER NOT NULL,
            queue TEXT NOT NULL,
            created_call TEXT NOT NULL,
            last_call TEXT NOT NULL,
            last_made TEXT NOT NULL,
            goal TEXT NOT NULL,
            body TEXT NOT NULL
        )""",
        "CREATE UNIQUE INDEX tasks_changed ON tasks (changed)",
        "CREATE INDEX tasks_status ON tasks (status, changed)",
        "CREATE INDEX tasks_owner ON tasks (owner_key, changed)",
        "CREATE INDEX tasks_repo ON tasks (repo_path, changed)",
        "CREATE INDEX tasks_queue ON tasks (queue, priority, born)",
        # `changed` as in tasks, so that the tasks of a tag are found newest change first.
        """CREATE TABLE task_tags (
            task_id TEXT NOT NULL REFERENCES tasks (task_id),
            tag TEXT NOT NULL,
            changed INTEGER NOT NULL,
            PRIMARY KEY (tag, changed)
        )""",
        "CREATE INDEX task_tags_task ON task_tags (task_id, tag)",
        """CREATE TABLE dependencies (
            task_id TEXT NOT NULL REFERENCES tasks (task_id),
            depends_on TEXT NOT NULL REFERENCES tasks (task_id),
            PRIMARY KEY (task_id, depends_on)
        )""",
        "CREATE INDEX dependencies_on ON dependencies (depends_on)",
        """CREATE TABLE checkpoints (
            task_id TEXT NOT NULL REFERENCES tasks (task_id),
            number INTEGER NOT NULL,
            agent TEXT NOT NULL,
            created_at TEXT NOT NULL,
            progress TEXT NOT NULL,
            dropped_steps TEXT NOT NULL,
            repository TEXT,
            PRIMARY KEY (task_id, number)
        )""",
        """CREATE TABLE events (
            event_id INTEGER NOT NULL PRIMARY KEY,
            task_id TEXT NOT NULL REFERENCES tasks (task_id),
            version INTEGER NOT NULL,
            at TEXT NOT NULL,
            what TEXT NOT NULL,
            agent TEXT,
            checkpoint INTEGER,
            concerns TEXT,
            detail TEXT
        )""",
        "CREATE INDEX events_task ON events (task_id, event_id)",
        "CREATE INDEX events_concerns ON events (concerns, event_id)",
        # What each agent was told of already (notices).
        "CREATE TABLE agents (agent_key TEXT NOT NULL PRIMARY KEY, noticed INTEGER NOT NULL)",
        # Sessions that may be alive; one that is not here is gone.
        """CREATE TABLE sessions (
            session_id TEXT NOT NULL PRIMARY KEY,
            lock_name TEXT,
            seen_at INTEGER NOT NULL  -- UTC, milliseconds
        )""",
        # The full-text index: rows are numbered by `changed`, so that the newest change comes first.
        "CREATE VIRTUAL TABLE task_words USING fts5(words, content='', tokenize='unicode61')",
    ),
    (
        # Most tasks have no owner and no repository, and most events concern nobody else: each index that
        # leaves those out saves each write a page.
        "DROP INDEX tasks_owner",
        "DROP INDEX tasks_repo",
        "DROP INDEX events_concerns",
        "CREATE INDEX tasks_owner ON tasks (owner_key, changed) WHERE owner_key IS NOT NULL",
        "CREATE INDEX tasks_repo ON tasks (repo_path, changed) WHERE repo_path IS NOT NULL",
        "CREATE INDEX events_concerns ON events (concerns, event_id) WHERE concerns IS NOT NULL",
    ),
    (
        # What the full-text index still has to be told: new words, or old ones that it must forget.
        """CREATE TABLE recent_words (
            changed INTEGER NOT NULL PRIMARY KEY,
            is_added INTEGER NOT NULL,  -- 0: to be forgotten
            words TEXT NOT NULL
        )""",
        # Each event names the one before it of the same task, and a task its latest: a history needs no
        # index, which every event would have to be written into.
        "ALTER TABLE tasks ADD COLUMN last_event INTEGER NOT NULL DEFAULT 0",
        "UPDATE tasks SET last_event = (SELECT max(event_id) FROM events WHERE task_id = tasks.task_id)",
        "ALTER TABLE events ADD COLUMN previous INTEGER",
        """UPDATE events SET previous = (
            SELECT max(earlier.event_id) FROM events earlier
            WHERE earlier.task_id = events.task_id AND earlier.event_id < events.event_id
        )""",
        "DROP INDEX events_task",
    ),
)

# A second full-text index, of `recent_words`: filled anew for each query, in memory (`temp` is the
# connection's own database).
RECENT_INDEX = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS temp.recent_index USING fts5(words, content='', tokenize='unicode61')"
)

COLUMNS = (
    "task_id, title, goal, status, current_owner, repo_path, body, priority, created_at, updated_at, version"
)
_NAMES = tuple(COLUMNS.split(", "))
_BODY = _NAMES.index("body")
_before_body, _after_body = attrgetter(*_NAMES[:_BODY]), attrgetter(*_NAMES[_BODY + 1 :])
_BODY_FIELDS = {*Progress.model_fields, "artifacts", "handoffs", "tags", "depends_on"}
_NO_LATER_FIELDS = ',"tags":[],"depends_on":[]}'  # how such a body ends; in a string its quotes were escaped
_encode: Callable[[Any], str] = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, separators=(",", ":")
).encode
SUMMARY_FIELDS = (
    "task_id", "title", "status", "current_owner", "repo_path", "priority", "version", "updated_at",
)  # fmt: skip


def task_of(row: Row) -> Task:
    """Return the task in a row of COLUMNS."""
    columns = dict(zip(_NAMES, row, strict=True))
    return Task.model_validate({**columns, **json.loads(columns.pop("body"))})


def text_of(row: Row, owner_state: str | None) -> str:
    """Return the JSON text of Task.shown for the task in a row of COLUMNS.

    Most tasks have no priority, tags or dependencies: their text is put together from what is stored.
    """
    task_id, title, goal, status, owner, repo_path, body, priority, created_at, updated_at, version = row
    if priority != PRIORITY or not body.endswith(_NO_LATER_FIELDS):
        return _encode(task_of(row).shown(owner_state))
    state = "" if owner_state is None else f',"owner_state":"{owner_state}"'
    # A status and a time hold nothing that would have to be escaped.
    return (
        f'{{"task_id":{_quoted(task_id)},"title":{_quoted(title)},"goal":{_quoted(goal)},"status":"{status}",'
        f'"current_owner":{_quoted(owner)},"repo_path":{_quoted(repo_path)},'
        f"{body[1 : -len(_NO_LATER_FIELDS)]},"
        f'"created_at":"{created_at}","updated_at":"{updated_at}","version":{version}{state}}}'
    )


def _quoted(text: str | None) -> str:
    return "null" if text is None else encode_basestring(text)


def column_values(task: Task) -> Row:
    """Return the values of COLUMNS for a task."""
    return (*_before_body(task), body_of(task), *_after_body(task))


def body_of(task: Task) -> str:
    """Return the part of a task that is stored as JSON."""
    return task.model_dump_json(include=_BODY_FIELDS)


def owner_key_of(task: Task) -> str | None:
    """Return the owner as names are compared."""
    return None if task.current_owner is None else agent_key(task.current_owner)


def queue_of(status: str, owner_key: str | None, session_id: str | None, waits_for: int) -> str:
    """Return the line in which a task stands: what claim_task looks through, line by line."""
    if status == Status.HANDOFF_READY:
        return handoff_queue(owner_key or ANYONE)
    if status == Status.IN_PROGRESS:
        return OPEN_QUEUE if owner_key is None else session_queue(session_id or "")
    if status == Status.OPEN and waits_for == 0:
        return OPEN_QUEUE if owner_key is None else reserved(OPEN_QUEUE, owner_key)
    if status == Status.AGENT_EXHAUSTED and owner_key is not None:
        return reserved(EXHAUSTED_QUEUE, owner_key)
    return status


def reserved(queue: str, owner_key: str) -> str:
    """Return the part of a line that a supervisor has set aside for one agent."""
    return f"{queue}:{owner_key}"


OPEN_QUEUE = "ready"
EXHAUSTED_QUEUE: str = Status.AGENT_EXHAUSTED
SESSION_QUEUES = ("session:", "session;")  # from the first up to the second


def handoff_queue(owner_key: str) -> str:
    """Return the line of what was handed to an agent."""
    return f"handoff:{owner_key}"


def session_queue(session_id: str) -> str:
    """Return the line of what is worked on in a session."""
    return SESSION_QUEUES[0] + session_id


def json_or_none(value: Any) -> str | None:
    """Return JSON text for a value that may be absent."""
    return None if value is None else json.dumps(value)
