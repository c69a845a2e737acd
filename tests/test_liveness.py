"""Whether an owner lives: the connection is the heartbeat, and nothing else is believed."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from support import (
    HttpServer,
    McpClient,
    StdioClient,
    ToolCaller,
    at_work,
    create,
    owner_state,
    sse,
    stdio,
    thread_count,
    turn_taken,
    wait_until,
)

AT_ONCE = 1.0  # seconds within which everybody knows of a death
ONE_PID = "import os; os.getpid = lambda: 4242"
NO_LOCKS = "import locks; locks.fcntl = None"


@pytest.fixture
def observer(tmp_path: Path) -> Iterator[StdioClient]:
    """Return another process that looks at what becomes of a task."""
    with stdio(tmp_path) as connected:
        yield connected


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    with HttpServer(tmp_path) as running:
        yield running


def becomes(client: ToolCaller, task_id: str, state: str, seconds: float = AT_ONCE) -> None:
    """Wait until a client sees the owner in this state."""
    wait_until(lambda: owner_state(client, task_id) == state, f"{task_id} reads {state}", seconds)


def shown_as(client: ToolCaller, state: str) -> list[str]:
    """Return the tasks that list_tasks shows for a state, each of whose rows says the same."""
    page = client.call("list_tasks", owner_state=state)
    assert page["total"] == len(page["tasks"])
    assert {row["owner_state"] for row in page["tasks"]} <= {state}
    return sorted(row["task_id"] for row in page["tasks"])


def lock_files(folder: Path) -> list[Path]:
    """Return the lock files of sessions beside the database."""
    return sorted((folder / "tasks.db.sessions").glob("*"))


def last_event(client: ToolCaller, task_id: str) -> Any:
    return client.call("get_task", task_id=task_id, view="history")["events"][0]


# --- STDIO ----------------------------------------------------------------------------------------------


def test_kill_9_is_known_to_everybody_at_once(
    tmp_path: Path, observer: StdioClient, server: HttpServer
) -> None:
    """Within a second after kill -9 of its owner a task reads gone over every wire, and can be claimed."""
    with stdio(tmp_path) as dying, sse(server) as streaming:
        at_work(dying, "t", "Alice")
        everybody: list[ToolCaller] = [observer, streaming, McpClient(server)]
        assert [owner_state(client, "t") for client in everybody] == ["live"] * 3
        dying.kill()
        for client in everybody:
            becomes(client, "t", "gone")
            assert shown_as(client, "gone") == ["t"]
        answer = everybody[2].call("claim_task", agent="Bob")
        assert answer["claim"] == {"how": "gone", "from": "Alice"}


def test_owners_of_different_processes_die_apart(tmp_path: Path, observer: StdioClient) -> None:
    """Only the tasks of the process that died read gone, also if all have the same process id."""
    with ExitStack() as stack:
        clients = [stack.enter_context(stdio(tmp_path, prelude=ONE_PID)) for _ in range(3)]
        for number, client in enumerate(clients):
            at_work(client, f"t{number}", f"agent {number}")
        clients[1].kill()
        assert [owner_state(observer, f"t{number}") for number in range(3)] == ["live", "gone", "live"]
        assert (shown_as(observer, "live"), shown_as(observer, "gone")) == (["t0", "t2"], ["t1"])
        with stdio(tmp_path, prelude=ONE_PID) as successor:  # the same id again, in the same place
            at_work(successor, "t3", "agent 1")
            assert owner_state(successor, "t1") == "gone"


def test_a_stale_lock_file_revives_nobody(tmp_path: Path, observer: StdioClient) -> None:
    """The file that a killed process leaves behind says nothing, and the next process takes it away."""
    with stdio(tmp_path) as dying:
        at_work(dying, "t", "Alice")
        dying.kill()
    [stale] = lock_files(tmp_path)
    assert owner_state(observer, "t") == "gone"
    at_work(observer, "u", "Bob")
    assert not stale.exists()
    stale.touch()
    assert owner_state(observer, "t") == "gone"


def test_a_silent_owner_lives(tmp_path: Path) -> None:
    """However long a connected owner is silent, its tasks read live: the idle time is not for it."""
    with ExitStack() as stack:
        impatient = {"MCP_TASK_IDLE_SECONDS": "1"}
        owner = stack.enter_context(stdio(tmp_path, **impatient))
        server = stack.enter_context(HttpServer(tmp_path, **impatient))
        streaming, calling = stack.enter_context(sse(server)), McpClient(server)
        at_work(owner, "t", "Alice")
        at_work(streaming, "u", "Bob")
        at_work(calling, "v", "Carol")
        becomes(calling, "v", "gone", 3)
        assert [owner_state(calling, task_id) for task_id in ("t", "u")] == ["live", "live"]


def test_a_good_end_is_recorded(tmp_path: Path, observer: StdioClient) -> None:
    """A process whose client goes records session_ended for its agents' tasks in progress, which are gone."""
    with stdio(tmp_path) as leaving:
        at_work(leaving, "mine", "Alice")
        at_work(leaving, "mine-too", "Bob")
        at_work(leaving, "handed", "Alice")
        leaving.call("handoff_task", task_id="handed", from_agent="Alice", to_agent="Eve", reason="quota")
        at_work(observer, "other", "Alice")
        assert leaving.close() == 0
    for task_id, agent in (("mine", "Alice"), ("mine-too", "Bob")):
        assert owner_state(observer, task_id) == "gone"
        event = last_event(observer, task_id)
        assert (event["what"], event["agent"]) == ("session_ended", agent)
    assert last_event(observer, "handed")["what"] == "handoff"
    assert last_event(observer, "other")["what"] == "checkpoint"
    assert owner_state(observer, "other") == "live"
    task = observer.call("get_task", task_id="mine")
    assert (task["status"], task["current_owner"], task["version"]) == ("in_progress", "Alice", 2)


