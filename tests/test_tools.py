"""The nine tools on a real server: what they answer, keep, accept and refuse (design section 4)."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import HttpServer, JsonObject, StdioClient, sse, stdio

import database
import store
from config import (
    ARTIFACT_BYTES,
    ARTIFACT_CHUNK_BYTES,
    ARTIFACT_NAME_CHARACTERS,
    BRIEF_CHARACTERS,
    BRIEF_CHARACTERS_MAX,
    BRIEF_CHARACTERS_MIN,
    CLAIM_WAIT_SECONDS,
    DEPENDENCIES,
    HISTORY_PAGE,
    ID_CHARACTERS,
    LIST_ENTRIES,
    PATH_CHARACTERS,
    QUERY_CHARACTERS,
    TAG_CHARACTERS,
    TAGS,
    TASKS_PAGE,
    TASKS_PAGE_MAX,
    TEXT_BYTES,
    TITLE_CHARACTERS,
)
from models import OwnerState, Status
from store import Store
from tool_list import list_tools
from tools import Workplace, call_tool

ACKNOWLEDGED = {"task_id", "title", "status", "current_owner", "version", "updated_at"}
TEXT_LISTS = ("completed_steps", "remaining_steps", "decisions", "dead_ends", "files")
TIME = r"20\d\d-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\d\.\d{3}Z"

# What each tool needs beside a task_id, and what its whole schema is.
NEEDED: dict[str, JsonObject] = {
    "create_task": {"title": "Title", "goal": "Goal"},
    "get_task": {},
    "claim_task": {"agent": "alice"},
    "save_checkpoint": {"agent": "alice"},
    "handoff_task": {"from_agent": "alice", "to_agent": "bob", "reason": "quota"},
    "mark_exhausted": {"agent": "alice", "reason": "quota"},
    "attach_artifact": {"name": "a.log", "content": "text"},
    "list_tasks": {},
    "update_task": {},
}
SCHEMAS: dict[str, JsonObject] = {tool["name"]: tool["inputSchema"] for tool in list_tools()}
CHECKPOINTING = ("save_checkpoint", "handoff_task", "mark_exhausted")
REPORTING = (*CHECKPOINTING, "update_task")
each_tool = pytest.mark.parametrize("tool", list(NEEDED))
each_checkpointing_tool = pytest.mark.parametrize("tool", CHECKPOINTING)
each_reporting_tool = pytest.mark.parametrize("tool", REPORTING)
each_text_list = pytest.mark.parametrize("name", TEXT_LISTS)

FULL_REPORT: JsonObject = {
    "completed_steps": ["one"],
    "remaining_steps": ["two", "three"],
    "resume_prompt": "Go on with two.",
    "test_results": [{"command": "pytest", "status": "failed", "summary": "1 failed"}],
    "decisions": ["plain SQL, since it is portable"],
    "dead_ends": ["threads"],
    "files": ["src/a.py"],
}

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StdioClient]:
    """Serve all tests of this file that do not need a server of their own."""
    with stdio(tmp_path_factory.mktemp("tools")) as client:
        yield client


@pytest.fixture(scope="module")
def other(client: StdioClient) -> Iterator[StdioClient]:
    """Serve the same database from a second process, as another agent's client would."""
    with stdio(client.folder) as other:
        yield other


@pytest.fixture
def task(client: StdioClient) -> str:
    """Make an open task that nobody has, and return its id."""
    return new_task(client, remaining_steps=["one", "two"])


def new_task(client: StdioClient, **members: Any) -> str:
    task_id = f"task-{next(_numbers)}"
    client.call("create_task", task_id=task_id, **{"title": f"About {task_id}", "goal": "Goal", **members})
    return task_id


def arguments_of(tool: str, task_id: str) -> JsonObject:
    """Return the least that a tool needs to be called for a task."""
    if tool == "list_tasks":
        return {}
    return {"task_id": f"{task_id}-new" if tool == "create_task" else task_id, **NEEDED[tool]}


def recorded(client: StdioClient, task_id: str = "") -> list[Any]:
    """Return what is on disk: how much there is of everything, and all about one task."""
    with closing(sqlite3.connect(f"file:{client.folder}/tasks.db?mode=ro", uri=True)) as connection:

        def rows(statement: str, *values: str) -> list[Any]:
            return connection.execute(statement, values).fetchall()

        found: list[Any] = [rows("SELECT count(*), sum(version), max(changed) FROM tasks")]
        found += [rows(f"SELECT count(*) FROM {table}") for table in ("checkpoints", "events")]
        for table in ("tasks", "checkpoints", "events", "task_tags", "dependencies"):
            found += rows(f"SELECT * FROM {table} WHERE task_id = ? ORDER BY 1, 2", task_id)
    return [*found, sorted(os.listdir(client.folder / "artifacts"))]


def events(client: StdioClient, task_id: str) -> list[JsonObject]:
    """Return the event log of a task, oldest first."""
    with closing(sqlite3.connect(f"file:{client.folder}/tasks.db?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        query = "SELECT * FROM events WHERE task_id = ? ORDER BY event_id"
        return [dict(row) for row in connection.execute(query, (task_id,))]


def refused(client: StdioClient, code: str, tool: str, **arguments: Any) -> JsonObject:
    """Call a tool that must be refused with `code`, say what to do, and change nothing on disk."""
    task_id = str(arguments.get("task_id"))
    before = recorded(client, task_id)
    error = client.refusal(tool, **arguments)
    assert error["code"] == code, error
    assert error["message"].endswith("."), error
    assert len(error["hint"]) > 10, error
    assert str(client.folder) not in json.dumps(error)
    assert recorded(client, task_id) == before
    return error


def progress_of(task: JsonObject) -> JsonObject:
    return {name: task[name] for name in FULL_REPORT}


# --- Acknowledgements and views -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "members", "made"),
    [
        ("create_task", {}, set()),
        ("save_checkpoint", {}, {"checkpoint"}),
        ("handoff_task", {}, set()),
        ("handoff_task", {"resume_prompt": "p"}, {"checkpoint"}),
        ("mark_exhausted", {}, set()),
        ("mark_exhausted", {"remaining_steps": ["one", "two"]}, {"checkpoint"}),
        ("mark_exhausted", {"remaining_steps": []}, {"checkpoint", "warnings"}),
        ("save_checkpoint", {"dropped_steps": ["one"]}, {"checkpoint"}),
        ("attach_artifact", {}, {"artifact"}),
        ("update_task", {"title": "Other"}, set()),
        ("update_task", {}, set()),
    ],
)
def test_a_write_answers_with_a_short_acknowledgement(
    client: StdioClient, task: str, tool: str, members: JsonObject, made: set[str]
) -> None:
    """A write answers with six members of the task and with what it made, nothing more."""
    answer = client.call(tool, **arguments_of(tool, task), **members)
    assert set(answer) == ACKNOWLEDGED | made
    shown = client.call("get_task", task_id=answer["task_id"])
    assert {name: shown[name] for name in ACKNOWLEDGED} == {name: answer[name] for name in ACKNOWLEDGED}


def test_a_task_is_shown_whole(client: StdioClient) -> None:
    """get_task shows every member of a task, in the order of the design, empty ones included."""
    task_id = new_task(client, title=" Title ", goal=" Goal ", repo_path="/repo/", agent="alice")
    shown = client.call("get_task", task_id=task_id)
    created_at = shown["created_at"]
    assert re.fullmatch(TIME, created_at)
    assert list(shown.items()) == [
        ("task_id", task_id),
        ("title", "Title"),
        ("goal", "Goal"),
        ("status", "open"),
        ("current_owner", None),
        ("repo_path", "/repo"),
        ("completed_steps", []),
        ("remaining_steps", []),
        ("resume_prompt", None),
        ("test_results", []),
        ("decisions", []),
        ("dead_ends", []),
        ("files", []),
        ("artifacts", []),
        ("handoffs", []),
        ("created_at", created_at),
        ("updated_at", created_at),
        ("version", 1),
    ]


def test_every_change_is_an_event_and_a_version(client: StdioClient, task: str) -> None:
    """Each change counts the version up by one and appends one event that tells what, who and when."""
    calls: list[tuple[str, JsonObject, str, str | None]] = [
        ("save_checkpoint", {"agent": "alice", "decisions": ["d"]}, "checkpoint", "alice"),
        ("attach_artifact", {"name": "n", "content": "c", "agent": "carol"}, "artifact", "carol"),
        ("handoff_task", {"from_agent": "alice", "to_agent": "bob", "reason": "r"}, "handoff", "alice"),
        ("mark_exhausted", {"agent": "bob", "reason": "r", "files": ["f"]}, "exhausted", "bob"),
        ("update_task", {"status": "done"}, "updated", None),
    ]
    expected: list[tuple[int, str, str | None]] = [(1, "created", None)]
    for version, (tool, arguments, what, agent) in enumerate(calls, start=2):
        answer = client.call(tool, task_id=task, **arguments)
        assert answer["version"] == version
        assert re.fullmatch(TIME, answer["updated_at"])
        expected.append((version, what, agent))
    logged = events(client, task)
    assert [(event["version"], event["what"], event["agent"]) for event in logged] == expected
    assert [event["at"] for event in logged] == sorted(event["at"] for event in logged)


@pytest.mark.parametrize(
    "tool",
    [name for name in NEEDED if name not in ("create_task", "list_tasks")],
)
def test_an_unknown_task_is_not_found(client: StdioClient, tool: str) -> None:
    """Every tool says which task there is not, and where to look."""
    error = refused(client, "not_found", tool, task_id="nowhere", **NEEDED[tool])
    assert "'nowhere'" in error["message"]
    assert "list_tasks" in error["hint"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"artifact": 1, "checkpoint": 1}, "artifact and checkpoint"),
        ({"artifact": 1, "view": "history"}, "artifact and history"),
        ({"checkpoint": 1, "view": "resume"}, "checkpoint and resume"),
        ({"artifact": 1, "checkpoint": 1, "view": "resume"}, "artifact and checkpoint and resume"),
        ({"offset": 0}, "offset was given without artifact"),
        ({"checkpoint": 1, "offset": 5}, "offset was given without artifact"),
        ({"view": "resume", "offset": 5}, "offset was given without artifact"),
        ({"max_chars": 5000}, "max_chars was given without view resume"),
        ({"view": "history", "max_chars": 5000}, "max_chars was given without view resume"),
        ({"artifact": 1, "max_chars": 5000}, "max_chars was given without view resume"),
        ({"cursor": "1"}, "cursor was given without view history"),
        ({"view": "resume", "cursor": "1"}, "cursor was given without view history"),
        ({"checkpoint": 1, "cursor": "1"}, "cursor was given without view history"),
    ],
    ids=str,
)
def test_views_of_a_task_exclude_each_other(
    client: StdioClient, task: str, arguments: JsonObject, told: str
) -> None:
    """A call asks for one view, and gives no argument that belongs to another; the refusal names both."""
    error = refused(client, "invalid_arguments", "get_task", task_id=task, **arguments)
    assert told in error["message"]


def test_a_view_may_be_spelled(client: StdioClient, task: str) -> None:
    """Views are keywords like others: case and blanks do not matter, and another one is refused."""
    assert client.call("get_task", task_id=task, view=" RESUME ")["task_id"] == task
    assert list(client.call("get_task", task_id=task, view="History")) == ["task_id", "events"]
    error = refused(client, "invalid_arguments", "get_task", task_id=task, view="full")
    assert 'view is "full"' in error["message"]
    assert "'resume' or 'history'" in error["message"]


