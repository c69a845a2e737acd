"""JSON-RPC and MCP as facts: strict JSON, messages, error codes, revisions, batches, the dispatcher."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import PROJECT

import dispatcher as dispatching
import errors
import tools
from config import BATCH_MESSAGES, JSON_DEPTH
from dispatcher import Dispatcher
from methods import TaskMethods
from protocol import (
    META_CAPABILITIES,
    META_SERVER,
    META_VERSION,
    REVISIONS,
    SERVER_INFO,
    SUPPORTED_DATES,
    HeaderMismatch,
    InternalError,
    InvalidParams,
    InvalidRequest,
    JsonObject,
    MethodNotFound,
    Notification,
    ParseError,
    Peer,
    Request,
    ResourceNotFound,
    Revision,
    RpcError,
    UnsupportedVersion,
    adapt,
    adapt_error,
    encode_text,
    http_status,
    negotiate,
    notification_message,
    parse_json,
    read_message,
    result_message,
)
from store import Store
from tools import Tool, Workplace

OLDEST, WITH_BATCHES, *_, NEWEST, STATELESS = REVISIONS  # NEWEST is the newest that has a handshake
HANDSHAKES = REVISIONS[:-1]
Ask = Callable[..., Any]


@pytest.fixture
def dispatcher(tmp_path: Path) -> Iterator[Dispatcher]:
    """Serve an empty store, without a transport."""
    (tmp_path / "artifacts").mkdir()
    store = Store(str(tmp_path / "tasks.db"), str(tmp_path / "artifacts"))
    yield Dispatcher(lambda _: TaskMethods(Workplace(store)))
    store.close()


@pytest.fixture
def ask(dispatcher: Dispatcher) -> Ask:
    """Ask the dispatcher at a revision (None: before `initialize`); None where it says nothing."""

    def ask(message: Any, revision: Revision | None = NEWEST) -> Any:
        peer = connected(None if revision is STATELESS else revision)
        raw = message if isinstance(message, bytes) else json.dumps(in_era(message, revision)).encode()
        body = dispatcher.handle(raw, peer).body
        return json.loads(body) if body else None

    return ask


def connected(revision: Revision | None = None) -> Peer:
    """Return a connection at a revision; the server may send nothing on it unasked."""
    peer = Peer(unexpected, "a")
    peer.revision = revision
    return peer


def unexpected(message: bytes) -> None:
    raise AssertionError(f"sent unasked: {message!r}")


def in_era(message: Any, revision: Revision | None) -> Any:
    """Return a request as the stateless era writes it, in its envelope; any other message as it is."""
    if revision is not STATELESS or not isinstance(message, dict) or "id" not in message:
        return message
    if not isinstance(message.get("params", {}), dict):
        return message
    return {**message, "params": {**message.get("params", {}), "_meta": ENVELOPE}}


ENVELOPE: JsonObject = {META_VERSION: STATELESS.date, META_CAPABILITIES: {}}


def request(method: str, request_id: int | str = 1, **params: Any) -> JsonObject:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


def notification(method: str, **members: Any) -> JsonObject:
    return {"jsonrpc": "2.0", "method": method, **members}


# --- Strict JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"{}", {}),
        (b' [1, 2.5, "x", null, true, false] \r\n', [1, 2.5, "x", None, True, False]),
        (b'{"a":{"b":1},"c":{"b":2}}', {"a": {"b": 1}, "c": {"b": 2}}),
        (b'"\\u00e9\\n"', "é\n"),
        ('"é😀\u2028"'.encode(), "é😀\u2028"),
        (b'"\\ud83d\\ude00"', "😀"),
        (b'"\\uD83D\\uDE00 and \\\\ud800"', "😀 and \\ud800"),
        (b"9223372036854775807", 2**63 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b"1e308", 1e308),
        (b"-0.0", 0.0),
        (b"[" * JSON_DEPTH + b"]" * JSON_DEPTH, None),
        (b'{"a":' * JSON_DEPTH + b"1" + b"}" * JSON_DEPTH, None),
        (b'"' + b"[" * 1000 + b'"', "[" * 1000),
        (b"[" + b"[]," * 1000 + b"[]]", [[]] * 1001),
    ],
)
def test_json_is_read(raw: bytes, value: Any) -> None:
    """What RFC 8259 allows, up to 64-bit integers and JSON_DEPTH, is read as it is."""
    assert value is None or parse_json(raw) == value
    parse_json(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"   ",
        b"nul",
        b"{} {}",
        b"[1,]",
        b"{'a':1}",
        b'{"a":1,}',
        b"// note\n{}",
        b"01",
        b"+1",
        b".5",
        b"0x10",
        b"NaN",
        b"[Infinity]",
        b'{"a":-Infinity}',
        b"1e999",
        b"-1e999",
        b'{"a":1,"a":1}',
        b'[{"a":{"b":1,"b":2}}]',
        b'{"\\u0061":1,"a":2}',
        b'"\\ud800"',
        b'"\\uDC00"',
        b'"\\ude00\\ud83d"',
        b'"\\ud83dx"',
        b'{"\\udfff":1}',
        b'{"a":["\\uD83D"]}',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b'"\xc0\xaf"',
        b'"cut \xe2\x82"',
        b"9223372036854775808",
        b"-9223372036854775809",
        b"1" * 5000,
        b"-" + b"9" * 100_000,
        b"[" * (JSON_DEPTH + 1) + b"]" * (JSON_DEPTH + 1),
        b'{"a":' * (JSON_DEPTH + 1) + b"1" + b"}" * (JSON_DEPTH + 1),
        b'[{"a":' * 33 + b"1" + b"}]" * 33,
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-16-le"),
        '{"a":1}'.encode("utf-32"),
        b'"a\nb"',
        b'"a\tb"',
        b'"a\x00b"',
        b'"a\x1fb"',
        b"\x00{}",
        b"{}\x0b",
        b"\xc2\xa0{}",
        b'"\\x41"',
        b'"open',
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_json_is_refused(raw: bytes) -> None:
    """What is no JSON, or what two parsers could read differently, is one short -32700."""
    with pytest.raises(ParseError) as refusal:
        parse_json(raw)
    assert 0 < len(refusal.value.message) < 200


def test_no_depth_breaks_the_parser() -> None:
    """Nesting of any depth around an escaped surrogate pair is a value or a ParseError, nothing else."""
    for depth in range(1, 3000):
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            raw = opening * depth + b'"\\ud83d\\ude00"' + closing * depth
            if depth <= JSON_DEPTH:
                parse_json(raw)
            else:
                with pytest.raises(ParseError):
                    parse_json(raw)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(json_values)
def test_what_is_written_is_read_back(value: Any) -> None:
    """A message is one line of printable ASCII that our own strict parser reads as the same value."""
    encoded = result_message(0, {"value": value})
    assert all(0x20 <= byte < 0x7F for byte in encoded)
    assert parse_json(encoded)["result"] == {"value": value}
    assert parse_json(notification_message("n", {"value": value}))["params"] == {"value": value}


@settings(deadline=None)
@given(json_values)
def test_text_inside_a_message_is_read_back(value: Any) -> None:
    """JSON for a model is compact and not escaped, and survives the message that it travels in."""
    text = encode_text(value)
    assert json.loads(parse_json(result_message(0, {"text": text}))["result"]["text"]) == value
    assert text == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@settings(deadline=None)
@given(st.binary(max_size=40) | st.text('[]{}",:\\ud8e019.- tnf', max_size=40).map(str.encode))
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    """Any bytes at all are either a value or a ParseError."""
    with contextlib.suppress(ParseError):
        parse_json(raw)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_constant_leaves_the_server(value: float) -> None:
    """What is no JSON is never written."""
    for encode in (encode_text, lambda inner: result_message(0, inner)):
        with pytest.raises(ValueError, match="not JSON compliant"):
            encode({"a": value})


# --- Messages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", [0, 1, -1, "", "a", "0", 2**63 - 1, -(2**63), "é\n😀"])
def test_an_id_is_any_string_or_integer(ask: Ask, request_id: int | str) -> None:
    """0 and "" are ids too, and every id comes back as it was, with its JSON type."""
    message = {"jsonrpc": "2.0", "id": request_id, "method": "ping"}
    assert read_message(message) == Request(request_id, "ping", {})
    answer = ask(message)
    assert answer == {"jsonrpc": "2.0", "id": request_id, "result": {}}
    assert type(answer["id"]) is type(request_id)


@pytest.mark.parametrize("request_id", [None, True, False, 1.0, 1.5, [], [1], {}, "a\0b"])
def test_no_id_is_anything_else(ask: Ask, request_id: Any) -> None:
    """Null, booleans, fractions, containers and a NUL make no id: -32600 under id null."""
    answer = ask({"jsonrpc": "2.0", "id": request_id, "method": "ping"})
    assert answer["id"] is None
    assert answer["error"]["code"] == -32600


@pytest.mark.parametrize(
    ("members", "code", "answered_id"),
    [
        ({"jsonrpc": "1.0"}, -32600, 7),
        ({"jsonrpc": 2.0}, -32600, 7),
        ({"jsonrpc": None}, -32600, 7),
        ({"method": 5}, -32600, 7),
        ({"method": None}, -32600, 7),
        ({"method": ["ping"]}, -32600, 7),
        ({"params": []}, -32602, 7),
        ({"params": "x"}, -32602, 7),
        ({"params": 0}, -32602, 7),
        ({"params": False}, -32602, 7),
    ],
)
def test_a_broken_request_is_refused_under_its_id(
    ask: Ask, members: JsonObject, code: int, answered_id: int
) -> None:
    """A request whose other members are wrong is refused under the id that it has."""
    answer = ask({"jsonrpc": "2.0", "id": 7, "method": "ping", **members})
    assert (answer["id"], answer["error"]["code"]) == (answered_id, code)


def test_a_request_without_version_is_refused(ask: Ask) -> None:
    """A missing `jsonrpc` is no JSON-RPC 2.0."""
    assert ask({"id": 7, "method": "ping"})["error"]["code"] == -32600


@pytest.mark.parametrize("params", [None, {}])
def test_absent_and_null_params_are_no_params(params: Any) -> None:
    """`params` may be left out, null or empty."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": params}
    assert read_message(message) == Request(1, "ping", {})


