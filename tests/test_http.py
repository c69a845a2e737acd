"""The HTTP service on the wire: endpoints, who may reach them, limits, deadlines and ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import (
    PATIENCE,
    SERVER,
    HttpServer,
    JsonObject,
    SseClient,
    environment,
    held_database,
    opened_files,
    sse,
    thread_count,
    wait_until,
)

from config import MESSAGE_BYTES, SLOW_ANSWERS

HEALTHY = b'{"status": "ok"}'
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST_HEALTH = HEALTH[:-2] + b"Connection: close\r\n\r\n"
JSON = {"Content-Type": "application/json"}
ENDED_IN = 5.0  # seconds that SIGTERM may take
SWEEPS = "import http_sockets\nhttp_sockets._SWEEP_SECONDS = 0.05\n"
TIGHT = "import config\nconfig.REQUEST_SECONDS = config.IDLE_SECONDS = 0.5\n" + SWEEPS
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc, which Linux has")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """Yield a service for all tests that neither change nor end it; it outlives them without a word."""
    with HttpServer(tmp_path_factory.mktemp("http")) as server:
        yield server
        assert server.request("GET", "/health")[::2] == (200, HEALTHY)
        assert server.terminate() == 0
        assert server.stderr().count("\n") == 1


@pytest.fixture(scope="module")
def tight_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """Yield a service whose clients must be quick."""
    with HttpServer(tmp_path_factory.mktemp("tight"), prelude=TIGHT) as server:
        yield server
        assert server.stderr().count("\n") == 1


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)


def receive_all(connection: socket.socket) -> bytes:
    """Return what arrives until the server closes, or resets."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(1 << 16):
            received += chunk
    return received


def statuses(received: bytes) -> list[int]:
    """Return the statuses of answers that follow one another on the wire."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        found.append(int(head.split(b" ", 2)[1]))
        length = 0 if b" 100 " in head else int(head.partition(b"Content-Length: ")[2].split()[0])
        received = rest[length:]
    return found


def connections(server: HttpServer) -> int:
    """Return how many connections the service holds: its sockets without the three that are its own."""
    return sum(name.startswith("socket:") for name in opened_files(server.process.pid)) - 3


def message(method: str, request_id: int | str = 1, **params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}).encode()


def post(endpoint: str, body: bytes, headers: str = "") -> bytes:
    """Return the bytes of a POST."""
    lines = (
        f"POST {endpoint} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}",
        "Content-Type: application/json", headers,
    )  # fmt: skip
    return "\r\n".join(line for line in (*lines[:4], *headers.splitlines(), "", "")).encode() + body


def create_task(task_id: str) -> bytes:
    """Return the body of a call that has to write."""
    return message(
        "tools/call", name="create_task", arguments={"task_id": task_id, "title": "t", "goal": "g"}
    )


def run(folder: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    """Run a service that must not start; return its exit status and its stderr."""
    ended = subprocess.run(
        [sys.executable, str(SERVER), "--http", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(folder, **settings),
        timeout=PATIENCE,
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


# --- Endpoints ----------------------------------------------------------------------------------------


def test_health_is_exactly_ok(server: HttpServer) -> None:
    """/health answers 200 and the agreed body while the database answers."""
    status, headers, body = server.request("GET", "/health?at=night")
    assert (status, body) == (200, HEALTHY)
    assert headers == {"content-type": "application/json", "content-length": str(len(HEALTHY))}


def test_health_is_503_while_the_database_does_not_answer(tmp_path: Path) -> None:
    """/health says in good time that the database is out of reach, and recovers with it."""
    with HttpServer(tmp_path, prelude="import config\nconfig.HEALTH_SECONDS = 0.2\n") as server:
        with held_database(tmp_path):
            status, headers, body = server.request("GET", "/health")
            assert (status, json.loads(body)) == (503, {"status": "unavailable"})
            assert headers["retry-after"] == "1"
        assert server.request("GET", "/health")[::2] == (200, HEALTHY)


@pytest.mark.parametrize("path", ["/", "/healthy", "/health/", "/mcp/..", "//health", "/%68ealth", "/sse#x"])
def test_unknown_paths_are_404(server: HttpServer, path: str) -> None:
    """What is no endpoint is not found, and the answer names those that are."""
    status, _, body = server.request("GET", path)
    assert status == 404
    assert all(endpoint in json.loads(body)["error"] for endpoint in ("/health", "/sse", "/message"))


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/health", "GET"), ("DELETE", "/health", "GET"), ("get", "/health", "GET"),
        ("POST", "/sse", "GET"), ("PUT", "/sse", "GET"), ("GET", "/message", "POST"),
        ("OPTIONS", "/message", "POST"),
    ],
)  # fmt: skip
def test_other_methods_are_405(server: HttpServer, method: str, path: str, allowed: str) -> None:
    """A wrong method is refused with the right one; POST to /sse too, which is how clients probe."""
    status, headers, body = server.request(method, path, b"", JSON)
    assert status == 405
    assert allowed in headers["allow"].split(", ")
    assert allowed in json.loads(body)["error"]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
    ],
)
def test_json_is_taken_in_all_its_spellings(server: HttpServer, content_type: str) -> None:
    """The media type is compared as such: case, blanks and a UTF-8 charset do not matter."""
    with sse(server) as client:
        assert client.post(message("ping"), {"Content-Type": content_type})[0] == 202


@pytest.mark.parametrize(
    "content_type",
    [
        None, "", "text/plain", "application/json-patch+json", "text/plain; application/json",
        "application/json; charset=utf-16", "application/x-www-form-urlencoded", "multipart/form-data",
    ],
)  # fmt: skip
def test_other_content_types_are_415(server: HttpServer, content_type: str | None) -> None:
    """What a web page can post without asking first is not even read."""
    with sse(server) as client:
        headers = {} if content_type is None else {"Content-Type": content_type}
        status, _, body = server.request("POST", client.endpoint, message("ping"), headers)
        assert status == 415
        assert "application/json" in json.loads(body)["error"]


def test_no_answer_invites_other_origins(server: HttpServer) -> None:
    """There are no CORS headers, not even to a preflight from an allowed origin."""
    ask = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    for method, path, status in (("GET", "/health", 200), ("OPTIONS", "/message", 405), ("GET", "/no", 404)):
        found, headers, _ = server.request(method, path, headers=ask)
        assert found == status
        assert not [name for name in headers if name.startswith("access-control-")]


# --- Connections --------------------------------------------------------------------------------------


def test_a_connection_serves_many_requests(server: HttpServer) -> None:
    """A connection is kept: a hundred requests, one after another, all use it."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.connect()
    kept = connection.sock
    for _ in range(100):
        connection.request("GET", "/health")
        assert connection.getresponse().read() == HEALTHY
    assert connection.sock is kept
    connection.close()


