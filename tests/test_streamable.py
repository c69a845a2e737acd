"""Streamable HTTP at /mcp, over the real socket: statuses, headers, batches, and who is let in."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import STATELESS, HttpServer, Listener, enveloped, mirrored, request

from config import BATCH_MESSAGES, MESSAGE_BYTES

JsonObject = dict[str, Any]
HANDSHAKE = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
EVERY = [STATELESS, *reversed(HANDSHAKE)]
PING = request("ping")
INITIALIZE = request("initialize", {"protocolVersion": "2025-06-18", "capabilities": {}})
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with HttpServer(tmp_path_factory.mktemp("streamable")) as service:
        yield service


def stateless(method: str, params: JsonObject | None = None) -> JsonObject:
    return request(method, enveloped(params))


def under(date: str) -> dict[str, str]:
    return {"MCP-Protocol-Version": date}


def send_raw(service: HttpServer, lines: Iterable[str], body: bytes) -> tuple[int, Any]:
    """Post with header lines as they stand, which may say a thing twice; return the status and the body."""
    head = ["POST /mcp HTTP/1.1", f"Host: 127.0.0.1:{service.port}", *lines, "Connection: close"]
    if not any(line.lower().startswith("content-length") for line in lines):
        head.append(f"Content-Length: {len(body)}")
    answer = service.raw("\r\n".join([*head, "", ""]).encode("latin-1") + body)
    head_bytes, _, content = answer.partition(b"\r\n\r\n")
    return int(head_bytes.split(b" ")[1]), json.loads(content) if content else None


# --- Answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("date", HANDSHAKE)
def test_a_handshake_and_what_follows_it(service: HttpServer, date: str) -> None:
    """A legacy client initializes, says so, and asks, each in a request of its own."""
    params = {"protocolVersion": date, "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
    status, answer = service.post(request("initialize", params))
    assert (status, answer["result"]["protocolVersion"]) == (200, date)
    headers = under(date)
    note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert service.post(note, headers) == (202, None)
    assert service.post(PING, headers) == (200, {"jsonrpc": "2.0", "id": 1, "result": {}})
    status, answer = service.post(request("tools/list"), headers)
    assert (status, "annotations" in answer["result"]["tools"][0]) == (200, date >= "2025-03-26")


def test_a_stateless_request_needs_nothing_before_it(service: HttpServer) -> None:
    """The first request of a 2026-07-28 client may be any."""
    message = stateless("tools/call", {"name": "list_tasks"})
    status, answer = service.post(message, mirrored(message))
    assert (status, answer["result"]["resultType"]) == (200, "complete")


def test_one_connection_serves_all_eras_in_turn(service: HttpServer) -> None:
    """Nothing sticks to a connection that is kept alive: a request is what its header and body say."""
    bodies = [json.dumps(stateless("ping")), json.dumps(PING), json.dumps(stateless("tools/list"))]
    heads = [mirrored(stateless("ping")), under("2025-11-25"), mirrored(stateless("tools/list"))]
    wire = ""
    for number, (body, headers) in enumerate(zip(bodies, heads, strict=True)):
        lines = [f"{name}: {value}" for name, value in {**JSON, **headers}.items()]
        lines += [f"Content-Length: {len(body)}", *(["Connection: close"] if number == 2 else [])]
        wire += "\r\n".join(["POST /mcp HTTP/1.1", f"Host: 127.0.0.1:{service.port}", *lines, "", body])
    answers = service.raw(wire.encode()).decode()
    assert re.findall(r"HTTP/1.1 (\d+)", answers) == ["404", "200", "200"]


def test_no_session_is_minted(service: HttpServer) -> None:
    """There are no sessions: none is given, one that is sent means nothing, and so does Last-Event-ID."""
    for sent in ({}, {"Mcp-Session-Id": "made-up"}, {"Mcp-Session-Id": "", "Last-Event-ID": "7"}):
        for message in (INITIALIZE, PING):
            status, headers, _ = service.request("POST", "/mcp", json.dumps(message), JSON | sent)
            assert status == 200
            assert "mcp-session-id" not in headers
            assert headers["content-type"] == "application/json"
            assert not any(name.startswith("access-control-") for name in headers)


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "OPTIONS", "PATCH", "HEAD", "TRACE"])
def test_only_post_is_allowed(service: HttpServer, method: str) -> None:
    """GET and DELETE in particular: there is neither a stream to open nor a session to end."""
    for headers in ({}, {"Accept": "text/event-stream", "Mcp-Session-Id": "x", **under("2025-11-25")}):
        body = b"{}" if method in ("PUT", "PATCH") else None
        status, found, _ = service.request(method, "/mcp", body, headers)
        assert (status, found["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/mcp/", "/MCP", "/", "/mcp%20", "/message/mcp"])
def test_there_is_one_endpoint(service: HttpServer, path: str) -> None:
    """A path that is nearly right has no JSON-RPC behind it, which tells it from an unknown method."""
    status, _, body = service.request("POST", path, json.dumps(PING), JSON)
    assert status == 404
    assert b"jsonrpc" not in body


def test_a_query_does_not_matter(service: HttpServer) -> None:
    """What a client configuration puts behind the path is ignored."""
    assert service.request("POST", "/mcp?x=1", json.dumps(PING), JSON)[0] == 200


@pytest.mark.parametrize("date", [None, *EVERY])
@pytest.mark.parametrize(
    "message",
    [
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}},
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": {}}},
        {"jsonrpc": "2.0", "method": "notifications/nope", "params": [1]},
        {"jsonrpc": "2.0", "method": "tools/list", "params": enveloped()},
        {"jsonrpc": "2.0", "id": 1, "result": {}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": -32601, "message": "No"}},
        {"jsonrpc": "2.0", "error": {"code": -32700, "message": "No"}},
    ],
    ids=json.dumps,
)
def test_what_needs_no_answer_gets_none(service: HttpServer, date: str | None, message: JsonObject) -> None:
    """Notifications and responses are taken with 202 and an empty body."""
    headers = JSON | ({} if date is None else under(date))
    status, found, body = service.request("POST", "/mcp", json.dumps(message), headers)
    assert (status, body, found["content-length"]) == (202, b"", "0")


@pytest.mark.parametrize("date", [None, *EVERY])
@pytest.mark.parametrize(
    ("raw", "code"), [(b"", -32700), (b"{", -32700), (b"\xff\xfe", -32700), (b"1", -32600), (b"{}", -32600)]
)
def test_what_cannot_be_read_is_a_bad_request(
    service: HttpServer, date: str | None, raw: bytes, code: int
) -> None:
    """A body that is no message has the status 400 in both eras, and the id null."""
    status, answer = service.post(raw, {} if date is None else under(date))
    assert (status, answer["error"]["code"], answer["id"]) == (400, code, None)


def test_an_unknown_method_has_the_status_of_its_era(service: HttpServer) -> None:
    """Legacy clients read the body of a 200, stateless ones that of a 404."""
    for date in HANDSHAKE:
        status, answer = service.post(request("nope"), under(date))
        assert (status, answer["error"]["code"]) == (200, -32601)
    status, answer = service.post(stateless("nope"), mirrored(stateless("nope")))
    assert (status, answer["error"]["code"], answer["id"]) == (404, -32601, 1)


@pytest.mark.parametrize("method", ["initialize", "ping", "logging/setLevel", "resources/subscribe"])
def test_the_handshakes_methods_are_gone(service: HttpServer, method: str) -> None:
    """Under the stateless header they are not found, an initialize with all that belongs to it included."""
    params = {"protocolVersion": "2025-11-25", "uri": "task://x", "level": "debug"}
    status, answer = service.post(stateless(method, params), mirrored(stateless(method, params)))
    assert (status, answer["error"]["code"]) == (404, -32601)


# --- Versions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("date", ["2099-01-01", "2026-07-29", "1.0", "", "2025-06-18,2025-06-18"])
def test_an_unknown_version_is_a_bad_request(service: HttpServer, date: str) -> None:
    """A header that names no revision of ours is refused with those that it could name."""
    status, answer = service.post(PING, under(date))
    assert status == 400
    assert answer["error"]["code"] == -32022
    assert answer["error"]["data"] == {"supported": EVERY, "requested": date}


def test_the_version_header_means_nothing_before_negotiation(service: HttpServer) -> None:
    """An initialize is answered whatever the header says, and agrees to what its params name."""
    for date in ("2099-01-01", "2025-03-26", ""):
        status, answer = service.post(INITIALIZE, under(date))
        assert (status, answer["result"]["protocolVersion"]) == (200, "2025-06-18")


@pytest.mark.parametrize(
    ("header", "version", "code"),
    [
        (None, STATELESS, -32020),
        ("2025-11-25", STATELESS, -32020),
        ("2099-01-01", STATELESS, -32020),
        (STATELESS, "2025-11-25", -32020),
        (STATELESS, "2099-01-01", -32020),
        (STATELESS, 20260728, -32020),
        (STATELESS, None, -32020),
        ("2025-11-25", "2025-11-25", -32022),
        ("2099-01-01", "2099-01-01", -32022),
    ],
)
def test_header_and_envelope_must_agree(
    service: HttpServer, header: str | None, version: Any, code: int
) -> None:
    """A client that contradicts itself, or asks for a legacy date in the new form, is told so."""
    headers = {"Mcp-Method": "tools/list"} | ({} if header is None else under(header))
    status, answer = service.post(request("tools/list", enveloped(version=version)), headers)
    assert (status, answer["error"]["code"], answer["id"]) == (400, code, 1)


def test_the_stateless_header_needs_the_envelope(service: HttpServer) -> None:
    """Without `_meta` the request is invalid, before any header is compared."""
    for message in (PING, INITIALIZE, request("server/discover"), request("nope")):
        status, answer = service.post(message, under(STATELESS))
        assert (status, answer["error"]["code"]) == (400, -32602)


# --- Headers that repeat the body -------------------------------------------------------------------------


def test_header_names_have_any_case(service: HttpServer) -> None:
    """Names of headers are compared without regard to case, and blanks around values do not count."""
    body = json.dumps(stateless("tools/call", {"name": "list_tasks"})).encode()
    lines = [
        "CONTENT-TYPE:application/json",
        f"mcp-PROTOCOL-version:   {STATELESS} \t",
        "MCP-METHOD:\ttools/call",
        "mcp-name: list_tasks  ",
    ]
    assert send_raw(service, lines, body)[0] == 200


@pytest.mark.parametrize(
    "changed",
    [
        {"Mcp-Method": "Tools/call"},
        {"Mcp-Method": "tools/list"},
        {"Mcp-Method": ""},
        {"Mcp-Method": None},
        {"Mcp-Name": "List_tasks"},
        {"Mcp-Name": "get_task"},
        {"Mcp-Name": ""},
        {"Mcp-Name": None},
        {"Mcp-Name": '"list_tasks"'},
        {"Mcp-Name": "=?base64?bGlzdF90YXNrcw?="},
        {"Mcp-Name": "=?base64?bGlzdF90YXNrcw==?= x"},
    ],
    ids=json.dumps,
)
def test_a_header_that_differs_is_a_bad_request(service: HttpServer, changed: dict[str, str | None]) -> None:
    """Values are compared to the letter, and a missing header is a difference."""
    message = stateless("tools/call", {"name": "list_tasks"})
    wanted: dict[str, str | None] = {**mirrored(message), **changed}
    headers = {name: value for name, value in wanted.items() if value is not None}
    status, answer = service.post(message, headers)
    assert (status, answer["error"]["code"], answer["id"]) == (400, -32020, 1)


@pytest.mark.parametrize("name", ["MCP-Protocol-Version", "Mcp-Method", "Mcp-Name"])
@pytest.mark.parametrize("second", ["the same", "another"])
def test_a_header_given_twice_is_a_bad_request(service: HttpServer, name: str, second: str) -> None:
    """Two headers are two values, of which a proxy may have read the other one."""
    message = stateless("tools/call", {"name": "list_tasks"})
    headers = mirrored(message)
    lines = [f"{one}: {value}" for one, value in {**JSON, **headers}.items()]
    again = f"{name.lower()}: {headers[name] if second == 'the same' else 'x'}"
    for ordered in ([*lines, again], [again, *lines]):
        status, answer = send_raw(service, ordered, json.dumps(message).encode())
        assert (status, answer["error"]["code"], answer["id"]) == (400, -32020, 1)


@pytest.mark.parametrize("uri", ["task://caf\u00e9", "task://\U0001f600", "task://a b", "task://x"])
def test_a_name_may_come_in_base64(service: HttpServer, uri: str) -> None:
    """What no header can say literally is said in base64; a resource that is missing is -32602."""
    message = stateless("resources/read", {"uri": uri})
    encoded = base64.b64encode(uri.encode()).decode()
    status, answer = service.post(message, mirrored(message) | {"Mcp-Name": f"=?base64?{encoded}?="})
    assert (status, answer["error"]["code"], answer["error"]["data"]) == (400, -32602, {"uri": uri})
    status, answer = service.post(message, mirrored(message) | {"Mcp-Name": f"=?base64?{encoded[:-2]}?="})
    assert (status, answer["error"]["code"]) == (400, -32020)


def test_a_strange_tool_is_unknown_not_mismatched(service: HttpServer) -> None:
    """A tool's name outside ASCII passes the headers, and is then not found among the tools."""
    message = stateless("tools/call", {"name": "caf\u00e9"})
    status, answer = service.post(message, mirrored(message))
    assert (status, answer["error"]["code"], answer["error"]["message"]) == (
        400, -32602, "Unknown tool: caf\u00e9",
    )  # fmt: skip