def test_a_brief_has_its_limits(client: StdioClient) -> None:
    """A brief keeps to max_chars, from the least to the most that may be asked for, and to a default."""
    task_id = new_task(client, goal="g" * 200_000)
    for limit in (BRIEF_CHARACTERS_MIN, BRIEF_CHARACTERS_MAX, None):
        wanted = {} if limit is None else {"max_chars": limit}
        brief = client.call("get_task", task_id=task_id, view="resume", **wanted)
        text = json.dumps(brief, separators=(",", ":"), ensure_ascii=False)
        assert len(text) <= (limit or BRIEF_CHARACTERS)
    for limit in (BRIEF_CHARACTERS_MIN - 1, BRIEF_CHARACTERS_MAX + 1):
        call = {"task_id": task_id, "view": "resume", "max_chars": limit}
        error = refused(client, "invalid_arguments", "get_task", **call)
        assert f"max_chars is {limit}" in error["message"]


def test_history_comes_in_pages_newest_first(client: StdioClient, task: str) -> None:
    """Every event is in the history once, newest first, in pages of HISTORY_PAGE, with its checkpoint."""
    for number in range(HISTORY_PAGE):
        client.call("save_checkpoint", task_id=task, agent="alice", files=[str(number)])
    first = client.call("get_task", task_id=task, view="history")
    second = client.call("get_task", task_id=task, view="history", cursor=first["next_cursor"])
    assert len(first["events"]) == HISTORY_PAGE
    assert "next_cursor" not in second
    shown = [*first["events"], *second["events"]]
    assert [event.get("checkpoint") for event in shown] == [*range(HISTORY_PAGE, 0, -1), None]
    assert [event["what"] for event in shown] == [*["checkpoint"] * HISTORY_PAGE, "created"]
    assert all(re.fullmatch(TIME, event["at"]) for event in shown)
    assert {event["agent"] for event in shown[:-1]} == {"alice"}


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "²", "9" * 40, ""])
def test_a_cursor_of_history_is_one_that_a_page_ended_with(
    client: StdioClient, task: str, cursor: str
) -> None:
    """What no page ended with is refused with the way to the first page."""
    call = {"task_id": task, "view": "history", "cursor": cursor}
    assert "first page" in refused(client, "invalid_arguments", "get_task", **call)["hint"]


@pytest.mark.parametrize("view", ["artifact", "checkpoint"])
@pytest.mark.parametrize("number", [1, 2, 2**63 - 1])
def test_a_part_that_is_not_there_is_not_found(
    client: StdioClient, task: str, view: str, number: int
) -> None:
    """A task without artifacts and checkpoints has none under any number."""
    error = refused(client, "not_found", "get_task", task_id=task, **{view: number})
    assert f"{view} {number}" in error["message"]


# --- Checkpoints --------------------------------------------------------------------------------------


def test_a_checkpoint_takes_an_open_task_and_keeps_all_that_was_said(client: StdioClient, task: str) -> None:
    """The first checkpoint makes its agent the owner, and everything reported is in the task."""
    answer = client.call("save_checkpoint", task_id=task, agent=" alice ", **FULL_REPORT)
    assert (answer["status"], answer["current_owner"], answer["checkpoint"]) == ("in_progress", "alice", 1)
    assert progress_of(client.call("get_task", task_id=task)) == FULL_REPORT


def test_checkpoints_merge_in_order(client: StdioClient, task: str) -> None:
    """Findings grow without exact repeats, the present is replaced, what is left out stays, `[]` clears."""
    client.call("save_checkpoint", task_id=task, agent="a", **FULL_REPORT)
    client.call(
        "save_checkpoint",
        task_id=task,
        agent="a",
        completed_steps=["one", " TWO. ", "zero"],
        decisions=["second", "plain SQL, since it is portable", "Second", "second"],
        test_results=[{"summary": "all well", "status": "passed"}],
    )
    merged = FULL_REPORT | {
        "completed_steps": ["one", "TWO.", "zero"],
        "remaining_steps": ["three"],
        "decisions": ["plain SQL, since it is portable", "second", "Second"],
        "test_results": [{"command": "", "status": "passed", "summary": "all well"}],
    }
    assert progress_of(client.call("get_task", task_id=task)) == merged
    emptied: JsonObject = {"remaining_steps": [], "test_results": [], "decisions": [], "resume_prompt": ""}
    client.call("save_checkpoint", task_id=task, agent="a", **emptied)
    left = merged | {"remaining_steps": [], "test_results": [], "resume_prompt": ""}
    assert progress_of(client.call("get_task", task_id=task)) == left


def test_an_earlier_checkpoint_stays_as_it_was(client: StdioClient, task: str) -> None:
    """A checkpoint shows who, when and the state it carried, whatever was saved or erased since."""
    client.call("save_checkpoint", task_id=task, agent="alice", **FULL_REPORT)
    first = client.call("get_task", task_id=task, checkpoint=1)
    assert re.fullmatch(TIME, first["created_at"])
    assert list(first.items()) == [
        ("task_id", task),
        ("checkpoint", 1),
        ("agent", "alice"),
        ("created_at", first["created_at"]),
        *((name, FULL_REPORT[name]) for name in FULL_REPORT),
        ("dropped_steps", []),
    ]
    client.call("save_checkpoint", task_id=task, agent="alice", resume_prompt="Other", decisions=["more"])
    client.call("update_task", task_id=task, decisions=[], completed_steps=[])
    assert client.call("get_task", task_id=task, checkpoint=1) == first
    assert client.call("get_task", task_id=task, checkpoint=2)["resume_prompt"] == "Other"


@pytest.mark.parametrize("tool", ["handoff_task", "mark_exhausted"])
def test_one_call_is_enough_to_die_well(client: StdioClient, task: str, tool: str) -> None:
    """The last call writes checkpoint and transfer as one change: one version, one event, one checkpoint."""
    client.call("save_checkpoint", task_id=task, agent="alice", decisions=["earlier"])
    answer = client.call(tool, task_id=task, **NEEDED[tool], **FULL_REPORT)
    assert (answer["version"], answer["checkpoint"]) == (3, 2)
    assert len(events(client, task)) == 3
    merged = FULL_REPORT | {"decisions": ["earlier", *FULL_REPORT["decisions"]]}
    assert progress_of(client.call("get_task", task_id=task)) == merged
    saved = client.call("get_task", task_id=task, checkpoint=2)
    assert (saved["agent"], progress_of(saved)) == ("alice", merged)


def test_a_transfer_that_is_refused_saves_no_checkpoint(client: StdioClient, task: str) -> None:
    """Checkpoint and transfer are one: when one cannot be, neither is."""
    client.call("save_checkpoint", task_id=task, agent="alice")
    for tool, name in (("handoff_task", "from_agent"), ("mark_exhausted", "agent")):
        refused(client, "not_owner", tool, task_id=task, **{**NEEDED[tool], name: "eve"}, **FULL_REPORT)


# --- Step conservation --------------------------------------------------------------------------------


@each_checkpointing_tool
def test_a_step_that_vanished_is_told_and_nothing_is_blocked(
    client: StdioClient, task: str, tool: str
) -> None:
    """A checkpoint that loses a step is kept, and its acknowledgement names the step and what to do."""
    answer = client.call(tool, task_id=task, **NEEDED[tool], remaining_steps=["ONE.", "three"])
    (warning,) = answer["warnings"]
    assert '1 step vanished from remaining_steps: "two"' in warning
    assert "dropped_steps" in warning
    assert answer["checkpoint"] == 1
    assert client.call("get_task", task_id=task)["remaining_steps"] == ["ONE.", "three"]


@each_checkpointing_tool
def test_a_dropped_step_is_no_warning_and_is_kept(client: StdioClient, task: str, tool: str) -> None:
    """A step that is named as dropped leaves remaining, and the checkpoint tells which it was."""
    answer = client.call(tool, task_id=task, **NEEDED[tool], dropped_steps=" TWO! ")
    assert "warnings" not in answer
    assert client.call("get_task", task_id=task)["remaining_steps"] == ["one"]
    saved = client.call("get_task", task_id=task, checkpoint=answer["checkpoint"])
    assert (saved["remaining_steps"], saved["dropped_steps"]) == (["one"], ["TWO!"])
    assert "dropped_steps" not in client.call("get_task", task_id=task)


def test_a_completed_step_that_came_back_is_told(client: StdioClient, task: str) -> None:
    """What is planned again is no longer completed, and the acknowledgement says so."""
    client.call("save_checkpoint", task_id=task, agent="alice", completed_steps=["one", "two"])
    answer = client.call("save_checkpoint", task_id=task, agent="alice", remaining_steps=["Two."])
    assert answer["warnings"] == ['1 step had been completed and remain again: "two".']
    shown = client.call("get_task", task_id=task)
    assert (shown["completed_steps"], shown["remaining_steps"]) == (["one"], ["Two."])


def test_the_receiver_is_warned_of_what_the_sender_left(
    client: StdioClient, other: StdioClient, task: str
) -> None:
    """The receiver's first checkpoint is measured by what the sender said remained."""
    client.call("handoff_task", task_id=task, from_agent="alice", to_agent="bob", reason="quota")
    answer = other.call("save_checkpoint", task_id=task, agent="bob", remaining_steps=["my own plan"])
    (warning,) = answer["warnings"]
    assert '2 steps vanished from remaining_steps: "one"; "two"' in warning
    again = other.call("save_checkpoint", task_id=task, agent="bob", remaining_steps=["my own plan"])
    assert again["warnings"] == answer["warnings"]
    assert again["version"] == answer["version"]
    later = other.call("save_checkpoint", task_id=task, agent="bob", files=["f"])
    assert "warnings" not in later


def test_an_eraser_is_not_warned(client: StdioClient, task: str) -> None:
    """update_task is for putting things right: it replaces the steps, warns of none and drops none."""
    answer = client.call("update_task", task_id=task, remaining_steps=[])
    assert set(answer) == ACKNOWLEDGED
    refused(client, "invalid_arguments", "update_task", task_id=task, dropped_steps=["one"])


# --- Priority, tags and dependencies ------------------------------------------------------------------

LATER = ("priority", "tags", "depends_on")


def later(task: JsonObject) -> JsonObject:
    """Return the later members of a task that are shown."""
    return {name: task[name] for name in LATER if name in task}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, {}),
        ({"priority": 2}, {}),
        ({"tags": [], "depends_on": []}, {}),
        ({"priority": None, "tags": None, "depends_on": None}, {}),
        ({"priority": 0}, {"priority": 0}),
        ({"priority": "4"}, {"priority": 4}),
        ({"tags": [" Web UI ", "web ui", "ÜBER", ""]}, None),
        ({"tags": [" Web UI ", "web ui", "ÜBER"]}, {"tags": ["web ui", "über"]}),
        ({"tags": "one"}, {"tags": ["one"]}),
        ({"tags": '["b", "a"]'}, {"tags": ["b", "a"]}),
    ],
    ids=str,
)
def test_later_members_are_shown_when_they_hold_something(
    client: StdioClient, given: JsonObject, shown: JsonObject | None
) -> None:
    """Priority, tags and dependencies are there only if they say something, in tasks and in rows."""
    if shown is None:
        needs = {"title": "T", "goal": "g"}
        assert (
            "tags[3] is" in refused(client, "invalid_arguments", "create_task", **needs, **given)["message"]
        )
        return
    task_id = new_task(client, **given)
    assert later(client.call("get_task", task_id=task_id)) == shown
    (row,) = client.call("list_tasks", query=f'"{task_id}"')["tasks"]
    assert row.get("priority", 2) == shown.get("priority", 2)
    assert ("priority" in row) == ("priority" in shown)
    changed = new_task(client)
    client.call("update_task", task_id=changed, **given)
    assert later(client.call("get_task", task_id=changed)) == shown


def test_later_members_are_cleared(client: StdioClient, task: str) -> None:
    """update_task takes priority, tags and dependencies away again, and logs what they were."""
    values = {"priority": 1, "tags": ["a"], "depends_on": [task]}
    task_id = new_task(client, **values)
    shown = client.call("get_task", task_id=task_id)
    assert later(shown) == values
    assert list(shown)[-6:] == [*LATER, "created_at", "updated_at", "version"]
    client.call("update_task", task_id=task_id, priority=2, tags=[], depends_on=[])
    assert later(client.call("get_task", task_id=task_id)) == {}
    assert json.loads(events(client, task_id)[-1]["detail"])["before"] == values