@pytest.mark.parametrize("end", ["eof", "sigterm"])
def test_a_good_end_leaves_no_file_behind(tmp_path: Path, end: str) -> None:
    """A process that ends in good order takes its lock file with it and writes nothing on stderr."""
    with stdio(tmp_path) as leaving:
        at_work(leaving, "t", "Alice")
        assert len(lock_files(tmp_path)) == 1
        assert (leaving.close() if end == "eof" else leaving.terminate()) == 0
        assert leaving.stderr() == ""
    assert lock_files(tmp_path) == []


def test_a_service_leaves_no_file_behind(tmp_path: Path, observer: StdioClient) -> None:
    """A service that is told to stop takes its lock file with it; its clients' tasks read gone."""
    with HttpServer(tmp_path) as server, sse(server) as client:
        at_work(client, "t", "Alice")
        assert len(lock_files(tmp_path)) == 1
        assert server.terminate() == 0
    assert lock_files(tmp_path) == []
    assert owner_state(observer, "t") == "gone"


def test_who_only_reads_leaves_no_trace(tmp_path: Path) -> None:
    """A client that reads, and claims where nothing is to be had, writes nothing and makes no lock file."""
    with stdio(tmp_path) as owner, stdio(tmp_path) as other:
        at_work(owner, "t", "Alice")
        at_work(other, "u", "Bob")
        other.kill()
        (tmp_path / "tasks.db.lock").unlink()
        before = beside_the_database(tmp_path)
        with stdio(tmp_path) as reader:
            assert owner_state(reader, "t") == "live"
            assert shown_as(reader, "gone") == ["u"]
            for view in ("resume", "history"):
                reader.call("get_task", task_id="t", view=view)
            reader.result("resources/list")
            assert reader.call("claim_task", agent="Carol", tag="none") == {"task": None}
            reader.close()
        assert beside_the_database(tmp_path) == before