def test_requests_sent_ahead_are_answered_in_order(server: HttpServer) -> None:
    """Requests sent without waiting are answered one by one, each body to its request."""
    with sse(server) as client:
        bodies = [b" " * number + b"no JSON" for number in range(200)]
        sent = b"".join(post(client.endpoint, body) for body in bodies) + LAST_HEALTH
        received = server.raw(sent)
    assert statuses(received) == [400] * 200 + [200]
    columns = [int(part.split(b" ", 1)[0]) for part in received.split(b"line 1 column ")[1:]]
    assert columns == list(range(1, 201))


@pytest.mark.parametrize(
    ("request_bytes", "is_closed"),
    [
        pytest.param(LAST_HEALTH, True, id="close"),
        pytest.param(HEALTH.replace(b"1.1", b"1.0"), True, id="HTTP/1.0"),
        pytest.param(HEALTH, False, id="HTTP/1.1"),
    ],
)
def test_the_client_says_whether_the_connection_stays(
    server: HttpServer, request_bytes: bytes, is_closed: bool
) -> None:
    """The connection closes after the answer if the client wants that, and the answer says so."""
    received = server.raw(request_bytes if is_closed else request_bytes + LAST_HEALTH)
    assert statuses(received) == [200] * (1 if is_closed else 2)
    assert received.count(b"Connection: close") == 1


