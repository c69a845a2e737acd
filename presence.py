"""Which sessions of agents are alive: the `sessions` table and the lock files behind it.

The table names the sessions that may be alive; one that is not in it is gone. A session with a connection
names the lock file of its process, and lives while that is held. One without, and all where the platform
has no such locks, counts as "unknown" for a while after it was last heard of, and then as gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from database import Database, Row
from lifecycle import agent_key
from models import OwnerState
from schema import SESSION_QUEUES
from sessions import Caller, ProcessLocks

_CALLS = "calls:"  # prefix of the session that stands for an agent's calls without a connection


class Presence:
    """Liveness of owners. Methods named `in_transaction` run inside one of the store's."""

    def __init__(self, database: Database, locks: ProcessLocks, idle_seconds: int) -> None:
        self._db = database
        self._locks = locks
        self._idle_seconds = idle_seconds
        self._known: set[str] = set()  # this process's sessions that may be in the table
        self._guard = threading.Lock()

    def register_in_transaction(self, caller: Caller) -> str:
        """Record that `caller` is there; returns the id of its session."""
        now = _now()
        if caller.session_id is None:
            return self.heard_of_in_transaction(caller.agent)
        with self._guard:
            self._known.add(caller.session_id)
        if caller.is_gone():  # it ended while its last call was under way
            return caller.session_id
        lock_name = self._locks.own_name()
        known = self._db.execute("SELECT lock_name FROM sessions WHERE session_id = ?", (caller.session_id,))
        if not known:
            self._forget_dead(now)
            values = (caller.session_id, lock_name, now)
            self._db.execute("INSERT INTO sessions (session_id, lock_name, seen_at) VALUES (?, ?, ?)", values)
        elif lock_name is None or known[0][0] != lock_name:
            update = "UPDATE sessions SET lock_name = ?, seen_at = ? WHERE session_id = ?"
            self._db.execute(update, (lock_name, now, caller.session_id))
        return caller.session_id

    def note_in_transaction(self, caller: Caller) -> None:
        """Count a call of an agent that has no connection, if anything depends on its being alive."""
        if caller.session_id is None:
            self._touch(_CALLS + agent_key(caller.agent), _now())

    def heard_of_in_transaction(self, agent: str) -> str:
        """Record that an agent without a connection was heard of; returns the id of its session."""
        session_id, now = _CALLS + agent_key(agent), _now()
        if self._db.execute("SELECT 1 FROM sessions WHERE session_id = ?", (session_id,)):
            self._touch(session_id, now)
        else:
            insert = "INSERT INTO sessions (session_id, lock_name, seen_at) VALUES (?, NULL, ?)"
            self._db.execute(insert, (session_id, now))
        return session_id

    def forget_in_transaction(self, session_id: str) -> None:
        """Record that a session has ended."""
        self._db.execute("DELETE FROM sessions WHERE session_id = ?", (session_id,))

    def drop(self, session_id: str) -> None:
        """Remember an ended session no longer; after the transaction that recorded its end."""
        with self._guard:
            self._known.discard(session_id)

    def is_known(self, session_id: str) -> bool:
        """Return whether the table may know this session of this process; False is certain."""
        with self._guard:
            return session_id in self._known

    def states(
        self, session_ids: Iterable[str], fetch: Callable[[str, tuple[str, ...]], list[Row]]
    ) -> dict[str, OwnerState]:
        """Return the state of each session; `fetch` runs a statement, in a transaction or without."""
        wanted = tuple(set(session_ids))
        if not wanted:
            return {}
        marks = ", ".join("?" * len(wanted))
        statement = f"SELECT session_id, lock_name, seen_at FROM sessions WHERE session_id IN ({marks})"
        now = _now()
        found = {row[0]: self._state(row[1], row[2], now) for row in fetch(statement, wanted)}
        return {session_id: found.get(session_id, OwnerState.GONE) for session_id in wanted}

    def sessions_in(self, state: OwnerState, fetch: Callable[[str, tuple[str, ...]], list[Row]]) -> list[str]:
        """Return the sessions in `state` in which tasks are worked on; `fetch` as in states."""
        rows = fetch("SELECT DISTINCT queue FROM tasks WHERE queue >= ? AND queue < ?", SESSION_QUEUES)
        states = self.states((queue[len(SESSION_QUEUES[0]) :] for (queue,) in rows), fetch)
        return [session_id for session_id, found in states.items() if found is state]

    def _state(self, lock_name: str | None, seen_at: int, now: int) -> OwnerState:
        if lock_name is not None:
            return OwnerState.LIVE if self._locks.is_held(lock_name) else OwnerState.GONE
        # A clock that was set back makes nobody gone.
        return OwnerState.GONE if now - seen_at >= 1000 * self._idle_seconds else OwnerState.UNKNOWN

    def _touch(self, session_id: str, now: int) -> None:
        self._db.execute("UPDATE sessions SET seen_at = ? WHERE session_id = ?", (now, session_id))

    def _forget_dead(self, now: int) -> None:
        """Keep the table as small as the number of living sessions; once for each new one."""
        rows = self._db.execute("SELECT session_id, lock_name, seen_at FROM sessions")
        for session_id, lock_name, seen_at in rows:
            if self._state(lock_name, seen_at, now) is OwnerState.GONE:
                self.forget_in_transaction(session_id)


def _now() -> int:
    """Return the time: UTC, in milliseconds."""
    return time.time_ns() // 1_000_000
