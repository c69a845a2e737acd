"""What a scenario needs of an SDK, and the checks that every answer of the server must pass.

An SDK is adapted by making a `Session` of its client; a scenario sees only the `Agent` around it.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters, stdio_client
from pydantic import BaseModel

Json = dict[str, Any]

STRUCTURED_CONTENT_SINCE = "2025-06-18"
ERROR_CODES = {
    "invalid_arguments",
    "not_found",
    "conflict",
    "not_owner",
    "invalid_state",
    "too_large",
    "busy",
    "storage_error",
}


@dataclass(frozen=True)
class StdioServer:
    """A server for the client to spawn; its standard error goes to the file `stderr`."""

    command: list[str]
    env: dict[str, str]
    cwd: str
    stderr: str


@dataclass(frozen=True)
class SseServer:
    """A running service, by the URL of its event stream."""

    url: str


Server = StdioServer | SseServer


@dataclass(frozen=True)
class Session:
    """One connected client: the revision it negotiated and its functions for five requests."""

    revision: str
    list_tools: Callable[[], Awaitable[BaseModel]]
    call_tool: Callable[[str, Json], Awaitable[BaseModel]]
    list_resources: Callable[[str | None], Awaitable[BaseModel]]
    list_resource_templates: Callable[[], Awaitable[BaseModel]]
    read_resource: Callable[[str], Awaitable[BaseModel]]


Connect = Callable[[Server], AbstractAsyncContextManager[Session]]


@asynccontextmanager
async def transport(server: Server) -> AsyncIterator[Any]:
    """Open the SDK's transport to the server and yield its two streams."""
    if isinstance(server, SseServer):
        async with sse_client(server.url) as streams:
            yield streams
        return
    command, *args = server.command
    parameters = StdioServerParameters(command=command, args=args, env=server.env, cwd=server.cwd)
    with open(server.stderr, "w", encoding="utf-8") as stderr:
        async with stdio_client(parameters, errlog=stderr) as streams:
            yield streams


def as_sent(result: BaseModel) -> Json:
    """Return the members that the server sent, under their names on the wire."""
    return result.model_dump(mode="json", by_alias=True, exclude_unset=True)


class UnexpectedAnswerError(Exception):
    """An answer was not what the scenario asks for; the text says which and how."""


def expect(got: object, want: object, what: str) -> None:
    """Raise UnexpectedAnswerError, naming `what`, unless `got` equals `want`."""
    if got != want:
        raise UnexpectedAnswerError(f"{what}: expected {want!r}, got {got!r}")


def expect_true(condition: bool, what: str) -> None:
    """Raise UnexpectedAnswerError, naming `what`, unless the condition holds."""
    if not condition:
        raise UnexpectedAnswerError(f"not so: {what}")


class Agent:
    """A named agent on one session; every answer is checked before it is used."""

    def __init__(self, name: str, session: Session, server: Server) -> None:
        self.name = name
        self.session = session
        self.server = server

    async def call(self, tool: str, **arguments: Any) -> Json:
        """Call a tool that must succeed and return its JSON object."""
        answer, failed = await self._call(tool, arguments)
        expect_true(not failed, f"{self.name}: {tool} succeeds, its answer is {answer}")
        return answer

    async def refused(self, tool: str, **arguments: Any) -> Json:
        """Call a tool that must be refused and return its error: code, message and hint."""
        answer, failed = await self._call(tool, arguments)
        expect_true(failed, f"{self.name}: {tool} is refused, its answer is {answer}")
        expect(set(answer), {"error"}, f"{tool}: keys of a refusal")
        error: Json = answer["error"]
        expect(set(error), {"code", "message", "hint"}, f"{tool}: keys of an error")
        expect_true(error["code"] in ERROR_CODES, f"{tool}: {error['code']} is a known code")
        expect_true(bool(error["message"] and error["hint"]), f"{tool}: {error} explains itself")
        return error

    async def _call(self, tool: str, arguments: Json) -> tuple[Json, bool]:
        """Call a tool; return the object in its one text block, and whether it is an error."""
        result = as_sent(await self.session.call_tool(tool, arguments))
        blocks = result["content"]
        expect([block["type"] for block in blocks], ["text"], f"{tool}: content blocks")
        answer: Json = json.loads(blocks[0]["text"])
        expect(type(answer), dict, f"{tool}: type of the JSON in the text block")
        failed: bool = result.get("isError", False)
        # An error may go without structured content; what is there must equal the text.
        if "structuredContent" in result or not failed:
            mirrored = self.session.revision >= STRUCTURED_CONTENT_SINCE
            structured = result.get("structuredContent")
            expect(structured, answer if mirrored else None, f"{tool}: structured content")
        return answer, failed

    async def tools(self) -> list[str]:
        """Return the names of the tools, sorted."""
        listed = as_sent(await self.session.list_tools())
        return sorted(tool["name"] for tool in listed["tools"])

    async def resources(self) -> dict[str, Json]:
        """Return the resources, all pages of them, by URI."""
        listed: dict[str, Json] = {}
        cursor: str | None = None
        while True:
            page = as_sent(await self.session.list_resources(cursor))
            listed |= {resource["uri"]: resource for resource in page["resources"]}
            if (cursor := page.get("nextCursor")) is None:
                return listed

    async def templates(self) -> list[str]:
        """Return the URI templates of the resources."""
        listed = as_sent(await self.session.list_resource_templates())
        return [template["uriTemplate"] for template in listed["resourceTemplates"]]

    async def read(self, uri: str) -> Json:
        """Read a resource and return its only content."""
        contents: list[Json] = as_sent(await self.session.read_resource(uri))["contents"]
        expect([content["uri"] for content in contents], [uri], "resources/read: uri")
        return contents[0]
