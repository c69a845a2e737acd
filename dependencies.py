"""What a task must wait for: the table `dependencies`, inside the store's transactions.

`waits_for` counts the unfinished dependencies of a task, so that what is ready is found by an index.
"""

from __future__ import annotations

from database import Database
from errors import InvalidArguments
from lifecycle import some_of
from models import Status, Task
from schema import queue_of


class Dependencies:
    """The links between tasks. Every method runs inside a transaction."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def require(self, task: Task) -> None:
        """Raise InvalidArguments unless all dependencies exist and none leads back to the task."""
        if not task.depends_on:
            return
        marks = ", ".join("?" * len(task.depends_on))
        known = self._db.execute(f"SELECT task_id FROM tasks WHERE task_id IN ({marks})", task.depends_on)
        unknown = [task_id for task_id in task.depends_on if (task_id,) not in known]
        if task.task_id in task.depends_on:
            raise InvalidArguments(f"Task '{task.task_id}' cannot depend on itself.", "Leave it out.")
        if unknown:
            raise InvalidArguments(
                f"depends_on names tasks that do not exist: {some_of(unknown)}.",
                "Create them first, or leave them out.",
            )
        circle = self._db.execute(
            "WITH RECURSIVE needed (task_id) AS ("
            f"SELECT depends_on FROM dependencies WHERE task_id IN ({marks}) "
            "UNION SELECT d.depends_on FROM dependencies d JOIN needed n ON d.task_id = n.task_id) "
            "SELECT task_id FROM needed WHERE task_id = ?",
            (*task.depends_on, task.task_id),
        )
        if circle:
            raise InvalidArguments(
                f"depends_on would go in a circle: one of these tasks needs '{task.task_id}' itself.",
                "Leave out the task that leads back.",
            )

    def link(self, task: Task) -> None:
        """Write down what a task depends on; nothing may be written down for it yet (see unlink)."""
        for needed in task.depends_on:
            self._db.execute(
                "INSERT INTO dependencies (task_id, depends_on) VALUES (?, ?)", (task.task_id, needed)
            )

    def unlink(self, task_id: str) -> None:
        """Take away a task's dependencies."""
        self._db.execute("DELETE FROM dependencies WHERE task_id = ?", (task_id,))

    def unfinished(self, task_ids: list[str]) -> int:
        """Return how many of these tasks are not done."""
        if not task_ids:
            return 0
        marks = ", ".join("?" * len(task_ids))
        statement = f"SELECT count(*) FROM tasks WHERE task_id IN ({marks}) AND status <> ?"
        count: int = self._db.execute(statement, (*task_ids, Status.DONE))[0][0]
        return count

    def settle_dependents(self, task_id: str) -> None:
        """Let the tasks that depend on one that was finished or reopened wait for one less or more."""
        rows = self._db.execute(
            "SELECT t.task_id, t.status, t.owner_key, t.owner_session FROM dependencies d "
            "JOIN tasks t ON t.task_id = d.task_id WHERE d.depends_on = ?",
            (task_id,),
        )
        for dependent, status, owner_key, session_id in rows:
            needed = self._db.execute("SELECT depends_on FROM dependencies WHERE task_id = ?", (dependent,))
            waits_for = self.unfinished([one for (one,) in needed])
            self._db.execute(
                "UPDATE tasks SET waits_for = ?, queue = ? WHERE task_id = ?",
                (waits_for, queue_of(status, owner_key, session_id, waits_for), dependent),
            )
