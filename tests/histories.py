"""What clients of many servers did, call by call, and whether what is stored can have come of it.

Every call that writes carries a mark that no other call has and that the change it makes keeps: so each
change can be led back to its call, and each call to its change. The check itself is `violations`, a pure
function. It knows the rules of a task's life only as far as it takes to see who owned the task when.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
import sqlite3
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from enum import StrEnum
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from support import JsonObject, Process, ToolCaller

MARKED = {  # by tool: the argument that holds the call's mark
    "create_task": "task_id",
    "save_checkpoint": "decisions",
    "handoff_task": "reason",
    "mark_exhausted": "reason",
    "claim_task": "agent",
    "attach_artifact": "name",
    "update_task": "title",
}
TOOLS = {  # by event: the tool that makes it
    "created": "create_task",
    "checkpoint": "save_checkpoint",
    "handoff": "handoff_task",
    "exhausted": "mark_exhausted",
    "claimed": "claim_task",
    "takeover": "claim_task",
    "artifact": "attach_artifact",
    "updated": "update_task",
}
REFUSALS = {"not_owner", "invalid_state", "conflict", "not_found"}  # what these clients may run into
DEATH_SECONDS = 10.0  # for a server to be gone whose connections broke

Trace = tuple[str, str]  # a tool and a mark


# --- Recording ------------------------------------------------------------------------------------------


class Outcome(StrEnum):
    """What a client knows of its call."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"  # no answer came


class Call(NamedTuple):
    """A call and how it ended. Times are those of time.monotonic().

    `ended` of an unknown call is when it could no longer take effect, infinite where nobody can tell.
    """

    connection: str
    tool: str
    arguments: JsonObject
    began: float
    ended: float
    outcome: Outcome
    answer: JsonObject

    @property
    def trace(self) -> Trace:
        mark = self.arguments[MARKED[self.tool]]
        return self.tool, mark[0] if isinstance(mark, list) else mark

    @property
    def told(self) -> JsonObject | None:
        """Return what the answer says of the task; None where it names none."""
        return self.answer.get("task") if self.tool == "claim_task" else self.answer

    @property
    def is_change(self) -> bool:
        """Return whether the client was told of a change: a claim may have found nothing to take."""
        return self.outcome is Outcome.OK and self.told is not None


class Dropped(OSError):
    """The client hung up without waiting for the answer; the server lives."""


class Connection(NamedTuple):
    """A client, the server at its other end, and a name that no other connection has."""

    name: str
    client: ToolCaller
    server: Process


