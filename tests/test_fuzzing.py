"""Every method and every tool with whatever may be said to it, on every wire of both eras.

Each request gets one response, which is as its revision's schema has it and blames the client, never the
server; what was refused has changed nothing; and bytes of any kind leave the server as it was.
"""

from __future__ import annotations

import base64
import http.client
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fuzzing import needs_proc, unharmed
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    META,
    PATIENCE,
    STATELESS,
    HttpServer,
    JsonObject,
    SseClient,
    StdioClient,
    create,
    enveloped,
    request,
    stdio,
)
from test_revisions import METHODS, check_error, check_result, error_definition, validator

import dispatcher
import methods
from config import LIST_ENTRIES, TEXT_BYTES
from tool_list import list_tools

HANDSHAKE = "2025-11-25"
PROTOCOL_CODES = {-32600, -32601, -32602, -32002, -32020, -32022}  # -32603 would be a fault of the server
TOOL_CODES = {
    "invalid_arguments", "not_found", "conflict", "not_owner", "invalid_state", "too_large"
}  # fmt: skip
DEFINITIONS = {method.name: method.definition for method in METHODS} | {"initialize": "InitializeResult"}
TASKS = [f"task-{number}" for number in range(4)]
WATCHED = "watched"  # by a client that never stops
SHORT_WAITS = "import config\nconfig.CLAIM_WAIT_SECONDS = 0.05\n"
SHORT, FULL = 100, 3000  # examples for each wire


# --- What is said -----------------------------------------------------------------------------------------

NASTY = st.sampled_from(
    [
        "", " ", "\0", "a\0b", "\x1f", "\x7f\x85", "\u2028", "\ufeff", "\U0010ffff", "e\u0301", "\r\nX: 1",
        "'; DROP TABLE tasks; --", "%", "_", '"', "*", "NEAR(", "AND", "../../etc/passwd", "/dev/zero", "%00",
        "task://", "task://task-0", "task://task-0/artifacts/1", "[" * 500, '["a"]', '{"a":1}', "null",
        "1e999", "x" * (TEXT_BYTES + 1), "é" * 200, "-1", "9" * 40,
    ]
)  # fmt: skip
TEXT = st.text(max_size=30) | NASTY
INTEGERS = st.sampled_from([-(2**63), -1, 0, 1, 2, 5, 2**31, 2**53 + 1, 2**63 - 1]) | st.integers(-3, 200)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | INTEGERS
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
) | st.just(["x"] * (LIST_ENTRIES + 1))
NAMES = st.sampled_from(["x", "task_id", "_meta", "__class__", "agent ", "\0", "é"])
TEST_RUNS = st.fixed_dictionaries({}, optional={"command": TEXT, "status": TEXT, "summary": TEXT})
OF_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "string": TEXT, "integer": INTEGERS, "number": NUMBERS, "boolean": st.booleans(),
}  # fmt: skip
OF_NAME: dict[str, st.SearchStrategy[Any]] = {
    "task_id": st.sampled_from(TASKS),
    "agent": st.sampled_from(["alice", "bob"]),
    "from_agent": st.sampled_from(["alice", "bob"]),
    "to_agent": st.sampled_from(["alice", "bob", "any"]),
    "path": st.sampled_from([".", "tasks.db", "artifacts", "readable.txt", "/etc/passwd", "/dev/zero"]),
    "content": st.binary(max_size=30).map(lambda content: base64.b64encode(content).decode()) | TEXT,
}


def mostly(
    good: st.SearchStrategy[Any], other: st.SearchStrategy[Any], one_in: int = 12
) -> st.SearchStrategy[Any]:
    """Return one that now and then draws from `other`."""
    return st.integers(1, one_in).flatmap(lambda die: other if die == 1 else good)


