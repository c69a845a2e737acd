"""What a start and a call cost, counted instead of timed: modules, statements, syncs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_disk import Kind
from power_record import Stage
from power_trace import Recorder
from support import PATIENCE, PROJECT, SERVER, DirectClient, environment, request

from models import Artifact, Handoff, Status, Task, TestRun, TestStatus
from protocol import encode_text
from schema import column_values, text_of
from store import Store

# --- The start ------------------------------------------------------------------------------------------

OF_THE_START = {
    "cli", "config", "dispatcher", "eras", "errors", "log", "protocol", "stdio_transport", "tool_list",
}  # fmt: skip
TOO_SLOW_FOR_A_START = {
    "argparse", "asyncio", "base64", "dataclasses", "email", "hashlib", "http", "inspect", "logging",
    "pathlib", "pydantic", "pydantic_core", "random", "secrets", "selectors", "socket", "sqlite3",
    "subprocess", "tempfile", "traceback", "typing_extensions", "urllib", "uuid",
}  # fmt: skip


def loaded_by(tmp_path: Path, *messages: dict[str, Any]) -> set[str]:
    """Return the modules that a server has loaded once it has answered `messages`."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(SERVER)],
        input=b"".join(json.dumps(message).encode() + b"\n" for message in messages),
        capture_output=True,
        env=environment(tmp_path),
        timeout=PATIENCE,
        check=True,
    )
    assert len(done.stdout.splitlines()) == len(messages)
    return set(re.findall(r"\| +([\w.]+)$", done.stderr.decode(), re.MULTILINE))