@pytest.mark.parametrize("value", ["ping", 1, None, True, {}, {"jsonrpc": "2.0"}, {"params": {}}])
def test_what_is_no_message_is_refused_without_id(ask: Ask, value: Any) -> None:
    """JSON that is no message at all is -32600 under id null."""
    answer = ask(value)
    assert answer["id"] is None
    assert answer["error"]["code"] == -32600


@pytest.mark.parametrize(
    "response",
    [
        {"jsonrpc": "2.0", "id": 1, "result": {}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": "m"}},
        {"jsonrpc": "2.0", "id": None, "error": {"code": -1, "message": "m"}},
        {"jsonrpc": "2.0", "result": {}},
        {"jsonrpc": "2.0", "error": {"code": -1, "message": "m"}},
    ],
)
@pytest.mark.parametrize("revision", [None, *HANDSHAKES])
def test_responses_are_dropped(ask: Ask, response: JsonObject, revision: Revision | None) -> None:
    """Nobody here asked anything, so a response is never answered."""
    assert ask(response, revision) is None


BROKEN_NOTIFICATIONS: list[JsonObject] = [
    notification("notifications/initialized"),
    notification("notifications/cancelled", params={"requestId": {"un": ["hashable"]}}),
    notification("notifications/cancelled", params=[1]),
    notification("notifications/progress", params=None),
    notification("notifications/nonsense", params="x"),
    notification("no/such/method"),
    notification("initialize"),
    notification("tools/call", params={"name": 5}),
    notification("resources/read", params={"uri": "task://none"}),
    notification(""),
    {"method": "ping"},
    {"jsonrpc": "1.0", "method": "ping"},
    notification("notifications/initialized", result={}),
]


@pytest.mark.parametrize("message", BROKEN_NOTIFICATIONS, ids=json.dumps)
@pytest.mark.parametrize("revision", [None, *HANDSHAKES])
def test_notifications_are_never_answered(ask: Ask, message: JsonObject, revision: Revision | None) -> None:
    """A message without an id is not answered, however broken it is, and the next request is."""
    assert ask(message, revision) is None
    assert ask(request("ping"), revision)["result"] == {}


def test_a_notification_has_its_method_and_params() -> None:
    """A notification keeps what it said; params of another kind count as none."""
    assert read_message(notification("n", params={"a": 1})) == Notification("n", {"a": 1})
    assert read_message(notification("n", params=[1])) == Notification("n", {})


def test_a_response_holds_its_three_members_only(ask: Ask) -> None:
    """Results and errors carry jsonrpc, id and one of result and error: strict clients hang on more."""
    assert list(ask(request("tools/list"))) == ["jsonrpc", "id", "result"]
    refused = ask(request("nonsense"))
    assert list(refused) == ["jsonrpc", "id", "error"]
    assert list(refused["error"]) == ["code", "message"]


# --- Error codes ----------------------------------------------------------------------------------------


def test_rpc_codes_are_those_of_the_documents() -> None:
    """Each error class has the code that JSON-RPC 2.0 or MCP assigns to it, and there are no others."""
    expected: dict[type[RpcError], int] = {
        ParseError: -32700,
        InvalidRequest: -32600,
        MethodNotFound: -32601,
        InvalidParams: -32602,
        InternalError: -32603,
        ResourceNotFound: -32002,
        HeaderMismatch: -32020,
        UnsupportedVersion: -32022,
    }
    assert {kind: kind.code for kind in RpcError.__subclasses__()} == expected


def test_tool_codes_are_those_of_the_design() -> None:
    """The codes that a model meets are these eight, one per class."""
    codes = [kind.code for kind in errors.ToolError.__subclasses__()]
    assert codes == [
        "invalid_arguments",
        "not_found",
        "conflict",
        "not_owner",
        "invalid_state",
        "too_large",
        "busy",
        "storage_error",
    ]


def test_every_refusal_has_a_code() -> None:
    """The two families are all that derives from Refusal."""
    assert set(errors.Refusal.__subclasses__()) == {errors.ToolError, RpcError}


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"{", -32700),
        (b"[]", -32600),
        (request("no/such/method"), -32601),
        (request("Ping"), -32601),
        (request("tools/call"), -32602),
        (request("tools/call", name=5), -32602),
        (request("tools/call", name="no_such_tool"), -32602),
        (request("tools/call", name="list_tasks", arguments=[]), -32602),
        (request("tools/call", name="list_tasks", arguments="{}"), -32602),
        (request("tools/list", cursor="x"), -32602),
        (request("tools/list", cursor=5), -32602),
        (request("resources/templates/list", cursor="x"), -32602),
        (request("resources/list", cursor="nonsense"), -32602),
        (request("resources/list", cursor={}), -32602),
        (request("resources/read"), -32602),
        (request("resources/read", uri=5), -32602),
        (request("resources/read", uri="no uri"), -32602),
        (request("resources/read", uri="task://none"), -32002),
        (request("initialize"), -32602),
        (request("initialize", protocolVersion=20250618), -32602),
        (request("initialize", protocolVersion=None), -32602),
    ],
    ids=lambda value: str(value)[:70],
)
@pytest.mark.parametrize("revision", REVISIONS, ids=lambda revision: revision.date)
def test_each_fault_has_its_code(ask: Ask, message: Any, code: int, revision: Revision) -> None:
    """Each way to get a request wrong has one code in each era, and a message of one line."""
    if revision is STATELESS and isinstance(message, dict):
        code = -32601 if message["method"] == "initialize" else -32602 if code == -32002 else code
    error = ask(message, revision)["error"]
    assert error["code"] == code
    assert error["message"]
    assert "\n" not in error["message"]


