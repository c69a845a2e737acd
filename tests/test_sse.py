"""The legacy HTTP+SSE transport: sessions, their answers, and how they end."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from support import (
    PATIENCE,
    PROJECT,
    HttpServer,
    SseClient,
    at_work,
    sse,
    stdio,
    thread_count,
    wait_until,
)

from config import BATCH_MESSAGES, MIB, STREAM_DEAD_SECONDS, STREAM_PING_SECONDS, STREAM_QUEUE_BYTES

FORGOTTEN_IN = 30.0  # seconds after which a client that vanished must be forgotten
QUICK = """
import config
config.STREAM_PING_SECONDS, config.STREAM_DEAD_SECONDS = 0.1, 0.5
import http_sockets
http_sockets._SWEEP_SECONDS = 0.05
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc, which Linux has")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """Yield a service for all tests that neither change nor end it; it outlives them without a word."""
    with HttpServer(tmp_path_factory.mktemp("sse")) as server:
        yield server
        assert server.terminate() == 0
        assert server.stderr().count("\n") == 1


def message(method: str, request_id: int | str | None = None, **params: object) -> str:
    """Return a request, or without an id a notification."""
    members = {"jsonrpc": "2.0", "method": method, "params": params}
    return json.dumps(members if request_id is None else members | {"id": request_id})


# --- The handshake ------------------------------------------------------------------------------------


def test_the_stream_names_its_endpoint_first(server: HttpServer) -> None:
    """The first event is `endpoint`, a path on the same origin; the head is that of an event stream."""
    with closing(SseClient(server)) as client:
        assert client.head.startswith("HTTP/1.1 200 OK\r\n")
        assert "Content-Type: text/event-stream" in client.head
        assert re.fullmatch(r"/message\?clientId=[A-Za-z0-9_-]{32,}", client.endpoint)


def test_client_ids_are_not_reused(server: HttpServer) -> None:
    """Each stream has an id of its own, of which no other tells anything."""
    with ExitStack() as ends:
        clients = [ends.enter_context(closing(SseClient(server))) for _ in range(20)]
        ids = [client.endpoint.partition("=")[2] for client in clients]
        assert len({client_id[:8] for client_id in ids}) == len({client_id[-8:] for client_id in ids}) == 20


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
        ("yesterday", "2025-11-25"),
    ],
)
def test_every_revision_is_negotiated(server: HttpServer, asked: str, answered: str) -> None:
    """A handshake revision is answered with itself, anything else with the newest of them."""
    with closing(SseClient(server)) as client:
        result = client.initialize(asked)
        assert result["protocolVersion"] == answered
        assert ("instructions" in result) is (answered != "2024-11-05")
        assert len(client.request("tools/list")["result"]["tools"]) == 9


def test_nothing_but_ping_is_served_before_the_handshake(server: HttpServer) -> None:
    """What was negotiated belongs to one stream: a new one starts without it."""
    with sse(server), closing(SseClient(server)) as client:
        assert client.request("ping")["result"] == {}
        assert client.request("tools/list")["error"]["code"] == -32602


# --- Messages -----------------------------------------------------------------------------------------


def test_an_answer_travels_on_the_stream(server: HttpServer) -> None:
    """A POST is answered 202 without a body, and its JSON-RPC response is one event of the stream."""
    with sse(server) as client:
        assert client.post(message("ping", 0)) == (202, b"")
        assert client.event() == ("message", '{"jsonrpc":"2.0","id":0,"result":{}}')
        assert client.post(message("no/such/method", "é")) == (202, b"")
        refusal = json.loads(client.event()[1])
        assert (refusal["id"], refusal["error"]["code"]) == ("é", -32601)


def test_a_large_answer_arrives_whole(server: HttpServer) -> None:
    """An answer beyond what the network takes at once is one event all the same."""
    request_id = "x" * (3 * MIB)
    with sse(server) as client:
        assert client.post(message("ping", request_id))[0] == 202
        assert json.loads(client.event()[1])["id"] == request_id


@pytest.mark.parametrize(
    "body",
    [
        message("notifications/initialized"),
        message("notifications/nobody_knows", requestId=[{}]),
        '{"jsonrpc":"2.0","method":"tools/call","params":[]}',
        '{"jsonrpc":"2.0","id":1,"result":{}}',
    ],
)
def test_what_is_no_request_is_accepted_in_silence(server: HttpServer, body: str) -> None:
    """Notifications and responses are answered 202, and nothing appears on the stream."""
    with sse(server) as client:
        assert client.post(body) == (202, b"")
        assert client.request("ping")["result"] == {}  # the next event is its answer


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"no JSON", -32700), (b"", -32700), (b"\xff", -32700), (b"[" * 100_000, -32700),
        (b'{"a":1,"a":1}', -32700), (b"[]", -32600), (b"{}", -32600), (b'"ping"', -32600),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600),
    ],
)  # fmt: skip
def test_an_unreadable_message_is_refused_at_once(server: HttpServer, body: bytes, code: int) -> None:
    """What is no message gets 400 and the JSON-RPC error in the response; the session goes on."""
    with sse(server) as client:
        status, answer = client.post(body)
        refusal = json.loads(answer)
        assert (status, refusal["id"], refusal["error"]["code"]) == (400, None, code)
        assert client.request("ping")["result"] == {}


def test_a_batch_is_answered_as_one_event(server: HttpServer) -> None:
    """At 2025-03-26, which has batches, all answers to one come as one array, up to the limit."""
    with sse(server, "2025-03-26") as client:
        pings = [json.loads(message("ping", number)) for number in range(BATCH_MESSAGES + 1)]
        assert client.post(json.dumps(pings[:-1])) == (202, b"")
        assert [answer["id"] for answer in json.loads(client.event()[1])] == list(range(BATCH_MESSAGES))
        assert client.post(json.dumps(pings))[0] == 400
        assert client.request("ping")["result"] == {}


def test_files_are_not_attached_by_path(server: HttpServer, tmp_path: Path) -> None:
    """A client elsewhere cannot mean the service's own files: the refusal says to send the content."""
    (tmp_path / "log").write_text("secret")
    with sse(server) as client:
        client.call("create_task", task_id="attach", title="t", goal="g")
        arguments = {"task_id": "attach", "name": "log", "path": str(tmp_path / "log")}
        result = client.request("tools/call", {"name": "attach_artifact", "arguments": arguments})["result"]
        assert result["isError"] is True
        assert "content" in json.loads(result["content"][0]["text"])["error"]["hint"]
        assert client.call("attach_artifact", task_id="attach", name="log", content="text")


