"""Lists of tasks: what fits, newest change first, page by page."""

from __future__ import annotations

from typing import Any, NamedTuple

from database import Database, Row, Statement
from event_log import event_number_of
from lifecycle import agent_key
from models import PRIORITY, ClaimFilter, Task, TaskFilter
from presence import Presence
from schema import SUMMARY_FIELDS
from word_index import GATHER_RECENT, INDEXED, RECENT, WordIndex, phrases_of

JsonObject = dict[str, Any]

_HAS_TAG = "tasks.task_id IN (SELECT task_id FROM task_tags WHERE tag = ?)"


class _Source(NamedTuple):
    """Where to look: in `tables` one after the other, after the statements `before`.

    `order` is the column by which each has the newest change first without sorting.
    """

    tables: tuple[str, ...]
    order: str
    before: tuple[Statement, ...] = ()


# CROSS JOIN: SQLite then begins with the words or the tag, not with one query for each task of a status.
_ALL = _Source(("tasks",), "tasks.changed")
_TAGGED = _Source(("task_tags CROSS JOIN tasks",), "task_tags.changed")
_WORDED = _Source(
    tuple(f"{index} AS worded CROSS JOIN tasks" for index in (RECENT, INDEXED)), "worded.rowid", GATHER_RECENT
)


class TaskPage(NamedTuple):
    """A page of task summaries, newest change first; `next_cursor` is None on the last one."""

    tasks: list[JsonObject]
    next_cursor: str | None


class Listing:
    """What is listed, and how it is found."""

    def __init__(self, database: Database, presence: Presence) -> None:
        self._db = database
        self._presence = presence
        self._words = WordIndex(database)

    def page(self, wanted: TaskFilter, limit: int, cursor: str | None) -> tuple[TaskPage, int]:
        """Return a page of the tasks that fit `wanted`, and how many fit in all.

        `cursor` is the `next_cursor` of the page before; raises InvalidArguments for anything else.
        """
        source, where, values = self._conditions(wanted)
        pages = _pages(source, where, values, limit, cursor)
        counts = [(f"SELECT count(*) FROM {table} WHERE {where}", values) for table in source.tables]
        results = self._db.read(*source.before, *pages, *counts)[len(source.before) :]
        rows = [row for result in results[: len(pages)] for row in result]
        return self._page_of(rows, limit), sum(count for [(count,)] in results[len(pages) :])

    def recent(self, limit: int, cursor: str | None) -> TaskPage:
        """Return a page of all tasks, without counting them; otherwise as page."""
        [page] = _pages(_ALL, "1 = 1", [], limit, cursor)
        return self._page_of(self._db.fetch(*page), limit)

    def index_in_transaction(self, task: Task, changed: int) -> None:
        """Make a task findable by its words and tags."""
        self._words.add_in_transaction(task, changed)
        for tag in task.tags:
            insert = "INSERT INTO task_tags (task_id, tag, changed) VALUES (?, ?, ?)"
            self._db.execute(insert, (task.task_id, tag, changed))

    def unindex_in_transaction(self, task: Task, changed: int) -> None:
        """Take a task as it was out of the indexes."""
        self._words.remove_in_transaction(task, changed)
        if task.tags:
            self._db.execute("DELETE FROM task_tags WHERE task_id = ?", (task.task_id,))

    def _conditions(self, wanted: TaskFilter) -> tuple[_Source, str, list[Any]]:
        """Return where to look for `wanted`, the WHERE clause, and its values."""
        source, clauses, values = _ALL, ["1 = 1"], list[Any]()
        if (wanted.query or "").strip():
            source = _WORDED
            clauses.append("tasks.changed = worded.rowid AND worded.words MATCH ?")
            values.append(phrases_of(wanted.query or ""))
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
        if wanted.tag is not None and source is _WORDED:
            clauses.append(_HAS_TAG)
            values.append(wanted.tag)
        elif wanted.tag is not None:
            source = _TAGGED
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


def _pages(source: _Source, where: str, values: list[Any], limit: int, cursor: str | None) -> list[Statement]:
    """Select a page from each table, and one row more, to see whether there is another page."""
    order = source.order
    if cursor is not None:
        where, values = f"{where} AND {order} < ?", [*values, event_number_of(cursor)]
    columns = ", ".join(f"tasks.{name}" for name in (*SUMMARY_FIELDS, "owner_session", "changed"))
    selects = [f"SELECT {columns} FROM {table} WHERE {where}" for table in source.tables]
    return [(f"{select} ORDER BY {order} DESC LIMIT ?", [*values, limit + 1]) for select in selects]


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