UNKNOWN_METHODS = ["logging/setLevel", "tasks/list", "notifications/initialized", "", "x" * 100_000]
OF_HANDSHAKES = ["initialize", "ping", "resources/subscribe", "resources/unsubscribe"]
OF_THE_STATELESS = ["server/discover", "subscriptions/listen"]


@pytest.mark.parametrize(
    ("method", "revision"),
    [
        *((method, revision) for method in UNKNOWN_METHODS for revision in REVISIONS),
        *((method, revision) for method in OF_THE_STATELESS for revision in HANDSHAKES),
        *((method, STATELESS) for method in OF_HANDSHAKES),
        ("resources/subscribe", OLDEST),
        ("resources/unsubscribe", OLDEST),
    ],
    ids=lambda value: value.date if isinstance(value, Revision) else value[:24],
)
def test_what_was_not_advertised_is_not_found(ask: Ask, method: str, revision: Revision) -> None:
    """A method that a revision does not have, or was not told of, is -32601, in a short message."""
    error = ask(request(method, uri="task://t"), revision)["error"]
    assert error["code"] == -32601
    assert len(error["message"]) < 200


@pytest.mark.parametrize(
    "method", ["prompts/list", "tools/list", "resources/list", "resources/templates/list"]
)
@pytest.mark.parametrize("revision", REVISIONS, ids=lambda revision: revision.date)
def test_every_revision_has_the_lists(ask: Ask, method: str, revision: Revision) -> None:
    """What can be listed can be listed at every revision, and a cursor of another kind is refused."""
    assert "result" in ask(request(method), revision)
    assert ask(request(method, cursor="x"), revision)["error"]["code"] == -32602