def of_schema(name: str, schema: JsonObject) -> st.SearchStrategy[Any]:
    """Return what an argument may be that is not wrong at first sight."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if name in OF_NAME:
        return OF_NAME[name]
    if schema["type"] == "array":
        entries = TEST_RUNS if schema["items"]["type"] == "object" else TEXT
        return st.lists(entries, max_size=3)
    return OF_TYPE[schema["type"]]


def arguments_of(tool: JsonObject) -> st.SearchStrategy[JsonObject]:
    schema = tool["inputSchema"]
    members = {name: mostly(of_schema(name, one), JUNK) for name, one in schema["properties"].items()}
    required = {name: members.pop(name) for name in schema["required"]} if "required" in schema else {}
    known = st.fixed_dictionaries(required, optional=members)
    return mostly(known, st.tuples(known, st.dictionaries(NAMES, JUNK)).map(lambda two: two[0] | two[1]))


TOOL_CALLS = st.one_of(
    [
        st.fixed_dictionaries({"name": st.just(tool["name"]), "arguments": mostly(arguments_of(tool), JUNK)})
        for tool in list_tools()
    ]
)
URIS = st.sampled_from(["task://task-0", "task://t%61sk-1", "task://no/artifacts/0", "file:///etc/passwd"])
REFS = st.sampled_from(
    [{"type": "ref/prompt", "name": "wrap_up"}, {"type": "ref/resource", "uri": "task://{task_id}"}]
)
ARGUMENTS = st.fixed_dictionaries({"name": st.just("task_id") | TEXT, "value": TEXT})
PARAMS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "initialize": {"protocolVersion": st.just(HANDSHAKE)},  # any other would change what follows
    "resources/list": {"cursor": TEXT},
    "resources/read": {"uri": URIS},
    "resources/subscribe": {"uri": URIS},
    "resources/unsubscribe": {"uri": URIS},
    "prompts/get": {
        "name": st.sampled_from(["resume_task", "wrap_up"]),
        "arguments": st.dictionaries(st.just("task_id"), mostly(st.sampled_from(TASKS), JUNK)),
    },
    "completion/complete": {"ref": REFS, "argument": ARGUMENTS},
}
KNOWN = {
    HANDSHAKE: sorted({*dispatcher._HANDSHAKE_METHODS, *methods._HANDSHAKE_METHODS}),
    STATELESS: sorted({*dispatcher._STATELESS_METHODS, *methods._STATELESS_METHODS}),
}
UNKNOWN = st.from_regex(r"[a-z]{1,9}(/[a-z]{1,9})?", fullmatch=True).filter(
    lambda method: not any(method in known for known in KNOWN.values())
)
STREAMS = "subscriptions/listen"  # answered by a stream: its refusals only can be told by a response


def params_of(method: str) -> st.SearchStrategy[JsonObject]:
    if method == "tools/call":
        return TOOL_CALLS
    if method == STREAMS:
        return st.fixed_dictionaries({}, optional={"notifications": st.none() | TEXT | st.lists(JUNK)})
    named = {name: mostly(good, JUNK, one_in=3) for name, good in PARAMS.get(method, {}).items()}
    return st.fixed_dictionaries(
        named, optional={name: JUNK for name in ("cursor", "x") if name not in named}
    )


def calls(date: str) -> st.SearchStrategy[tuple[str, JsonObject]]:
    """Return calls of what a revision has, every other one of a tool, and some of what it has not."""
    to_tools = st.tuples(st.just("tools/call"), TOOL_CALLS)
    known = st.sampled_from(KNOWN[date]).flatmap(lambda method: st.tuples(st.just(method), params_of(method)))
    unknown = st.tuples(UNKNOWN, st.dictionaries(NAMES, JUNK, max_size=3))
    return st.booleans().flatmap(lambda is_tool: to_tools if is_tool else mostly(known, unknown))


METAS = st.dictionaries(st.sampled_from(["progressToken", "x/y", META + "junk", ""]), JUNK, max_size=2)
MEMBERS = st.sampled_from(["jsonrpc", "id", "method", "params", "result", "error", "x"])
MESSAGES = st.dictionaries(MEMBERS, JUNK | st.just("2.0") | st.just("ping")) | JUNK | st.lists(JUNK)


# --- How it is said ---------------------------------------------------------------------------------------


class Wire:
    """A client of one revision; requests are told apart by their ids, which are never used twice."""

    def __init__(self, process: HttpServer | StdioClient, date: str) -> None:
        self.process = process
        self.date = date
        self._ids = count(1)
        self.seen: Counter[str] = Counter()

    def ask(self, method: str, params: JsonObject) -> JsonObject:
        """Send a request and return its response; nothing but notifications may come before it."""
        request_id = f"fuzz-{next(self._ids)}"
        if self.date == STATELESS:
            meta = params.get("_meta")
            own = meta if isinstance(meta, dict) else {}
            params = {**params, "_meta": {**own, **enveloped()["_meta"]}}
        response = self.exchange(request(method, params, request_id))
        assert response["id"] == request_id, response
        return response

    def exchange(self, message: JsonObject) -> JsonObject:
        raise NotImplementedError

    def say(self, raw: bytes) -> list[Any]:
        """Send bytes of any kind and return what is answered."""
        raise NotImplementedError

    def harmless(self) -> JsonObject:
        """Return a request that every revision serves."""
        return request("tools/list", enveloped() if self.date == STATELESS else {}, "harmless")

    def next_response(self, client: StdioClient | SseClient) -> Any:
        """Return the next message that is a response, and hold all others against the schema."""
        while "method" in (message := client.receive()):
            assert "id" not in message
            validator(self.date, "ServerNotification").validate(message)
        return message

    def up_to_fence(self, client: StdioClient | SseClient) -> list[Any]:
        """Return the responses that come before that to a request of our own."""
        fence = self.harmless() | {"id": f"fence-{next(self._ids)}"}
        answers = []
        answer = self.exchange(fence)
        while not (isinstance(answer, dict) and answer["id"] == fence["id"]):
            answers.append(answer)
            answer = self.next_response(client)
        return answers


class PipeWire(Wire):
    """STDIO, in either era."""

    def __init__(self, client: StdioClient, date: str) -> None:
        super().__init__(client, date)
        self._client = client

    def exchange(self, message: JsonObject) -> JsonObject:
        self._client.send(message)
        return self.next_response(self._client)  # type: ignore[no-any-return]

    def say(self, raw: bytes) -> list[Any]:
        self._client.send_raw(raw + b"\n")
        return self.up_to_fence(self._client)


class HttpWire(Wire):
    """Posts, one after the other on a connection that is kept."""

    def __init__(self, process: HttpServer, date: str) -> None:
        super().__init__(process, date)
        self._connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=PATIENCE)

    def post(self, path: str, raw: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        """Return the status and what the body says, if there is one."""
        self._connection.request("POST", path, raw, {"Content-Type": "application/json", **headers})
        with self._connection.getresponse() as response:
            body = response.read()
            return response.status, json.loads(body) if body else None

    def close(self) -> None:
        self._connection.close()


class StreamWire(HttpWire):
    """HTTP+SSE: what is posted on one connection is answered on the stream in this order."""

    def __init__(self, process: HttpServer, client: SseClient) -> None:
        super().__init__(process, HANDSHAKE)
        self._client = client

    def exchange(self, message: JsonObject) -> JsonObject:
        assert self.post(self._client.endpoint, json.dumps(message).encode(), {}) == (202, None)
        return self.next_response(self._client)  # type: ignore[no-any-return]

    def say(self, raw: bytes) -> list[Any]:
        status, refusal = self.post(self._client.endpoint, raw, {})
        assert status == (202 if refusal is None else 400)
        return ([] if refusal is None else [refusal]) + self.up_to_fence(self._client)


class PostWire(HttpWire):
    """Streamable HTTP at /mcp, in either era."""

    def exchange(self, message: JsonObject) -> JsonObject:
        status, response = self.post("/mcp", json.dumps(message).encode(), self._headers(message))
        assert status in (200, 400, 404)
        return response  # type: ignore[no-any-return]

    def _headers(self, message: JsonObject) -> dict[str, str]:
        headers = {"MCP-Protocol-Version": self.date}
        if self.date == STATELESS:
            headers["Mcp-Method"] = message["method"]
            name = message["params"].get("uri" if message["method"] == "resources/read" else "name")
            if isinstance(name, str) and len(name) < 1000:
                headers["Mcp-Name"] = f"=?base64?{base64.b64encode(name.encode()).decode()}?="
        return headers

    def say(self, raw: bytes) -> list[Any]:
        status, answer = self.post("/mcp", raw, self._headers(self.harmless()))
        assert status in (200, 202, 400, 404)
        return [] if answer is None else [answer]


WIRES = ["stdio", "stdio stateless", "sse", "mcp", "mcp stateless"]


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[Wire]:
    """Yield a wire of the kind to a server of its own that has some tasks."""
    (folder / "readable.txt").write_text("to be attached")
    with stdio(folder) as client:
        for task_id in [*TASKS, WATCHED]:
            create(client, task_id)
    if kind.startswith("stdio"):
        with StdioClient(folder, prelude=SHORT_WAITS) as client:
            wire = PipeWire(client, STATELESS if "stateless" in kind else HANDSHAKE)
            if wire.date == HANDSHAKE:
                client.initialize(HANDSHAKE)
            yield wire
        return
    with HttpServer(folder, prelude=SHORT_WAITS) as process:
        if kind == "sse":
            with closing(SseClient(process)) as listener, closing(StreamWire(process, listener)) as streamed:
                listener.initialize(HANDSHAKE)
                yield streamed
        else:
            with closing(PostWire(process, STATELESS if "stateless" in kind else HANDSHAKE)) as poster:
                yield poster


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Wire]:
    with opened(request.param, tmp_path) as wire:
        yield wire


class Bystander:
    """Another process on the database, which sees whether anything is committed."""

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "tasks.db", timeout=PATIENCE)

    def version(self) -> int:
        """Return a number that changes with every commit of another connection."""
        found: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
        return found

    def close(self) -> None:
        self._connection.close()


# --- What must come of it ---------------------------------------------------------------------------------


def check(wire: Wire, method: str, response: JsonObject) -> bool:
    """Hold a response against everything that may be expected of it; return whether it is a refusal."""
    if "error" in response:
        code = response["error"]["code"]
        assert code in PROTOCOL_CODES, response
        check_error(wire.date, response, code)
        wire.seen["error"] += 1
        return True
    result = check_result(wire.date, method, response, DEFINITIONS[method])
    if not result.get("isError", False):
        wire.seen["result"] += 1
        return False
    refusal = json.loads(result["content"][0]["text"])
    assert refusal == result["structuredContent"]
    assert set(refusal["error"]) == {"code", "message", "hint"}
    assert refusal["error"]["code"] in TOOL_CODES
    assert all(refusal["error"].values())
    wire.seen["refusal"] += 1
    return True


def call_everything(wire: Wire, examples: int, is_repeatable: bool) -> None:
    """Make so many calls, of all methods and tools."""
    read_only = {tool["name"] for tool in list_tools() if tool["annotations"]["readOnlyHint"]}

    @settings(max_examples=examples, derandomize=is_repeatable)
    @given(calls(wire.date), METAS)
    def call(call: tuple[str, JsonObject], meta: JsonObject) -> None:
        method, params = call
        version = bystander.version()
        response = wire.ask(method, {**params, "_meta": meta} if meta else params)
        is_refused = check(wire, method, response)
        may_write = method == "tools/call" and params["name"] not in read_only
        assert bystander.version() == version or (may_write and not is_refused)

    with closing(Bystander(wire.process.folder)) as bystander:
        call()


def say_anything(wire: Wire, examples: int, is_repeatable: bool) -> None:
    """Say so many things that are no requests, or no longer."""
    whole = json.dumps(wire.harmless()).encode()
    original = st.sampled_from([whole, whole[:-1] + b"\n" + whole, b"[" + whole + b"," + whole + b"]"])
    spoilt = st.tuples(original, st.integers(0), st.integers(0, 5), st.binary(max_size=4)).map(
        lambda drawn: spoil(*drawn)
    )
    raw = spoilt | st.binary(max_size=100) | MESSAGES.map(lambda value: json.dumps(value).encode())

    @settings(max_examples=examples, derandomize=is_repeatable)
    @given(raw)
    def say(raw: bytes) -> None:
        answers = wire.say(raw)
        assert len(answers) <= raw.count(b"\n") + 1
        for answer in answers:
            if "error" in answer:
                assert answer["error"]["code"] in PROTOCOL_CODES | {-32700}, answer
                # JSON-RPC's null where no id could be read; MCP's schemas do not know of it.
                known = answer if answer["id"] is not None else {**answer, "id": 0}
                validator(wire.date, error_definition(wire.date)).validate(known)
            wire.seen["unserved" if "error" in answer else "served"] += 1

    say()


def spoil(message: bytes, at: int, cut: int, inserted: bytes) -> bytes:
    """Return a message that has other bytes in place of some of its own."""
    at %= len(message)
    return message[:at] + inserted + message[at + cut :]


def fuzz(wire: Wire, examples: int, is_repeatable: bool = False) -> None:
    make_what_is_kept(wire)
    outcomes = {call_everything: {"result", "refusal", "error"}, say_anything: {"served", "unserved"}}
    for treat, expected in outcomes.items():
        treat(wire, 20, True)
        wire.seen.clear()
        with unharmed(wire.process, lambda: wire.ask("tools/list", {})):
            treat(wire, examples, is_repeatable)
        assert set(wire.seen) == expected, wire.seen


def make_what_is_kept(wire: Wire) -> None:
    """Have the server open what it opens once: its lock files, and the watch over a task."""
    wire.ask("tools/call", {"name": "claim_task", "arguments": {"task_id": WATCHED, "agent": "alice"}})
    wire.ask("resources/subscribe", {"uri": f"task://{WATCHED}"})


@needs_proc
def test_whatever_is_asked_is_answered(wire: Wire) -> None:
    """Calls of all methods and tools, and bytes of any kind, are answered rightly and change nothing else."""
    fuzz(wire, SHORT, is_repeatable=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_proc
def test_whatever_is_asked_is_answered_at_length(wire: Wire) -> None:
    """The same as the short test, thousands of times and with other calls each time."""
    fuzz(wire, FULL)
