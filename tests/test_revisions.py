"""Every revision on every transport, method by method, against the official schemas.

The tables below are the protocol's own: which revision has which method, what its result is called in the
schema, and which error answers what. A result is validated twice: as the schema has it, and with every
object of it closed, so that nothing is sent that the revision does not know.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jsonschema.validators import validator_for  # type: ignore[import-untyped]
from support import (
    META,
    STATELESS,
    HttpServer,
    Listener,
    SseClient,
    StdioClient,
    enveloped,
    mirrored,
    request,
)

from config import RESOURCES_PAGE, SERVER_NAME

JsonObject = dict[str, Any]
HANDSHAKE = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
EVERY = (*HANDSHAKE, STATELESS)
WITHOUT_HEADER = "2025-03-26"  # older than the header; /mcp takes every request without one for its own
LINES = [(date, transport) for date in EVERY for transport in ("stdio", "sse", "mcp")]
CONNECTED = [line for line in LINES if line[1] != "mcp"]
SCHEMAS = Path(__file__).resolve().parent / "schema"


# --- The official schemas ---------------------------------------------------------------------------------


@cache
def schema(date: str, is_closed: bool) -> JsonObject:
    found: JsonObject = json.loads((SCHEMAS / f"{date}.json").read_text())
    return closed(found) if is_closed else found


def closed(part: Any) -> Any:
    """Return a part of a schema in which no object has a member that is not named."""
    if isinstance(part, list):
        return [closed(one) for one in part]
    if not isinstance(part, dict):
        return part
    shut = {name: one if name == "inputSchema" else closed(one) for name, one in part.items()}
    if "properties" in part and part.get("type") == "object":
        shut.setdefault("additionalProperties", False)
    return shut


@cache
def validator(date: str, definition: str, is_closed: bool = False) -> Any:
    whole = schema(date, is_closed)
    place = "$defs" if "$defs" in whole else "definitions"
    assert definition in whole[place]
    return validator_for(whole)({**whole, "$ref": f"#/{place}/{definition}"})


def error_definition(date: str) -> str:
    return "JSONRPCErrorResponse" if date >= "2025-11-25" else "JSONRPCError"


def check_result(date: str, method: str, message: JsonObject, definition: str) -> JsonObject:
    """Return the result of a response after holding it against everything that its revision says."""
    assert list(message) == ["jsonrpc", "id", "result"]
    envelope = "JSONRPCResultResponse" if date >= "2025-11-25" else "JSONRPCResponse"
    validator(date, envelope).validate(message)
    result: JsonObject = message["result"]
    validator(date, definition).validate(result)
    validator(date, definition, is_closed=True).validate(result)
    assert_no_null(result)
    assert_era(date, method, result)
    return result


def assert_no_null(value: Any) -> None:
    """Members that are optional are left out; structuredContent is the caller's own data."""
    members = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for name, member in members:
        assert member is not None, name
        if isinstance(member, dict | list) and name != "structuredContent":
            assert_no_null(member)


CACHED = {
    "server/discover": (3_600_000, "public"),
    "tools/list": (3_600_000, "public"),
    "prompts/list": (3_600_000, "public"),
    "resources/templates/list": (3_600_000, "public"),
    "resources/list": (0, "private"),
    "resources/read": (0, "private"),
}


def assert_era(date: str, method: str, result: JsonObject) -> None:
    """Hold what the stateless era demands of a result against what is there."""
    decoration = (result.get("resultType"), result.get("ttlMs"), result.get("cacheScope"))
    if date != STATELESS:
        assert decoration == (None, None, None)
        assert "_meta" not in result
        return
    assert decoration == ("complete", *CACHED.get(method, (None, None)))
    assert result["_meta"][META + "serverInfo"]["name"] == SERVER_NAME


def check_error(date: str, message: JsonObject, code: int) -> JsonObject:
    """Return the error of a response after holding it against its revision's schema."""
    assert list(message) == ["jsonrpc", "id", "error"]
    validator(date, error_definition(date)).validate(message)
    error: JsonObject = message["error"]
    assert error["code"] == code, error
    assert set(error) <= {"code", "message", "data"}
    assert_no_null(error)
    return error


# --- The lines: a revision on a transport -----------------------------------------------------------------


