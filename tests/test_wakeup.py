"""MCP_TASK_ON_HANDOFF: the operator's command runs after a handoff, on its own, and can break nothing."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import DirectClient, HttpServer, JsonObject, McpClient, Process, stdio, wait_until

import tools
import wakeup
from store import Store

# What the command does: it reports what it finds, and waits if it is told to.
COMMAND = """
import json, os, sqlite3, sys
folder = os.path.dirname(os.path.abspath(__file__))
connection = sqlite3.connect(f"file:{folder}/tasks.db?mode=ro", uri=True, timeout=20)
print("noise for the wire")
print("noise for the log", file=sys.stderr)
sys.stdout.flush()
if "wait" in sys.argv:
    open(os.path.join(folder, "go")).read()
report = {
    "arguments": sys.argv[1:],
    "task_id": os.environ["MCP_TASK_HANDOFF_TASK_ID"],
    "to": os.environ["MCP_TASK_HANDOFF_TO"],
    "stdin": sys.stdin.read(),
    "leads": os.getsid(0) == os.getpid() == os.getpgid(0),
    "task": connection.execute("SELECT status, current_owner FROM tasks").fetchall(),
    "inherited": sorted(os.listdir("/proc/self/fd")),
}
connection.close()
path = os.path.join(folder, f"report-{os.getpid()}")
with open(path + ".tmp", "w") as file:
    json.dump(report, file)