def beside_the_database(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return time and content of the database and all files that belong to it."""
    files = [*folder.glob("tasks.db*"), *lock_files(folder)]
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes() if file.is_file() else b"")
        for file in files
    }


# --- HTTP -----------------------------------------------------------------------------------------------


def test_a_streaming_client_lives_as_long_as_its_stream(server: HttpServer, observer: StdioClient) -> None:
    """The task of an SSE client reads live while its stream is open, and gone after the stream is closed."""
    with sse(server) as other:
        at_work(other, "u", "Bob")
        with sse(server) as client:
            at_work(client, "t", "Alice")
            assert [owner_state(one, "t") for one in (client, other, observer)] == ["live"] * 3
        for one in (other, observer):
            becomes(one, "t", "gone")
        event = wait_until(lambda: last_event(observer, "t"), "the history can be read")
        assert (event["what"], event["agent"]) == ("session_ended", "Alice")
        assert [owner_state(one, "u") for one in (other, observer)] == ["live"] * 2


def test_streams_end_with_their_service(tmp_path: Path, observer: StdioClient) -> None:
    """After kill -9 of a service the tasks of its SSE clients read gone, also for a service started anew."""
    with HttpServer(tmp_path) as server, sse(server) as client:
        at_work(client, "t", "Alice")
        assert owner_state(observer, "t") == "live"
        server.kill()
    becomes(observer, "t", "gone")
    with HttpServer(tmp_path) as again, sse(again) as client:
        at_work(client, "u", "Bob")
        assert [owner_state(client, task_id) for task_id in ("t", "u")] == ["gone", "live"]


def test_a_checkpoint_in_flight_does_not_outlive_its_stream(tmp_path: Path, server: HttpServer) -> None:
    """An SSE client that goes while its checkpoint waits to be written is gone once it is written."""
    observer = McpClient(server)
    create(observer, "t")
    quiet = thread_count(server)
    call = {"name": "save_checkpoint", "arguments": {"task_id": "t", "agent": "Alice"}}
    message = json.dumps({"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": call})
    with sse(server) as client, ThreadPoolExecutor(1) as pool:
        with turn_taken(tmp_path):
            posting = pool.submit(client.post, message)
            wait_until(lambda: thread_count(server) > quiet, "the checkpoint waits for its turn")
            client.close()
            wait_until(lambda: client.post("{}")[0] == 404, "the stream is forgotten")
        assert posting.result()[0] == 202
    becomes(observer, "t", "gone")


def test_calls_without_a_connection_count_for_a_while(tmp_path: Path) -> None:
    """Over /mcp an owner is unknown after a call, gone MCP_TASK_IDLE_SECONDS later; each call counts anew."""
    with HttpServer(tmp_path, MCP_TASK_IDLE_SECONDS="3") as server:
        alice, bob = McpClient(server), McpClient(server, "2026-07-28")
        at_work(alice, "quiet", "Alice")
        at_work(bob, "busy", "Bob")
        create(alice, "other")
        number = 0
        while owner_state(alice, "quiet") == "unknown":
            number += 1
            bob.call("save_checkpoint", task_id="other", agent="Bob", decisions=[f"decision {number}"])
            assert owner_state(alice, "busy") == "unknown"
        assert owner_state(alice, "quiet") == "gone"
        assert shown_as(bob, "unknown") == ["busy", "other"]
        assert alice.refusal("claim_task", agent="Carol", task_id="busy")["code"] == "not_owner"
        alice.call("save_checkpoint", task_id="quiet", agent="Alice")
        assert owner_state(bob, "quiet") == "unknown"
        becomes(bob, "busy", "gone", 5)


def test_an_unknown_owner_is_not_robbed(server: HttpServer) -> None:
    """Within the idle time a task of an agent without a connection cannot be claimed."""
    client = McpClient(server)
    at_work(client, "t", "Alice")
    assert owner_state(client, "t") == "unknown"
    assert client.call("claim_task", agent="Bob") == {"task": None}
    assert client.refusal("claim_task", agent="Bob", task_id="t")["code"] == "not_owner"


# --- Whose session it is --------------------------------------------------------------------------------


def test_the_session_of_the_last_write_counts(tmp_path: Path, observer: StdioClient) -> None:
    """Of two sessions of one agent the one that wrote last decides; the other may die."""
    with stdio(tmp_path) as first, stdio(tmp_path) as second:
        at_work(first, "t", "Alice")
        second.call("save_checkpoint", task_id="t", agent="ALICE", decisions=["from the second"])
        first.kill()
        assert owner_state(observer, "t") == "live"
        second.kill()
        assert owner_state(observer, "t") == "gone"


@pytest.mark.parametrize(
    ("tool", "details"),
    [
        ("save_checkpoint", {"decisions": ["d"]}),
        ("save_checkpoint", {}),  # the same call again: its first answer was lost with the process
        ("attach_artifact", {"name": "log", "content": "text"}),
        ("claim_task", {}),
    ],
    ids=["checkpoint", "same-checkpoint", "artifact", "claim"],
)
def test_an_agent_that_comes_back_has_its_task_again(
    tmp_path: Path, observer: StdioClient, tool: str, details: dict[str, Any]
) -> None:
    """After its process died, the agent's next write or claim in a new one makes its task live again."""
    with stdio(tmp_path) as dying:
        at_work(dying, "t", "Alice")
        dying.kill()
    assert owner_state(observer, "t") == "gone"
    with stdio(tmp_path) as again:
        again.call(tool, task_id="t", agent="Alice", **details)
        assert owner_state(observer, "t") == "live"
        assert observer.refusal("claim_task", agent="Bob", task_id="t")["code"] == "not_owner"


def test_a_session_moves_to_where_the_agent_calls(tmp_path: Path, observer: StdioClient) -> None:
    """A later call over /mcp takes a task along: unknown, though the process of before still lives."""
    with stdio(tmp_path) as first, HttpServer(tmp_path) as server:
        at_work(first, "t", "Alice")
        McpClient(server).call("claim_task", agent="Alice", task_id="t")
        assert owner_state(observer, "t") == "unknown"
        first.call("claim_task", agent="alice", task_id="t")
        assert owner_state(observer, "t") == "live"


def test_what_others_change_moves_no_session(tmp_path: Path, observer: StdioClient) -> None:
    """A supervisor's update and another agent's artifact leave the owner's session as it is."""
    with stdio(tmp_path) as owner:
        at_work(owner, "t", "Alice")
        observer.call("update_task", task_id="t", title="Other")
        observer.call("attach_artifact", task_id="t", name="n", content="c", agent="Bob")
        assert owner_state(observer, "t") == "live"
        owner.kill()
        assert owner_state(observer, "t") == "gone"


def test_an_owner_assigned_by_hand_counts_as_heard_of(tmp_path: Path) -> None:
    """A task that update_task assigns reads unknown, and gone when the agent does not call for a while."""
    with stdio(tmp_path, MCP_TASK_IDLE_SECONDS="2") as supervisor:
        at_work(supervisor, "t", "Alice")
        supervisor.call("update_task", task_id="t", current_owner="Bob")
        assert owner_state(supervisor, "t") == "unknown"
        assert supervisor.call("claim_task", agent="Carol") == {"task": None}
        becomes(supervisor, "t", "gone", 4)
        assert supervisor.call("claim_task", agent="Carol")["claim"] == {"how": "gone", "from": "Bob"}


def test_only_tasks_in_progress_have_an_owner_state(observer: StdioClient) -> None:
    """A task that nobody works on says nothing of its owner, in get_task as in the rows of list_tasks."""
    create(observer, "open")
    for task_id in ("done", "handed", "tired", "at-work"):
        at_work(observer, task_id, "Alice")
    observer.call("update_task", task_id="done", status="done")
    observer.call("handoff_task", task_id="handed", from_agent="Alice", to_agent="Bob", reason="quota")
    observer.call("mark_exhausted", task_id="tired", agent="Alice", reason="quota")
    for row in observer.call("list_tasks")["tasks"]:
        expected = "live" if row["task_id"] == "at-work" else None
        assert row.get("owner_state") == owner_state(observer, row["task_id"]) == expected
    assert [shown_as(observer, state) for state in ("live", "gone", "unknown")] == [["at-work"], [], []]


# --- What might deceive ---------------------------------------------------------------------------------


def test_a_copied_database_has_no_living_owners(tmp_path: Path) -> None:
    """In a copy of the database and all beside it the tasks are gone; in the original they stay live."""
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    with stdio(original) as owner, HttpServer(original) as server, sse(server) as streaming:
        at_work(owner, "t", "Alice")
        at_work(streaming, "u", "Bob")
        shutil.copytree(original, copy)
        with stdio(copy) as reader:
            assert shown_as(reader, "gone") == ["t", "u"]
            at_work(reader, "v", "Carol")
            assert shown_as(reader, "live") == ["v"]
        with stdio(original) as reader:
            assert shown_as(reader, "live") == ["t", "u"]


def test_a_database_known_by_two_names_is_one(tmp_path: Path, observer: StdioClient) -> None:
    """Through a symbolic link to the database its owners live as they do by its own name."""
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "tasks.db")
    with stdio(tmp_path, MCP_TASK_DB_PATH=str(link)) as other:
        at_work(other, "t", "Alice")
        at_work(observer, "u", "Bob")
        assert shown_as(observer, "live") == shown_as(other, "live") == ["t", "u"]