def test_a_client_is_told_to_continue(server: HttpServer) -> None:
    """A client that waits for leave to send a body gets it; one that is refused gets that instead."""
    with sse(server) as client:
        whole = post(client.endpoint, message("ping"), "Expect: 100-continue\r\nConnection: close")
        head, _, body = whole.partition(b"\r\n\r\n")
        with connect(server) as connection:
            connection.sendall(head + b"\r\n\r\n")
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(body)
            assert statuses(receive_all(connection)) == [202]
        refused = head.replace(b"application/json", b"text/plain") + b"\r\n\r\n"
        assert statuses(server.raw(refused)) == [415]
        assert statuses(server.raw(whole)) == [202]  # the body came along


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", 400, id="TLS"),
        pytest.param(HEALTH.replace(b"\r\n", b"\n"), 400, id="bare line feeds"),
        pytest.param(post("/message", b"{}", "Content-Length: 2"), 400, id="two lengths"),
        pytest.param(post("/message", b"{}").replace(b"th: 2", b"th: +2"), 400, id="signed length"),
        pytest.param(
            post("/message", b"0\r\n\r\n", "Transfer-Encoding: chunked"), 400, id="length and chunked"
        ),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 32768, 400, id="endless headers"),
        pytest.param(b"GET /health HTTP/1.1\r\n\r\n", 400, id="no Host"),
        pytest.param(HEALTH[:-2] + b"Host: localhost\r\n\r\n", 400, id="two Hosts"),
        pytest.param(
            HEALTH.replace(b"/health", b"http://evil.com/health"), 400, id="another's absolute form"
        ),
        pytest.param(
            b"POST /message HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            411,
            id="chunked",
        ),
        pytest.param(b"POST /message HTTP/1.1\r\nHost: localhost\r\n\r\n{}", 411, id="no length"),
        pytest.param(HEALTH.replace(b"1.1", b"2.0"), 505, id="HTTP/2"),
    ],
)
def test_a_doubtful_request_ends_its_connection(
    server: HttpServer, request_bytes: bytes, status: int
) -> None:
    """It is refused, nothing behind it is taken for a request, and others are served as before."""
    received = server.raw(request_bytes + HEALTH)
    assert statuses(received) == [status]
    assert b"Connection: close\r\n" in received
    assert server.request("GET", "/health")[::2] == (200, HEALTHY)


def test_a_body_may_have_exactly_the_limit(server: HttpServer) -> None:
    """A body of 8 MiB is served; one byte more is refused before it is sent, and also while it is."""
    with sse(server) as client:
        padding = MESSAGE_BYTES - len(message("ping", padding=""))
        assert client.post(message("ping", padding="x" * padding))[0] == 202
        assert json.loads(client.event()[1]) == {"jsonrpc": "2.0", "id": 1, "result": {}}
        over = post(client.endpoint, message("ping", padding="x" * (padding + 1)))
        head = over.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        assert statuses(server.raw(head)) == [413]
        assert statuses(server.raw(over)) == [413]
        assert client.request("ping")["result"] == {}


def test_an_empty_body_is_no_json(server: HttpServer) -> None:
    """A POST of nothing is read as such and refused in the response."""
    with sse(server) as client:
        assert client.post(b"")[0] == 400
        assert client.request("ping")["result"] == {}


# --- Who may come in ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:1", "127.0.0.1", "127.0.0.1:8766", "[::1]", "[::1]:65535", "localhost:8767"],
)
def test_local_hosts_are_served(server: HttpServer, host: str) -> None:
    """The machine's own names are served at any port: a proxy or tunnel may have another one."""
    assert server.request("GET", "/health", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.com", "evil.com:8766", "localhost.evil.com", "127.0.0.1.evil.com", "evil.com.localhost",
        "localhost.", "127.0.0.1:evil", "localhost:80:80", "localhost:99999", "user@localhost", "localhost/",
        "localhost?", "[::1", "::1", "[::2]", "127.0.0.2", "0.0.0.0", "127.1", "2130706433", "", ":80",
        "localhost,evil.com", "local host",
    ],
)  # fmt: skip
def test_foreign_and_malformed_hosts_are_refused(server: HttpServer, host: str) -> None:
    """A name that an attacker can point at this machine opens nothing, not even /health."""
    status, _, body = server.request("GET", "/health", headers={"Host": host})
    assert (status, b"MCP_TASK_ALLOWED_ORIGINS" in body) == (403, True)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "https://localhost:3000",
        "http://127.0.0.1:6274",
        "http://[::1]:1",
        "HTTP://LOCALHOST",
    ],
)
def test_local_origins_are_served(server: HttpServer, origin: str) -> None:
    """Pages of this machine may call, from any port and by either scheme."""
    assert server.request("GET", "/health", headers={"Origin": origin})[0] == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.com", "null", "", "http://localhost.evil.com", "http://127.0.0.1.evil.com",
        "http://evil.com#localhost", "http://evil.com?localhost", "http://evil.com/localhost",
        "http://localhost@evil.com", "http://evil.com@localhost", "http://evillocalhost", "http://localhost.",
        "http://localhost:80:80", "http://localhost:evil", "file://localhost", "chrome-extension://localhost",
        "localhost", "//localhost", "http://localhost, http://evil.com", "http://localhost http://evil.com",
        "http://[::2]", "http://0.0.0.0", "http://localhost\\.evil.com", "http://localhost%2eevil.com",
        "http://localhost/",
    ],
)  # fmt: skip
def test_foreign_origins_are_refused(server: HttpServer, origin: str) -> None:
    """No other page may call, however much its origin looks like a local one."""
    status, _, body = server.request("GET", "/health", headers={"Origin": origin})
    assert (status, b"MCP_TASK_ALLOWED_ORIGINS" in body) == (403, True)


