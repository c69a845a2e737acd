"""What is measured: a server's commands, and the calls that stand for a write and a read."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

JsonObject = dict[str, Any]
Command = tuple[str, ...]

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SERVER = os.path.join(PROJECT, "server.py")
SETTINGS = {"MCP_TASK_DB_PATH": "{folder}/tasks.db", "MCP_TASK_ARTIFACTS_DIR": "{folder}/artifacts"}
PROSE_CHARACTERS = 300
_TEXT = (
    "the agent found a null check missing in the login handler and wrote a test that fails before the fix "
    "then moved on to the session store where two writers could race on one row of the queue"
)
_WORDS = _TEXT.split()


class Failed(Exception):
    """A server did not do as it should. It ends the run: no failure is ever timed as something fast."""


@dataclass(frozen=True)
class Call:
    """A tool and its arguments as JSON, in which {i} stands for a task's number and {prose} for some text."""

    tool: str
    template: str

    def parameters(self, number: int) -> JsonObject:
        """Return the `params` of this call for task `number`; raises ValueError if they are no JSON."""
        filled = self.template.replace("{i}", str(number)).replace("{prose}", prose(number))
        return {"name": self.tool, "arguments": json.loads(filled)}


def prose(number: int) -> str:
    """Return PROSE_CHARACTERS of words, the same ones for the same number."""
    step = 1 + number % 7
    picked = [_WORDS[(number * 31 + place * step) % len(_WORDS)] for place in range(PROSE_CHARACTERS // 2)]
    return " ".join(picked)[:PROSE_CHARACTERS].strip()


WRITE = Call("create_task", '{"task_id": "task-{i}", "title": "Fix login bug number {i}", "goal": "{prose}"}')
READ = Call("get_task", '{"task_id": "task-{i}"}')


@dataclass(frozen=True)
class Contender:
    """A server by its commands, one for each transport that it has; {folder} and {port} are filled in."""

    name: str
    stdio: Command
    http: Command = ()
    sse: Command = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    write: Call = WRITE
    read: Call = READ
    has_calls: bool = True  # else it is only started, and its tools are listed
    is_ours: bool = False

    def environment(self, folder: str) -> dict[str, str]:
        """Return the environment in which it keeps all it has in `folder`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MCP_")}
        own = {**SETTINGS, **self.settings}
        return inherited | {name: value.replace("{folder}", folder) for name, value in own.items()}


_SERVICE = (sys.executable, SERVER, "--http", "--port", "{port}")
OURS = Contender("mcp-task-server", (sys.executable, SERVER), _SERVICE, _SERVICE, is_ours=True)