class Recorder:
    """Makes calls for several threads and keeps what came of each; `after_answer` runs after each answer."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.after_answer: Callable[[], None] = lambda: None

    def call(self, connection: Connection, tool: str, arguments: JsonObject) -> Call:
        began = time.monotonic()
        outcome, answer, ended = Outcome.UNKNOWN, JsonObject(), math.inf
        try:
            answer, is_refused = connection.client.answer(tool, **arguments)
            outcome, ended = Outcome.FAILED if is_refused else Outcome.OK, time.monotonic()
        except Dropped:
            pass
        except (AssertionError, OSError, HTTPException):
            # A killed server has an excuse, and does nothing more; any other failure is a fault.
            assert connection.server.process.wait(DEATH_SECONDS) < 0
            ended = time.monotonic()
        call = Call(connection.name, tool, arguments, began, ended, outcome, answer)
        self.calls.append(call)
        if outcome is not Outcome.UNKNOWN:
            self.after_answer()
        return call


# --- Working --------------------------------------------------------------------------------------------


class Board:
    """What the clients tell one another outside of the server."""

    def __init__(self) -> None:
        self.task_ids: list[str] = []
        self.heirs: deque[str] = deque()  # agents that may have been handed a task by name
        self.versions: dict[str, int] = {}  # as last heard


class Worker:
    """A client that does some of everything, to tasks of its own and to those of others.

    Each claim is made under a new name, so that the name is its mark.
    """

    def __init__(self, name: str, board: Board, recorder: Recorder, chance: random.Random) -> None:
        self.name = name
        self.mine: dict[str, str] = {}  # task -> the name under which it was taken
        self._board, self._recorder, self._chance = board, recorder, chance
        self._numbers = itertools.count()

    def mark(self) -> str:
        return f"{self.name}-{next(self._numbers)}"

    def work(self, connection: Connection, is_over: Callable[[], bool]) -> None:
        """Make calls until it is over, or the server has been killed."""
        while not is_over() and connection.server.process.returncode is None:
            self.make(connection, *self.next_call())

    def make(self, connection: Connection, tool: str, arguments: JsonObject) -> Call:
        """Make a call, and learn from its answer."""
        call = self._recorder.call(connection, tool, arguments)
        agent = arguments.get("agent") or arguments.get("from_agent")
        if call.outcome is Outcome.FAILED:
            self.mine.pop(arguments.get("task_id", ""), None)
        elif call.outcome is Outcome.OK and (told := call.told) is not None:
            self._board.versions[told["task_id"]] = told["version"]
            if told["status"] != "in_progress":
                self.mine.pop(told["task_id"], None)
            elif agent is not None and told["current_owner"] == agent:
                self.mine[told["task_id"]] = agent
        return call

    def next_call(self) -> tuple[str, JsonObject]:
        """Return a tool and its arguments, by chance."""
        kind = self._chance.random()
        if kind < 0.07 or not self._board.task_ids:
            return self._creation()
        if kind < 0.2 or not self.mine:
            return self._claim()
        if kind < 0.35:
            return self._write(self._chance.choice(self._board.task_ids[-12:]), self.mark())  # who is that?
        return self._write(*self._chance.choice(list(self.mine.items())))

    def _creation(self) -> tuple[str, JsonObject]:
        task_id = self.mark()
        self._board.task_ids.append(task_id)
        priority = self._chance.randrange(5)
        return "create_task", {"task_id": task_id, "title": task_id, "goal": "Goal", "priority": priority}

    def _claim(self) -> tuple[str, JsonObject]:
        is_heir = self._board.heirs and self._chance.random() < 0.5
        agent = self._take_heir() if is_heir else self.mark()
        if self._chance.random() < 0.3:
            return "claim_task", {"agent": agent, "task_id": self._chance.choice(self._board.task_ids[-12:])}
        return "claim_task", {"agent": agent}

    def _take_heir(self) -> str:
        try:
            return self._board.heirs.popleft()
        except IndexError:  # another client was faster
            return self.mark()

    def _write(self, task_id: str, agent: str) -> tuple[str, JsonObject]:
        mark = self.mark()
        report = {"task_id": task_id, "decisions": [mark]}
        tool = self._chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        match tool:
            case "attach_artifact":
                return tool, {"task_id": task_id, "name": mark, "content": content_of(mark), "agent": agent}
            case "update_task":
                return tool, {"task_id": task_id, "title": mark} | self._correction(task_id)
            case "save_checkpoint":
                return tool, {**report, "agent": agent}
            case "mark_exhausted":
                return tool, {**report, "agent": agent, "reason": mark}
        to_agent = "any" if self._chance.random() < 0.5 else f"heir of {mark}"
        if to_agent != "any":
            self._board.heirs.append(to_agent)
        return tool, {**report, "from_agent": agent, "to_agent": to_agent, "reason": mark}

    def _correction(self, task_id: str) -> JsonObject:
        """Return what else an update of a title may say."""
        kind = self._chance.random()
        if kind < 0.3:
            return {"status": "done"}
        if kind < 0.4:
            return {"status": "open"}
        if kind < 0.7 and task_id in self._board.versions:
            return {"expected_version": max(1, self._board.versions[task_id] - self._chance.randrange(2))}
        return {}


WEIGHTS = {
    "save_checkpoint": 6,
    "attach_artifact": 3,
    "update_task": 4,
    "handoff_task": 3,
    "mark_exhausted": 2,
}


def content_of(mark: str) -> str:
    """Return the text of the artifact with that name."""
    return f"{mark}\n" * 40


# --- What is stored -------------------------------------------------------------------------------------


class Event(NamedTuple):
    """One entry of the event log; `mark` is that of the call it came of, None where there is none."""

    position: int
    task_id: str
    version: int
    at: str
    what: str
    agent: str | None
    checkpoint: int | None
    mark: str | None

    @property
    def trace(self) -> Trace:
        return TOOLS.get(self.what, self.what), self.mark or ""


class Stored(NamedTuple):
    """All that the servers left behind, as another program reads it."""

    tasks: dict[str, JsonObject]
    events: list[Event]  # in order, without those that change nothing
    decisions: dict[tuple[str, int], list[str]]  # by task and number of the checkpoint
    artifacts: dict[tuple[str, int], bytes]  # by task and number


def read_stored(folder: Path) -> Stored:
    """Check that the database is sound, and return all there is, once no server is left.

    It is read from a copy: what a killed server left half done is for the next server to mend.
    """
    with tempfile.TemporaryDirectory() as copy:
        for path in folder.glob("tasks.db*"):
            if path.is_file():
                shutil.copy(path, copy)
        with closing(sqlite3.connect(f"{copy}/tasks.db")) as connection:
            connection.row_factory = sqlite3.Row
            assert [tuple(row) for row in connection.execute("PRAGMA integrity_check")] == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
            tasks, events, checkpoints = (
                [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]
                for table in ("tasks", "events", "checkpoints")
            )
    for task in tasks:
        task |= json.loads(task.pop("body"))
    by_id = {task["task_id"]: task for task in tasks}
    decisions = {
        (one["task_id"], one["number"]): json.loads(one["progress"])["decisions"] for one in checkpoints
    }
    artifacts = {
        (task["task_id"], one["number"]): (folder / "artifacts" / one["sha256"]).read_bytes()
        for task in tasks
        for one in task["artifacts"]
    }
    return Stored(by_id, list(_events(events, by_id, decisions)), decisions, artifacts)


def _events(
    rows: list[JsonObject], tasks: dict[str, JsonObject], decisions: dict[tuple[str, int], list[str]]
) -> Iterator[Event]:
    """Yield the events that changed a task, each with its mark."""
    titles = _titles(rows, tasks)
    for row in sorted(rows, key=lambda row: int(row["event_id"])):
        detail = json.loads(row["detail"] or "{}")
        match row["what"]:
            case "session_ended":
                continue
            case "created":
                mark = row["task_id"]
            case "checkpoint":
                mark = decisions[row["task_id"], row["checkpoint"]][-1]
            case "updated":
                mark = titles.get(row["event_id"])
            case "artifact":
                mark = detail["name"]
            case "claimed" | "takeover":
                mark = row["agent"]
            case _:
                mark = detail.get("reason")
        who = row["agent"], row["checkpoint"]
        yield Event(row["event_id"], row["task_id"], row["version"], row["at"], row["what"], *who, mark)


def _titles(rows: list[JsonObject], tasks: dict[str, JsonObject]) -> dict[int, str]:
    """Return by event the title that it gave: an event keeps the one it took away, so go backwards."""
    current = {task_id: str(task["title"]) for task_id, task in tasks.items()}
    given = {}
    for row in sorted(rows, key=lambda row: -int(row["event_id"])):
        if row["what"] == "updated" and "title" in (before := json.loads(row["detail"])["before"]):
            given[int(row["event_id"])] = current[row["task_id"]]
            current[row["task_id"]] = before["title"]
    return given


# --- Checking -------------------------------------------------------------------------------------------


def violations(calls: Iterable[Call], stored: Stored, deaths: dict[str, float]) -> list[str]:
    """Return in sentences all that should not be. `deaths` says before when no connection was killed."""
    by_trace = defaultdict[Trace, list[Call]](list)
    for call in calls:
        by_trace[call.trace].append(call)
    found = [*_wrong_numbers(stored), *_wrong_effects(by_trace, stored), *_wrong_order(by_trace, stored)]
    by_task = defaultdict[str, list[Event]](list)
    for event in stored.events:
        by_task[event.task_id].append(event)
    for task_id, events in by_task.items():
        found += _Life(task_id, by_trace, deaths).retold(events, stored)
    return found


def _wrong_numbers(stored: Stored) -> Iterator[str]:
    """Find gaps and repeats in the numbers of versions, checkpoints and artifacts: all count from 1."""
    versions = {task_id: list[int]() for task_id in stored.tasks}
    for event in stored.events:
        versions.setdefault(event.task_id, []).append(event.version)
    for task_id, found in versions.items():
        task = stored.tasks.get(task_id, {"version": 0, "artifacts": []})
        if found != list(range(1, task["version"] + 1)):
            yield f"{task_id} is at version {task['version']}, its history has {found}"
        for what, numbers in (
            ("checkpoints", sorted(number for of_task, number in stored.decisions if of_task == task_id)),
            ("artifacts", [one["number"] for one in task["artifacts"]]),
        ):
            if numbers != list(range(1, len(numbers) + 1)):
                yield f"{task_id} has the {what} {numbers}"


def _wrong_effects(by_trace: dict[Trace, list[Call]], stored: Stored) -> Iterator[str]:
    """Find what is ok and not there once, unknown and there twice, or failed and there all the same."""
    events = defaultdict[Trace, list[Event]](list)
    for event in stored.events:
        events[event.trace].append(event)
    for trace in events.keys() - by_trace.keys():
        yield f"{trace} was called for by nobody"
    for trace, calls in by_trace.items():
        found, ok = events.get(trace, []), [call for call in calls if call.is_change]
        if len(found) > 1:
            yield f"{trace} was carried out {len(found)} times"
        if ok and not found:
            yield f"{trace} was acknowledged and is lost"
        if found and not ok and all(call.outcome is not Outcome.UNKNOWN for call in calls):
            yield f"{trace} was carried out although its client was told otherwise"
        for call in calls:
            if call.outcome is Outcome.FAILED and _is_out_of_place(call, by_trace):
                yield f"{trace} failed: {call.answer['error']}"
            told = call.told if call in ok else None
            if told and found and (told["task_id"], told["version"]) != (found[0].task_id, found[0].version):
                yield f"{trace} was told {told}, and is version {found[0].version} of {found[0].task_id}"


def _is_out_of_place(failed: Call, by_trace: dict[Trace, list[Call]]) -> bool:
    """Return whether a refusal cannot be right; a task is found once its creation has been answered."""
    code = failed.answer["error"]["code"]
    if code != "not_found":
        return code not in REFUSALS
    creations = by_trace.get(("create_task", failed.arguments["task_id"]), ())
    return any(call.outcome is Outcome.OK and call.ended < failed.began for call in creations)


def _wrong_order(by_trace: dict[Trace, list[Call]], stored: Stored) -> Iterator[str]:
    """Find what was answered before another call began, and stands after it in the log."""
    later_end, later = math.inf, None
    for event in reversed(stored.events):
        calls = [call for call in by_trace.get(event.trace, ()) if call.outcome is not Outcome.FAILED]
        if not calls:
            continue
        if later_end < min(call.began for call in calls):
            yield f"{later} had been answered when {event.trace} began, and comes after it"
        if (end := max(call.ended for call in calls)) < later_end:
            later_end, later = end, event.trace


@dataclass
class _Standing:
    """A task after one of its events, as far as its owner is concerned."""

    version: int = 0
    status: str = ""
    current_owner: str | None = None
    title: str = ""
    sender: str | None = None  # of the latest handoff
    connection: str = ""  # through which the owner last wrote or sent a write again
    decisions: list[str] = field(default_factory=list)

    def is_written_by(self, agent: str | None) -> bool:
        return self.status != "done" and self.current_owner in (None, "any", agent)

    def is_in_hands_of(self, agent: str | None) -> bool:
        return self.status == "in_progress" and self.current_owner == agent


class _Life:
    """Tells the life of one task again from its events, and who could have written what."""

    def __init__(self, task_id: str, by_trace: dict[Trace, list[Call]], deaths: dict[str, float]) -> None:
        self._task_id = task_id
        self._by_trace = by_trace
        self._deaths = deaths

    def retold(self, events: list[Event], stored: Stored) -> Iterator[str]:
        standing = _Standing()
        for event in events:
            calls = [
                call for call in self._by_trace.get(event.trace, ()) if call.outcome is not Outcome.FAILED
            ]
            if not calls:
                return  # which is a violation already
            if not self._is_permitted(standing, event, calls):
                yield f"{event.what} by {event.agent} was not permitted: {standing}"
            before, standing = standing, _after(standing, event, calls)
            if standing.decisions != before.decisions:
                yield from self._wrong_checkpoint(event, standing, stored)
            if event.what == "artifact":
                yield from self._wrong_artifact(event, stored)
            for call in calls:
                yield from _wrong_answer(call, event, before, standing)
        task = stored.tasks[self._task_id]
        for name in ("version", "status", "current_owner", "title", "decisions"):
            if task[name] != getattr(standing, name):
                yield f"{name} of {self._task_id} is {task[name]}, not {getattr(standing, name)}"

    def _is_permitted(self, task: _Standing, event: Event, calls: list[Call]) -> bool:
        match event.what:
            case "created":
                return task.version == 0
            case "takeover":
                is_others = task.status == "in_progress" and task.current_owner not in (None, event.agent)
                death = self._deaths.get(task.connection, math.inf)
                return is_others and death <= max(call.ended for call in calls)
            case "claimed":
                return task.is_written_by(event.agent) and not task.is_in_hands_of(event.agent)
            case "updated":
                return task.status != "done" or "open" in (call.arguments.get("status") for call in calls)
            case "handoff" if task.status == "handoff_ready" and task.sender == event.agent:
                return True
            case "artifact":
                return True
        return task.is_written_by(event.agent)

    def _wrong_checkpoint(self, event: Event, after: _Standing, stored: Stored) -> Iterator[str]:
        found = stored.decisions.get((self._task_id, event.checkpoint or 0))
        if found != after.decisions:
            yield f"the checkpoint of {event.trace} has {found}, not {after.decisions}"

    def _wrong_artifact(self, event: Event, stored: Stored) -> Iterator[str]:
        listed = stored.tasks[self._task_id]["artifacts"]
        numbers = [one["number"] for one in listed if one["name"] == event.mark]
        found = [stored.artifacts.get((self._task_id, number)) for number in numbers]
        if found != [content_of(event.mark or "").encode()]:
            yield f"the bytes of {event.trace} are {found}"


def _after(task: _Standing, event: Event, calls: list[Call]) -> _Standing:
    """Return the task after an event."""
    task, through = replace(task, version=event.version), calls[-1].connection
    if event.what in ("checkpoint", "handoff", "exhausted"):
        task = replace(task, decisions=[*task.decisions, event.mark or ""])
    match event.what:
        case "created":
            return replace(task, status="open", title=event.mark or "")
        case "checkpoint" | "claimed" | "takeover":
            return replace(task, status="in_progress", current_owner=event.agent, connection=through)
        case "handoff":
            to_agent = calls[0].arguments["to_agent"]
            return replace(task, status="handoff_ready", current_owner=to_agent, sender=event.agent)
        case "exhausted":
            return replace(task, status="agent_exhausted", current_owner=None, sender=event.agent)
        case "updated":
            status = calls[0].arguments.get("status", task.status)
            owner = None if calls[0].arguments.get("status") == "open" else task.current_owner
            return replace(task, status=status, current_owner=owner, title=event.mark or "")
        case "artifact" if task.is_in_hands_of(event.agent):
            return replace(task, connection=through)
    return task


def _wrong_answer(call: Call, event: Event, before: _Standing, after: _Standing) -> Iterator[str]:
    """Find answers that do not show the task as the change left it, or how a claimed task came."""
    if call.outcome is not Outcome.OK or call.told is None:
        return
    for name in ("version", "status", "current_owner", "title"):
        if call.told[name] != getattr(after, name):
            yield f"{call.trace} was told {name} {call.told[name]}, not {getattr(after, name)}"
    expected_version = call.arguments.get("expected_version", before.version)
    if expected_version != before.version:
        yield f"{call.trace} expected version {expected_version} and changed {before.version}"
    came = {
        "open": {"how": "open"},
        "in_progress": {"how": "gone", "from": before.current_owner},
        "handoff_ready": {"how": "handoff", "from": before.sender},
        "agent_exhausted": {"how": "exhausted", "from": before.sender},
    }
    if call.tool == "claim_task" and call.answer["claim"] != came.get(before.status):
        yield f"{call.trace} was told {call.answer['claim']}: {before}"