def test_two_origins_are_refused(server: HttpServer) -> None:
    """Origins that contradict each other are not chosen from."""
    twice = b"Origin: http://localhost\r\n" * 2
    assert statuses(server.raw(HEALTH[:-2] + twice + b"\r\n")) == [403]


def test_origins_can_be_added(tmp_path: Path) -> None:
    """MCP_TASK_ALLOWED_ORIGINS lets exactly its origins in, and their names as Host."""
    added = "https://tasks.example:8443, vscode-webview://abc"
    with HttpServer(tmp_path, MCP_TASK_ALLOWED_ORIGINS=added) as server:
        for headers, status in (
            ({"Origin": "https://tasks.example:8443"}, 200),
            ({"Origin": "https://TASKS.example:8443"}, 200),
            ({"Origin": "vscode-webview://abc"}, 200),
            ({"Origin": "http://localhost"}, 200),
            ({"Host": "tasks.example"}, 200),
            ({"Origin": "https://tasks.example"}, 403),
            ({"Origin": "http://tasks.example:8443"}, 403),
            ({"Origin": "https://tasks.example:8444"}, 403),
            ({"Origin": "https://a.tasks.example:8443"}, 403),
            ({"Host": "a.tasks.example"}, 403),
            ({"Origin": "null"}, 403),
        ):
            assert server.request("GET", "/health", headers=headers)[0] == status, headers


@pytest.mark.parametrize("origin", ["tasks.example", "https://tasks.example/path", "https://", "*", "null"])
def test_an_origin_that_is_none_stops_the_start(tmp_path: Path, origin: str) -> None:
    """A value of MCP_TASK_ALLOWED_ORIGINS that cannot match anything is said at once."""
    status, said = run(tmp_path, "--port", "0", MCP_TASK_ALLOWED_ORIGINS=origin)
    assert (status, said.count("\n")) == (2, 1)
    assert "MCP_TASK_ALLOWED_ORIGINS" in said


WRONG_TOKENS = (
    "", "s3cret", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3crets", "Bearer S3CRET", "Basic s3cret",
    "Bearer s3cret x", "Bearer \xe9",
)  # fmt: skip


def test_a_token_is_asked_for_everywhere_but_at_health(tmp_path: Path) -> None:
    """Only the exact token opens anything, in any case of the scheme; /health tells all that it lives."""
    with HttpServer(tmp_path, MCP_TASK_TOKEN="s3cret") as server:
        assert server.request("GET", "/health")[0] == 200
        for path in ("/sse", "/message?clientId=x", "/nothing"):
            assert server.request("GET", path)[0] == 401
            for given in WRONG_TOKENS:
                status, answered, body = server.request("GET", path, headers={"Authorization": given})
                assert (status, answered["www-authenticate"]) == (401, "Bearer"), given
                assert b"s3cret" not in body
        twice = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n" + b"Authorization: Bearer s3cret\r\n" * 2
        assert statuses(server.raw(twice + b"\r\n")) == [401]
        for given in ("Bearer s3cret", "bearer s3cret", "BEARER  s3cret"):
            assert server.request("GET", "/nothing", headers={"Authorization": given})[0] == 404
        client = SseClient(server, "Authorization: Bearer s3cret\r\n")
        assert client.post(message("ping"))[0] == 401
        assert client.post(message("ping"), {"Authorization": "Bearer s3cret"})[0] == 202
        assert json.loads(client.event()[1])["result"] == {}
        client.close()