def test_other_content_includes_the_later_members(client: StdioClient, task: str) -> None:
    """Under a taken id another priority, tag or dependency is other content."""
    task_id = new_task(client, title="Same", tags=["a"])
    same = {"task_id": task_id, "title": "Same", "goal": "Goal", "tags": ["A"], "priority": 2}
    assert client.call("create_task", **same)["version"] == 1
    members: JsonObject
    for members in ({"tags": ["b"]}, {"priority": 1}, {"depends_on": [task]}, {"tags": []}):
        refused(client, "conflict", "create_task", **(same | members))


@pytest.mark.parametrize("tool", ["create_task", "update_task"])
@pytest.mark.parametrize(
    ("argument", "given", "code", "told"),
    [
        ("priority", -1, "invalid_arguments", "priority is -1"),
        ("priority", 5, "invalid_arguments", "priority is 5"),
        ("priority", "high", "invalid_arguments", 'priority is "high"'),
        ("priority", 1.5, "invalid_arguments", "priority is 1.5"),
        ("tags", ["a", " "], "invalid_arguments", 'tags[1] is " "'),
        ("tags", ["a\nb"], "invalid_arguments", "control characters"),
        ("tags", [["a"]], "invalid_arguments", 'tags[0] is ["a"]'),
        ("tags", ["x" * (TAG_CHARACTERS + 1)], "too_large", str(TAG_CHARACTERS)),
        ("tags", [str(number) for number in range(TAGS + 1)], "too_large", f"{TAGS + 1} entries"),
        ("depends_on", ["a b"], "invalid_arguments", "depends_on[0]"),
        ("depends_on", ["nowhere"], "invalid_arguments", "nowhere"),
        (
            "depends_on",
            [f"t{n}" for n in range(DEPENDENCIES + 1)],
            "too_large",
            f"{DEPENDENCIES + 1} entries",
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_wrong_later_members_are_refused(
    client: StdioClient, task: str, tool: str, argument: str, given: Any, code: str, told: str
) -> None:
    """A refusal names the argument and its value, or the limit, and nothing is made or changed."""
    error = refused(client, code, tool, **{**arguments_of(tool, task), argument: given})
    assert told in error["message"]


@pytest.mark.parametrize("tool", ["create_task", "update_task"])
def test_later_members_have_their_limits(client: StdioClient, task: str, tool: str) -> None:
    """TAGS tags of TAG_CHARACTERS and DEPENDENCIES dependencies are taken; repeats do not count."""
    tags = [f"{number:02}".ljust(TAG_CHARACTERS, "x") for number in range(TAGS)]
    needed = [new_task(client) for _ in range(DEPENDENCIES)]
    arguments = arguments_of(tool, task)
    members: JsonObject = {"tags": [*tags, tags[0].upper()], "depends_on": [*needed, needed[0]]}
    client.call(tool, **arguments, **members)
    shown = client.call("get_task", task_id=arguments["task_id"])
    assert (shown["tags"], shown["depends_on"]) == (tags, needed)


def test_dependencies_go_in_no_circle(client: StdioClient) -> None:
    """A task depends neither on itself nor on one that needs it, however far away; nothing changes then."""
    first = new_task(client)
    second = new_task(client, depends_on=[first])
    third = new_task(client, depends_on=[second])
    for needed in (first, second, third):
        error = refused(client, "invalid_arguments", "update_task", task_id=first, depends_on=[needed])
        assert first in error["message"]
    new = {"task_id": "self", "title": "T", "goal": "g", "depends_on": ["self"]}
    assert "itself" in refused(client, "invalid_arguments", "create_task", **new)["message"]
    client.call("update_task", task_id=third, depends_on=[])
    client.call("update_task", task_id=first, depends_on=[third])


def test_a_long_list_of_unknown_dependencies_is_cut(client: StdioClient, task: str) -> None:
    """Five unknown tasks are named, the others are counted."""
    unknown = [f"nowhere-{number}" for number in range(DEPENDENCIES)]
    error = refused(
        client, "invalid_arguments", "update_task", task_id=task, depends_on=[*unknown, task][:-1]
    )
    assert "nowhere-4 and 95 more" in error["message"]
    assert "nowhere-5" not in error["message"]


# --- Ownership and statuses ---------------------------------------------------------------------------


def test_a_task_goes_from_agent_to_agent(client: StdioClient, other: StdioClient, task: str) -> None:
    """Two agents on two processes pass a task on, from its start to done."""
    client.call("save_checkpoint", task_id=task, agent="alice")
    answer = client.call("handoff_task", task_id=task, from_agent="ALICE", to_agent="bob", reason="quota")
    assert (answer["status"], answer["current_owner"]) == ("handoff_ready", "bob")
    waiting = other.call("list_tasks", status="handoff_ready", current_owner="Bob")
    assert task in [row["task_id"] for row in waiting["tasks"]]
    answer = other.call("save_checkpoint", task_id=task, agent="Bob", completed_steps=["one", "two"])
    assert (answer["status"], answer["current_owner"]) == ("in_progress", "Bob")
    answer = other.call("update_task", task_id=task, status="done")
    assert answer["status"] == "done"
    shown = client.call("get_task", task_id=task)
    assert (shown["completed_steps"], shown["remaining_steps"]) == (["one", "two"], [])
    (transfer,) = shown["handoffs"]
    assert re.fullmatch(TIME, transfer.pop("created_at"))
    assert transfer == {"from_agent": "ALICE", "to_agent": "bob", "reason": "quota"}


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("save_checkpoint", {"agent": "eve", "decisions": ["d"]}),
        ("handoff_task", {"from_agent": "eve", "to_agent": "eve", "reason": "mine"}),
        ("mark_exhausted", {"agent": "eve", "reason": "mine"}),
    ],
)
def test_another_agents_task_is_not_written(
    client: StdioClient, task: str, tool: str, arguments: JsonObject
) -> None:
    """Only the owner checkpoints, hands off and gives up, also while a handoff waits; anyone may attach."""
    client.call("save_checkpoint", task_id=task, agent="alice")
    error = refused(client, "not_owner", tool, task_id=task, **arguments)
    assert "'alice'" in error["message"]
    assert "handoff_task" in error["hint"]
    client.call("handoff_task", task_id=task, from_agent="alice", to_agent="bob", reason="r")
    error = refused(client, "not_owner", tool, task_id=task, **arguments)
    assert "'bob'" in error["message"]
    client.call("attach_artifact", task_id=task, name="n", content="c", agent="eve")


def test_a_handoff_is_redirected_by_its_sender_only(client: StdioClient, task: str) -> None:
    """Until the addressee picks it up, the sender may name another one; after that it may not."""
    client.call("handoff_task", task_id=task, from_agent="alice", to_agent="bob", reason="r")
    redirected = client.call("handoff_task", task_id=task, from_agent="Alice", to_agent="carol", reason="r")
    assert redirected["current_owner"] == "carol"
    refused(client, "not_owner", "save_checkpoint", task_id=task, agent="bob")
    refused(client, "not_owner", "save_checkpoint", task_id=task, agent="alice")
    client.call("save_checkpoint", task_id=task, agent="carol")
    refused(client, "not_owner", "handoff_task", task_id=task, from_agent="alice", to_agent="b", reason="r")
    handoffs = client.call("get_task", task_id=task)["handoffs"]
    assert [handoff["to_agent"] for handoff in handoffs] == ["carol", "bob"]


@pytest.mark.parametrize("anyone", ["any", "ANY", " Any "])
def test_a_handoff_to_any_is_for_whoever_comes_first(client: StdioClient, task: str, anyone: str) -> None:
    """`any` addresses everybody, and the first to come is the owner."""
    answer = client.call("handoff_task", task_id=task, from_agent="a", to_agent=anyone, reason="r")
    assert answer["current_owner"] == "any"
    assert client.call("save_checkpoint", task_id=task, agent="first")["current_owner"] == "first"
    refused(client, "not_owner", "save_checkpoint", task_id=task, agent="second")


@pytest.mark.parametrize("agent", ["alice", "bob"])
def test_an_exhausted_agents_task_is_free(client: StdioClient, task: str, agent: str) -> None:
    """After mark_exhausted nobody owns the task, and whoever comes takes it."""
    client.call("save_checkpoint", task_id=task, agent="alice")
    answer = client.call("mark_exhausted", task_id=task, agent="alice", reason="quota")
    assert (answer["status"], answer["current_owner"]) == ("agent_exhausted", None)
    taken = client.call("save_checkpoint", task_id=task, agent=agent)
    assert (taken["status"], taken["current_owner"]) == ("in_progress", agent)


@pytest.mark.parametrize("tool", ["save_checkpoint", "handoff_task", "mark_exhausted"])
def test_a_done_task_is_only_reopened(client: StdioClient, task: str, tool: str) -> None:
    """A done task refuses work until update_task reopens it; then it goes on."""
    client.call("save_checkpoint", task_id=task, agent="alice")
    client.call("update_task", task_id=task, status="done")
    error = refused(client, "invalid_state", tool, task_id=task, **NEEDED[tool])
    assert "update_task" in error["hint"]
    for status in ("handoff_ready", "agent_exhausted"):
        refused(client, "invalid_state", "update_task", task_id=task, status=status)
    reopened = client.call("update_task", task_id=task, status="in_progress")
    assert (reopened["status"], reopened["current_owner"]) == ("in_progress", "alice")
    client.call(tool, task_id=task, **NEEDED[tool])


@pytest.mark.parametrize("name", ["any", " ANY"])
@pytest.mark.parametrize(
    ("tool", "argument"),
    [
        ("create_task", "agent"),
        ("claim_task", "agent"),
        ("save_checkpoint", "agent"),
        ("handoff_task", "from_agent"),
        ("mark_exhausted", "agent"),
        ("attach_artifact", "agent"),
    ],
)
def test_nobody_is_called_any(client: StdioClient, task: str, tool: str, argument: str, name: str) -> None:
    """The word for everybody is no agent's name."""
    refused(client, "invalid_arguments", tool, **{**arguments_of(tool, task), argument: name})


# --- create_task --------------------------------------------------------------------------------------


def test_equal_content_returns_the_task_that_is_there(client: StdioClient) -> None:
    """Creating a task again with its own content, even after work on it, returns it as it stands."""
    content = {"title": "Same", "goal": "Same goal", "repo_path": "/r", "remaining_steps": ["a"]}
    task_id = new_task(client, **content)
    client.call("save_checkpoint", task_id=task_id, agent="alice", completed_steps=["a"])
    before = recorded(client, task_id)
    spelled = content | {"title": " Same ", "repo_path": "/r/", "remaining_steps": '["a", "a", ""]'}
    again = client.call("create_task", task_id=task_id, agent="bob", **spelled)
    assert (again["version"], again["current_owner"], again["status"]) == (2, "alice", "in_progress")
    assert recorded(client, task_id) == before


@pytest.mark.parametrize(
    "members",
    [
        {"title": "Other"},
        {"goal": "Other"},
        {"repo_path": "/other"},
        {"repo_path": None},
        {"remaining_steps": ["b"]},
        {"remaining_steps": ["a", "b"]},
        {"remaining_steps": []},
        {"title": "same"},
    ],
)
def test_different_content_under_a_taken_id_is_a_conflict(client: StdioClient, members: JsonObject) -> None:
    """An id belongs to the task that has it: other content is refused, and that task stays as it is."""
    content = {"title": "Same", "goal": "Same goal", "repo_path": "/r", "remaining_steps": ["a"]}
    task_id = new_task(client, **content)
    error = refused(client, "conflict", "create_task", task_id=task_id, **(content | members))
    assert f"'{task_id}'" in error["message"]
    assert "another task_id" in error["hint"]


def test_the_server_chooses_an_id(client: StdioClient) -> None:
    """Without an id the server makes one; the same call finds it again, other content gets another."""
    first = client.call("create_task", title="Unnamed", goal="Goal")["task_id"]
    assert re.fullmatch("[a-z0-9]{4,12}", first)
    assert client.call("create_task", title="Unnamed", goal="Goal")["task_id"] == first
    assert client.call("create_task", title="Unnamed", goal="Other goal")["task_id"] != first


def test_a_task_that_was_worked_on_is_not_returned_for_a_new_one(client: StdioClient) -> None:
    """Equal content without an id means a new task once somebody works on the earlier one."""
    ids = []
    for _ in range(3):
        ids.append(client.call("create_task", title="Weekly report", goal="Goal")["task_id"])
        client.call("save_checkpoint", task_id=ids[-1], agent="alice")
    assert len(set(ids)) == 3


@pytest.mark.parametrize("task_id", ["a", "0", "A-b_c.D", "t..", "y" * ID_CHARACTERS, " padded "])
def test_ids_may_be(client: StdioClient, task_id: str) -> None:
    """Letters, digits, dot, underscore and hyphen make an id; surrounding blanks are cut off."""
    answer = client.call("create_task", task_id=task_id, title="T", goal="g")
    assert answer["task_id"] == task_id.strip()


@pytest.mark.parametrize(
    "task_id", ["", " ", ".a", "-a", "_a", "a b", "a/b", "../a", "a:b", "ä", "a\nb", "a\0", "٣", "a%20b"]
)
def test_ids_may_not_be(client: StdioClient, task_id: str) -> None:
    """Anything else is refused, so that an id is safe in a URI and in a path."""
    refused(client, "invalid_arguments", "create_task", task_id=task_id, title="T", goal="g")


# --- Repeats ------------------------------------------------------------------------------------------

REPEATED: list[tuple[str, JsonObject]] = [
    ("create_task", {"remaining_steps": ["a"], "agent": "alice"}),
    ("save_checkpoint", {}),
    ("save_checkpoint", FULL_REPORT),
    ("handoff_task", {}),
    ("handoff_task", {"to_agent": "any", **FULL_REPORT}),
    ("mark_exhausted", {}),
    ("mark_exhausted", FULL_REPORT),
    ("create_task", {"priority": 0, "tags": ["A", "b"]}),
    ("save_checkpoint", {"remaining_steps": ["two", "new"], "dropped_steps": ["three"]}),
    ("save_checkpoint", {"remaining_steps": []}),
    ("handoff_task", {"remaining_steps": [], "dropped_steps": ["one"]}),
    ("mark_exhausted", {"dropped_steps": []}),
    ("update_task", {"priority": 4, "tags": "a", "depends_on": []}),
    ("attach_artifact", {"content": "à la carte", "type": "log", "agent": "alice"}),
    ("attach_artifact", {"content": "AP8=", "encoding": "base64"}),
    ("update_task", {"title": "Other", "status": "done", "decisions": ["d"]}),
    ("update_task", {"goal": "Other", "expected_version": 1}),
    ("update_task", {"current_owner": "", "status": "in progress"}),
]


@pytest.mark.parametrize(("tool", "members"), REPEATED, ids=lambda value: str(value)[:40])
def test_every_write_is_safe_to_repeat(
    client: StdioClient, other: StdioClient, task: str, tool: str, members: JsonObject
) -> None:
    """The same call again, also through another process, answers the same and writes nothing."""
    arguments = {**arguments_of(tool, task), **members}
    first = client.call(tool, **arguments)
    after = recorded(client, first["task_id"])
    assert other.call(tool, **arguments) == first
    assert client.call(tool, **arguments) == first  # and the owner's session is this one again
    assert recorded(client, first["task_id"]) == after


@pytest.mark.parametrize(
    ("tool", "members"),
    [
        ("create_task", {"agent": "{me}"}),
        ("save_checkpoint", {"agent": "{me}"}),
        ("handoff_task", {"from_agent": "{me}"}),
        ("mark_exhausted", {"agent": "{me}"}),
        ("attach_artifact", {"agent": "{me}"}),
    ],
)
def test_a_notice_is_repeated_with_its_call(
    client: StdioClient, other: StdioClient, task: str, tool: str, members: JsonObject
) -> None:
    """The same call again, because its answer was lost, brings the notice again; the next call does not."""
    me = f"notified-{task}"
    waiting = new_task(client)
    client.call("handoff_task", task_id=waiting, from_agent="alice", to_agent=me, reason="r")
    arguments = arguments_of(tool, task) | {name: text.format(me=me) for name, text in members.items()}
    first = client.call(tool, **arguments)
    assert waiting in first["notice"]
    assert client.call(tool, **arguments) == first
    assert other.call(tool, **arguments) == first
    later = client.call("attach_artifact", task_id=task, name="later", content="c", agent=me)
    assert "notice" not in later


def test_a_repeat_may_be_spelled_otherwise(client: StdioClient, task: str) -> None:
    """What was said makes the call, not how: nulls, JSON text and blanks do not make it another one."""
    first = client.call("save_checkpoint", task_id=task, agent="alice", decisions=["d"], test_results="ok")
    again = client.call(
        "save_checkpoint",
        task_id=f" {task} ",
        agent=" alice",
        decisions='["d", ""]',
        test_results=[{"summary": " ok ", "command": None, "status": "UNKNOWN"}],
        files=None,
    )
    assert again == first


def test_the_same_words_on_a_changed_task_are_a_new_call(client: StdioClient, task: str) -> None:
    """Once the task has changed, a call that was made before is made anew."""
    arguments = {"task_id": task, "agent": "alice", "resume_prompt": "p"}
    assert client.call("save_checkpoint", **arguments)["checkpoint"] == 1
    client.call("update_task", task_id=task, resume_prompt="q")
    again = client.call("save_checkpoint", **arguments)
    assert (again["checkpoint"], again["version"]) == (2, 4)
    assert client.call("get_task", task_id=task)["resume_prompt"] == "p"


def test_another_call_on_an_unchanged_task_is_another_checkpoint(client: StdioClient, task: str) -> None:
    """Only the same call is a repeat: another agent's or another report's is not."""
    client.call("handoff_task", task_id=task, from_agent="x", to_agent="any", reason="r")
    calls: list[JsonObject] = [{"agent": "Alice"}, {"agent": "alice"}, {"agent": "alice", "files": []}]
    numbers = [client.call("save_checkpoint", task_id=task, **call)["checkpoint"] for call in calls]
    assert numbers == [1, 2, 3]


def test_an_update_to_what_is_there_changes_nothing(client: StdioClient, task: str) -> None:
    """Setting fields to the values they have is answered without a new version or event."""
    shown = client.call("get_task", task_id=task)
    before = recorded(client, task)
    same = {"title": shown["title"], "status": "open", "remaining_steps": ["one", "two"]}
    assert client.call("update_task", task_id=task, **same)["version"] == 1
    assert recorded(client, task) == before


# --- update_task --------------------------------------------------------------------------------------


def test_update_is_the_eraser(client: StdioClient, task: str) -> None:
    """update_task replaces what it is given, leaves the rest, and the event log keeps what it took away."""
    client.call("save_checkpoint", task_id=task, agent="alice", **FULL_REPORT)
    changes: JsonObject = {"decisions": ["only this"], "completed_steps": [], "test_results": []}
    client.call("update_task", task_id=task, **changes)
    assert progress_of(client.call("get_task", task_id=task)) == FULL_REPORT | changes
    erased = json.loads(events(client, task)[-1]["detail"])["before"]
    assert erased == {name: FULL_REPORT[name] for name in changes}


def test_update_sets_and_clears_owner_and_repository(client: StdioClient, task: str) -> None:
    """An empty string means nobody, and nowhere."""
    client.call("update_task", task_id=task, current_owner=" Carol ", repo_path="/repo/")
    shown = client.call("get_task", task_id=task)
    assert (shown["current_owner"], shown["repo_path"]) == ("Carol", "/repo")
    client.call("update_task", task_id=task, current_owner="", repo_path="")
    shown = client.call("get_task", task_id=task)
    assert (shown["current_owner"], shown["repo_path"]) == (None, None)


def test_a_supervisor_frees_a_task(client: StdioClient, task: str) -> None:
    """Setting a status that means nobody's lets the next agent take the task."""
    client.call("save_checkpoint", task_id=task, agent="alice")
    assert client.call("update_task", task_id=task, status="open")["current_owner"] is None
    assert client.call("save_checkpoint", task_id=task, agent="bob")["current_owner"] == "bob"


def test_an_expected_version_guards_an_update(client: StdioClient, task: str) -> None:
    """Only the version that the caller has read is updated; the refusal tells the one that there is."""
    client.call("update_task", task_id=task, title="Second", expected_version=1)
    error = refused(client, "conflict", "update_task", task_id=task, title="Third", expected_version=1)
    assert "version 2" in error["message"]
    assert "get_task" in error["hint"]
    assert client.call("update_task", task_id=task, title="Third", expected_version=2)["version"] == 3


@pytest.mark.parametrize("argument", ["title", "goal"])
def test_what_a_task_needs_cannot_be_emptied(client: StdioClient, task: str, argument: str) -> None:
    """A task keeps a title and a goal."""
    refused(client, "invalid_arguments", "update_task", task_id=task, **{argument: "  "})


# --- Lenient in ---------------------------------------------------------------------------------------


@each_tool
def test_null_means_left_out(client: StdioClient, task: str, tool: str) -> None:
    """Every optional argument may be null."""
    arguments = arguments_of(tool, task)
    nulls = {name: None for name in SCHEMAS[tool]["properties"] if name not in arguments}
    assert nulls or tool == "list_tasks"
    client.call(tool, **arguments, **nulls)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["a", "b"], ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        (' \n["a",\n"b"] ', ["a", "b"]),
        ("[]", []),
        ("", []),
        ("  ", []),
        ("one bare string", ["one bare string"]),
        ("[x] looks like a list", ["[x] looks like a list"]),
        ('["a", "b"', ['["a", "b"']),
        ('{"a": 1}', ['{"a": 1}']),
        (["", " a ", "  "], ["a"]),
        ([1, 2.5], ["1", "2.5"]),
        (7, ["7"]),
    ],
)
@each_text_list
def test_lists_may_arrive_otherwise(
    client: StdioClient, task: str, name: str, given: Any, kept: list[str]
) -> None:
    """A list, its JSON text, and its only entry are taken for a list; blank entries are dropped."""
    client.call("save_checkpoint", task_id=task, agent="alice", **{"remaining_steps": [], name: given})
    assert client.call("get_task", task_id=task)[name] == kept


