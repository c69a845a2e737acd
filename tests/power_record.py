"""Servers that are recorded while they work, and what was told to their clients when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from power_audit import Acknowledged
from power_disk import Kind, Operation
from power_trace import Recorder, Timed
from support import JsonObject, StdioClient, stdio


class Recording(NamedTuple):
    """What all servers did to the disk, in order; and where in it which call was acknowledged."""

    root: str
    place: str  # below the root, where the database is
    operations: list[Operation]
    acknowledged: dict[int, Acknowledged]


class _Server(NamedTuple):
    client: StdioClient
    log: Path
    calls: list[Acknowledged]


class Stage:
    """A folder in which recorded servers share a database. Use it within a `with` block of each server."""

    def __init__(self, folder: Path, recorder: Recorder, place: str = "") -> None:
        """Have the servers keep everything in `place` below an empty folder."""
        self.folder = folder.resolve()
        self._root = self.folder / "disk"
        self._root.mkdir()
        self._recorder = recorder
        self._place = place
        self.state = self._root / place
        self._servers: dict[StdioClient, _Server] = {}

    def start(self, change: str = "") -> StdioClient:
        """Start a server on what there is; `change` is a prelude of its own."""
        log = self.folder / f"operations-{len(self._servers)}"
        prelude = self._recorder.prelude(str(self._root), log) + change
        settings = {
            "MCP_TASK_DB_PATH": str(self.state / "tasks.db"),
            "MCP_TASK_ARTIFACTS_DIR": str(self.state / "artifacts"),
        }
        client = stdio(self.folder, prelude=prelude, **settings)
        self._servers[client] = _Server(client, log, [])
        return client

    def call(self, client: StdioClient, tool: str, **arguments: Any) -> JsonObject:
        """Make a call that writes, and must succeed."""
        answer = client.call(tool, **arguments)
        self._servers[client].calls.append(Acknowledged(tool, arguments, answer))
        return answer

    def kill(self, client: StdioClient) -> None:
        """End a server with SIGKILL, once its last answer is recorded, of which the next answer is proof."""
        client.result("ping")
        client.kill()

    def recording(self) -> Recording:
        """Return what was recorded, once all servers have ended."""
        timed: list[tuple[Timed, Acknowledged | None]] = []
        for server in self._servers.values():
            calls = iter(server.calls)
            read = self._recorder.read(str(self._root), server.log)
            timed += [(one, next(calls) if _is_tool_answer(one[1]) else None) for one in read]
            assert next(calls, None) is None, "an answer was not recorded"
        timed.sort(key=lambda pair: pair[0][0])
        told = {number: one for number, (_, one) in enumerate(timed) if one is not None}
        return Recording(str(self._root), self._place, [operation for (_, operation), _ in timed], told)


def _is_tool_answer(operation: Operation) -> bool:
    return operation.kind is Kind.ANSWER and "isError" in json.loads(operation.data).get("result", {})