def test_unknown_headers_are_ignored(service: HttpServer) -> None:
    """Mcp-Param-* and what else a client may send change nothing."""
    message = stateless("tools/list")
    headers = mirrored(message) | {"Mcp-Param-Region": "x", "Mcp-Name": "y", "Mcp-Method-X": "z"}
    assert service.post(message, headers)[0] == 200
    assert service.post(PING, {"Mcp-Method": "tools/call", "Mcp-Name": "y"})[0] == 200


# --- What the body may be ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (None, 200),
        ("*/*", 200),
        ("application/json", 200),
        ("application/json, text/event-stream", 200),
        ("text/event-stream, application/json;q=0.5", 200),
        ("Application/JSON", 200),
        ("application/*", 200),
        ("text/html, */*;q=0.1", 200),
        ("text/html", 406),
        ("text/plain, image/*", 406),
        ("application/json-seq", 406),
        ("", 406),
    ],
)
def test_accept_is_read_leniently(service: HttpServer, accept: str | None, status: int) -> None:
    """Whatever admits JSON is enough; what rules it out is 406."""
    body = json.dumps(PING).encode()
    lines = ["Content-Type: application/json", *([] if accept is None else [f"Accept: {accept}"])]
    assert send_raw(service, lines, body)[0] == status


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ('Application/JSON;charset="UTF-8"', 200),
        ("application/json; charset=latin-1", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/json-rpc", 415),
        ("", 415),
        (None, 415),
    ],
)
def test_the_content_type_is_json(service: HttpServer, content_type: str | None, status: int) -> None:
    """The types that a web page can send without asking are refused before the body is read."""
    lines = [] if content_type is None else [f"Content-Type: {content_type}"]
    assert send_raw(service, lines, json.dumps(PING).encode())[0] == status