class Answer(NamedTuple):
    """What came back for a message; `status` is that of HTTP, at /mcp only."""

    status: int | None
    message: Any


class Line:
    """A client of one revision on one transport; `client` is its connection, if it has one."""

    def __init__(
        self,
        date: str,
        transport: str,
        exchange: Callable[[bytes, dict[str, str]], Answer],
        client: StdioClient | SseClient | None = None,
    ) -> None:
        self.date = date
        self.transport = transport
        self.is_stateless = date == STATELESS
        self.exchange = exchange
        self.client = client

    def message(self, method: str, params: JsonObject, request_id: int | str = 1) -> JsonObject:
        return request(method, enveloped(params) if self.is_stateless else params, request_id)

    def headers(self, message: JsonObject) -> dict[str, str]:
        """Return what a client of the revision sends beside a message at /mcp."""
        if self.is_stateless:
            return mirrored(message)
        return {} if self.date == WITHOUT_HEADER else {"MCP-Protocol-Version": self.date}

    def ask(self, method: str, params: JsonObject) -> Answer:
        message = self.message(method, params)
        return self.exchange(json.dumps(message).encode(), self.headers(message))

    def result(self, method: str, params: JsonObject, definition: str) -> JsonObject:
        """Ask for what must succeed."""
        status, message = self.ask(method, params)
        assert status == (200 if self.transport == "mcp" else None)
        return check_result(self.date, method, message, definition)

    def error(self, method: str, params: JsonObject, code: int) -> JsonObject:
        """Ask for what must be refused, with the HTTP status that goes with the code."""
        status, message = self.ask(method, params)
        error = check_error(self.date, message, code)
        refused = {-32601: 404}.get(code, 400) if self.is_stateless else 200
        assert status == (refused if self.transport == "mcp" else None)
        return error


def stdio_exchange(client: StdioClient) -> Callable[[bytes, dict[str, str]], Answer]:
    def exchange(raw: bytes, headers: dict[str, str]) -> Answer:
        client.send_raw(raw + b"\n")
        return Answer(None, client.receive())

    return exchange