RUN = {"command": "pytest", "status": "passed", "summary": "12 passed"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([RUN], [RUN]),
        (RUN, [RUN]),
        (json.dumps([RUN]), [RUN]),
        ("12 passed", [{"command": "", "status": "unknown", "summary": "12 passed"}]),
        (["ok", RUN], [{"command": "", "status": "unknown", "summary": "ok"}, RUN]),
        ('["ok"]', [{"command": "", "status": "unknown", "summary": "ok"}]),
        ([RUN | {"status": " PASSED "}], [RUN]),
        ([RUN | {"status": None}], [RUN | {"status": "unknown"}]),
        ([RUN | {"summary": None, "command": None}], [RUN | {"summary": "", "command": ""}]),
        ([{"status": "Error"}], [{"command": "", "status": "error", "summary": ""}]),
        ([RUN | {"summary": 12}], [RUN | {"summary": "12"}]),
        ([], []),
    ],
)
def test_test_results_may_arrive_otherwise(
    client: StdioClient, task: str, given: Any, kept: list[JsonObject]
) -> None:
    """A run, a list of them, JSON text, and a bare summary are taken; absent members get their defaults."""
    client.call("save_checkpoint", task_id=task, agent="alice", test_results=given)
    assert client.call("get_task", task_id=task)["test_results"] == kept