@pytest.mark.parametrize("arguments", [{}, {"arguments": None}, {"arguments": {}}])
def test_arguments_may_be_absent(ask: Ask, arguments: JsonObject) -> None:
    """A call without arguments, or with null, is a call with none."""
    result = ask(request("tools/call", name="list_tasks", **arguments))["result"]
    assert result["structuredContent"] == {"tasks": [], "total": 0}


@pytest.mark.parametrize("name", ["no_such_tool", "Create_Task", "", "n" * 100_000])
def test_an_unknown_tool_is_named_in_short(ask: Ask, name: str) -> None:
    """Tools are called by their exact names; any other is a JSON-RPC error of bounded length."""
    error = ask(request("tools/call", name=name))["error"]
    assert error["message"] == f"Unknown tool: {name[:100]}"


# --- The dispatcher -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("tools/list", -32602),
        ("tools/call", -32602),
        ("resources/list", -32602),
        ("resources/templates/list", -32602),
        ("resources/read", -32602),
        ("server/discover", -32602),
        ("no/such/method", -32602),
    ],
)
def test_only_ping_precedes_initialize(ask: Ask, method: str, code: int) -> None:
    """Before `initialize` a ping is answered, and everything else told what is missing."""
    assert ask(request("ping"), None)["result"] == {}
    error = ask(request(method), None)["error"]
    assert error["code"] == code
    assert "initialize" in error["message"]


