"""Lists of tasks: what fits, newest change first, page by page; and the full-text index behind `query`.

The index is numbered by `changed`, the number of a task's latest event, so that the newest change comes
first without sorting, however many tasks a word occurs in.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from database import Database, Row, Statement
from errors import InvalidArguments
from lifecycle import agent_key
from models import PRIORITY, ClaimFilter, Task, TaskFilter
from presence import Presence
from schema import SUMMARY_FIELDS, folded, words_of

JsonObject = dict[str, Any]

_HAS_TAG = "tasks.task_id IN (SELECT task_id FROM task_tags WHERE tag = ?)"


# Where the newest change comes first without sorting: by the table that is looked through.
_ORDERS = {"tasks": "tasks.changed", "task_words": "task_words.rowid", "task_tags": "task_tags.changed"}


class TaskPage(NamedTuple):
    """A page of task summaries, newest change first; `next_cursor` is None on the last one."""

    tasks: list[JsonObject]
    next_cursor: str | None


class Listing:
    """What is listed, and how it is found."""

    def __init__(self, database: Database, presence: Presence) -> None:
        self._db = database
        self._presence = presence

    def page(self, wanted: TaskFilter, limit: int, cursor: str | None) -> tuple[TaskPage, int]:
        """Return a page of the tasks that fit `wanted`, and how many fit in all.

        `cursor` is the `next_cursor` of the page before; raises InvalidArguments for anything else.
        """
        source, where, values = self._conditions(wanted)
        counting = (f"SELECT count(*) FROM {source} WHERE {where}", values)
        rows, count = self._db.read(_page(source, where, values, limit, cursor), counting)
        return self._page_of(rows, limit), count[0][0]

    def recent(self, limit: int, cursor: str | None) -> TaskPage:
        """Return a page of all tasks, without counting them; otherwise as page."""
        rows = self._db.fetch(*_page("tasks", "1 = 1", [], limit, cursor))
        return self._page_of(rows, limit)

    def index_in_transaction(self, task: Task, changed: int) -> None:
        """Make a task findable by its words and tags."""
        self._db.execute("INSERT INTO task_words (rowid, words) VALUES (?, ?)", (changed, words_of(task)))
        for tag in task.tags:
            insert = "INSERT INTO task_tags (task_id, tag, changed) VALUES (?, ?, ?)"
            self._db.execute(insert, (task.task_id, tag, changed))

    def unindex_in_transaction(self, task: Task, changed: int) -> None:
        """Take a task as it was out of the indexes; that of words wants to be told them again."""
        self._db.execute(
            "INSERT INTO task_words (task_words, rowid, words) VALUES ('delete', ?, ?)",
            (changed, words_of(task)),
        )
        if task.tags:
            self._db.execute("DELETE FROM task_tags WHERE task_id = ?", (task.task_id,))

    def _conditions(self, wanted: TaskFilter) -> tuple[str, str, list[Any]]:
        """Return where to look for `wanted`, the WHERE clause, and its values."""
        source, clauses, values = "tasks", ["1 = 1"], list[Any]()
        if (wanted.query or "").strip():
            # CROSS JOIN: SQLite then begins with the words, not with one query for each task of a status.
            source = "task_words CROSS JOIN tasks"
            clauses.append("tasks.changed = task_words.rowid AND task_words MATCH ?")
            values.append(_phrases(wanted.query or ""))
        for column, value in (
            ("status", wanted.status),
            ("owner_key", wanted.current_owner and agent_key(wanted.current_owner)),
            ("repo_path", wanted.repo_path),
        ):
            if value is not None:
                clauses.append(f"{column} = ?")
                values.append(value)
        if wanted.ready is not None:
            comparison = "= 0" if wanted.ready else "> 0"
            clauses.append(f"status = 'open' AND waits_for {comparison}")
        if wanted.tag is not None and source != "tasks":
            clauses.append(_HAS_TAG)
            values.append(wanted.tag)
        elif wanted.tag is not None:
            source = "task_tags CROSS JOIN tasks"
            clauses.append("tasks.task_id = task_tags.task_id AND tag = ?")
            values.append(wanted.tag)
        if wanted.owner_state is not None:
            session_ids = self._presence.sessions_in(wanted.owner_state, self._db.fetch) or [""]
            clauses.append(
                f"status = 'in_progress' AND owner_session IN ({', '.join('?' * len(session_ids))})"
            )
            values += session_ids
        return source, " AND ".join(clauses), values

    def _page_of(self, rows: list[Row], limit: int) -> TaskPage:
        """Return rows of SUMMARY_FIELDS, owner_session and `changed` as a page."""
        shown = rows[:limit]
        states = self._presence.states([row[-2] for row in shown if row[-2] is not None], self._db.fetch)
        tasks = []
        for row in shown:
            summary = dict(zip(SUMMARY_FIELDS, row[:-2], strict=True))
            if summary["priority"] == PRIORITY:
                del summary["priority"]
            if row[-2] is not None:
                summary["owner_state"] = states[row[-2]]
            tasks.append(summary)
        return TaskPage(tasks, str(rows[limit - 1][-1]) if len(rows) > limit else None)


def position(cursor: str) -> int:
    """Return the event number that a cursor stands for; raises InvalidArguments."""
    if cursor.isascii() and cursor.isdigit() and len(cursor) < 19:
        return int(cursor)
    raise InvalidArguments(
        f"The cursor '{cursor[:40]}' is not one that a list returned.",
        "Leave it out to start at the first page.",
    )


def _phrases(query: str) -> str:
    """Return a full-text query for all words of `query`: no character of it is an operator."""
    # The index leaves out accents that cannot be composed, and does not end a word there.
    words = re.findall("(?:[^\\W_][\u0300-\u0331]*)+", folded(query))
    return " ".join(f'"{word}"*' for word in words) or '""'  # what has no word at all is in no task


def _page(source: str, where: str, values: list[Any], limit: int, cursor: str | None) -> Statement:
    """Select one row more than the page, to see whether there is another page."""
    order = _ORDERS[source.partition(" ")[0]]
    if cursor is not None:
        where, values = f"{where} AND {order} < ?", [*values, position(cursor)]
    columns = ", ".join(f"tasks.{name}" for name in (*SUMMARY_FIELDS, "owner_session", "changed"))
    select = f"SELECT {columns} FROM {source} WHERE {where}"
    return f"{select} ORDER BY {order} DESC LIMIT ?", [*values, limit + 1]


def claim_conditions(wanted: ClaimFilter) -> tuple[str, list[str]]:
    """Return what else a task must fit to be claimed, as the end of a WHERE clause, and its values."""
    clauses, values = "", []
    if wanted.repo_path is not None:
        clauses += " AND repo_path = ?"
        values.append(wanted.repo_path)
    if wanted.tag is not None:
        clauses += f" AND {_HAS_TAG}"
        values.append(wanted.tag)
    return clauses, values