INITIALIZE = request("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}})


def test_a_session_that_lists_the_tools_loads_little(tmp_path: Path) -> None:
    """Until the tools are listed neither pydantic nor SQLite is loaded, nor anything else that is slow."""
    ours = {path.stem for path in PROJECT.glob("*.py")}
    loaded = loaded_by(tmp_path, INITIALIZE, request("tools/list", request_id=2))
    assert loaded & ours == OF_THE_START
    assert not {name.partition(".")[0] for name in loaded} & TOO_SLOW_FOR_A_START


def test_a_stdio_session_loads_no_http(tmp_path: Path) -> None:
    """A tool call over STDIO loads the tools and the store, and nothing of HTTP."""
    call = request("tools/call", {"name": "list_tasks"}, 2)
    loaded = loaded_by(tmp_path, INITIALIZE, call)
    assert {"tools", "store", "pydantic", "sqlite3"} <= loaded
    assert not loaded & {"http.server", "http_sockets", "http_transport", "argparse", "logging", "asyncio"}


# --- A call ---------------------------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path: Path) -> Iterator[DirectClient]:
    """Call the tools on a store with one task of alice's, `t`, that has a checkpoint."""
    (tmp_path / "artifacts").mkdir()
    store = Store(str(tmp_path / "tasks.db"), str(tmp_path / "artifacts"))
    client = DirectClient(store)
    client.call("create_task", task_id="t", title="Title", goal="Goal", agent="alice")
    client.call("save_checkpoint", task_id="t", agent="alice")
    yield client
    store.close()


STATEMENTS: dict[str, tuple[dict[str, Any], int]] = {
    "get_task": ({"task_id": "t"}, 2),
    "list_tasks": ({}, 5),
    "create_task": ({"title": "New", "goal": "Goal"}, 8),
    "update_task": ({"task_id": "t", "title": "New"}, 10),
    "save_checkpoint": ({"task_id": "t", "agent": "alice", "completed_steps": ["one"]}, 15),
    "handoff_task": ({"task_id": "t", "from_agent": "alice", "to_agent": "bob", "reason": "full"}, 12),
    "mark_exhausted": ({"task_id": "t", "agent": "alice", "reason": "quota"}, 12),
    "attach_artifact": ({"task_id": "t", "name": "n", "content": "c"}, 12),
    "claim_task": ({"agent": "alice", "task_id": "t"}, 9),
}


@pytest.mark.parametrize("tool", STATEMENTS)
def test_a_call_runs_so_many_statements(client: DirectClient, tool: str) -> None:
    """A call runs as many statements as are written down here, transactions and PRAGMAs included."""
    arguments, expected = STATEMENTS[tool]
    ran: list[str] = []
    connection = client.workplace.store._db._connection
    connection.set_trace_callback(ran.append)
    client.call(tool, **arguments)
    connection.set_trace_callback(None)
    ours = [statement for statement in ran if not statement.startswith("-- ")]  # not the full-text index's
    assert len(ours) == expected, ours


# What a commit syncs in PERSIST mode: the journal's pages, the folder of its name, its header, the database,
# and the header again, cleared. An artifact's file and its folder come before.
COMMIT = ["tasks.db-journal", ".", "tasks.db-journal", "tasks.db", "tasks.db-journal"]
SYNCS: dict[str, list[str]] = {
    "get_task": [],
    "list_tasks": [],
    "create_task": COMMIT,
    "update_task": COMMIT,
    "save_checkpoint": COMMIT,
    "handoff_task": COMMIT,
    "mark_exhausted": COMMIT,
    "attach_artifact": ["artifacts/incoming", "artifacts", *COMMIT],
    "claim_task": COMMIT,
}


@pytest.mark.parametrize("tool", SYNCS)
def test_a_call_syncs_as_often_as_it_must(tmp_path: Path, recorder: Recorder, tool: str) -> None:
    """A read syncs nothing, a write what one commit takes, an artifact its file and folder besides."""
    stage = Stage(tmp_path, recorder)
    with stage.start() as server:
        stage.call(server, "create_task", task_id="t", title="Title", goal="Goal", agent="alice")
        stage.call(server, "save_checkpoint", task_id="t", agent="alice")
        stage.call(server, tool, **STATEMENTS[tool][0])
        assert server.close() == 0
    recording = stage.recording()
    *_, before, answered = sorted(recording.acknowledged)
    synced = [one.path for one in recording.operations[before:answered] if one.kind is Kind.SYNC]
    names = [os.path.relpath(path, recording.root) for path in synced]
    assert [re.sub(r"\.incoming-\w+", "incoming", name) for name in names] == SYNCS[tool]


# --- An answer ------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TEXTS = st.lists(TEXT, max_size=2)
TIME = st.just("2026-01-02T03:04:05.678Z")
TEST_RUNS = st.builds(TestRun, command=TEXT, status=st.sampled_from(TestStatus), summary=TEXT)
ARTIFACTS = st.builds(
    Artifact,
    number=st.integers(1, 9), name=TEXT, type=st.sampled_from(["file", "diff", "log"]),
    size=st.integers(0, 99), sha256=TEXT, encoding=st.sampled_from(["utf-8", "base64"]),
    agent=st.none() | TEXT, created_at=TIME,
)  # fmt: skip
HANDOFFS = st.builds(Handoff, from_agent=TEXT, to_agent=st.none() | TEXT, reason=TEXT, created_at=TIME)
TASKS = st.builds(
    Task,
    task_id=TEXT, title=TEXT, goal=TEXT, status=st.sampled_from(Status), current_owner=st.none() | TEXT,
    repo_path=st.none() | TEXT, completed_steps=TEXTS, remaining_steps=TEXTS, resume_prompt=st.none() | TEXT,
    test_results=st.lists(TEST_RUNS, max_size=2),
    decisions=TEXTS, dead_ends=TEXTS, files=TEXTS,
    artifacts=st.lists(ARTIFACTS, max_size=1), handoffs=st.lists(HANDOFFS, max_size=2),
    priority=st.integers(0, 4) | st.just(2), tags=st.just([]) | TEXTS, depends_on=st.just([]) | TEXTS,
    created_at=TIME, updated_at=TIME, version=st.integers(1, 2**40),
)  # fmt: skip


@given(TASKS, st.none() | st.sampled_from(["live", "gone", "unknown"]))
def test_what_is_stored_is_shown_as_the_model_shows_it(task: Task, owner_state: str | None) -> None:
    """The text that is put together from a row is, byte for byte, that of the task read and written anew."""
    assert text_of(column_values(task), owner_state) == encode_text(task.shown(owner_state))