def test_a_second_initialize_negotiates_again(dispatcher: Dispatcher) -> None:
    """The connection has the revision of its latest `initialize`."""
    peer = connected()
    for revision in (NEWEST, OLDEST, WITH_BATCHES):
        raw = json.dumps(request("initialize", protocolVersion=revision.date)).encode()
        result = json.loads(dispatcher.handle(raw, peer).body)["result"]
        assert result["protocolVersion"] == revision.date
        assert peer.revision is revision


def test_a_refused_initialize_negotiates_nothing(dispatcher: Dispatcher) -> None:
    """A broken `initialize` leaves the connection as it was."""
    peer = connected()
    dispatcher.handle(json.dumps(request("initialize")).encode(), peer)
    assert peer.revision is None


def test_unknown_members_of_initialize_are_ignored(ask: Ask) -> None:
    """A newer client may say more about itself than this server knows."""
    params: JsonObject = {
        "protocolVersion": NEWEST.date,
        "capabilities": {"extensions": {"x": {}}},
        "later": [1],
    }
    assert ask(request("initialize", **params), None)["result"]["protocolVersion"] == NEWEST.date


def broken_tool(fault: Exception) -> Tool:
    """Return a tool that has a bug."""

    def run(arguments: Any, workplace: Workplace) -> JsonObject:
        raise fault

    return Tool(
        "broken", "Broken", "Breaks.", tools.ListTasks, run, read_only=True, repeatable=True, quick=True
    )