def sse_exchange(client: SseClient) -> Callable[[bytes, dict[str, str]], Answer]:
    def exchange(raw: bytes, headers: dict[str, str]) -> Answer:
        status, body = client.post(raw)
        assert status == (400 if body else 202)
        return Answer(None, json.loads(body) if body else client.receive())

    return exchange


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fill a database: a task with artifacts, and more tasks than a page of resources holds."""
    folder = tmp_path_factory.mktemp("revisions")
    with StdioClient(folder) as client:
        client.initialize()
        for number in range(RESOURCES_PAGE):
            client.call("create_task", task_id=f"filler-{number}", title="Filler", goal="Fill a page")
        client.call("create_task", task_id="known", title="Known", goal="Be read")
        client.call("attach_artifact", task_id="known", name="run.log", type="log", content="ok\n")
        client.call("attach_artifact", task_id="known", name="bin", content="/wA=", encoding="base64")
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[HttpServer]:
    with HttpServer(folder) as service:
        yield service


@pytest.fixture(scope="module")
def lines(folder: Path, service: HttpServer) -> Iterator[dict[tuple[str, str], Line]]:
    """All lines, each on a connection of its own, after the handshake where there is one."""
    found = {}
    with ExitStack() as stack:
        for date, transport in LINES:
            if transport == "mcp":
                line = Line(date, transport, lambda raw, headers: Answer(*service.post(raw, headers)))
            elif transport == "sse":
                listening = SseClient(service)
                stack.callback(listening.close)
                line = Line(date, transport, sse_exchange(listening), listening)
            else:
                piped = stack.enter_context(StdioClient(folder))
                line = Line(date, transport, stdio_exchange(piped), piped)
            if not line.is_stateless:
                line.result("initialize", hello(date), "InitializeResult")
            found[date, transport] = line
        yield found


@pytest.fixture
def line(lines: dict[tuple[str, str], Line], request: pytest.FixtureRequest) -> Line:
    return lines[request.param]


def on(chosen: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """Run a test on each of the lines."""
    return pytest.mark.parametrize("line", chosen, indirect=True, ids=[f"{date}-{t}" for date, t in chosen])


def hello(date: str) -> JsonObject:
    client = {"name": "test", "version": "1"}
    return {"protocolVersion": date, "capabilities": {"roots": {}, "extensions": {}}, "clientInfo": client}


# --- Which revision has which method ----------------------------------------------------------------------


class Method(NamedTuple):
    """A method, parameters that are right for it, and what its result is called in the schema."""

    name: str
    params: JsonObject
    definition: str
    revisions: tuple[str, ...] = EVERY
    needs_connection: bool = False


def of_task(argument: str, value: str = "") -> JsonObject:
    return {"ref": {"type": "ref/prompt", "name": "wrap_up"}, "argument": {"name": argument, "value": value}}


TEMPLATE = {"type": "ref/resource", "uri": "task://{task_id}"}
METHODS = [
    Method("ping", {}, "EmptyResult", HANDSHAKE),
    Method("server/discover", {}, "DiscoverResult", (STATELESS,)),
    Method("tools/list", {}, "ListToolsResult"),
    Method("tools/call", {"name": "list_tasks"}, "CallToolResult"),
    Method("tools/call", {"name": "get_task", "arguments": {"task_id": "known"}}, "CallToolResult"),
    Method("resources/list", {}, "ListResourcesResult"),
    Method("resources/templates/list", {}, "ListResourceTemplatesResult"),
    Method("resources/read", {"uri": "task://known"}, "ReadResourceResult"),
    Method("resources/read", {"uri": "task://k%6Eown"}, "ReadResourceResult"),
    Method("resources/read", {"uri": "task://known/artifacts/1"}, "ReadResourceResult"),
    Method("resources/read", {"uri": "task://known/artifacts/2"}, "ReadResourceResult"),
    Method("resources/subscribe", {"uri": "task://known"}, "EmptyResult", HANDSHAKE[1:], True),
    Method("resources/unsubscribe", {"uri": "task://known"}, "EmptyResult", HANDSHAKE[1:], True),
    Method("prompts/list", {}, "ListPromptsResult"),
    Method(
        "prompts/get", {"name": "resume_task", "arguments": {"task_id": "known"}}, "GetPromptResult"
    ),
    Method("prompts/get", {"name": "wrap_up", "arguments": {"task_id": "known"}}, "GetPromptResult"),
    Method("completion/complete", of_task("task_id", "filler"), "CompleteResult"),
    Method("completion/complete", of_task("colour"), "CompleteResult"),
    Method("completion/complete", of_task("task_id", "none such"), "CompleteResult"),
    Method("completion/complete", of_task("task_id") | {"ref": TEMPLATE}, "CompleteResult"),
    Method("completion/complete", of_task("task_id") | {"context": {"arguments": {}}}, "CompleteResult"),
]  # fmt: skip


@on(LINES)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_is_served_by_the_revisions_that_have_it(line: Line, method: Method) -> None:
    """Each method has the result of its revision's schema, or does not exist."""
    if line.date in method.revisions and not (method.needs_connection and line.transport == "mcp"):
        result = line.result(method.name, method.params, method.definition)
        assert result == {} or method.definition != "EmptyResult"
    else:
        line.error(method.name, method.params, -32601)


@on(LINES)
@pytest.mark.parametrize(
    "method",
    [
        "logging/setLevel", "tasks/list", "tasks/get", "tasks/result", "tasks/cancel", "roots/list",
        "sampling/createMessage", "elicitation/create", "notifications/initialized", "Tools/list",
        "tools/list ", "tools", "rpc.discover", "nope", "n" * 10_000, "caf\u00e9",
    ],
)  # fmt: skip
def test_what_is_not_here_is_not_found(line: Line, method: str) -> None:
    """What this server lacks or did not advertise does not exist, whatever it looks like."""
    if line.transport == "mcp" and line.is_stateless and method != method.strip():
        line.error(method, {}, -32020)  # no header can say this
    else:
        line.error(method, {"level": "debug"}, -32601)


@on([line for line in LINES if line[0] != STATELESS])
def test_the_handshake_era_cannot_listen(line: Line) -> None:
    """subscriptions/listen belongs to the stateless era."""
    line.error("subscriptions/listen", {"notifications": {}}, -32601)


@on([line for line in LINES if line[0] == STATELESS])
def test_the_stateless_era_has_no_handshake(line: Line) -> None:
    """An enveloped initialize without a revision to negotiate is a method that does not exist."""
    line.error("initialize", {}, -32601)