@pytest.mark.parametrize("text", ["[" * 100_000, '[{"a":' * 10_000])
@pytest.mark.parametrize("name", ["completed_steps", "dropped_steps", "test_results"])
def test_a_deep_text_for_a_list_is_one_entry(client: StdioClient, task: str, name: str, text: str) -> None:
    """A text that only looks like JSON is one entry, however deep its brackets go."""
    number = client.call("save_checkpoint", task_id=task, agent="alice", **{name: text})["checkpoint"]
    (entry,) = client.call("get_task", task_id=task, checkpoint=number)[name]
    assert entry == (
        text if name != "test_results" else {"command": "", "status": "unknown", "summary": text}
    )


@pytest.mark.parametrize(
    "spelling", ["handoff_ready", "HANDOFF_READY", "Handoff Ready", "handoff-ready", " handoff  ready "]
)
def test_a_status_may_be_spelled(client: StdioClient, task: str, spelling: str) -> None:
    """Case, blanks and hyphens do not matter in a status."""
    assert client.call("update_task", task_id=task, status=spelling)["status"] == "handoff_ready"
    rows = client.call("list_tasks", status=spelling, query=f"About {task}")["tasks"]
    assert [row["task_id"] for row in rows] == [task]


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"type": "DIFF"}, {"type": "diff", "encoding": "utf-8"}),
        ({"type": " Log "}, {"type": "log", "encoding": "utf-8"}),
        ({"encoding": "UTF8"}, {"encoding": "utf-8", "size": 4}),
        ({"encoding": "UTF-8"}, {"encoding": "utf-8", "size": 4}),
        ({"encoding": " utf_8 "}, {"encoding": "utf-8", "size": 4}),
        ({"encoding": "Base64"}, {"encoding": "base64", "size": 3}),
        ({"name": " a.log "}, {"name": "a.log"}),
        ({"content": 1234}, {"size": 4}),
    ],
)
def test_artifact_keywords_may_be_spelled(
    client: StdioClient, task: str, arguments: JsonObject, kept: JsonObject
) -> None:
    """Types and encodings are taken in the spellings that clients use."""
    content = {"name": "n", "content": "////"}
    artifact = client.call("attach_artifact", task_id=task, **{**content, **arguments})["artifact"]
    assert {name: artifact[name] for name in kept} == kept


def test_numbers_may_arrive_as_text_and_text_as_numbers(client: StdioClient, task: str) -> None:
    """Digits are a number where one is due, and a number is its digits where text is due."""
    client.call("update_task", task_id=task, expected_version="1", title=2024)
    assert client.call("get_task", task_id=task)["title"] == "2024"
    assert len(client.call("list_tasks", limit="1")["tasks"]) == 1
    client.call("attach_artifact", task_id=task, name="n", content="abc")
    assert client.call("get_task", task_id=task, artifact="1", offset="1")["text"] == "bc"


# --- Refused arguments --------------------------------------------------------------------------------


@each_tool
def test_an_unknown_argument_is_refused_with_the_known_ones(
    client: StdioClient, task: str, tool: str
) -> None:
    """A typo loses no data: it is named, and so is every argument that there is."""
    arguments = arguments_of(tool, task)
    error = refused(client, "invalid_arguments", tool, **arguments, remaining_step=["lost"])
    assert f"{tool} has no argument remaining_step" in error["message"]
    assert all(re.search(rf"\b{name}\b", error["hint"]) for name in SCHEMAS[tool]["properties"])


@pytest.mark.parametrize(
    ("tool", "argument"),
    [(tool, name) for tool, schema in SCHEMAS.items() for name in schema.get("required", ())],
)
@pytest.mark.parametrize("given", [{}, None], ids=["absent", "null"])
def test_a_missing_argument_is_named(
    client: StdioClient, task: str, tool: str, argument: str, given: Any
) -> None:
    """What a tool needs it asks for by name, and says what else it takes."""
    arguments = {**arguments_of(tool, task), argument: None}
    if given is not None:
        del arguments[argument]
    error = refused(client, "invalid_arguments", tool, **arguments)
    assert error["message"] == f"{argument} is missing."
    assert re.search(rf"needs .*\b{argument}\b", error["hint"])


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("save_checkpoint", {"agent": ""}, 'agent is ""'),
        ("save_checkpoint", {"agent": "a\nb"}, "control characters"),
        ("save_checkpoint", {"agent": "a\0b"}, "control characters"),
        ("save_checkpoint", {"agent": ["alice"]}, 'agent is ["alice"]'),
        ("save_checkpoint", {"agent": True}, "agent is true"),
        ("save_checkpoint", {"completed_steps": {"a": 1}}, 'completed_steps[0] is {"a": 1}'),
        ("save_checkpoint", {"completed_steps": ["a", None]}, "completed_steps[1] is null"),
        ("save_checkpoint", {"completed_steps": ["a", ["b"]]}, 'completed_steps[1] is ["b"]'),
        ("save_checkpoint", {"completed_steps": '["\\ud800"]'}, "completed_steps[0]"),
        ("save_checkpoint", {"resume_prompt": {}}, "resume_prompt is {}"),
        ("save_checkpoint", {"test_results": [{"status": "green"}]}, 'test_results[0].status is "green"'),
        ("save_checkpoint", {"test_results": [5]}, "test_results[0] is 5"),
        ("save_checkpoint", {"test_results": [{"note": "x"}]}, "test_results[0].note"),
        ("handoff_task", {"reason": " "}, 'reason is " "'),
        ("handoff_task", {"to_agent": ""}, 'to_agent is ""'),
        ("mark_exhausted", {"reason": ""}, 'reason is ""'),
        ("update_task", {"status": "finished"}, 'status is "finished"'),
        ("update_task", {"status": 5}, "status is 5"),
        ("update_task", {"expected_version": 0}, "expected_version is 0"),
        ("update_task", {"expected_version": "new"}, 'expected_version is "new"'),
        ("update_task", {"repo_path": "a\0b"}, "NUL"),
        ("list_tasks", {"limit": 0}, "limit is 0"),
        ("list_tasks", {"limit": 1.5}, "limit is 1.5"),
        ("list_tasks", {"status": "any"}, 'status is "any"'),
        ("list_tasks", {"current_owner": ""}, 'current_owner is ""'),
        ("list_tasks", {"query": ["a"]}, 'query is ["a"]'),
        ("list_tasks", {"ready": "perhaps"}, 'ready is "perhaps"'),
        ("list_tasks", {"owner_state": "dead"}, 'owner_state is "dead"'),
        ("list_tasks", {"tag": ""}, 'tag is ""'),
        ("claim_task", {"agent": " "}, 'agent is " "'),
        ("claim_task", {"tag": ["a"]}, 'tag is ["a"]'),
        ("save_checkpoint", {"dropped_steps": [None]}, "dropped_steps[0] is null"),
        ("attach_artifact", {"type": "image"}, 'type is "image"'),
        ("attach_artifact", {"encoding": "latin-1"}, 'encoding is "latin-1"'),
        ("attach_artifact", {"name": "a\nb"}, "control characters"),
        ("attach_artifact", {"name": " "}, 'name is " "'),
        ("get_task", {"artifact": 0}, "artifact is 0"),
        ("get_task", {"artifact": 2**63 - 1, "offset": -1}, "offset is -1"),
        ("get_task", {"checkpoint": "first"}, 'checkpoint is "first"'),
        ("create_task", {"title": " "}, 'title is " "'),
        ("create_task", {"goal": ""}, 'goal is ""'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_argument_is_told_with_its_value(
    client: StdioClient, task: str, tool: str, arguments: JsonObject, told: str
) -> None:
    """A refusal names the argument, down to the entry, and shows what was given."""
    error = refused(client, "invalid_arguments", tool, **{**arguments_of(tool, task), **arguments})
    assert told in error["message"]


def test_an_unknown_member_of_a_run_is_refused_with_the_known_ones(client: StdioClient, task: str) -> None:
    """A typo inside a test run is answered with the members that a run has."""
    call: JsonObject = {"task_id": task, "agent": "a", "test_results": [{"comand": "pytest"}]}
    error = refused(client, "invalid_arguments", "save_checkpoint", **call)
    assert "test_results[0].comand is unknown" in error["message"]
    assert all(name in error["message"] for name in ("command", "status", "summary"))


def test_a_refusal_is_short_whatever_was_given(client: StdioClient, task: str) -> None:
    """No refusal repeats the long name of an argument at length."""
    call: JsonObject = {"task_id": task, "agent": "a", "k" * 100_000: 1}
    assert len(json.dumps(refused(client, "invalid_arguments", "save_checkpoint", **call))) < 1_000


def test_a_long_value_is_cut_in_the_refusal(client: StdioClient, task: str) -> None:
    """A refusal is short, whatever was given, and counts the problems that it does not list."""
    error = refused(client, "invalid_arguments", "update_task", task_id=task, status="x" * 10_000)
    assert len(error["message"]) < 400
    steps = [{"n": number} for number in range(100)]
    error = refused(client, "invalid_arguments", "save_checkpoint", task_id=task, agent="a", files=steps)
    assert len(error["message"]) < 600
    assert "and 95 more" in error["message"]


def test_no_refusal_repeats_what_other_agents_wrote(client: StdioClient) -> None:
    """Titles, goals, steps, prompts and reasons are data: no error text carries them."""
    secret: JsonObject = {name: [f"WORD-{name}"] for name in TEXT_LISTS}
    secret |= {"resume_prompt": "WORD-prompt", "test_results": "WORD-run"}
    task_id = new_task(client, title="WORD-title", goal="WORD-goal", repo_path="/WORD-repo")
    client.call("save_checkpoint", task_id=task_id, agent="alice", **secret)
    client.call("attach_artifact", task_id=task_id, name="WORD-name", content="WORD-content")
    errors = [
        client.refusal("create_task", task_id=task_id, title="T", goal="g"),
        client.refusal("update_task", task_id=task_id, title="T", expected_version=1),
        client.refusal("get_task", task_id=task_id, artifact=2),
        client.refusal("get_task", task_id=task_id, artifact=1, offset=100),
        client.refusal("get_task", task_id=task_id, checkpoint=7),
        client.refusal("save_checkpoint", task_id=task_id, agent="bob"),
        client.request("resources/read", {"uri": f"task://{task_id}/artifacts/9"})["error"],
    ]
    client.call("handoff_task", task_id=task_id, from_agent="alice", to_agent="bob", reason="WORD-reason")
    errors.append(client.refusal("mark_exhausted", task_id=task_id, agent="eve", reason="r"))
    client.call("update_task", task_id=task_id, status="done")
    errors.append(client.refusal("save_checkpoint", task_id=task_id, agent="bob"))
    errors.append(client.refusal("update_task", task_id=task_id, title="T"))
    assert "WORD" not in json.dumps(errors)


# --- Limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "argument", "limit"),
    [
        ("create_task", "task_id", ID_CHARACTERS),
        ("create_task", "title", TITLE_CHARACTERS),
        ("create_task", "goal", TEXT_BYTES),
        ("create_task", "repo_path", PATH_CHARACTERS),
        ("create_task", "agent", ID_CHARACTERS),
        ("save_checkpoint", "agent", ID_CHARACTERS),
        ("save_checkpoint", "resume_prompt", TEXT_BYTES),
        ("handoff_task", "from_agent", ID_CHARACTERS),
        ("handoff_task", "to_agent", ID_CHARACTERS),
        ("handoff_task", "reason", TEXT_BYTES),
        ("handoff_task", "resume_prompt", TEXT_BYTES),
        ("mark_exhausted", "agent", ID_CHARACTERS),
        ("mark_exhausted", "reason", TEXT_BYTES),
        ("mark_exhausted", "resume_prompt", TEXT_BYTES),
        ("attach_artifact", "name", ARTIFACT_NAME_CHARACTERS),
        ("attach_artifact", "agent", ID_CHARACTERS),
        ("list_tasks", "current_owner", ID_CHARACTERS),
        ("list_tasks", "repo_path", PATH_CHARACTERS),
        ("list_tasks", "query", QUERY_CHARACTERS),
        ("list_tasks", "tag", TAG_CHARACTERS),
        ("claim_task", "agent", ID_CHARACTERS),
        ("claim_task", "repo_path", PATH_CHARACTERS),
        ("claim_task", "tag", TAG_CHARACTERS),
        ("update_task", "title", TITLE_CHARACTERS),
        ("update_task", "goal", TEXT_BYTES),
        ("update_task", "current_owner", ID_CHARACTERS),
        ("update_task", "repo_path", PATH_CHARACTERS),
        ("update_task", "resume_prompt", TEXT_BYTES),
    ],
)
def test_a_text_has_its_limit(client: StdioClient, task: str, tool: str, argument: str, limit: int) -> None:
    """Each text is taken at its limit and refused one character beyond it, with both numbers or the limit."""
    arguments = arguments_of(tool, task)
    beyond = {**arguments, argument: "x" * (limit + 1)}
    error = refused(client, "too_large", tool, **beyond)
    assert str(limit) in error["message"]
    assert argument in error["message"]
    assert len(error["message"]) < 200
    client.call(tool, **{**arguments, argument: f" {'x' * limit} "})


