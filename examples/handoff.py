#!/usr/bin/env python3
"""A handoff, played by two agents on the real server.

    python examples/handoff.py

Each agent has a server process of its own, as it would under two MCP clients; what they share is one
database, here in a temporary folder. The first agent works until its context is nearly full and hands the
task off; the second knows nothing but what it reads there, and finishes. What is printed below a call is
what was expected of its answer: one answer that differs ends the play with exit status 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SERVER = Path(__file__).resolve().parent.parent / "server.py"
REVISION = "2025-11-25"  # of MCP
PATIENCE = 30  # seconds that one agent's whole part may take
TASK = "login-timeout"
LOG = "pool 5: 2.9 s, of which DNS 2.6 s\npool 50: 2.9 s, of which DNS 2.6 s\n"
JsonObject = dict[str, Any]


class Unexpected(Exception):
    """The server did not do as it should; the text says what was asked, and what came back."""


# --- The two agents -----------------------------------------------------------------------------------


def begin(agent: Agent) -> None:
    """Put the work on record and do its first step."""
    agent.says("This will take longer than I live. I put it on record before I start.")
    agent.call(
        "create_task",
        {"status": "open", "current_owner": None},
        task_id=TASK,
        title="Fix the login timeout",
        goal="Login takes less than one second",
        remaining_steps=["Measure", "Find the cause", "Fix it", "Measure again"],
        agent=agent.name,
    )
    agent.says("The first step is done. I save it, and the task becomes mine.")
    agent.call(
        "save_checkpoint",
        {"checkpoint": 1, "status": "in_progress", "current_owner": agent.name},
        task_id=TASK,
        agent=agent.name,
        completed_steps=["Measure"],
        test_results=[{"command": "time ./login", "status": "failed", "summary": "2.9 s"}],
    )


def investigate(agent: Agent) -> None:
    """Learn something, and keep it and its proof with the task."""
    agent.says("A wrong turn, too, is worth a note: nobody need take it again.")
    agent.call(
        "save_checkpoint",
        {"checkpoint": 2, "status": "in_progress"},
        task_id=TASK,
        agent=agent.name,
        completed_steps=["Find the cause"],
        dead_ends=["A larger connection pool changes nothing"],
    )
    agent.says("The measurements prove it, so I attach them.")
    agent.call(
        "attach_artifact",
        {"artifact": {"number": 1, "name": "login.log", "size": len(LOG)}},
        task_id=TASK,
        name="login.log",
        type="log",
        content=LOG,
        agent=agent.name,
    )


def hand_off(agent: Agent) -> None:
    """Save what the next agent must know, and let go."""
    agent.says("My context is nearly full. One call saves what I know and passes the task on.")
    agent.call(
        "handoff_task",
        {"checkpoint": 3, "status": "handoff_ready", "current_owner": "agent-b"},
        task_id=TASK,
        from_agent=agent.name,
        to_agent="agent-b",
        reason="Context nearly full",
        resume_prompt="DNS takes 2.6 of the 2.9 s. Cache the address in resolver.py.",
    )


def pick_up(agent: Agent) -> None:
    """Find the task, take it, and read all that is known."""
    agent.says("I was just started and know nothing. Is anything waiting for me?")
    agent.call(
        "list_tasks",
        {"tasks": [{"task_id": TASK, "title": "Fix the login timeout"}], "total": 1},
        status="handoff_ready",
        current_owner=agent.name,
    )
    agent.says("Yes. What is it about, and how far did it get?")
    agent.call(
        "get_task",
        {
            "goal": "Login takes less than one second",
            "completed_steps": ["Measure", "Find the cause"],
            "remaining_steps": ["Fix it", "Measure again"],
        },
        task_id=TASK,
    )
    agent.says("I take it: now it is mine, and the answer is a brief to continue from.")
    agent.call(
        "claim_task",
        {
            "claim": {"how": "handoff", "from": "agent-a"},
            "task": {
                "status": "in_progress",
                "current_owner": agent.name,
                "resume_prompt": "DNS takes 2.6 of the 2.9 s. Cache the address in resolver.py.",
                "handoff": {"from_agent": "agent-a", "reason": "Context nearly full"},
                "dead_ends": ["A larger connection pool changes nothing"],
                "artifacts": [f"1: login.log (log, {len(LOG)} bytes)"],
            },
        },
        agent=agent.name,
    )
    agent.says("Let me see those measurements.")
    agent.call("get_task", {"text": LOG}, task_id=TASK, artifact=1)


def finish(agent: Agent) -> None:
    """Do what remains, and say so."""
    agent.says("I go on where agent-a stopped, and not through the dead end.")
    agent.call(
        "save_checkpoint",
        {"checkpoint": 4, "status": "in_progress", "current_owner": agent.name},
        task_id=TASK,
        agent=agent.name,
        completed_steps=["Fix it", "Measure again"],
        decisions=["Cache addresses for a minute: longer would outlive a failover"],
        test_results=[{"command": "time ./login", "status": "passed", "summary": "0.3 s"}],
    )
    agent.says("Login takes 0.3 seconds. Done.")
    agent.call("update_task", {"status": "done"}, task_id=TASK, status="done")
    agent.call(
        "get_task",
        {
            "status": "done",
            "completed_steps": ["Measure", "Find the cause", "Fix it", "Measure again"],
            "remaining_steps": [],
        },
        task_id=TASK,
    )


# --- An agent and its server --------------------------------------------------------------------------


class Agent:
    """An agent, here a script, and the only client of its own server."""

    def __init__(self, name: str, server: subprocess.Popen[str]) -> None:
        self.name = name
        self._server = server
        self._requests = 0

    def initialize(self) -> None:
        """Open the connection, as MCP demands before anything else; raises Unexpected."""
        client = {"name": self.name, "version": "1"}
        params = {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": client}
        self._request("initialize", params, {"protocolVersion": REVISION})
        self._send({"method": "notifications/initialized"})

    def says(self, thought: str) -> None:
        """Print what goes on in the agent."""
        print(f"\n{self.name}: {thought}")

    def call(self, tool: str, expected: JsonObject, **arguments: Any) -> None:
        """Call a tool and print the call and its answer; raises Unexpected for another one."""
        _show(tool, arguments)
        params = {"name": tool, "arguments": arguments}
        self._request("tools/call", params, {"isError": False, "structuredContent": expected})
        _show("answer", expected)

    def _request(self, method: str, params: JsonObject, expected: JsonObject) -> None:
        self._requests += 1
        self._send({"id": self._requests, "method": method, "params": params})
        answer = self._receive()
        if not _holds(answer, {"id": self._requests, "result": expected}):
            raise Unexpected(
                f"{self.name} sent {method} {json.dumps(params)}\n"
                f"    and expected {json.dumps(expected)},\n    but the answer is {json.dumps(answer)}"
            )

    def _send(self, message: JsonObject) -> None:
        try:
            print(json.dumps({"jsonrpc": "2.0", **message}), file=self._server.stdin, flush=True)
        except BrokenPipeError:
            raise Unexpected(f"{self.name}'s server is gone.") from None

    def _receive(self) -> Any:
        line = self._server.stdout.readline() if self._server.stdout else ""
        if not line:
            raise Unexpected(
                f"{self.name}'s server ended, or was ended after {PATIENCE} s, without an answer."
            )
        try:
            return json.loads(line)
        except ValueError:
            raise Unexpected(
                f"{self.name}'s server wrote a line that is no message: {line.strip()}"
            ) from None


@contextmanager
def at_work(name: str, folder: str) -> Iterator[Agent]:
    """Yield an agent whose server keeps all it has in `folder`; both end with the block."""
    print(f"\n=== {name} comes, and with it a server")
    server = subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(folder),
        encoding="utf-8",
    )
    watchdog = threading.Timer(PATIENCE, server.kill)
    watchdog.start()
    try:
        agent = Agent(name, server)
        agent.initialize()
        yield agent
    finally:
        server.communicate()  # closes its stdin, which is how a client says goodbye
        watchdog.cancel()
    if server.returncode != 0:
        raise Unexpected(f"{name}'s server ended with status {server.returncode}.")
    print(f"\n=== {name} is gone, and its server with it")


def _environment(folder: str) -> dict[str, str]:
    """Return this environment, without settings of a server that is in real use."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MCP_")}
    return {
        **inherited,
        "MCP_TASK_DB_PATH": os.path.join(folder, "tasks.db"),
        "MCP_TASK_ARTIFACTS_DIR": os.path.join(folder, "artifacts"),
    }