def test_a_body_has_a_length(service: HttpServer) -> None:
    """Chunked or without a length is 411; one byte over the limit is 413, before it is sent."""
    start = f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\nContent-Type: application/json\r\n"
    chunked = f"{start}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
    assert service.raw(chunked.encode()).startswith(b"HTTP/1.1 411 ")
    assert service.raw(f"{start}\r\n".encode()).startswith(b"HTTP/1.1 411 ")
    too_long = f"{start}Content-Length: {MESSAGE_BYTES + 1}\r\n\r\n"
    assert service.raw(too_long.encode()).startswith(b"HTTP/1.1 413 ")


def test_a_body_at_the_limit_is_read(service: HttpServer) -> None:
    """A message of exactly the limit is answered."""
    empty = len(json.dumps(request("ping", {"pad": ""})))
    body = json.dumps(request("ping", {"pad": "x" * (MESSAGE_BYTES - empty)})).encode()
    assert len(body) == MESSAGE_BYTES
    assert service.post(body)[0] == 200


# --- Batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, under("2025-03-26")], ids=json.dumps)
def test_a_batch_is_answered_at_its_revision(service: HttpServer, headers: dict[str, str]) -> None:
    """At 2025-03-26, which is also what no header means, an array gets an array."""
    batch = [request("ping", {}, 0), request("nope", {}, "b")]
    status, answer = service.post(batch, headers)
    assert status == 200
    assert [one["id"] for one in answer] == [0, "b"]
    full = [request("ping", {}, number) for number in range(BATCH_MESSAGES)]
    status, answer = service.post(full, headers)
    assert (status, len(answer)) == (200, BATCH_MESSAGES)
    refused: list[list[JsonObject]] = [[], [*full, PING]]
    for batch in refused:
        status, answer = service.post(batch, headers)
        assert (status, answer["error"]["code"], answer["id"]) == (400, -32600, None)