# --- The handshake ----------------------------------------------------------------------------------------


def capabilities(date: str, transport: str) -> JsonObject:
    """Return what the server says of itself: the prompts and completions it has, and whether it can push."""
    pushes = date > "2024-11-05" and (transport != "mcp" or date == STATELESS)
    advertised: JsonObject = {
        "tools": {"listChanged": False},
        "resources": {"subscribe": pushes, "listChanged": date == STATELESS},
    }
    if date > "2024-11-05":
        advertised |= {"prompts": {"listChanged": False}, "completions": {}}
    return advertised


@on([line for line in LINES if line[0] != STATELESS])
def test_initialize_agrees_and_tells(line: Line) -> None:
    """A known revision is agreed to, also 2024-11-05 at /mcp; the rest is what that revision may know."""
    result = line.result("initialize", hello(line.date), "InitializeResult")
    assert result["protocolVersion"] == line.date
    assert result["capabilities"] == capabilities(line.date, line.transport)
    assert set(result["serverInfo"]) == {"name", "version"} | (
        {"title"} if line.date > "2025-03-26" else set()
    )
    assert ("instructions" in result) == (line.date > "2024-11-05")


@on([line for line in LINES if line[0] == "2025-11-25"])
@pytest.mark.parametrize("asked", ["2026-07-28", "2099-01-01", "2024-10-07", "1.0", "", "2025-06-18 "])
def test_an_unknown_revision_gets_the_newest_with_a_handshake(line: Line, asked: str) -> None:
    """A revision that cannot be agreed to is no error: the client may take the newest one or leave."""
    result = line.result("initialize", hello(asked), "InitializeResult")
    assert result["protocolVersion"] == "2025-11-25"


@on([line for line in LINES if line[0] == STATELESS])
def test_discover_names_every_revision(line: Line) -> None:
    """server/discover lists all revisions, the newest first, and what the server can do."""
    result = line.result("server/discover", {}, "DiscoverResult")
    assert result["supportedVersions"] == list(reversed(EVERY))
    assert result["capabilities"] == capabilities(line.date, line.transport)
    assert result["instructions"]


@pytest.mark.parametrize("transport", ["stdio", "sse"])
def test_a_2024_client_gets_the_exact_answer(folder: Path, service: HttpServer, transport: str) -> None:
    """The answer to a 2024-11-05 `initialize` is fixed byte for byte on the transports of its time."""
    asked = (
        b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2024-11-05",'
        b'"capabilities":{},"clientInfo":{"name":"c","version":"1"}}}'
    )
    answer = (
        '{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2024-11-05","capabilities":'
        '{"tools":{"listChanged":false},"resources":{"subscribe":false,"listChanged":false}},'
        '"serverInfo":{"name":"mcp-task-server","version":"1.0.0"}}}'
    )
    if transport == "stdio":
        with StdioClient(folder) as client:
            client.send_raw(asked + b"\n")
            assert client.receive_line().decode() == answer
        return
    listening = SseClient(service)
    try:
        assert listening.post(asked) == (202, b"")
        assert listening.event() == ("message", answer)
    finally:
        listening.close()


# --- Results ----------------------------------------------------------------------------------------------


def check_call(line: Line, tool: str, is_error: bool, **arguments: Any) -> JsonObject:
    """Call a tool; its answer is one text block, mirrored where the revision has a place for it."""
    result = line.result("tools/call", {"name": tool, "arguments": arguments}, "CallToolResult")
    assert result["isError"] is is_error
    [block] = result["content"]
    assert set(block) == {"type", "text"}
    answer: JsonObject = json.loads(block["text"])
    assert (result.get("structuredContent") == answer) == (line.date >= "2025-06-18")
    return answer


