"""Lists of tasks: what fits, newest change first, page by page."""

from __future__ import annotations

from typing import Any, NamedTuple

from database import Database, Row, Statement
from errors import InvalidArguments
from lifecycle import agent_key
from models import PRIORITY, ClaimFilter, Task, TaskFilter
from presence import Presence
from schema import SUMMARY_FIELDS
from word_index import GATHER_RECENT, INDEXED, RECENT, WordIndex, phrases_of

JsonObject = dict[str, Any]
_Sources = tuple[str, ...]

_HAS_TAG = "tasks.task_id IN (SELECT task_id FROM task_tags WHERE tag = ?)"

# Where to look, in one table or one after the other; each has the newest change first without sorting.
# CROSS JOIN: SQLite then begins with the words or the tag, not with one query for each task of a status.
_ALL: _Sources = ("tasks",)
_TAGGED: _Sources = ("task_tags CROSS JOIN tasks",)
_WORDED: _Sources = tuple(f"{index} AS worded CROSS JOIN tasks" for index in (RECENT, INDEXED))
_ORDERS = {_ALL: "tasks.changed", _TAGGED: "task_tags.changed", _WORDED: "worded.rowid"}


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
        sources, where, values = self._conditions(wanted)
        pages = _pages(sources, where, values, limit, cursor)
        counts = [(f"SELECT count(*) FROM {source} WHERE {where}", values) for source in sources]
        before = GATHER_RECENT if sources is _WORDED else ()
        results = self._db.read(*before, *pages, *counts)[len(before) :]
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

    def _conditions(self, wanted: TaskFilter) -> tuple[_Sources, str, list[Any]]:
        """Return where to look for `wanted`, the WHERE clause, and its values."""
        sources, clauses, values = _ALL, ["1 = 1"], list[Any]()
        if (wanted.query or "").strip():
            sources = _WORDED
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
        if wanted.tag is not None and sources is not _ALL:
            clauses.append(_HAS_TAG)
            values.append(wanted.tag)
        elif wanted.tag is not None:
            sources = _TAGGED
            clauses.append("tasks.task_id = task_tags.task_id AND tag = ?")
            values.append(wanted.tag)
        if wanted.owner_state is not None:
            session_ids = self._presence.sessions_in(wanted.owner_state, self._db.fetch) or [""]
            clauses.append(
                f"status = 'in_progress' AND owner_session IN ({', '.join('?' * len(session_ids))})"
            )
            values += session_ids
        return sources, " AND ".join(clauses), values

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


def _pages(
    sources: _Sources, where: str, values: list[Any], limit: int, cursor: str | None
) -> list[Statement]:
    """Select a page from each source, and one row more, to see whether there is another page."""
    order = _ORDERS[sources]
    if cursor is not None:
        where, values = f"{where} AND {order} < ?", [*values, position(cursor)]
    columns = ", ".join(f"tasks.{name}" for name in (*SUMMARY_FIELDS, "owner_session", "changed"))
    selects = [f"SELECT {columns} FROM {source} WHERE {where}" for source in sources]
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