def test_one_notification_in_a_batch_is_accepted(service: HttpServer) -> None:
    """A batch that needs no answer gets none: 202, without a body."""
    note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    assert service.post([note]) == (202, None)


def test_what_must_stand_alone_is_refused_in_a_batch(service: HttpServer) -> None:
    """initialize, and a request that names its own revision, have no place in an array."""
    status, answer = service.post([INITIALIZE, stateless("tools/list") | {"id": 2}, PING | {"id": 3}])
    assert status == 200
    assert [(one["id"], one.get("error", {}).get("code")) for one in answer] == [
        (1, -32600), (2, -32600), (3, None),
    ]  # fmt: skip


@pytest.mark.parametrize("date", ["2025-06-18", "2025-11-25", STATELESS, "2024-11-05", "2099-01-01"])
def test_other_revisions_have_no_batches(service: HttpServer, date: str) -> None:
    """An array anywhere else is no message."""
    for batch in ([PING], [stateless("tools/list")], []):
        status, answer = service.post(batch, under(date) | {"Mcp-Method": "tools/list"})
        assert (status, answer["error"]["code"], answer["id"]) == (400, -32600, None)


# --- Who is let in ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "Origin: http://evil.example",
        "Origin: null",
        "Origin: ",
        "Origin: http://localhost.evil.example",
        "Origin: http://127.0.0.1@evil.example",
        "Origin: file://",
        "Origin: vscode-webview://x",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS", "DELETE"])
