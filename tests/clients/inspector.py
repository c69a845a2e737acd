"""The MCP Inspector's command line as a client: every request is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from .servers import DIRECT, DRIVER_SECONDS, TYPESCRIPT, Json

PROGRAM = TYPESCRIPT / "node_modules" / ".bin" / "mcp-inspector"
TOOL_FAILED = 5  # exit status: the answer is on standard output, a complaint beside it


class Inspector:
    """`mcp-inspector --cli` on one server, in one protocol era: legacy, its default, or auto."""

    def __init__(self, server: Json, era: str, home: Path) -> None:
        self._target = self._target_of(server)
        self._options = ["--cli", "--format", "json", "--protocol-era", era]
        self._environment = os.environ | DIRECT | {"HOME": str(home)}

    @staticmethod
    def _target_of(server: Json) -> list[str]:
        if "url" in server:
            return ["--server-url", server["url"]]  # its end tells the transport
        settings = [f"-e{name}={value}" for name, value in server["env"].items()]
        return [*settings, "--cwd", server["cwd"], "--", *server["command"]]

    def request(self, method: str, *arguments: str) -> Json:
        """Make a request that must succeed without a complaint and return its result."""
        status, result, complaint = self._run(method, *arguments)
        assert (status, complaint) == (0, ""), (method, status, complaint)
        return result

    def call(self, tool: str, **arguments: Any) -> Json:
        """Call a tool that must succeed and return its JSON object, which the text block repeats."""
        return _answer(self.request("tools/call", *_tool(tool, arguments)))

    def refused(self, tool: str, **arguments: Any) -> Json:
        """Call a tool that must be refused and return its error: code, message and hint."""
        status, result, complaint = self._run("tools/call", *_tool(tool, arguments))
        assert (status, result["isError"]) == (TOOL_FAILED, True), (status, result, complaint)
        error: Json = _answer(result)["error"]
        return error

    def _run(self, method: str, *arguments: str) -> tuple[int, Json, str]:
        ended = subprocess.run(
            [str(PROGRAM), *self._options, "--method", method, *arguments, *self._target],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=DRIVER_SECONDS,
        )
        assert ended.stdout, ended.stderr
        return ended.returncode, json.loads(ended.stdout)["result"], ended.stderr


def _tool(name: str, arguments: Json) -> list[str]:
    return ["--tool-name", name, "--tool-args-json", json.dumps(arguments)]


def _answer(result: Json) -> Json:
    answer: Json = json.loads(result["content"][0]["text"])
    assert result["structuredContent"] == answer, result
    return answer