def test_a_token_may_come_from_a_file(tmp_path: Path) -> None:
    """MCP_TASK_TOKEN_FILE keeps the token out of the environment; the file's line end is not part of it."""
    (tmp_path / "token").write_text("from-a-file\n")
    with HttpServer(tmp_path, MCP_TASK_TOKEN_FILE=str(tmp_path / "token")) as server:
        assert server.request("GET", "/nothing")[0] == 401
        headers = {"Authorization": "Bearer from-a-file"}
        assert server.request("GET", "/nothing", headers=headers)[0] == 404


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "tasks.example", "127.0.0.1.example"])
def test_other_machines_are_let_in_only_with_a_token(tmp_path: Path, host: str) -> None:
    """An address beyond loopback without a token refuses to start, and says what is missing."""
    status, said = run(tmp_path, "--host", host, "--port", "0")
    assert (status, said.count("\n")) == (2, 1)
    assert host in said
    assert "MCP_TASK_TOKEN" in said


def test_a_service_for_other_machines_starts_with_a_token(tmp_path: Path) -> None:
    """With a token it listens where it is told to, and still serves no foreign Host."""
    with HttpServer(tmp_path, "--host", "0.0.0.0", MCP_TASK_TOKEN="s3cret") as server:
        assert server.request("GET", "/health")[0] == 200
        assert server.request("GET", "/health", headers={"Host": "evil.com"})[0] == 403


def test_a_port_in_use_is_said_in_one_line(server: HttpServer, tmp_path: Path) -> None:
    """A service that cannot listen exits 2 and names the port."""
    status, said = run(tmp_path, "--port", str(server.port))
    assert (status, said.count("\n")) == (2, 1)
    assert str(server.port) in said


# --- Deadlines and limits -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start", [HEALTH[:9], post("/message", b"x" * 9999)[:-9000]], ids=["a slow head", "a slow body"]
)
def test_a_slow_sender_has_an_absolute_deadline(tight_server: HttpServer, start: bytes) -> None:
    """A request that trickles in is answered 408 at its deadline: no byte buys more time."""
    with connect(tight_server) as connection:
        connection.sendall(start)
        started = time.monotonic()
        while not select.select([connection], [], [], 0.05)[0]:
            connection.sendall(b"x")
            assert time.monotonic() - started < ENDED_IN
        assert statuses(receive_all(connection)) == [408]


def test_an_idle_connection_is_closed(tight_server: HttpServer) -> None:
    """A client that says nothing, before a first request or after it, is let go without an answer."""
    with connect(tight_server) as silent, connect(tight_server) as served:
        served.sendall(HEALTH)
        assert receive_all(silent) == b""
        assert statuses(receive_all(served)) == [200]


def large_answer(client: SseClient, size: int) -> bytes:
    """Return a request whose answer, a refusal that repeats its id, has about `size` bytes."""
    refused = message("ping", "x" * size).replace(b'"2.0"', b'"1.0"')
    return post(client.endpoint, refused, "Connection: close")