@on(LINES)
def test_the_life_of_a_task(line: Line) -> None:
    """Every tool's answer fits every revision, from the creation of a task to its end."""
    task = {"task_id": f"life-{line.date}-{line.transport}"}
    check_call(line, "create_task", False, **task, title="T\u00eft\u0142e \U0001f600", goal="Live")
    check_call(line, "save_checkpoint", False, **task, agent="a", remaining_steps=["one"])
    check_call(line, "attach_artifact", False, **task, name="x", content="x")
    check_call(line, "handoff_task", False, **task, from_agent="a", to_agent="any", reason="tired")
    check_call(line, "save_checkpoint", False, **task, agent="b", test_results=["ok"])
    check_call(line, "mark_exhausted", False, **task, agent="b", reason="quota")
    check_call(line, "update_task", False, **task, status="done")
    check_call(line, "get_task", False, **task, artifact=1)
    check_call(line, "get_task", False, **task, checkpoint=1)
    assert check_call(line, "get_task", False, **task)["status"] == "done"
    assert check_call(line, "list_tasks", False, query="T\u00eft\u0142e", limit=1)["total"] >= 1


@on(LINES)
@pytest.mark.parametrize(
    ("tool", "arguments", "code"),
    [
        ("get_task", {"task_id": "nowhere"}, "not_found"),
        ("get_task", {}, "invalid_arguments"),
        ("get_task", {"task_id": ["known"]}, "invalid_arguments"),
        ("get_task", {"task_id": "known", "taskid": "known"}, "invalid_arguments"),
        ("create_task", {"task_id": "known", "title": "Other", "goal": "Other"}, "conflict"),
        ("save_checkpoint", {"task_id": "filler-0", "agent": ""}, "invalid_arguments"),
        ("update_task", {"task_id": "known", "expected_version": 99, "title": "x"}, "conflict"),
    ],
)
def test_a_refused_call_is_a_result(line: Line, tool: str, arguments: JsonObject, code: str) -> None:
    """What a tool refuses, arguments included, is an answer that a model can read, in every revision."""
    assert check_call(line, tool, True, **arguments)["error"]["code"] == code


@on(LINES)
def test_a_tool_is_called_without_arguments(line: Line) -> None:
    """`arguments` may be left out, empty or null."""
    spellings: list[JsonObject] = [{}, {"arguments": {}}, {"arguments": None}]
    for params in spellings:
        result = line.result("tools/call", {"name": "list_tasks", **params}, "CallToolResult")
        assert result["isError"] is False


@on(LINES)
def test_resources_come_in_pages(line: Line) -> None:
    """A list has `nextCursor` while there is more, and every page of it fits the schema."""
    first = line.result("resources/list", {}, "ListResourcesResult")
    assert len(first["resources"]) == RESOURCES_PAGE
    rest = line.result("resources/list", {"cursor": first["nextCursor"]}, "ListResourcesResult")
    while "nextCursor" in rest:
        rest = line.result("resources/list", {"cursor": rest["nextCursor"]}, "ListResourcesResult")
    assert rest["resources"]


@on(LINES)
def test_members_arrive_with_their_revision(line: Line) -> None:
    """Annotations came in 2025-03, titles in 2025-06; older clients do not get them."""
    for method, name in [
        ("tools/list", "tools"),
        ("resources/list", "resources"),
        ("resources/templates/list", "resourceTemplates"),
        ("prompts/list", "prompts"),
    ]:
        definition = f"List{name[0].upper()}{name[1:]}Result"
        entries = line.result(method, {}, definition)[name]
        assert entries
        assert all(entry["description"] for entry in entries)
        assert {"title" in entry for entry in entries} == {line.date >= "2025-06-18"}
        has_annotations = name == "tools" and line.date >= "2025-03-26"
        assert {"annotations" in entry for entry in entries} == {has_annotations}


@on(LINES)
def test_lists_do_not_depend_on_the_connection(line: Line, lines: dict[tuple[str, str], Line]) -> None:
    """A revision's fixed lists are the same on all of its transports, in the same order."""
    for method, _, definition in [method[:3] for method in METHODS if method.name.endswith("/list")]:
        if method != "resources/list":
            here = line.result(method, {}, definition)
            assert here == lines[line.date, "stdio"].result(method, {}, definition)


# --- Errors -----------------------------------------------------------------------------------------------