def test_deleted_lock_files_come_back_with_the_next_write(tmp_path: Path, observer: StdioClient) -> None:
    """If somebody deletes the lock files of a living process, its next write makes its tasks live again."""
    with stdio(tmp_path) as owner:
        at_work(owner, "t", "Alice")
        shutil.rmtree(tmp_path / "tasks.db.sessions")
        assert owner_state(owner, "t") == "live"
        owner.call("save_checkpoint", task_id="t", agent="Alice", decisions=["d"])
        assert owner_state(observer, "t") == "live"
        owner.kill()
        assert owner_state(observer, "t") == "gone"


@pytest.mark.parametrize("days", [-1, 1])
def test_a_wrong_clock_makes_no_connected_owner_gone(tmp_path: Path, days: int) -> None:
    """A process whose clock is a day off sees connected owners live; a clock set back makes nobody gone."""
    clock = f"import time; right = time.time_ns; time.time_ns = lambda: right() + {days * 86400 * 10**9}"
    clock += "; time.time = lambda: time.time_ns() / 10**9"
    with HttpServer(tmp_path) as server, stdio(tmp_path) as owner:
        at_work(owner, "t", "Alice")
        at_work(McpClient(server), "u", "Bob")
        with stdio(tmp_path, prelude=clock) as wrong:
            assert shown_as(wrong, "live") == ["t"]
            assert shown_as(wrong, "unknown" if days < 0 else "gone") == ["u"]
            assert wrong.refusal("claim_task", agent="Carol", task_id="t")["code"] == "not_owner"
            create(wrong, "v")
        made = [owner.call("get_task", task_id=task_id)["created_at"] for task_id in ("v", "t")]
        assert (made[0] < made[1]) is (days < 0)