@pytest.mark.parametrize("tool", ["get_task", "claim_task", "save_checkpoint", "attach_artifact"])
def test_a_task_id_is_never_longer(client: StdioClient, task: str, tool: str) -> None:
    """An id over its limit is refused before it is looked for."""
    at_limit = {**arguments_of(tool, task), "task_id": "x" * ID_CHARACTERS + "x"}
    refused(client, "too_large", tool, **at_limit)


@each_reporting_tool
@each_text_list
def test_a_list_has_its_limits(client: StdioClient, task: str, tool: str, name: str) -> None:
    """A list takes LIST_ENTRIES entries of TEXT_BYTES bytes, not one entry or byte more."""
    arguments = arguments_of(tool, task)
    entries = [f"entry {number}" for number in range(LIST_ENTRIES + 1)]
    error = refused(client, "too_large", tool, **arguments, **{name: entries})
    assert f"{LIST_ENTRIES + 1} entries" in error["message"]
    assert str(LIST_ENTRIES) in error["message"].replace(str(LIST_ENTRIES + 1), "")
    refused(client, "too_large", tool, **arguments, **{name: json.dumps(entries)})
    error = refused(client, "too_large", tool, **arguments, **{name: ["x" * (TEXT_BYTES + 1)]})
    assert f"{name}[0]" in error["message"]
    at_limit = ["y" * TEXT_BYTES, *entries[: LIST_ENTRIES - 1]]
    client.call(tool, **arguments, **{name: at_limit})
    assert client.call("get_task", task_id=task)[name] == at_limit


@each_checkpointing_tool
def test_dropped_steps_have_their_limits(client: StdioClient, task: str, tool: str) -> None:
    """As many steps of such a length may be dropped as may be planned."""
    arguments = arguments_of(tool, task)
    steps = ["y" * TEXT_BYTES, *(f"step {number}" for number in range(LIST_ENTRIES - 1))]
    refused(client, "too_large", tool, **arguments, dropped_steps=[*steps, "one more"])
    refused(client, "too_large", tool, **arguments, dropped_steps=["x" * (TEXT_BYTES + 1)])
    answer = client.call(tool, **arguments, dropped_steps=steps)
    saved = client.call("get_task", task_id=task, checkpoint=answer["checkpoint"])
    assert saved["dropped_steps"] == steps


def test_a_wait_has_its_limit(client: StdioClient, task: str) -> None:
    """CLAIM_WAIT_SECONDS are the longest wait, in whole or part seconds; a task that is there needs none."""
    for seconds in (CLAIM_WAIT_SECONDS + 0.5, -1, "soon"):
        call = {"agent": "alice", "task_id": task, "wait_seconds": seconds}
        error = refused(client, "invalid_arguments", "claim_task", **call)
        assert f"wait_seconds is {json.dumps(seconds)}" in error["message"]
    answer = client.call("claim_task", agent="alice", task_id=task, wait_seconds=CLAIM_WAIT_SECONDS)
    assert answer["claim"] == {"how": "open"}
    again = client.call("claim_task", agent="alice", task_id=task, wait_seconds="0.5")
    assert again["claim"] == {"how": "mine"}


@each_reporting_tool
@pytest.mark.parametrize("member", ["command", "summary"])
def test_test_results_have_their_limits(client: StdioClient, task: str, tool: str, member: str) -> None:
    """Test runs are limited in number, and in the bytes of their texts."""
    arguments = arguments_of(tool, task)
    runs = [{member: str(number)} for number in range(LIST_ENTRIES + 1)]
    refused(client, "too_large", tool, **arguments, test_results=runs)
    long = [{member: "x" * (TEXT_BYTES + 1)}]
    error = refused(client, "too_large", tool, **arguments, test_results=long)
    assert f"test_results[0].{member}" in error["message"]
    client.call(tool, **arguments, test_results=[{member: "x" * TEXT_BYTES}, *runs[: LIST_ENTRIES - 1]])
    assert len(client.call("get_task", task_id=task)["test_results"]) == LIST_ENTRIES