# --- Sessions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?", "?clientId=", "?clientId=unknown", "?client=1", "?clientId=%00"])
def test_an_unknown_client_is_404(server: HttpServer, query: str) -> None:
    """Without an open stream there is no session, and the answer says how to get one."""
    headers = {"Content-Type": "application/json"}
    status, _, body = server.request("POST", "/message" + query, message("ping", 1), headers)
    assert (status, "GET /sse" in json.loads(body)["error"]) == (404, True)


def test_an_ambiguous_client_is_404(server: HttpServer) -> None:
    """Two ids in one request belong to nobody, even if both are known."""
    with sse(server) as one, sse(server) as other:
        path = f"{one.endpoint}&{other.endpoint.partition('?')[2]}"
        headers = {"Content-Type": "application/json"}
        assert server.request("POST", path, message("ping", 1), headers)[0] == 404
        assert one.request("ping")["result"] == other.request("ping")["result"] == {}


def test_clients_do_not_see_each_others_answers(server: HttpServer) -> None:
    """Equal ids on two streams are two requests: each stream carries its own answer only."""
    with sse(server, "2024-11-05") as old, sse(server) as new:
        for client, title in ((old, "of the old"), (new, "of the new")):
            arguments = {"task_id": title.replace(" ", "-"), "title": title, "goal": "g"}
            assert client.post(message("tools/call", 7, name="create_task", arguments=arguments))[0] == 202
        for client, title in ((new, "of the new"), (old, "of the old")):
            answer = json.loads(client.event()[1])
            assert (answer["id"], json.loads(answer["result"]["content"][0]["text"])["title"]) == (7, title)
            assert ("structuredContent" in answer["result"]) is (client is new)
        assert old.request("ping")["result"] == new.request("ping")["result"] == {}


@pytest.mark.parametrize("end", [socket.SHUT_RDWR, socket.SHUT_WR], ids=["close", "half-close"])
def test_a_client_that_closes_is_forgotten_at_once(server: HttpServer, end: int) -> None:
    """When the stream closes the session is gone: its endpoint is 404, other sessions do not notice."""
    with sse(server) as other, closing(SseClient(server)) as client:
        client.initialize()
        started = time.monotonic()
        client.socket.shutdown(end)
        wait_until(lambda: client.post(message("ping", 1))[0] == 404, "it is forgotten")
        assert time.monotonic() - started < 2.0
        assert other.request("ping")["result"] == {}


def test_streams_are_kept_alive(tmp_path: Path) -> None:
    """A silent stream carries a comment at intervals, and nothing else."""
    with HttpServer(tmp_path, prelude=QUICK) as server, closing(SseClient(server)) as client:
        received = b""
        while len(received) < 9:
            received += client.socket.recv(100)
        assert received.replace(b":\n\n", b"") == b""
        assert client.request("ping")["result"] == {}