def slow_reader(server: HttpServer) -> socket.socket:
    """Return a connection on which hardly anything arrives before it is read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", server.port))
    return connection


def test_a_slow_reader_gets_a_large_answer(server: HttpServer) -> None:
    """What the client does not take at once is kept for it, and arrives whole."""
    size = MESSAGE_BYTES - 1000
    with sse(server) as client, slow_reader(server) as connection:
        connection.sendall(large_answer(client, size))
        received = receive_all(connection)
        assert statuses(received) == [400]
        assert received.count(b"x") >= size
        assert client.request("ping")["result"] == {}


@needs_proc
def test_a_reader_that_stops_is_let_go(tight_server: HttpServer) -> None:
    """An answer that nobody takes is given up at the deadline, and others are served meanwhile."""
    with sse(tight_server) as client, slow_reader(tight_server) as connection:
        connection.sendall(large_answer(client, MESSAGE_BYTES - 1000))
        assert select.select([connection], [], [], PATIENCE)[0]
        assert client.request("ping")["result"] == {}
        wait_until(lambda: connections(tight_server) == 1, "only the stream is left")
        assert client.request("ping")["result"] == {}


@needs_proc
def test_clients_that_vanish_leave_nothing_behind(server: HttpServer) -> None:
    """Connections that end anywhere, by close, half-close or reset, cost nothing afterwards."""
    with sse(server) as client:
        whole = post(client.endpoint, message("ping", "vanished"))
        stream = b"GET /sse HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for data in (b"", HEALTH[:9], HEALTH, whole[:-5], whole, stream, b"no HTTP\r\n\r\n"):
            for end in ("close", "half-close", "reset"):
                with connect(server) as connection:
                    connection.sendall(data)
                    if end == "half-close":
                        connection.shutdown(socket.SHUT_WR)
                        receive_all(connection)
                    elif end == "reset":
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: connections(server) == 1, "only the stream is left")


def test_a_client_may_half_close(server: HttpServer) -> None:
    """A client that has sent all it will send still gets its answer."""
    with connect(server) as connection:
        connection.sendall(HEALTH)
        connection.shutdown(socket.SHUT_WR)
        assert statuses(receive_all(connection)) == [200]


def is_served(server: HttpServer) -> bool:
    """Return whether a new client is let in."""
    with connect(server) as connection:
        connection.sendall(LAST_HEALTH)
        return statuses(receive_all(connection)) == [200]


def test_connections_are_limited(tmp_path: Path) -> None:
    """One connection more than the limit is told to come back; it is served once another has gone."""
    with contextlib.ExitStack() as ends:
        limited = HttpServer(tmp_path, prelude="import config\nconfig.CONNECTIONS = 3\n")
        server = ends.enter_context(limited)
        kept = [ends.enter_context(connect(server)) for _ in range(3)]
        for connection in kept:
            connection.sendall(HEALTH)
            assert connection.recv(1000).endswith(HEALTHY)
        with connect(server) as extra:
            refused = receive_all(extra)
        assert statuses(refused) == [503]
        assert b"Retry-After: 1\r\n" in refused
        kept.pop().close()
        wait_until(lambda: is_served(server), "there is room again")
        for connection in kept:
            connection.sendall(LAST_HEALTH)
            assert statuses(receive_all(connection)) == [200]


def processor_seconds(server: HttpServer) -> float:
    """Return the processor time that the server has used."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@needs_proc
def test_a_service_without_descriptors_recovers(tmp_path: Path) -> None:
    """When clients have taken all descriptors, nothing spins, and all goes on once they have gone."""
    few = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n" + SWEEPS
    with HttpServer(tmp_path, prelude=few) as server, connect(server) as first:
        first.sendall(HEALTH)
        assert first.recv(1000).endswith(HEALTHY)
        others = [connect(server) for _ in range(60)]
        spent = processor_seconds(server)
        select.select([others[-1]], [], [], 0.5)  # it may be refused, or have to wait
        assert processor_seconds(server) - spent < 0.25
        for connection in others:
            connection.close()
        wait_until(lambda: is_served(server), "there is room again")
        first.sendall(LAST_HEALTH)
        assert statuses(receive_all(first)) == [200]
        assert server.terminate(ENDED_IN) == 0
        assert server.stderr().count("\n") == 1


# --- The end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_a_signal_ends_the_service(tmp_path: Path, number: signal.Signals) -> None:
    """Idle connections and open streams do not hold the end up: exit 0, streams closed, no traceback."""
    with HttpServer(tmp_path) as server, sse(server) as client, connect(server) as idle:
        idle.sendall(HEALTH)
        assert idle.recv(1000).endswith(HEALTHY)
        server.process.send_signal(number)
        assert server.process.wait(ENDED_IN) == 0
        assert receive_all(client.socket) == b""
        assert receive_all(idle) == b""
        assert server.stderr().count("\n") == 1


@needs_proc
def test_a_request_in_hand_is_answered_before_the_end(tmp_path: Path) -> None:
    """A call that came before SIGTERM is finished: its answer arrives, and only then all ends."""
    with HttpServer(tmp_path) as server, sse(server) as client, connect(server) as busy:
        usual = thread_count(server)
        with held_database(tmp_path):
            busy.sendall(post(client.endpoint, create_task("t1")))
            wait_until(lambda: thread_count(server) > usual, "the call waits for its turn")
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not is_listening(server), "the service ends")
        received = receive_all(busy)
        assert statuses(received) == [202]
        assert b"Connection: close\r\n" in received
        answer: JsonObject = json.loads(client.event()[1])
        assert answer["result"]["structuredContent"]["task_id"] == "t1"
        assert receive_all(client.socket) == b""
        assert server.process.wait(ENDED_IN) == 0
        assert server.stderr().count("\n") == 1