# --- What is expected, and how it is shown ------------------------------------------------------------


def _holds(answer: Any, expected: Any) -> bool:
    """Return whether `answer` is as expected; members that nobody asked for may be there as well."""
    if isinstance(expected, dict) and isinstance(answer, dict):
        return all(name in answer and _holds(answer[name], expected[name]) for name in expected)
    if isinstance(expected, list) and isinstance(answer, list):
        return len(answer) == len(expected) and all(map(_holds, answer, expected))
    return bool(answer == expected)


def _show(label: str, members: JsonObject) -> None:
    for name, value in members.items():
        for line in _lines(value):
            print(f"    {label:17}{name:17}{line}")
            label = name = ""


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict) and any(isinstance(member, dict | list) for member in value.values()):
        return [f"{name:17}{line}" for name, member in value.items() for line in _lines(member)]
    if isinstance(value, dict):
        return [", ".join(f"{name} {member}" for name, member in value.items())]
    if isinstance(value, list):
        return [line for entry in value for line in _lines(entry)] or ["(none)"]
    return ["(nobody)"] if value is None else str(value).splitlines()


def main() -> int:
    """Play both parts on one database, which is removed at the end; return the exit status."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            with at_work("agent-a", folder) as first:
                begin(first)
                investigate(first)
                hand_off(first)
            with at_work("agent-b", folder) as second:
                pick_up(second)
                finish(second)
    except Unexpected as surprise:
        print(f"\nThe handoff failed: {surprise}", file=sys.stderr)
        return 1
    print("\nThe task changed hands, and nothing was lost on the way.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
