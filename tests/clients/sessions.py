"""What a scenario needs of an SDK, and the checks that every answer of the server must pass.

An SDK is adapted by making a `Session` of its client; a scenario sees only the `Agent` around it.
"""

import asyncio
import json
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import ErrorData, PromptReference, ResourceTemplateReference
from pydantic import BaseModel

Json = dict[str, Any]

STRUCTURED_CONTENT_SINCE = "2025-06-18"
STATELESS_SINCE = "2026-07-28"
HEARD_SECONDS = 5
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
class Service:
    """A running service, by the URL of one of its endpoints: /sse or /mcp."""

    url: str

    @property
    def is_streamable(self) -> bool:
        """Whether the endpoint is that of Streamable HTTP."""
        return self.url.endswith("/mcp")


Server = StdioServer | Service
Reference = PromptReference | ResourceTemplateReference
# Waits for the next resource that was updated and returns its URI.
NextUpdate = Callable[[], Awaitable[str]]


@dataclass(frozen=True)
class Session:
    """One connected client: what it negotiated, its functions for eight requests, and for watching."""

    revision: str
    capabilities: Json
    list_tools: Callable[[], Awaitable[BaseModel]]
    call_tool: Callable[[str, Json], Awaitable[BaseModel]]
    list_resources: Callable[[str | None], Awaitable[BaseModel]]
    list_resource_templates: Callable[[], Awaitable[BaseModel]]
    read_resource: Callable[[str], Awaitable[BaseModel]]
    list_prompts: Callable[[], Awaitable[BaseModel]]
    get_prompt: Callable[[str, dict[str, str]], Awaitable[BaseModel]]
    complete: Callable[[Reference, dict[str, str]], Awaitable[BaseModel]]
    watch: Callable[[str], AbstractAsyncContextManager[NextUpdate]]


Connect = Callable[[Server], AbstractAsyncContextManager[Session]]


class Inbox:
    """What a client of the handshake era is told unasked."""

    def __init__(self) -> None:
        self._updated: asyncio.Queue[str] = asyncio.Queue()

    async def take(self, message: object) -> None:
        """Keep the URI of an updated resource; a fault that the SDK hands on is a complaint."""
        if not isinstance(message, BaseModel):
            print(f"the SDK could not read a message: {message!r}", file=sys.stderr)
            return
        notification = as_sent(message)
        if notification["method"] == "notifications/resources/updated":
            self._updated.put_nowait(notification["params"]["uri"])

    async def next_update(self) -> str:
        """Wait for an update and return the URI of what was updated."""
        return await self._updated.get()


@asynccontextmanager
async def subscription(client: Any, uri: str, inbox: Inbox) -> AsyncIterator[NextUpdate]:
    """Subscribe a `ClientSession` of the handshake era to a resource."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 2.x deprecates what only this era has
        await client.subscribe_resource(uri)
        yield inbox.next_update
        await client.unsubscribe_resource(uri)


@asynccontextmanager
async def transport(server: Server) -> AsyncIterator[Any]:
    """Open the SDK's transport to the server and yield its two streams."""
    if isinstance(server, Service):
        opened: Any = streamable_http_client(server.url) if server.is_streamable else sse_client(server.url)
        async with opened as (read, write, *_):  # 1.x adds a function
            yield read, write
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

    async def misses(self, uri: str) -> None:
        """Read a resource that is not there: the error names it, with the code of the era."""
        try:
            content = await self.read(uri)
        except UnexpectedAnswerError:
            raise
        except Exception as failure:  # each SDK has a class of its own
            error = as_sent(getattr(failure, "error", None) or ErrorData(code=0, message=repr(failure)))
        else:
            raise UnexpectedAnswerError(f"{uri} is there: {content}")
        code = -32602 if self.session.revision >= STATELESS_SINCE else -32002
        expect((error["code"], error.get("data")), (code, {"uri": uri}), f"the error for {uri}, {error}")

    async def prompts(self) -> dict[str, Json]:
        """Return the prompts by name."""
        listed = as_sent(await self.session.list_prompts())
        return {prompt["name"]: prompt for prompt in listed["prompts"]}

    async def prompt(self, name: str, **arguments: str) -> str:
        """Get a prompt, which must be one message of the user, and return its text."""
        messages = as_sent(await self.session.get_prompt(name, arguments))["messages"]
        shape = [(message["role"], message["content"]["type"]) for message in messages]
        expect(shape, [("user", "text")], f"prompts/get: messages of {name}")
        text: str = messages[0]["content"]["text"]
        return text

    async def completions(self, ref: Reference, name: str, value: str) -> list[str]:
        """Complete the value of an argument and return the values it can become, of which all are here."""
        found = as_sent(await self.session.complete(ref, {"name": name, "value": value}))["completion"]
        expect((found["total"], found["hasMore"]), (len(found["values"]), False), "completion/complete")
        values: list[str] = found["values"]
        return values

    @asynccontextmanager
    async def watching(self, uri: str) -> AsyncIterator[None]:
        """Watch a resource, which must be updated inside the block: the client hears of it, if it can at all.

        It cannot where the handshake era meets Streamable HTTP without sessions, and must be told so.
        """
        streamable = isinstance(self.server, Service) and self.server.is_streamable
        can_watch = self.session.revision >= STATELESS_SINCE or not streamable
        expect(self.session.capabilities["resources"]["subscribe"], can_watch, "resources.subscribe")
        if not can_watch:
            yield
            return
        async with self.session.watch(uri) as next_update:
            yield
            try:
                heard = await asyncio.wait_for(next_update(), HEARD_SECONDS)
            except TimeoutError:
                heard = f"nothing within {HEARD_SECONDS} s"
            expect(heard, uri, f"what {self.name} heard of")

    async def read(self, uri: str) -> Json:
        """Read a resource and return its only content."""
        contents: list[Json] = as_sent(await self.session.read_resource(uri))["contents"]
        expect([content["uri"] for content in contents], [uri], "resources/read: uri")
        return contents[0]