def test_a_text_is_measured_in_bytes(client: StdioClient, task: str) -> None:
    """The limit of a text counts its UTF-8, not its characters."""
    text = "é" * (TEXT_BYTES // 2)
    refused(client, "too_large", "update_task", task_id=task, goal=text + "x")
    client.call("update_task", task_id=task, goal=text)
    assert client.call("get_task", task_id=task)["goal"] == text


def test_a_page_has_its_limit(client: StdioClient) -> None:
    """list_tasks gives at most TASKS_PAGE_MAX rows, and is told so for more."""
    client.call("list_tasks", limit=TASKS_PAGE_MAX)
    error = refused(client, "invalid_arguments", "list_tasks", limit=TASKS_PAGE_MAX + 1)
    assert str(TASKS_PAGE_MAX) in error["message"]


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    """Open a store in this process, for limits that are too far away for a real one."""
    (tmp_path / "artifacts").mkdir()
    own = Store(str(tmp_path / "tasks.db"), str(tmp_path / "artifacts"))
    call_tool("create_task", {"task_id": "t", "title": "T", "goal": "g"}, Workplace(own, ()))
    yield Workplace(own, ())
    own.close()


def called(tool: str, arguments: JsonObject, workplace: Workplace) -> tuple[JsonObject, bool]:
    """Call a tool that answers at once; return its answer, and whether that is a refusal."""
    answer, is_error = call_tool(tool, arguments, workplace)
    assert isinstance(answer, dict)
    return answer, is_error


def test_a_task_has_a_limit_of_artifacts(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full task refuses another artifact with a way out, and still answers a repeated call."""
    monkeypatch.setattr(store, "TASK_ARTIFACTS", 2)
    calls = [{"task_id": "t", "name": name, "content": name} for name in "abc"]
    answers = [called("attach_artifact", call, workplace) for call in calls]
    assert [is_error for _, is_error in answers] == [False, False, True]
    assert answers[2][0]["error"]["code"] == "too_large"
    assert called("attach_artifact", calls[1], workplace) == answers[1]
    assert len(workplace.store.get_task("t").artifacts) == 2


def test_a_busy_database_is_told(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While others hold the database too long, a call is refused as busy; afterwards the same call works."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(database.Database.read, "__kwdefaults__", {"seconds": 0.05})
    call = {"task_id": "t", "agent": "alice"}
    with closing(sqlite3.connect(tmp_path / "tasks.db", isolation_level=None)) as foreign:
        foreign.execute("BEGIN EXCLUSIVE")
        for tool, arguments in (("save_checkpoint", call), ("get_task", {"task_id": "t"})):
            answer, is_error = called(tool, arguments, workplace)
            assert is_error
            assert answer["error"]["code"] == "busy"
            assert "again" in answer["error"]["hint"]
        foreign.execute("ROLLBACK")
    answer, is_error = called("save_checkpoint", call, workplace)
    assert (is_error, answer["version"]) == (False, 2)


# --- Artifacts by content -----------------------------------------------------------------------------


def whole_artifact(client: StdioClient, task_id: str, number: int = 1) -> tuple[bytes, list[JsonObject]]:
    """Read an artifact chunk by chunk; return its bytes and the answers."""
    answers = [client.call("get_task", task_id=task_id, artifact=number)]
    while "next_offset" in answers[-1]:
        offset = answers[-1]["next_offset"]
        answers.append(client.call("get_task", task_id=task_id, artifact=number, offset=offset))
        assert answers[-1]["offset"] == offset
    return b"".join(map(bytes_of, answers)), answers


def bytes_of(chunk: JsonObject) -> bytes:
    return chunk["text"].encode() if "text" in chunk else base64.b64decode(chunk["blob"])


@pytest.mark.parametrize(
    "content",
    ["", "text", "\ufefftext\r\nwith\rends\n\n", " kept blanks \t", "naïve ✓ 😀\u2028", "\x01\x7f\x85"],
)
def test_text_is_kept_to_the_byte(client: StdioClient, task: str, content: str) -> None:
    """An artifact given as text is stored, described and read back without a change."""
    answer = client.call("attach_artifact", task_id=task, name="n", content=content, agent="alice")
    raw = content.encode()
    digest = hashlib.sha256(raw).hexdigest()
    artifact = answer["artifact"]
    assert re.fullmatch(TIME, artifact.pop("created_at"))
    described = {"number": 1, "name": "n", "type": "file", "size": len(raw), "sha256": digest}
    assert artifact == {**described, "encoding": "utf-8", "agent": "alice"}
    read = client.call("get_task", task_id=task, artifact=1)
    assert read["text"] == content
    assert set(read) == {"task_id", "artifact", "offset", "text"}
    assert (client.folder / "artifacts" / digest).read_bytes() == raw


@pytest.mark.parametrize(
    "raw", [bytes(range(256)), b"\xff", b"a\0b", "text".encode("utf-16"), b"cut \xe2\x82"]
)
def test_bytes_are_kept_to_the_byte(client: StdioClient, task: str, raw: bytes) -> None:
    """An artifact given as base64, wrapped or not, is stored as its bytes and read back as base64."""
    encoded = base64.encodebytes(raw).decode()
    answer = client.call("attach_artifact", task_id=task, name="n", content=encoded, encoding="base64")
    assert (answer["artifact"]["size"], answer["artifact"]["encoding"]) == (len(raw), "base64")
    read = client.call("get_task", task_id=task, artifact=1)
    assert base64.b64decode(read["blob"]) == raw
    assert "text" not in read


def test_text_may_arrive_as_base64(client: StdioClient, task: str) -> None:
    """What is UTF-8 reads back as text, however it came."""
    encoded = base64.b64encode("naïve".encode()).decode()
    client.call("attach_artifact", task_id=task, name="n", content=encoded, encoding="base64")
    assert client.call("get_task", task_id=task, artifact=1)["text"] == "naïve"


@pytest.mark.parametrize("content", ["%%%", "YQ", "YQ=", "YQ==YQ==", "=", "é", "a-_b", "YWJj,"])
def test_what_is_no_base64_is_refused(client: StdioClient, task: str, content: str) -> None:
    """Broken base64 is refused rather than guessed."""
    call = {"task_id": task, "name": "n", "content": content, "encoding": "base64"}
    assert "base64" in refused(client, "invalid_arguments", "attach_artifact", **call)["message"]


@pytest.mark.parametrize("given", [{}, {"content": "c", "path": "p"}, {"content": None, "path": None}])
def test_an_artifact_has_one_source(client: StdioClient, task: str, given: JsonObject) -> None:
    """Exactly one of content and path is given."""
    error = refused(client, "invalid_arguments", "attach_artifact", task_id=task, name="n", **given)
    assert "content and path" in error["message"]


def test_artifacts_are_numbered_and_not_attached_twice(client: StdioClient, task: str) -> None:
    """The same bytes under the same name and type are one artifact; any difference makes another."""
    calls = [
        {"name": "a", "content": "x"},
        {"name": "a", "content": "y"},
        {"name": "b", "content": "x"},
        {"name": "a", "content": "x", "type": "log"},
        {"name": "a", "content": "x", "agent": "bob"},
        {"name": "a", "content": "eA==", "encoding": "base64"},
    ]
    answers = [client.call("attach_artifact", task_id=task, **call)["artifact"]["number"] for call in calls]
    assert answers == [1, 2, 3, 4, 1, 1]
    shown = client.call("get_task", task_id=task)
    assert [artifact["number"] for artifact in shown["artifacts"]] == [1, 2, 3, 4]
    assert shown["version"] == 5


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("character", ["é", "€", "😀"])
def test_text_is_read_in_whole_characters(client: StdioClient, task: str, character: str, shift: int) -> None:
    """Chunks of text end between characters, follow each other without a gap, and make up the whole."""
    content = "x" * shift + character * (70_000 // len(character.encode()))
    client.call("attach_artifact", task_id=task, name="n", content=content)
    raw, answers = whole_artifact(client, task)
    assert raw.decode() == content
    assert len(answers) == 3
    assert all(len(bytes_of(answer)) <= ARTIFACT_CHUNK_BYTES for answer in answers)


@pytest.mark.parametrize("size", [ARTIFACT_CHUNK_BYTES, ARTIFACT_CHUNK_BYTES + 1, 3 * ARTIFACT_CHUNK_BYTES])
@pytest.mark.parametrize("byte", [b"x", b"\xff"])
def test_chunks_have_their_limit(client: StdioClient, task: str, size: int, byte: bytes) -> None:
    """ARTIFACT_CHUNK_BYTES come in one answer, one byte more in two; the last one names no next offset."""
    encoded = base64.b64encode(byte * size).decode()
    client.call("attach_artifact", task_id=task, name="n", content=encoded, encoding="base64")
    raw, answers = whole_artifact(client, task)
    assert raw == byte * size
    assert len(answers) == -(-size // ARTIFACT_CHUNK_BYTES)


def test_an_offset_inside_a_character_moves_to_the_next(client: StdioClient, task: str) -> None:
    """Reading may start anywhere: the answer says where its text begins."""
    client.call("attach_artifact", task_id=task, name="n", content="€uro 😀")
    expected = [(0, "€uro 😀"), (3, "uro 😀"), (3, "uro 😀"), (3, "uro 😀"), (4, "ro 😀")]
    for offset, answer in enumerate(expected):
        read = client.call("get_task", task_id=task, artifact=1, offset=offset)
        assert (read["offset"], read["text"]) == answer
    for offset, start, text in ((7, 7, "😀"), (8, 11, ""), (10, 11, ""), (11, 11, "")):
        read = client.call("get_task", task_id=task, artifact=1, offset=offset)
        assert (read["offset"], read["text"]) == (start, text)
        assert "next_offset" not in read


def test_an_offset_past_the_end_is_refused(client: StdioClient, task: str) -> None:
    """There is nothing to read beyond the last byte; the refusal tells the size."""
    client.call("attach_artifact", task_id=task, name="n", content="four")
    assert client.call("get_task", task_id=task, artifact=1, offset=4)["text"] == ""
    for offset in (5, 2**50, 2**63 - 1):
        error = refused(client, "invalid_arguments", "get_task", task_id=task, artifact=1, offset=offset)
        assert "4 bytes" in error["message"]


def test_a_lost_file_and_a_lost_folder_are_storage_errors(tmp_path: Path) -> None:
    """What the disk does not let through is told without a path, and a repeat works once it is mended."""
    with stdio(tmp_path) as client:
        task_id = new_task(client)
        client.call("attach_artifact", task_id=task_id, name="n", content="kept")
        folder = tmp_path / "artifacts"
        folder.rename(tmp_path / "moved")
        call = {"task_id": task_id, "name": "m", "content": "later"}
        errors = [
            client.refusal("get_task", task_id=task_id, artifact=1),
            client.refusal("attach_artifact", **call),
        ]
        assert [error["code"] for error in errors] == ["storage_error", "storage_error"]
        assert str(tmp_path) not in json.dumps(errors)
        assert client.call("get_task", task_id=task_id)["version"] == 2
        (tmp_path / "moved").rename(folder)
        assert client.call("attach_artifact", **call)["artifact"]["number"] == 2
        assert client.call("get_task", task_id=task_id, artifact=1)["text"] == "kept"


# --- Artifacts by path --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StdioClient]:
    """Serve an agent whose working directory holds its files, and the database and artifacts as well."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text("secret")
    folder = outside / "work"
    folder.mkdir()
    with stdio(folder) as client:
        client.call("create_task", task_id="t", title="T", goal="g")
        client.call("attach_artifact", task_id="t", name="first", content="first")
        (folder / "sub").mkdir()
        (folder / "run.log").write_bytes(b"log\r\n\xff\x00")
        (folder / "sub" / "text.txt").write_text("naïve")
        (folder / "empty").touch()
        (folder / "inside-link").symlink_to("run.log")
        (folder / "outside-link").symlink_to(outside / "secret.txt")
        (folder / "outside-folder").symlink_to(outside)
        (folder / "loop").symlink_to("loop")
        (folder / "database-link").symlink_to("tasks.db")
        for name in ("tasks.db", "tasks.db-journal", "tasks.db.lock"):
            (folder / f"hard-{name}").hardlink_to(folder / name)
        (kept,) = (folder / "artifacts").iterdir()
        (folder / "kept-link").symlink_to(kept)
        os.mkfifo(folder / "pipe")
        yield client


@pytest.mark.parametrize(
    "path",
    [
        "run.log",
        "./sub/../run.log",
        "inside-link",
        "sub/text.txt",
        "empty",
        "{cwd}/run.log",
        "outside-folder/work/run.log",
    ],
)
def test_a_file_of_the_working_directory_is_attached(agent: StdioClient, path: str) -> None:
    """A path is relative to where the client started the server, or absolute; its bytes are kept exactly."""
    task_id = new_task(agent)
    path = path.format(cwd=agent.folder)
    artifact = agent.call("attach_artifact", task_id=task_id, name="n", type="log", path=path)["artifact"]
    raw = (agent.folder / path).read_bytes()
    assert (artifact["size"], artifact["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert (artifact["name"], artifact["type"]) == ("n", "log")
    assert whole_artifact(agent, task_id)[0] == raw


@pytest.mark.parametrize(
    ("path", "code", "told"),
    [
        ("../secret.txt", "invalid_arguments", "outside"),
        ("{cwd}/../secret.txt", "invalid_arguments", "outside"),
        ("/etc/passwd", "invalid_arguments", "outside"),
        ("/etc/no-such-file", "invalid_arguments", "outside"),
        ("/proc/self/environ", "invalid_arguments", "outside"),
        ("/dev/stdin", "invalid_arguments", "outside"),
        ("outside-link", "invalid_arguments", "outside"),
        ("outside-folder/secret.txt", "invalid_arguments", "outside"),
        ("sub/../../secret.txt", "invalid_arguments", "outside"),
        ("{cwd}-other/file", "invalid_arguments", "outside"),
        (".", "invalid_arguments", "not a regular file"),
        ("sub", "invalid_arguments", "not a regular file"),
        ("pipe", "invalid_arguments", "not a regular file"),
        ("loop", "invalid_arguments", "not a regular file"),
        ("tasks.db", "invalid_arguments", "own storage"),
        ("{cwd}/sub/../tasks.db", "invalid_arguments", "own storage"),
        ("database-link", "invalid_arguments", "own storage"),
        ("hard-tasks.db", "invalid_arguments", "own storage"),
        ("tasks.db-journal", "invalid_arguments", "own storage"),
        ("hard-tasks.db-journal", "invalid_arguments", "own storage"),
        ("tasks.db.lock", "invalid_arguments", "own storage"),
        ("hard-tasks.db.lock", "invalid_arguments", "own storage"),
        ("kept-link", "invalid_arguments", "own storage"),
        ("no-such-file", "not_found", "no-such-file"),
        ("run.log/inside", "not_found", "run.log/inside"),
        ("~/run.log", "not_found", "~"),
        ("x" * 300, "not_found", "no file"),
        ("sub/" * (PATH_CHARACTERS // 4), "not_found", "no file"),
        ("x" * (PATH_CHARACTERS + 1), "too_large", str(PATH_CHARACTERS)),
        ("run.log\0.txt", "invalid_arguments", "NUL"),
        (" ", "invalid_arguments", "path"),
    ],
    ids=lambda value: value[:30],
)
def test_no_other_file_is_attached(agent: StdioClient, path: str, code: str, told: str) -> None:
    """Outside the roots, behind a link out of them, not a regular file, or the store's own: refused."""
    before = recorded(agent, "t")
    path = path.format(cwd=agent.folder)
    error = agent.refusal("attach_artifact", task_id="t", name="n", path=path)
    assert error["code"] == code, error
    assert told in error["message"]
    assert "secret" not in error["message"].replace(path, "")
    assert recorded(agent, "t") == before


def test_the_journal_of_a_linked_database_is_not_attached(tmp_path: Path) -> None:
    """A database behind a symbolic link has its journal beside the real file, and that is the store's own."""
    (tmp_path / "work").mkdir()
    (tmp_path / "tasks.db").symlink_to("work/real.db")
    with stdio(tmp_path, cwd=tmp_path / "work") as client:
        task_id = new_task(client)
        assert (tmp_path / "work" / "real.db-journal").exists()
        for path in ("real.db", "real.db-journal", "real.db.lock"):
            call = {"task_id": task_id, "name": "n", "path": path}
            assert "own storage" in refused(client, "invalid_arguments", "attach_artifact", **call)["message"]


def test_a_stored_artifact_is_not_attached_by_its_path(agent: StdioClient) -> None:
    """Nothing inside the artifacts folder is a file to attach."""
    kept = agent.call("get_task", task_id="t")["artifacts"][0]["sha256"]
    for path in (f"artifacts/{kept}", f"{agent.folder}/artifacts/../artifacts/{kept}"):
        error = agent.refusal("attach_artifact", task_id="t", name="n", path=path)
        assert "own storage" in error["message"]
    refused(agent, "invalid_arguments", "attach_artifact", task_id="t", name="n", path="artifacts")


def test_a_file_has_its_limit(agent: StdioClient) -> None:
    """ARTIFACT_BYTES are attached by path, one byte more is refused without a copy on disk."""
    large = agent.folder / "large"
    large.touch()
    os.truncate(large, ARTIFACT_BYTES + 1)
    error = refused(agent, "too_large", "attach_artifact", task_id="t", name="n", path="large")
    assert str(ARTIFACT_BYTES) in error["message"]
    os.truncate(large, ARTIFACT_BYTES)
    artifact = agent.call("attach_artifact", task_id="t", name="n", path="large")["artifact"]
    assert artifact["size"] == ARTIFACT_BYTES
    (agent.folder / "artifacts" / artifact["sha256"]).unlink()


def test_roots_may_be_named(tmp_path: Path) -> None:
    """MCP_TASK_ATTACH_ROOTS replaces the working directory, by absolute paths and ones in the base folder."""
    for name in ("one", "two", "work"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "link").symlink_to("one")
    roots = os.pathsep.join([str(tmp_path / "link"), "two", ""])
    settings = {"MCP_TASK_ATTACH_ROOTS": roots, "MCP_TASK_BASE_DIR": str(tmp_path)}
    with stdio(tmp_path, cwd=tmp_path / "work", **settings) as client:
        task_id = new_task(client)
        for name in ("one", "two"):
            call = {"task_id": task_id, "name": name, "path": f"../{name}/file"}
            assert client.call("attach_artifact", **call)["artifact"]["size"] == 3
        for path in ("file", str(tmp_path / "file"), str(tmp_path / "onefile")):
            error = client.refusal("attach_artifact", task_id=task_id, name="n", path=path)
            assert "outside" in error["message"]


@pytest.mark.parametrize("place", ["/", "home", "home through a link"])
def test_too_wide_a_working_directory_is_no_root(tmp_path: Path, place: str) -> None:
    """A client that starts its servers in `/` or the home directory opens no file by default."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    home = tmp_path / "link" if "link" in place else tmp_path
    cwd = Path("/") if place == "/" else tmp_path
    with stdio(tmp_path, cwd=cwd, HOME=str(home)) as client:
        task_id = new_task(client)
        call = {"task_id": task_id, "name": "n", "path": str(tmp_path / "file")}
        error = refused(client, "invalid_arguments", "attach_artifact", **call)
        assert "by path" in error["message"]
        assert "content" in error["hint"]


def test_a_service_attaches_no_file(tmp_path: Path) -> None:
    """Over HTTP no path is followed, whatever roots are named; content is taken."""
    (tmp_path / "file").touch()
    with HttpServer(tmp_path, MCP_TASK_ATTACH_ROOTS=str(tmp_path)) as server, sse(server) as client:
        client.call("create_task", task_id="t", title="T", goal="g")
        by_path = {"task_id": "t", "name": "n", "path": str(tmp_path / "file")}
        result = client.request("tools/call", {"name": "attach_artifact", "arguments": by_path})["result"]
        assert result["isError"] is True
        assert result["structuredContent"]["error"]["code"] == "invalid_arguments"
        assert client.call("attach_artifact", task_id="t", name="n", content="c")["artifact"]["number"] == 1


# --- list_tasks ---------------------------------------------------------------------------------------

LISTED: dict[str, JsonObject] = {
    "plain": {"title": "Fix the parser", "goal": "All tests pass", "repo_path": "/src/parser"},
    "umlaut": {"title": "Straße ÜBERHOLEN", "goal": "Größe prüfen", "repo_path": "/src/parser/"},
    "greek": {"title": "Ὀδυσσεύς", "goal": "ΣΊΣΥΦΟΣ"},
    "percent": {"title": "Reach 100% coverage", "goal": "no_gap!"},
    "quotes": {"title": 'O\'Neill said "now"', "goal": "back\\slash; DROP TABLE tasks"},
    "lines": {"title": "Second", "goal": "first line\nsecond line\ttabbed"},
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StdioClient]:
    """Serve a known set of tasks in known states, which no test changes."""
    with stdio(tmp_path_factory.mktemp("shelf")) as client:
        for task_id, members in LISTED.items():
            client.call("create_task", task_id=task_id, **members)
        client.call("save_checkpoint", task_id="umlaut", agent="Alice")
        client.call("handoff_task", task_id="greek", from_agent="Alice", to_agent="BOB", reason="r")
        client.call("mark_exhausted", task_id="percent", agent="alice", reason="r")
        client.call("handoff_task", task_id="quotes", from_agent="Alice", to_agent="any", reason="r")
        client.call("update_task", task_id="lines", status="done", current_owner="alice ")
        yield client


def found(client: StdioClient, **arguments: Any) -> list[str]:
    """Return the ids that list_tasks finds, having checked the total."""
    answer = client.call("list_tasks", **arguments)
    assert answer["total"] == len(answer["tasks"])
    return [row["task_id"] for row in answer["tasks"]]


def test_rows_are_short(shelf: StdioClient) -> None:
    """A row tells what a task is, how it stands and whether its owner lives; no goal, steps or prompt."""
    answer = shelf.call("list_tasks")
    assert set(answer) == {"tasks", "total"}
    assert answer["total"] == len(LISTED)
    for row in answer["tasks"]:
        task = shelf.call("get_task", task_id=row["task_id"])
        assert row == {name: task[name] for name in {*ACKNOWLEDGED, "repo_path", "owner_state"} & set(task)}
        assert ("owner_state" in row) == (row["status"] == "in_progress")


def test_the_newest_change_comes_first(shelf: StdioClient) -> None:
    """Tasks are listed by their latest change, not by their creation."""
    assert found(shelf) == ["lines", "quotes", "percent", "greek", "umlaut", "plain"]


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ({"status": "open"}, ["plain"]),
        ({"status": "in_progress"}, ["umlaut"]),
        ({"status": "handoff_ready"}, ["quotes", "greek"]),
        ({"status": "agent_exhausted"}, ["percent"]),
        ({"status": "done"}, ["lines"]),
        ({"current_owner": "alice"}, ["lines", "umlaut"]),
        ({"current_owner": " ALICE "}, ["lines", "umlaut"]),
        ({"current_owner": "bob"}, ["greek"]),
        ({"current_owner": "any"}, ["quotes"]),
        ({"current_owner": "nobody"}, []),
        ({"current_owner": "alice", "status": "done"}, ["lines"]),
        ({"repo_path": "/src/parser"}, ["umlaut", "plain"]),
        ({"repo_path": "/src/parser/"}, ["umlaut", "plain"]),
        ({"repo_path": "/src"}, []),
        ({"repo_path": "/SRC/parser"}, []),
        ({"repo_path": "/src/parser", "query": "fix"}, ["plain"]),
        ({"status": "open", "current_owner": "alice"}, []),
    ],
)
def test_filters_narrow_the_list(shelf: StdioClient, arguments: JsonObject, ids: list[str]) -> None:
    """Status, owner and repository select, alone and together; an owner's spelling does not matter."""
    assert found(shelf, **arguments) == ids


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("", list(reversed(LISTED))),
        ("   ", list(reversed(LISTED))),
        ("parser", ["plain"]),
        ("PARSER fix", ["plain"]),
        ("parser pass", ["plain"]),
        ("parser überholen", []),
        ("pars", ["plain"]),
        ("straße", ["umlaut"]),
        ("STRASSE", ["umlaut"]),
        ("überholen GRÖSSE", ["umlaut"]),
        ("ὀδυσσεύς", ["greek"]),
        ("σίσυφος", ["greek"]),
        ("100%", ["percent"]),
        ("%", []),
        ("1%c", ["percent"]),
        ("00%", []),
        ("_", []),
        ("no_gap", ["percent"]),
        ("n__gap", ["percent"]),
        ("!", []),
        ("gap!", ["percent"]),
        ("o'neill", ["quotes"]),
        ("'", []),
        ('"', []),
        ('"NOW"', ["quotes"]),
        ('"now', ["quotes"]),
        ("back\\slash", ["quotes"]),
        ("\\", []),
        ("'; DROP TABLE tasks; --", ["quotes"]),
        ("' OR '1'='1", []),
        ("fix\0parser", ["plain"]),
        ("\0", []),
        ("second tabbed", ["lines"]),
        ("line\nsecond", ["lines"]),
        ("*", []),
        ("fix OR overtake", []),
        ("fix AND parser", []),
        ("NOT second", []),
        ("NEAR(fix parser, 1)", []),
        ("words:fix", []),
        ("^fix", ["plain"]),
        ("-fix", ["plain"]),
        ("+fix {the} (parser)", ["plain"]),
        ("fix*", ["plain"]),
        ("😀 fix", ["plain"]),
        ("x" * QUERY_CHARACTERS, []),
        ("fix a " * (QUERY_CHARACTERS // 6), ["plain"]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_query_finds_every_word(shelf: StdioClient, query: str, ids: list[str]) -> None:
    """Each word of a query must begin one of the task's, in any case and alphabet; nothing is an operator."""
    wanted = [task_id for task_id in found(shelf) if task_id in ids]
    assert found(shelf, query=query) == wanted


def test_a_query_looks_into_all_that_was_planned_and_learnt(client: StdioClient, task: str) -> None:
    """Title, goal, steps, resume prompt, decisions and dead ends are searched, as they are now."""
    texts = {name: [f"needle-{name}"] for name in ("decisions", "dead_ends")}
    steps = {"completed_steps": ["needle-done"], "remaining_steps": ["needle-planned"]}
    client.call("update_task", task_id=task, title="needle-title", goal="needle-goal")
    client.call("save_checkpoint", task_id=task, agent="a", **texts, **steps, resume_prompt="needle-prompt")
    words = ["title", "goal", "done", "planned", "prompt", "decisions", "dead_ends"]
    for word in words:
        assert found(client, query=f"needle {word}") == [task]
    assert found(client, query=" ".join(["needle", *words])) == [task]
    client.call("update_task", task_id=task, title="Other", decisions=[])
    for word in ("title", "decisions"):
        assert found(client, query=f"needle-{word}") == []
    assert found(client, query="needle goal other") == [task]


def test_a_nul_hides_nothing_from_a_query(client: StdioClient) -> None:
    """Words behind a NUL in a title or goal are found."""
    task_id = new_task(client, title="visible\0hidden-title", goal="visible\0hidden-goal")
    for word in ("hidden-title", "hidden-goal"):
        assert found(client, query=word) == [task_id]


def test_a_decomposed_letter_is_the_same_letter(client: StdioClient) -> None:
    """Text that writes an accent as a character of its own is found, and finds, like any other."""
    composed = new_task(client, title="Cafés")
    decomposed = new_task(client, title="Cafe\u0301s")
    for query in ("cafés", "cafe\u0301s", "CAFE\u0301"):
        assert found(client, query=query) == [decomposed, composed]


def test_pages_have_no_gaps_and_no_repeats(tmp_path: Path) -> None:
    """Following next_cursor shows each task once, in pages of any size, and every page tells the total."""
    with stdio(tmp_path) as client:
        ids = [new_task(client, goal="even" if number % 2 else "odd") for number in range(45)]
        newest_first = list(reversed(ids))
        for limit in (None, 1, 7, 45, 100):
            for goal in (None, "even"):
                pages = list(all_pages(client, limit=limit, query=goal))
                wanted = newest_first if goal is None else newest_first[1::2]
                assert [row["task_id"] for page in pages for row in page["tasks"]] == wanted
                assert {page["total"] for page in pages} == {len(wanted)}
                sizes = {len(page["tasks"]) for page in pages[:-1]}
                assert sizes <= {limit or TASKS_PAGE}


def all_pages(client: StdioClient, **arguments: Any) -> Iterator[JsonObject]:
    cursor = None
    while True:
        page = client.call("list_tasks", cursor=cursor, **arguments)
        yield page
        if "next_cursor" not in page:
            return
        cursor = page["next_cursor"]


def test_a_change_while_paging_repeats_nothing_that_was_shown(tmp_path: Path) -> None:
    """A task that changes between two pages moves to the front and does not push others across the edge."""
    with stdio(tmp_path) as client:
        ids = [new_task(client) for _ in range(6)]
        first = client.call("list_tasks", limit=3)
        client.call("update_task", task_id=ids[-1], title="Changed")
        client.call("create_task", title="New", goal="g")
        rest = client.call("list_tasks", limit=3, cursor=first["next_cursor"])
        shown = [row["task_id"] for row in [*first["tasks"], *rest["tasks"]]]
        assert shown == list(reversed(ids))


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "0x1", "²", "9" * 40, "1 OR 1=1", "", "1\0"])
def test_a_cursor_of_another_kind_is_refused(client: StdioClient, cursor: str) -> None:
    """A cursor that no page ended with is refused with the way to the first page."""
    error = refused(client, "invalid_arguments", "list_tasks", cursor=cursor)
    assert "first page" in error["hint"]


def test_every_status_can_be_listed() -> None:
    """The statuses that schemas name are the ones that there are."""
    for tool in ("list_tasks", "update_task"):
        assert SCHEMAS[tool]["properties"]["status"]["enum"] == [status.value for status in Status]
    states = SCHEMAS["list_tasks"]["properties"]["owner_state"]["enum"]
    assert states == [state.value for state in OwnerState]