os.rename(path + ".tmp", path + ".json")
"""


@pytest.fixture
def command(tmp_path: Path) -> str:
    """Return the setting that runs COMMAND."""
    (tmp_path / "command.py").write_text(COMMAND)
    return shlex.join([sys.executable, str(tmp_path / "command.py")])


def reports(folder: Path, count: int = 1) -> list[JsonObject]:
    """Wait until the command ran so often; return what it found."""
    wait_until(lambda: len(list(folder.glob("report-*.json"))) >= count, f"the command ran {count} times")
    return [json.loads(path.read_text()) for path in folder.glob("report-*.json")]


def handoff(client: Any, task_id: str = "t", to_agent: str = "bob", **details: Any) -> JsonObject:
    answer: JsonObject = client.call(
        "handoff_task", task_id=task_id, from_agent="alice", to_agent=to_agent, reason="r", **details
    )
    return answer


def create(client: Any, task_id: str = "t") -> None:
    client.call("create_task", task_id=task_id, title="T", goal="G")


# --- That it runs -------------------------------------------------------------------------------------


def test_the_command_finds_the_handoff_committed(tmp_path: Path, command: str) -> None:
    """It runs with id and addressee in its environment, and reads the task as it was handed off."""
    with stdio(tmp_path, MCP_TASK_ON_HANDOFF=command) as client:
        create(client)
        handoff(client, to_agent=" Bob $(x) ü")
        [report] = reports(tmp_path)
        assert (report["task_id"], report["to"]) == ("t", "Bob $(x) ü")
        assert report["task"] == [["handoff_ready", "Bob $(x) ü"]]
        assert report["arguments"] == []


def test_whoever_comes_first_is_any(tmp_path: Path, command: str) -> None:
    """A handoff to any agent is addressed to `any`, however that was spelled."""
    with stdio(tmp_path, MCP_TASK_ON_HANDOFF=command) as client:
        create(client)
        handoff(client, to_agent="ANY ")
        assert reports(tmp_path)[0]["to"] == "any"


def test_the_command_is_split_as_by_a_shell_and_run_without_one(tmp_path: Path, command: str) -> None:
    """Quotes and backslashes make words; every other character of the shell is a part of one."""
    canary = tmp_path / "canary"
    words = f"'a  b' \"c'd\" e\\ f $HOME `touch {canary}` $(touch {canary}) ; touch {canary} "
    words += f"| & * ~ > {canary} #x"
    with stdio(tmp_path, MCP_TASK_ON_HANDOFF=f"{command} {words}") as client:
        create(client)
        handoff(client)
        [report] = reports(tmp_path)
    assert report["arguments"] == [
        "a  b", "c'd", "e f", "$HOME", "`touch", f"{canary}`", "$(touch", f"{canary})", ";", "touch",
        str(canary), "|", "&", "*", "~", ">", str(canary), "#x",
    ]  # fmt: skip
    assert not canary.exists()


def test_a_service_runs_it_too(tmp_path: Path, command: str) -> None:
    """Over HTTP a handoff starts the command as over STDIO."""
    with HttpServer(tmp_path, MCP_TASK_ON_HANDOFF=command) as server:
        client = McpClient(server)
        create(client)
        handoff(client)
        assert reports(tmp_path)[0]["to"] == "bob"
        assert server.terminate() == 0


# --- When it does not ---------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], str, str]]:
    """Note what would be started, in place of starting it."""
    started: list[tuple[tuple[str, ...], str, str]] = []
    monkeypatch.setattr(tools, "wake", lambda *arguments: started.append(arguments))
    return started


@pytest.fixture
def direct(tmp_path: Path) -> Iterator[DirectClient]:
    (tmp_path / "artifacts").mkdir()
    with closing(Store(str(tmp_path / "tasks.db"), str(tmp_path / "artifacts"))) as store:
        direct = DirectClient(store)
        direct.workplace = direct.workplace._replace(on_handoff=("command",))
        create(direct)
        yield direct


def test_a_handoff_starts_it_once(
    direct: DirectClient, started: list[tuple[tuple[str, ...], str, str]]
) -> None:
    """The same call again starts nothing; a redirected handoff starts it for the new addressee."""
    answers = [handoff(direct, decisions=["d"]) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert started == [(("command",), "t", "bob")]
    handoff(direct, to_agent="carl")
    assert started[1:] == [(("command",), "t", "carl")]


def test_nothing_but_a_handoff_starts_it(
    direct: DirectClient, started: list[tuple[tuple[str, ...], str, str]]
) -> None:
    """Refused handoffs and all other calls start nothing."""
    direct.call("save_checkpoint", task_id="t", agent="alice")
    direct.call("update_task", task_id="t", status="handoff_ready", current_owner="bob")
    direct.call("update_task", task_id="t", status="in_progress", current_owner="alice")
    direct.call("attach_artifact", task_id="t", name="n", content="c", agent="alice")
    direct.call("mark_exhausted", task_id="t", agent="alice", reason="r")
    direct.call("claim_task", agent="carl")
    asked: JsonObject = {"task_id": "t", "from_agent": "bob", "to_agent": "dora", "reason": "r"}
    assert direct.refusal("handoff_task", **asked)["code"] == "not_owner"
    assert direct.refusal("handoff_task", **asked | {"task_id": "none"})["code"] == "not_found"
    assert direct.refusal("handoff_task", **asked | {"reason": ""})["code"] == "invalid_arguments"
    direct.call("update_task", task_id="t", status="done")
    assert direct.refusal("handoff_task", **asked | {"from_agent": "carl"})["code"] == "invalid_state"
    assert started == []


def test_a_failed_commit_starts_nothing(
    direct: DirectClient, started: list[tuple[tuple[str, ...], str, str]], tmp_path: Path
) -> None:
    """A handoff that the store cannot keep starts nothing."""
    with closing(sqlite3.connect(tmp_path / "tasks.db", isolation_level=None)) as other:
        other.execute(
            "CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    refused = direct.answer("handoff_task", task_id="t", from_agent="a", to_agent="b", reason="r")
    assert refused[1], refused
    assert started == []


@pytest.mark.parametrize("setting", [None, "", "  "])
def test_without_a_command_nothing_runs(tmp_path: Path, setting: str | None) -> None:
    """Unset, empty or blank, nothing is started, logged or changed."""
    settings = {} if setting is None else {"MCP_TASK_ON_HANDOFF": setting}
    with stdio(tmp_path, **settings) as client:
        create(client)
        assert handoff(client)["status"] == "handoff_ready"
        assert client.close() == 0
        assert client.stderr() == ""


def test_no_command_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a command not even a process is tried."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    wakeup.wake((), "t", "bob")


# --- That it is on its own ----------------------------------------------------------------------------


def ended_by_eof(server: Process) -> None:
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert server.process.wait(20) == 0


def ended_by_sigterm(server: Process) -> None:
    assert server.terminate() == 0


@pytest.mark.parametrize("end", [ended_by_eof, ended_by_sigterm, Process.kill])
def test_the_command_outlives_the_server(tmp_path: Path, command: str, end: Any) -> None:
    """However the server ends, at once and in its own good time, the command goes on."""
    os.mkfifo(tmp_path / "go")
    with stdio(tmp_path, MCP_TASK_ON_HANDOFF=f"{command} wait") as client:
        create(client)
        handoff(client)
        end(client)
    with (tmp_path / "go").open("w"):  # which opens once the command waits for it
        pass
    [report] = reports(tmp_path)
    assert report["leads"], "a signal to the server's group would end it"


def test_the_command_has_nothing_of_the_servers(tmp_path: Path, command: str) -> None:
    """It reads nothing from the client, writes nothing to it or to the log, and inherits no open file."""
    with stdio(tmp_path, MCP_TASK_ON_HANDOFF=command) as client:
        create(client)
        handoff(client)
        [report] = reports(tmp_path)
        assert report["stdin"] == ""
        assert len(report["inherited"]) <= 6, "0, 1, 2, its database, its journal, the listing itself"
        assert client.result("ping") == {}
        assert client.is_silent(0)
        assert client.close() == 0
        assert client.stderr() == ""


def test_a_command_that_hangs_delays_nothing(tmp_path: Path, command: str) -> None:
    """While the command runs, the server answers, and ends without waiting for it."""
    os.mkfifo(tmp_path / "go")
    with stdio(tmp_path, MCP_TASK_ON_HANDOFF=f"{command} wait") as client:
        for number in range(3):
            create(client, f"t{number}")
            handoff(client, f"t{number}")
        assert client.result("ping") == {}
        assert client.close() == 0
    wait_until(lambda: _opened(tmp_path / "go", tmp_path), "all three read what they waited for")
    assert sorted(report["task_id"] for report in reports(tmp_path, 3)) == ["t0", "t1", "t2"]


def _opened(fifo: Path, folder: Path) -> bool:
    """Let one more waiting command go; return whether all three have gone."""
    if len(list(folder.glob("report-*.json"))) < 3:
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            pass  # nobody waits at this moment
    return len(list(folder.glob("report-*.json"))) == 3


# --- That it can fail ---------------------------------------------------------------------------------

FAILURES = {
    "no such command": "/nonexistent/command --option",
    "not to be run": "/etc/passwd",
    "a folder": "/",
    "no name": "''",
    "a status": f"{shlex.quote(sys.executable)} -c 'raise SystemExit(3)'",
    "a signal": f"{shlex.quote(sys.executable)} -c 'import os; os.kill(os.getpid(), {signal.SIGKILL})'",
    "a traceback": f"{shlex.quote(sys.executable)} -c 'print(1 / 0)'",
}


@pytest.mark.parametrize("setting", FAILURES.values(), ids=FAILURES.keys())
def test_a_failure_is_one_line_in_the_log(tmp_path: Path, setting: str) -> None:
    """A command that cannot start or fails is logged in one line; the handoff is answered all the same."""
    with stdio(tmp_path, MCP_TASK_ON_HANDOFF=setting) as client:
        create(client)
        answer = handoff(client)
        assert (answer["status"], answer["current_owner"]) == ("handoff_ready", "bob")
        wait_until(client.stderr, "the failure is logged")
        assert client.result("ping") == {}
        assert client.close() == 0
        [line] = client.stderr().splitlines()
        assert "MCP_TASK_ON_HANDOFF" in line


def test_commands_that_ended_are_collected(tmp_path: Path) -> None:
    """However many commands ran, none stays behind as a dead process."""
    with stdio(tmp_path, MCP_TASK_ON_HANDOFF="true") as client:
        for number in range(10):
            create(client, f"t{number}")
            handoff(client, f"t{number}")
        pid = client.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        wait_until(lambda: not children.read_text(), "no child is left")


@pytest.mark.parametrize("arguments", [(), ("--http", "--port", "0")], ids=["stdio", "http"])
@pytest.mark.parametrize("setting", ["launch 'bob", 'launch "bob', "launch bob\\"])
def test_a_command_that_cannot_be_split_is_a_bad_setting(
    tmp_path: Path, setting: str, arguments: tuple[str, ...]
) -> None:
    """Quotes that do not close are told in one line at start, with the status of a bad setting."""
    with Process(tmp_path, *arguments, MCP_TASK_ON_HANDOFF=setting) as server:
        assert server.process.wait(20) == 2
        [line] = server.stderr().splitlines()
        assert "MCP_TASK_ON_HANDOFF" in line
        assert not (tmp_path / "tasks.db").exists()