def is_listening(server: HttpServer) -> bool:
    try:
        connect(server).close()
    except ConnectionError:
        return False
    return True


@needs_proc
def test_a_request_that_takes_too_long_does_not_hold_the_end_up(tmp_path: Path) -> None:
    """A call that cannot be finished in time is cut off: exit 0 within five seconds, no traceback."""
    with HttpServer(tmp_path) as server, sse(server) as client, connect(server) as busy:
        usual = thread_count(server)
        with held_database(tmp_path):
            busy.sendall(post(client.endpoint, create_task("t1")))
            wait_until(lambda: thread_count(server) > usual, "the call waits for its turn")
            assert server.terminate(ENDED_IN) == 0
            assert statuses(receive_all(busy)) == []
        assert server.stderr().count("\n") == 1


# --- Under pressure -----------------------------------------------------------------------------------


def test_an_answer_belongs_to_its_request(tmp_path: Path) -> None:
    """A large answer that the loop finishes sending does not end, or overtake, the request behind it."""
    # The answer is held up where the system may hold it up: between sending and looking what is left.
    held_up = """
import http_sockets, http_transport, time
end_answer, health = http_sockets.HttpService._end_answer, http_transport.HttpTransport._health
def end_late(self, connection):
    time.sleep(0.1)
    end_answer(self, connection)
def slow_health(self):
    time.sleep(0.5)
    return health(self)
http_sockets.HttpService._end_answer, http_transport.HttpTransport._health = end_late, slow_health
"""
    with HttpServer(tmp_path, prelude=held_up) as server, sse(server) as client:
        large = post(client.endpoint, message("ping", "x" * 7_000_000).replace(b'"2.0"', b'"1.0"'))
        assert statuses(server.raw(large + LAST_HEALTH)) == [400, 200]


def test_what_is_sent_ahead_does_not_cut_an_answer_off(tmp_path: Path) -> None:
    """The time for a request to arrive does not run while the one before it is being answered."""
    tight = "import config\nconfig.REQUEST_SECONDS = 0.2\n"
    with HttpServer(tmp_path, prelude=tight) as server, sse(server) as client, connect(server) as busy:
        usual = thread_count(server)
        with held_database(tmp_path):
            busy.sendall(post(client.endpoint, create_task("t1")))
            wait_until(lambda: thread_count(server) > usual, "the call waits for its turn")
            busy.sendall(HEALTH[:5])
            assert not select.select([busy], [], [], 2.0)[0], "the connection was closed"
        assert busy.recv(1000).startswith(b"HTTP/1.1 202 ")


def test_a_half_close_leaves_all_requests_their_answers(tmp_path: Path) -> None:
    """A client that sends three requests and then says that it will send no more gets three answers."""
    with HttpServer(tmp_path) as server, connect(server) as connection:
        connection.sendall(HEALTH * 3)
        connection.shutdown(socket.SHUT_WR)
        assert statuses(receive_all(connection)) == [200, 200, 200]


def test_the_answer_to_head_has_no_body(tmp_path: Path) -> None:
    """HEAD is answered by a head (RFC 9110, 9.3.2), and /health can be asked with it."""
    with HttpServer(tmp_path) as server:
        for path, status in (b"/health", 200), (b"/sse", 405), (b"/nothing", 404):
            request = LAST_HEALTH.replace(b"GET /health", b"HEAD " + path)
            received = server.raw(request)
            assert received.endswith(b"\r\n\r\n")
            assert int(received.split()[1]) == status


@pytest.mark.parametrize(
    "host", ["[::1]evil.com", "evil.com[::1]", "[::1].evil.com:80", "x[::1]:80", "localhost:"]
)
def test_a_host_is_parsed_to_its_end(tmp_path: Path, host: str) -> None:
    """What is no host and port as a whole is refused, whatever part of it looks local."""
    with HttpServer(tmp_path) as server:
        assert server.request("GET", "/health", headers={"Host": host})[0] in (400, 403)