REFERRED = {"argument": {"name": "task_id", "value": ""}}
BAD_PARAMS = [
    ("tools/call", {}),
    ("tools/call", {"name": 1}),
    ("tools/call", {"name": None, "arguments": {}}),
    ("tools/call", {"name": "no_such_tool"}),
    ("tools/call", {"name": "GET_TASK", "arguments": {}}),
    ("tools/call", {"name": "caf\u00e9"}),
    ("tools/call", {"name": "list_tasks", "arguments": []}),
    ("tools/call", {"name": "list_tasks", "arguments": "{}"}),
    ("tools/list", {"cursor": "x"}),
    ("tools/list", {"cursor": ""}),
    ("tools/list", {"cursor": 1}),
    ("resources/list", {"cursor": "x"}),
    ("resources/list", {"cursor": "-1"}),
    ("resources/list", {"cursor": ["x"]}),
    ("resources/templates/list", {"cursor": "x"}),
    ("resources/read", {}),
    ("resources/read", {"uri": 1}),
    ("resources/read", {"uri": ""}),
    ("resources/read", {"uri": "known"}),
    ("resources/read", {"uri": "task://"}),
    ("resources/read", {"uri": "task://{task_id}"[:7]}),
    ("resources/read", {"uri": "task://known/artifacts/0"}),
    ("resources/read", {"uri": "task://known?x"}),
    ("resources/read", {"uri": "file:///etc/passwd"}),
    ("prompts/list", {"cursor": "x"}),
    ("prompts/get", {}),
    ("prompts/get", {"name": 1}),
    ("prompts/get", {"name": "no_such_prompt"}),
    ("prompts/get", {"name": "wrap_up"}),
    ("prompts/get", {"name": "wrap_up", "arguments": {}}),
    ("prompts/get", {"name": "wrap_up", "arguments": {"task_id": 1}}),
    ("prompts/get", {"name": "wrap_up", "arguments": "known"}),
    ("prompts/get", {"name": "wrap_up", "arguments": {"task_id": "known", "colour": "red"}}),
    ("completion/complete", {}),
    ("completion/complete", REFERRED),
    ("completion/complete", REFERRED | {"ref": {"type": "ref/prompt", "name": "no_such_prompt"}}),
    ("completion/complete", REFERRED | {"ref": {"type": "ref/resource", "uri": "file:///{path}"}}),
    ("completion/complete", REFERRED | {"ref": {"type": "ref/tool", "name": "get_task"}}),
    ("completion/complete", REFERRED | {"ref": "wrap_up"}),
    ("completion/complete", {"ref": TEMPLATE}),
    ("completion/complete", {"ref": TEMPLATE, "argument": {"name": "task_id"}}),
    ("completion/complete", {"ref": TEMPLATE, "argument": {"name": 1, "value": ""}}),
    ("completion/complete", {"ref": TEMPLATE, "argument": []}),
]  # fmt: skip
NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}


def cannot_be_mirrored(line: Line, method: str, params: JsonObject) -> bool:
    """Return whether no header can repeat what the stateless era wants repeated."""
    is_checked = line.transport == "mcp" and line.is_stateless and method in NAMED
    return is_checked and not isinstance(params.get(NAMED.get(method, "")), str)


@on(LINES)
@pytest.mark.parametrize(("method", "params"), BAD_PARAMS, ids=json.dumps)
def test_bad_params_are_refused(line: Line, method: str, params: JsonObject) -> None:
    """Parameters that are wrong have one code everywhere, a bad cursor and an unknown name among them."""
    line.error(method, params, -32020 if cannot_be_mirrored(line, method, params) else -32602)


@on([line for line in LINES if line[0] != STATELESS])
@pytest.mark.parametrize("version", [None, 20250618, ["2025-06-18"], {}])
def test_initialize_needs_a_revision(line: Line, version: Any) -> None:
    """What is to be negotiated must be named, by a string."""
    line.error("initialize", hello("") | {"protocolVersion": version}, -32602)


@on([line for line in CONNECTED if "2024-11-05" < line[0] < STATELESS])
@pytest.mark.parametrize("method", ["resources/subscribe", "resources/unsubscribe"])
def test_only_a_uri_can_be_watched(line: Line, method: str) -> None:
    """resources/subscribe and its opposite need the URI of a resource of ours."""
    for params in ({}, {"uri": 1}, {"uri": None}):
        line.error(method, params, -32602)
    line.error("resources/subscribe", {"uri": "nothing of ours"}, -32602)