def test_a_foreign_origin_is_forbidden(service: HttpServer, line: str, method: str) -> None:
    """A browser's request from any page that is not ours is refused, whatever it asks."""
    head = f"{method} /mcp HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\n{line}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    assert service.raw(head.encode()).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("origin", ["http://localhost", "http://127.0.0.1:5173", "https://[::1]:1"])
def test_a_local_origin_is_served(service: HttpServer, origin: str) -> None:
    """Pages of this machine may call."""
    assert service.post(PING, {"Origin": origin})[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "localhost.evil.example", "169.254.169.254", "127.0.0.1@x", "[::2]"],
)
def test_a_foreign_host_is_forbidden(service: HttpServer, host: str) -> None:
    """A name that was rebound to this machine is not a name of ours."""
    head = (
        f"POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
    )
    assert service.raw(head.encode() + b"{}").startswith(b"HTTP/1.1 403 ")


def test_two_origins_are_no_origin(service: HttpServer) -> None:
    """An Origin that is given twice is not one that is allowed."""
    lines = ["Content-Type: application/json", "Origin: http://localhost", "Origin: http://localhost"]
    assert send_raw(service, lines, json.dumps(PING).encode())[0] == 403


def test_a_configured_origin_is_served_as_it_stands(tmp_path: Path) -> None:
    """MCP_TASK_ALLOWED_ORIGINS adds exact origins, no neighbours of them."""
    with HttpServer(tmp_path, MCP_TASK_ALLOWED_ORIGINS="https://app.example:8443") as service:
        assert service.post(PING, {"Origin": "https://app.example:8443"})[0] == 200
        for origin in ("https://app.example", "http://app.example:8443", "https://x.app.example:8443"):
            assert service.post(PING, {"Origin": origin})[0] == 403