def test_without_locks_the_idle_rule_serves(tmp_path: Path) -> None:
    """On a platform without flock an owner is unknown after a call, gone when idle, and no file is made."""
    with stdio(tmp_path, prelude=NO_LOCKS, MCP_TASK_IDLE_SECONDS="2") as owner:
        at_work(owner, "t", "Alice")
        assert owner_state(owner, "t") == "unknown"
        assert lock_files(tmp_path) == []
        becomes(owner, "t", "gone", 4)
        owner.call("save_checkpoint", task_id="t", agent="Alice")
        assert owner_state(owner, "t") == "unknown"
        assert owner.close() == 0
    with stdio(tmp_path, prelude=NO_LOCKS) as successor:
        assert owner_state(successor, "t") == "gone"
        assert successor.call("claim_task", agent="Bob")["claim"] == {"how": "gone", "from": "Alice"}


def test_where_no_lock_file_can_be_made_the_idle_rule_serves(tmp_path: Path) -> None:
    """Where the folder takes no lock files an owner counts as unknown; nothing fails."""
    (tmp_path / "tasks.db.sessions").touch()  # a file: no folder can be made in its place
    with stdio(tmp_path) as owner:
        at_work(owner, "t", "Alice")
        assert owner_state(owner, "t") == "unknown"


def test_dead_sessions_are_forgotten(tmp_path: Path, observer: StdioClient) -> None:
    """However many processes come and go, the database keeps sessions only of those that live."""
    for number in range(4):
        with stdio(tmp_path) as dying:
            at_work(dying, f"t{number}", "Alice")
            dying.kill()
    at_work(observer, "t", "Bob")
    with closing(sqlite3.connect(tmp_path / "tasks.db")) as database:
        assert database.execute("SELECT count(*) FROM sessions").fetchone() == (1,)
    assert shown_as(observer, "gone") == ["t0", "t1", "t2", "t3"]