def can_make_networks() -> bool:
    """Return whether this user may make a network of its own, whose cable can be pulled."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_make_networks(), reason="needs a network namespace, to pull the cable in")
def test_a_client_that_vanishes_is_forgotten() -> None:
    """A peer that falls silent without a close is noticed by the pings that it does not acknowledge."""
    assert STREAM_PING_SECONDS + STREAM_DEAD_SECONDS + 2 < FORGOTTEN_IN  # deadlines are met within a second
    ended = subprocess.run(
        ["unshare", "-rn", sys.executable, __file__],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        timeout=2 * PATIENCE,
    )
    assert (ended.returncode, ended.stdout) == (0, "forgotten\n"), ended.stderr


def _vanish(folder: Path) -> None:
    """Inside a network namespace: open a stream, cut the network, and see what the service does."""
    _switch_network(True)
    with HttpServer(folder, prelude=QUICK) as server:
        descriptors = f"/proc/{server.process.pid}/fd"
        usual = len(os.listdir(descriptors))
        client = SseClient(server)
        wait_until(lambda: len(os.listdir(descriptors)) == usual + 1, "the stream is open")
        _switch_network(False)
        wait_until(lambda: len(os.listdir(descriptors)) == usual, "the stream is closed")
        _switch_network(True)
        assert client.post(message("ping", 1))[0] == 404
        client.close()
        assert server.terminate() == 0
    print("forgotten")


def _switch_network(is_up: bool) -> None:
    get_flags, set_flags, up = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
    with socket.socket() as anything:
        asked = fcntl.ioctl(anything, get_flags, struct.pack("16sh22x", b"lo", 0))
        flags = struct.unpack("16xh22x", asked)[0]
        flags = flags | up if is_up else flags & ~up
        fcntl.ioctl(anything, set_flags, struct.pack("16sh22x", b"lo", flags))


@needs_proc
def test_a_listener_that_stops_reading_is_dropped(tmp_path: Path) -> None:
    """What is kept for a slow reader is bounded: it is dropped, the others and the memory unharmed."""
    with HttpServer(tmp_path) as server, sse(server) as other, closing(SseClient(server)) as stuck:
        before = peak_memory(server)
        posts = 0
        while stuck.post(message("ping", "x" * MIB))[0] == 202:
            assert other.request("ping")["result"] == {}
            posts += 1
            assert posts < 50
        assert posts > STREAM_QUEUE_BYTES / MIB
        assert other.request("ping")["result"] == {}
        assert peak_memory(server) - before < STREAM_QUEUE_BYTES + 32 * MIB
        assert server.stderr().count("\n") == 1


def peak_memory(server: HttpServer) -> int:
    """Return the most memory, in bytes, that the server has ever had resident."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


# --- Many ---------------------------------------------------------------------------------------------


def test_a_hundred_sessions_work_at_once(server: HttpServer) -> None:
    """A hundred open sessions call in parallel; every call is answered, each on its own stream."""
    all_open = threading.Barrier(100)

    def work(number: int) -> str:
        with sse(server) as client:
            all_open.wait(PATIENCE)
            client.call("create_task", task_id=f"task-{number}", title=f"title {number}", goal="g")
            found = client.call("get_task", task_id=f"task-{number}")
            return str(found["title"])

    with ThreadPoolExecutor(100) as clients:
        titles = list(clients.map(work, range(100)))
    assert titles == [f"title {number}" for number in range(100)]


@needs_proc
def test_an_idle_stream_costs_no_thread(server: HttpServer) -> None:
    """Three hundred open streams add no thread to the service, and leave none."""
    usual = thread_count(server)
    with ExitStack() as ends:
        clients = [ends.enter_context(closing(SseClient(server))) for _ in range(300)]
        assert thread_count(server) == usual
        assert clients[0].request("ping")["result"] == clients[299].request("ping")["result"] == {}
        assert thread_count(server) == usual


SLOW_FAREWELLS = """
import time, store
end = store.Store.end_session
def slowly(*given):
    time.sleep(0.2)
    end(*given)
store.Store.end_session = slowly
"""


def test_the_end_of_the_service_is_the_end_of_its_sessions(tmp_path: Path) -> None:
    """SIGTERM records the end of every session that owned a task, silently, before the store is closed."""
    with HttpServer(tmp_path, prelude=SLOW_FAREWELLS) as server:
        with closing(SseClient(server)) as client:
            client.initialize()
            at_work(client, "kept", "alice")
            assert server.terminate() == 0
        assert server.stderr().count("\n") == 1
    with stdio(tmp_path) as other:
        events = other.call("get_task", task_id="kept", view="history")["events"]
        assert "session_ended" in [event["what"] for event in events]


def test_streams_are_limited(tmp_path: Path) -> None:
    """One stream more than the limit is told to come back; there is room when another has gone."""
    ask = b"GET /sse HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with HttpServer(tmp_path, prelude="import config\nconfig.STREAMS = 2\n") as server:
        first, second = SseClient(server), SseClient(server)
        refused = server.raw(ask)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in refused
        first.close()

        def is_let_in() -> bool:
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
                connection.sendall(ask)
                return connection.recv(100).startswith(b"HTTP/1.1 200 ")

        wait_until(is_let_in, "there is room again")
        assert second.request("ping")["result"] == {}
        second.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        _vanish(Path(made))