def test_a_token_opens_the_door(tmp_path: Path) -> None:
    """With a token set everything at /mcp needs it, whatever the era."""
    message = stateless("tools/list")
    with HttpServer(tmp_path, MCP_TASK_TOKEN="s3cret") as service:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            for sent, mirror in ((PING, {}), (message, mirrored(message))):
                status, found, _ = service.request("POST", "/mcp", json.dumps(sent), JSON | mirror | headers)
                assert (status, found["www-authenticate"]) == (401, "Bearer")
            assert service.request("GET", "/mcp", None, headers)[0] == 401
        key = {"Authorization": "Bearer s3cret"}
        assert service.post(PING, key)[0] == 200
        assert service.post(message, mirrored(message) | key)[0] == 200
        assert service.request("GET", "/mcp", None, key)[0] == 405


# --- Streams ----------------------------------------------------------------------------------------------


def test_a_listen_is_answered_by_a_stream(service: HttpServer) -> None:
    """Its response is an event stream that proxies must not hold back, and that mints no session."""
    with closing(Listener(service, {"resourcesListChanged": True})) as listener:
        assert listener.receive()["method"] == "notifications/subscriptions/acknowledged"
        head = listener.head.lower()
        assert head.startswith("http/1.1 200 ")
        assert "content-type: text/event-stream" in head
        assert "x-accel-buffering: no" in head
        assert "mcp-session-id" not in head
        assert "content-length" not in head


@pytest.mark.parametrize(
    "notifications", [None, [], {"resourceSubscriptions": ["nothing of ours"]}], ids=json.dumps
)
def test_an_error_before_the_stream_is_plain_json(service: HttpServer, notifications: Any) -> None:
    """What is wrong with a listen is said with its status, before anything is streamed."""
    message = stateless("subscriptions/listen", {"notifications": notifications})
    headers = JSON | mirrored(message) | {"Accept": "text/event-stream, application/json"}
    status, found, body = service.request("POST", "/mcp", json.dumps(message), headers)
    assert (status, found["content-type"]) == (400, "application/json")
    assert json.loads(body)["error"]["code"] == -32602


@pytest.mark.parametrize(
    "headers", [{}, under(STATELESS), {**under(STATELESS), "Mcp-Method": "notifications/cancelled"}]
)
def test_a_posted_cancel_ends_nobodys_stream(service: HttpServer, headers: dict[str, str]) -> None:
    """Ids are not private to one caller: a cancel that is posted is dropped, and all streams go on."""
    with closing(Listener(service, {"resourcesListChanged": True}, "L")) as listener:
        listener.receive()
        for params in ({"requestId": "L"}, {"requestId": "L", **enveloped()}):
            note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
            assert service.post(note, headers) == (202, None)
        task = {"title": f"Heard with {len(headers)} headers", "goal": "Be heard of"}
        service.post(request("tools/call", {"name": "create_task", "arguments": task}))
        assert listener.receive()["method"] == "notifications/resources/list_changed"


def test_a_legacy_request_cannot_listen(service: HttpServer) -> None:
    """Without a connection there is nothing to push on: neither form of subscribing exists there."""
    for date in [None, *HANDSHAKE]:
        headers = {} if date is None else under(date)
        for method in ("resources/subscribe", "resources/unsubscribe", "subscriptions/listen"):
            params = {"uri": "task://x", "notifications": {}}
            status, answer = service.post(request(method, params), headers)
            assert (status, answer["error"]["code"]) == (200, -32601)