@on([line for line in LINES if line[0] == STATELESS])
@pytest.mark.parametrize(
    "notifications",
    [
        None, [], "task://known", 1,
        {"resourceSubscriptions": "task://known"},
        {"resourceSubscriptions": ["task://known", 1]},
        {"resourceSubscriptions": ["nothing of ours"]},
        {"resourcesListChanged": "yes"},
        {"resourcesListChanged": 1},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_only_a_filter_can_be_listened_to(line: Line, notifications: Any) -> None:
    """subscriptions/listen needs a filter; an error comes as plain JSON, before there is a stream."""
    line.error("subscriptions/listen", {"notifications": notifications}, -32602)


@on(LINES)
@pytest.mark.parametrize("uri", ["task://nowhere", "task://known/artifacts/9", "task://k%2Fn"])
def test_a_missing_resource_is_named(line: Line, uri: str) -> None:
    """Nothing at a URI: the code is the era's, and the data tell clients which URI it was."""
    error = line.error("resources/read", {"uri": uri}, -32602 if line.is_stateless else -32002)
    assert error["data"] == {"uri": uri}


@on([line for line in LINES if line[0] == STATELESS])
@pytest.mark.parametrize("asked", ["2025-11-25", "2025-03-26", "2026-07-29", "", "DRAFT"])
def test_another_revision_cannot_be_named(line: Line, asked: str) -> None:
    """A revision that is not served in this form is refused with those that are."""
    message = request("tools/list", enveloped(version=asked))
    status, answer = line.exchange(json.dumps(message).encode(), mirrored(message))
    assert status == (400 if line.transport == "mcp" else None)
    error = check_error(line.date, answer, -32022)
    assert error["data"] == {"supported": list(reversed(EVERY)), "requested": asked}
    validator(line.date, "UnsupportedProtocolVersionError").validate(answer)


def test_a_header_that_differs_has_its_own_error(lines: dict[tuple[str, str], Line]) -> None:
    """The error for headers that contradict the body has the form that the schema gives it."""
    line = lines[STATELESS, "mcp"]
    message = line.message("tools/list", {})
    status, answer = line.exchange(
        json.dumps(message).encode(), line.headers(message) | {"Mcp-Method": "ping"}
    )
    assert status == 400
    check_error(line.date, answer, -32020)
    validator(line.date, "HeaderMismatchError").validate(answer)


@on(LINES)
@pytest.mark.parametrize("params", [[], "x", 1, True])
def test_params_must_be_an_object(line: Line, params: Any) -> None:
    """Parameters by position are refused, under the request's id."""
    message = request("ping", {}, "p") | {"params": params}
    headers = line.headers(line.message("ping", {}))
    status, answer = line.exchange(json.dumps(message).encode(), headers)
    assert answer["id"] == "p"
    check_error(line.date, answer, -32602)
    assert status == (None if line.transport != "mcp" else 400 if line.is_stateless else 200)


UNREADABLE = [
    (b"{", -32700),
    (b"\xff", -32700),
    (b'{"a":1,"a":2}', -32700),
    (b"null", -32600),
    (b"1", -32600),
    (b"{}", -32600),
    (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","params":{}}', -32600),
]


@on(LINES)
@pytest.mark.parametrize(("raw", "code"), UNREADABLE, ids=repr)
def test_what_cannot_be_read_is_refused_without_id(line: Line, raw: bytes, code: int) -> None:
    """An error for no request has the id null, which JSON-RPC demands; otherwise it fits the schema."""
    status, answer = line.exchange(raw, line.headers(line.message("ping", {})))
    assert status == (400 if line.transport == "mcp" else None)
    assert answer.pop("id") is None
    named = answer if line.date >= "2025-11-25" else {"id": 0, **answer}
    validator(line.date, error_definition(line.date)).validate(named)
    assert answer["error"]["code"] == code


@on(LINES)
@pytest.mark.parametrize("request_id", [0, -1, "", "0", "\u00e9\n", 2**53])
def test_an_id_comes_back_as_it_was(line: Line, request_id: int | str) -> None:
    """Every string and integer is an id, and keeps its type."""
    message = line.message("tools/list", {}, request_id)
    _, answer = line.exchange(json.dumps(message).encode(), line.headers(message))
    assert (answer["id"], type(answer["id"])) == (request_id, type(request_id))
    check_result(line.date, "tools/list", answer, "ListToolsResult")


# --- Batches ----------------------------------------------------------------------------------------------


@on(LINES)
def test_batches_belong_to_one_revision(line: Line) -> None:
    """At 2025-03-26 an array is answered by an array, elsewhere by one error."""
    batch = [
        line.message("ping", {}, "a"),
        line.message("nope", {}, "b"),
        line.message("tools/list", {}, 0),
        line.message("initialize", hello(line.date), "c"),
    ]
    status, answer = line.exchange(json.dumps(batch).encode(), line.headers(line.message("ping", {})))
    if line.date != "2025-03-26":
        assert status == (400 if line.transport == "mcp" else None)
        assert answer["error"]["code"] == -32600
        assert answer["id"] is None
        return
    assert status == (200 if line.transport == "mcp" else None)
    validator("2025-03-26", "JSONRPCBatchResponse").validate(answer)
    by_id = {one["id"]: one for one in answer}
    assert len(answer) == 4
    assert by_id["a"] == {"jsonrpc": "2.0", "id": "a", "result": {}}
    check_error("2025-03-26", by_id["b"], -32601)
    check_result("2025-03-26", "tools/list", by_id[0], "ListToolsResult")
    check_error("2025-03-26", by_id["c"], -32600)


# --- Notifications ----------------------------------------------------------------------------------------


def check_notification(date: str, message: JsonObject, definition: str) -> JsonObject:
    """Return the params of a notification after holding it against its revision's schema."""
    assert list(message) == ["jsonrpc", "method", "params"]
    validator(date, "JSONRPCNotification").validate(message)
    validator(date, definition).validate(message)
    assert_no_null(message)
    params: JsonObject = message["params"]
    return params


def create(service: HttpServer, task_id: str) -> None:
    """Make a task by way of somebody else's connection."""
    arguments = {"task_id": task_id, "title": task_id, "goal": "Be heard of"}
    _, answer = service.post(request("tools/call", {"name": "create_task", "arguments": arguments}))
    assert answer["result"]["isError"] is False


@on([line for line in CONNECTED if "2024-11-05" < line[0] < STATELESS])
def test_an_update_says_the_uri_and_no_more(line: Line, service: HttpServer) -> None:
    """A legacy subscriber gets the notification of its revision, without the marks of the next era."""
    assert line.client is not None
    uri = f"task://watched-{line.date}-{line.transport}"
    assert line.result("resources/subscribe", {"uri": uri}, "EmptyResult") == {}
    create(service, uri.removeprefix("task://"))
    params = check_notification(line.date, line.client.receive(), "ResourceUpdatedNotification")
    assert params == {"uri": uri}
    assert line.result("resources/unsubscribe", {"uri": uri}, "EmptyResult") == {}


MARK = {"_meta": {META + "subscriptionId": "L"}}


@pytest.mark.parametrize("transport", ["stdio", "sse", "mcp"])
def test_the_frames_of_a_listen_fit_the_schema(folder: Path, transport: str) -> None:
    """From the acknowledgement to the last response, each frame is the schema's and bears the id."""
    notifications = {"resourcesListChanged": True, "resourceSubscriptions": [f"task://heard-{transport}"]}
    listen = request("subscriptions/listen", enveloped({"notifications": notifications}), "L")
    client: StdioClient | SseClient | Listener
    with HttpServer(folder) as service, ExitStack() as stack:
        if transport == "stdio":
            client = stack.enter_context(StdioClient(folder))
            client.send(listen)
        elif transport == "sse":
            client = SseClient(service)
            stack.callback(client.close)
            client.send(listen)
        else:
            client = Listener(service, notifications, "L")
            stack.callback(client.close)
        acknowledged = check_notification(
            STATELESS, client.receive(), "SubscriptionsAcknowledgedNotification"
        )
        assert acknowledged == MARK | {"notifications": notifications}
        create(service, f"heard-{transport}")
        updated = check_notification(STATELESS, client.receive(), "ResourceUpdatedNotification")
        assert updated == MARK | {"uri": f"task://heard-{transport}"}
        listed = check_notification(STATELESS, client.receive(), "ResourceListChangedNotification")
        assert listed == MARK
        (client if isinstance(client, StdioClient) else service).terminate()
        answer = client.receive()
    validator(STATELESS, "SubscriptionsListenResultResponse").validate(answer)
    result = check_result(STATELESS, "subscriptions/listen", answer, "SubscriptionsListenResult")
    assert (answer["id"], result["_meta"][META + "subscriptionId"]) == ("L", "L")