@pytest.mark.parametrize(
    "origin",
    [
        "http://[::1]evil.com",
        "http://evil.com[::1]",
        "http://loc\talhost",
        "http://localhost#",
        "http://localhost?",
        "http://localhost:",
    ],
)
def test_an_origin_is_parsed_to_its_end(tmp_path: Path, origin: str) -> None:
    """What is no origin as a whole is refused, whatever part of it looks local."""
    with HttpServer(tmp_path) as server:
        assert server.request("GET", "/health", headers={"Origin": origin})[0] == 403


def test_health_answers_behind_slow_answers(tmp_path: Path) -> None:
    """/health says within a few seconds that the database is out of reach, however many calls wait for it."""
    with HttpServer(tmp_path) as server, sse(server) as client, contextlib.ExitStack() as ends:
        usual = thread_count(server)
        with held_database(tmp_path):
            for number in range(SLOW_ANSWERS + 1):
                ends.enter_context(connect(server)).sendall(post(client.endpoint, create_task(f"t{number}")))
            # One thread more than these is in line for the turn, which one call after the other may have.
            wait_until(lambda: thread_count(server) > usual + SLOW_ANSWERS, "as many wait as may")
            with connect(server) as asking:
                asking.sendall(LAST_HEALTH)
                assert select.select([asking], [], [], 6.0)[0], "no answer in 6 s"
                assert statuses(receive_all(asking)) == [503]


def test_a_call_whose_client_has_gone_does_not_hold_the_end_up(tmp_path: Path) -> None:
    """SIGTERM ends the service within five seconds, also when a call waits that nobody waits for any more."""
    with HttpServer(tmp_path) as server, sse(server) as client:
        usual = thread_count(server)
        with held_database(tmp_path):
            busy = connect(server)
            busy.sendall(post(client.endpoint, create_task("t1")))
            wait_until(lambda: thread_count(server) > usual, "the call waits for its turn")
            held = connections(server)
            busy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            busy.close()
            wait_until(lambda: connections(server) < held, "the service sees the reset")
            assert server.terminate(5.0) == 0


def test_idle_connections_do_not_take_the_stores_descriptors(tmp_path: Path) -> None:
    """When clients take all the descriptors they may, tasks can still be written and /health is well."""
    few = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
    with HttpServer(tmp_path, prelude=few) as server, sse(server) as client, contextlib.ExitStack() as ends:
        own = connect(server)
        own.sendall(HEALTH)
        assert own.recv(1000).endswith(HEALTHY)
        for _ in range(150):
            ends.enter_context(connect(server))
        own.sendall(post(client.endpoint, create_task("t1")))
        assert own.recv(1000).startswith(b"HTTP/1.1 202 ")
        assert json.loads(client.event()[1])["result"]["isError"] is False
        own.close()


def test_a_service_outlives_the_reader_of_its_log(tmp_path: Path) -> None:
    """A debug log that cannot be written ends no service and costs no answer."""
    read_end, write_end = os.pipe()
    service = subprocess.Popen(
        [sys.executable, str(SERVER), "--http", "--port", "0"],
        stdin=subprocess.DEVNULL, stderr=write_end, env=environment(tmp_path, MCP_DEBUG="1"),
    )  # fmt: skip
    os.close(write_end)
    try:
        said = b""
        while not said.endswith(b"\n"):
            said += os.read(read_end, 1000)
        os.close(read_end)
        server = HttpServer.__new__(HttpServer)
        server.port = int(said.rpartition(b":")[2])
        client = SseClient(server)
        for _ in range(12):
            assert client.request("ping")["result"] == {}
        client.close()
    finally:
        service.kill()
        service.wait(PATIENCE)


@pytest.mark.parametrize("size", [0, 300_000])
def test_a_full_service_says_so_to_clients_that_are_sending(tmp_path: Path, size: int) -> None:
    """The 503 of a full service arrives, and is not lost to a reset, however much the client was sending."""
    one = "import config\nconfig.CONNECTIONS = 1\n"
    with HttpServer(tmp_path, prelude=one) as server, connect(server) as only:
        only.sendall(HEALTH)
        assert only.recv(1000).endswith(HEALTHY)
        for _ in range(100):
            assert server.request("POST", "/message", b"x" * size)[0] == 503