def test_a_bug_does_not_leak(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault of the server is -32603 with a general text; what happened goes to stderr only."""
    monkeypatch.setitem(tools.TOOLS, "broken", broken_tool(RuntimeError("secret at /srv/secret.db")))
    answer = ask(request("tools/call", name="broken"))
    assert answer["error"]["code"] == -32603
    assert "data" not in answer["error"]
    assert not re.search("secret|Runtime|Traceback|/", json.dumps(answer))
    captured = capsys.readouterr()
    assert "RuntimeError: secret at /srv/secret.db" in captured.err
    assert captured.out == ""
    assert ask(request("ping"))["result"] == {}


def test_a_failed_store_ends_the_process(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that cannot be trusted any more is nothing to answer with: it reaches the entry point."""
    monkeypatch.setitem(tools.TOOLS, "broken", broken_tool(errors.StoreFailure("fsync failed")))
    with pytest.raises(errors.StoreFailure):
        ask(request("tools/call", name="broken"))


# --- Batches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", [None, *(one for one in HANDSHAKES if one is not WITH_BATCHES)])
def test_other_revisions_refuse_a_batch(ask: Ask, revision: Revision | None) -> None:
    """Where batches do not exist, and before `initialize`, an array is one -32600 without an id."""
    answer = ask([request("ping")], revision)
    assert (answer["id"], answer["error"]["code"]) == (None, -32600)


def test_one_revision_has_batches() -> None:
    """Batches are a fact of exactly one revision."""
    assert [revision.date for revision in REVISIONS if revision.batches] == ["2025-03-26"]


def test_initialize_in_a_batch_is_refused(dispatcher: Dispatcher) -> None:
    """`initialize` inside a batch is refused and negotiates nothing; its neighbours are served."""
    peer = connected(WITH_BATCHES)
    batch = [request("initialize", 1, protocolVersion=NEWEST.date), request("ping", 2)]
    refused, pong = json.loads(dispatcher.handle(json.dumps(batch).encode(), peer).body)
    assert (refused["id"], refused["error"]["code"]) == (1, -32600)
    assert pong == {"jsonrpc": "2.0", "id": 2, "result": {}}
    assert peer.revision is WITH_BATCHES


def test_a_batch_is_answered_in_order(ask: Ask) -> None:
    """Each request of a batch is answered under its id, in order, results and errors alike."""
    batch = [
        request("ping", "a"),
        notification("notifications/cancelled", params={"requestId": 9}),
        request("no/such/method", 0),
        {"jsonrpc": "2.0", "id": 5, "result": {}},
        request("tools/list", ""),
        5,
        request("ping", -1),
    ]
    answers = ask(batch, WITH_BATCHES)
    assert [answer["id"] for answer in answers] == ["a", 0, "", None, -1]
    assert [answer.get("error", {}).get("code") for answer in answers] == [None, -32601, None, -32600, None]


def test_a_batch_of_notifications_is_not_answered(ask: Ask) -> None:
    """Where nothing is asked, nothing is said, not even an empty array."""
    batch = [notification("notifications/initialized"), notification("x", params=[])]
    assert ask(batch, WITH_BATCHES) is None


def test_an_envelope_in_a_batch_is_refused(ask: Ask) -> None:
    """A request that names its revision stands alone; its neighbours in the batch are served."""
    batch = [in_era(request("tools/list", 1), STATELESS), request("ping", 2)]
    refused, pong = ask(batch, WITH_BATCHES)
    assert (refused["id"], refused["error"]["code"]) == (1, -32600)
    assert pong == {"jsonrpc": "2.0", "id": 2, "result": {}}


def test_a_batch_does_not_wait(ask: Ask) -> None:
    """A claim that would wait is answered at once in a batch, since the batch is answered as a whole."""
    claim = request("tools/call", name="claim_task", arguments={"agent": "a", "wait_seconds": 50})
    (answer,) = ask([claim], WITH_BATCHES)
    assert json.loads(answer["result"]["content"][0]["text"]) == {"task": None}


def test_the_answers_of_a_batch_have_their_limit(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once BATCH_ANSWER_BYTES are full, what follows is refused under its id, to be asked alone."""
    size = len(json.dumps(ask(request("tools/list", 0), WITH_BATCHES), separators=(",", ":")))
    batch = [request("tools/list", number) for number in range(3)]
    for limit, served in ((size + 1, 2), (size, 1)):
        monkeypatch.setattr(dispatching, "BATCH_ANSWER_BYTES", limit)
        answers = ask(batch, WITH_BATCHES)
        assert [answer["id"] for answer in answers] == [0, 1, 2]
        assert ["result" in answer for answer in answers] == [number < served for number in range(3)]
        assert all("alone" in answer["error"]["message"] for answer in answers[served:])


def test_a_batch_has_its_limit(ask: Ask) -> None:
    """A batch holds BATCH_MESSAGES messages; an empty one and one more are a single -32600."""
    answers = ask([request("ping", number) for number in range(BATCH_MESSAGES)], WITH_BATCHES)
    assert [answer["id"] for answer in answers] == list(range(BATCH_MESSAGES))
    for count in (0, BATCH_MESSAGES + 1):
        answer = ask([request("ping", number) for number in range(count)], WITH_BATCHES)
        assert (answer["id"], answer["error"]["code"]) == (None, -32600)


def test_a_batch_in_a_batch_is_refused(ask: Ask) -> None:
    """A batch holds messages, not batches."""
    (answer,) = ask([[request("ping")]], WITH_BATCHES)
    assert answer["error"]["code"] == -32600


@pytest.mark.parametrize(
    ("raw", "readable"),
    [
        (b"{", False),
        (b"[]", False),
        (b"5", False),
        (json.dumps(request("no/such/method")).encode(), True),
        (json.dumps(notification("x")).encode(), True),
        (json.dumps(request("ping", params=5)).encode(), True),
    ],
)
def test_a_reply_tells_whether_the_message_was_readable(
    dispatcher: Dispatcher, raw: bytes, readable: bool
) -> None:
    """A transport learns what was no JSON-RPC at all without looking into the reply."""
    peer = connected(WITH_BATCHES)
    assert dispatcher.handle(raw, peer).readable is readable


# --- Revisions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", HANDSHAKES, ids=lambda revision: revision.date)
def test_a_known_revision_is_agreed_to(revision: Revision) -> None:
    """A client gets the handshake revision that it asks for."""
    assert negotiate(revision.date) is revision


@pytest.mark.parametrize(
    "requested",
    ["2026-07-28", "2099-01-01", "2024-10-07", "1.0", "", "2025-11-25 ", "2025-06-18\n", "x" * 10_000],
)
def test_any_other_revision_gets_the_newest(requested: str) -> None:
    """Whatever else is asked for, newer and older alike, the newest handshake revision is offered."""
    assert negotiate(requested) is NEWEST


def test_the_table_of_revisions() -> None:
    """The revisions are these five, oldest first, and the last one has no handshake; told newest first."""
    dates = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"]
    assert [revision.date for revision in REVISIONS] == dates
    assert [revision.date for revision in REVISIONS if revision.is_stateless] == ["2026-07-28"]
    assert [revision.date for revision in REVISIONS if revision.is_http_default] == ["2025-03-26"]
    assert dates[::-1] == SUPPORTED_DATES


def test_dates_of_revisions_stand_in_the_table_only() -> None:
    """No product module names a revision's date, and the protocol's own names each once, in its table."""
    dates = {
        path.name: re.findall(r"\b20\d\d-\d\d-\d\d\b", path.read_text()) for path in PROJECT.glob("*.py")
    }
    assert dates.pop("protocol.py") == [revision.date for revision in REVISIONS]
    assert not [name for name, found in dates.items() if found]


DATA = {
    "title": "T",
    "annotations": 1,
    "completions": 2,
    "instructions": 3,
    "structuredContent": {"title": 4},
}


@pytest.mark.parametrize("revision", HANDSHAKES, ids=lambda revision: revision.date)
@pytest.mark.parametrize(
    "result",
    [
        {"content": [{"type": "text", "text": "{}"}], "isError": False, "_meta": DATA},
        {"contents": [{"uri": "task://t", "text": json.dumps(DATA), "_meta": DATA}]},
        {"tools": [{"name": "t", "inputSchema": {"type": "object", "properties": DATA}}]},
        {"resources": [{"uri": "task://t", "name": "title", "_meta": DATA}]},
        {"resourceTemplates": [{"uriTemplate": "task://{t}", "name": "title", "_meta": DATA}]},
        {"prompts": [{"name": "title", "arguments": [DATA]}]},
        {},
    ],
)
def test_adapting_keeps_the_callers_data(revision: Revision, result: JsonObject) -> None:
    """Members of data, however they are called, survive at every revision."""
    assert adapt("any", result, revision) == result


def test_adapting_keeps_structured_content_whole() -> None:
    """A task inside structuredContent keeps its title, also where the protocol's objects have none."""
    result = {"content": [], "structuredContent": DATA, "isError": False}
    untitled = Revision("any", lacks=frozenset(DATA) - {"structuredContent"})
    for revision in (NEWEST, untitled):
        assert adapt("tools/call", result, revision) == result


@pytest.mark.parametrize("revision", REVISIONS, ids=lambda revision: revision.date)
def test_adapting_leaves_its_argument_alone(revision: Revision) -> None:
    """The plain result may be shared: adapting never alters it."""
    result = {
        "tools": [{"name": "t", "title": "T", "annotations": {}, "inputSchema": {"properties": DATA}}],
        "prompts": [{"name": "t", "title": "T"}],
        "serverInfo": {"name": "n", "title": "T"},
        "structuredContent": DATA,
        "instructions": "i",
        "_meta": {"kept": 1},
    }
    before = copy.deepcopy(result)
    adapted = adapt("tools/list", result, revision)
    assert result == before
    places = [adapted, adapted["tools"][0], adapted["prompts"][0], adapted["serverInfo"]]
    assert not {name for place in places for name in place} & revision.lacks
    assert adapted["_meta"]["kept"] == 1


@pytest.mark.parametrize(
    ("method", "hints"),
    [
        ("server/discover", {"ttlMs": 3_600_000, "cacheScope": "public"}),
        ("tools/list", {"ttlMs": 3_600_000, "cacheScope": "public"}),
        ("prompts/list", {"ttlMs": 3_600_000, "cacheScope": "public"}),
        ("resources/templates/list", {"ttlMs": 3_600_000, "cacheScope": "public"}),
        ("resources/list", {"ttlMs": 0, "cacheScope": "private"}),
        ("resources/read", {"ttlMs": 0, "cacheScope": "private"}),
        ("tools/call", {}),
        ("prompts/get", {}),
        ("completion/complete", {}),
    ],
)
def test_a_stateless_result_says_what_it_is(method: str, hints: JsonObject) -> None:
    """Without a handshake every result is marked complete, names the server, and may be kept so long."""
    adapted = adapt(method, {"title": "kept"}, STATELESS)
    marks = {"resultType": "complete", "_meta": {META_SERVER: SERVER_INFO}}
    assert adapted == {"title": "kept", **marks, **hints}
    for revision in HANDSHAKES[2:]:
        assert adapt(method, {"title": "kept"}, revision) == {"title": "kept"}


def test_the_protocol_encodes_ascii() -> None:
    """Everything but ASCII leaves as an escape, so no line, event or terminal is confused by it."""
    assert result_message("é", {"a": "😀\u2028\x7f"}) == (
        b'{"jsonrpc":"2.0","id":"\\u00e9","result":{"a":"\\ud83d\\ude00\\u2028\\u007f"}}'
    )


@pytest.mark.parametrize(
    ("error", "in_handshakes", "in_stateless"),
    [
        (ParseError("m"), 400, 400),
        (InvalidRequest("m"), 400, 400),
        (MethodNotFound("m"), 200, 404),
        (InvalidParams("m"), 200, 400),
        (ResourceNotFound("m"), 200, 400),
        (InternalError("m"), 200, 200),
        (HeaderMismatch("m"), 400, 400),
        (UnsupportedVersion("m"), 400, 400),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error_has_its_status(error: RpcError, in_handshakes: int, in_stateless: int) -> None:
    """An error at /mcp has the status that its era gives it."""
    assert http_status(error, False) == in_handshakes
    assert http_status(adapt_error(error, True), True) == in_stateless


def test_a_missing_resource_is_told_as_the_era_knows_it(ask: Ask) -> None:
    """Up to the last handshake it is -32002, without one -32602; both say which URI it was."""
    for revision in REVISIONS:
        error = ask(request("resources/read", uri="task://none"), revision)["error"]
        assert error["code"] == (-32602 if revision is STATELESS else -32002)
        assert error["data"] == {"uri": "task://none"}
