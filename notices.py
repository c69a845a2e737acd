"""What an agent should hear of that happened without it: the only push that reaches a model in any client."""

from __future__ import annotations

from database import Database
from lifecycle import agent_key, some_of
from schema import handoff_queue

# What concerns an agent and is newer than what it was told last.
_NEWS = (
    "SELECT e.event_id, e.what, e.task_id, e.agent, t.queue, t.owner_key "
    "FROM events e JOIN tasks t ON t.task_id = e.task_id "
    "WHERE e.concerns = ? AND e.event_id > coalesce((SELECT noticed FROM agents WHERE agent_key = ?), 0) "
    "ORDER BY e.event_id"
)


class Notices:
    """What each agent was told already is the table `agents`: nothing is told twice."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def has_news(self, agent: str) -> bool:
        """Return whether take_in_transaction may have something to tell."""
        me = agent_key(agent)
        return bool(self._db.fetch(_NEWS, (me, me)))

    def take_in_transaction(self, agent: str, task_id: str | None) -> str | None:
        """Return in a sentence what happened to the agent since it was told last, and note that it was.

        `task_id` is the task that its call is about, which it need not be told of.
        """
        me = agent_key(agent)
        rows = self._db.execute(_NEWS, (me, me))
        if not rows:
            return None
        self._db.execute("DELETE FROM agents WHERE agent_key = ?", (me,))
        self._db.execute("INSERT INTO agents (agent_key, noticed) VALUES (?, ?)", (me, rows[-1][0]))
        waiting: dict[str, None] = {}
        lost: dict[str, str] = {}
        for _, what, about, by, queue, owner_key in rows:
            if queue == handoff_queue(me) and about != task_id:
                waiting[about] = None
            elif what == "takeover" and owner_key != me and about != task_id:
                lost[about] = f"{about} (taken over by {by})"
        told = []
        if waiting:
            told.append(f"Handed to you and waiting: {some_of(list(waiting))}; take it with claim_task.")
        if lost:
            told.append(f"No longer yours: {some_of(list(lost.values()))}.")
        return " ".join(told) or None
