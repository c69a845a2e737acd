"""Raw HTTP that no decent client sends: requests in disguise, floods, and peers that misbehave.

Whatever comes, a request that two parsers could delimit differently is refused, an answer belongs to its
request, and the service is afterwards what it was: alive, quick, no larger, with no socket or thread more.
"""

from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import NamedTuple

import h11
import pytest
from fuzzing import connect, needs_proc, reset, unharmed_service
from hypothesis import given, settings
from hypothesis import strategies as st
from support import HttpServer, McpClient, SseClient, create, request, stdio, wait_until

from config import HEADER_BYTES, MESSAGE_BYTES
from http_message import HttpError, take_head

QUICK = (
    "import config\nconfig.REQUEST_SECONDS = 0.5\nimport http_sockets\nhttp_sockets._SWEEP_SECONDS = 0.05\n"
)
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(body: bytes, *lines: bytes, start: bytes = b"POST /mcp HTTP/1.1", length: bool = True) -> bytes:
    """Return the bytes of a POST; its length is left to `lines` where it is not the right one."""
    counted = (b"Content-Length: %d" % len(body),) if length else ()
    head = (start, b"Host: localhost", b"Content-Type: application/json", *lines, *counted)
    return b"\r\n".join([*head, b"", body])


def ping(request_id: int, text: str = "") -> bytes:
    return json.dumps(request("ping", {"text": text}, request_id)).encode()


def tool_call(task_id: str) -> bytes:
    """Return a message that makes a task."""
    arguments = {"task_id": task_id, "title": "Title", "goal": "Goal"}
    return json.dumps(request("tools/call", {"name": "create_task", "arguments": arguments})).encode()


SMUGGLED = post(tool_call("smuggled"))


class Answer(NamedTuple):
    status: int
    body: bytes
    is_last: bool


def answers_in(received: bytes) -> list[Answer]:
    """Return the answers that follow one another on the wire; all of it must be whole answers."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        lines = head.decode("ascii").split("\r\n")
        version, status, _ = lines[0].split(" ", 2)
        assert version == "HTTP/1.1"
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        length = 0 if status == "100" else int(headers["content-length"])
        assert len(rest) >= length
        found.append(Answer(int(status), rest[:length], headers.get("connection") == "close"))
        received = rest[length:]
    return found


def exchange(server: HttpServer, *pieces: bytes) -> list[Answer]:
    """Send pieces, then the end of what is sent, and return the answers."""
    received = b""
    with connect(server) as connection, suppress(ConnectionError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(1 << 16):
            received += chunk
    return answers_in(received)


def has_task(server: HttpServer, task_id: str) -> bool:
    _, is_missing = McpClient(server).answer("get_task", task_id=task_id)
    return not is_missing


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with HttpServer(tmp_path_factory.mktemp("http")) as server:
        yield server
        assert server.stderr().count("\n") == 1


# --- Requests in disguise -----------------------------------------------------------------------------------

CODINGS = [
    b"Transfer-Encoding: chunked", b"Transfer-Encoding:chunked", b"transfer-encoding: CHUNKED",
    b"Transfer-Encoding: \tchunked \t", b"Transfer-Encoding: identity", b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity, chunked", b"Transfer-Encoding:",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
    b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked", b" Transfer-Encoding: chunked",
    b"X: y\r\n Transfer-Encoding: chunked", b"X: y\r\n\tTransfer-Encoding: chunked",
    b"Transfer-Encoding:\r\n chunked",
    b"X: y\rTransfer-Encoding: chunked", b"X: y\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding\0: chunked", b"Transfer-Encoding: chunked\0",
    b'Transfer-Encoding: "chunked"', b"Transfer-Encoding: chunked;q=1", b"\xffTransfer-Encoding: chunked",
    b"Transfer-Encoding: chun\xffked",
]  # fmt: skip
LENGTHS = [
    b"Content-Length: 5\r\nContent-Length: 5", b"Content-Length: 0\r\nContent-Length: 5",
    b"Content-Length: 5\r\ncontent-length: 0", b"Content-Length: 5, 5", b"Content-Length: 5,0",
    b"Content-Length: +5", b"Content-Length: -5", b"Content-Length: -0", b"Content-Length: 0x5",
    b"Content-Length: 5e0", b"Content-Length: 5.0", b"Content-Length: 5 5", b"Content-Length: 5\t0",
    b"Content-Length:", b"Content-Length: ", b"Content-Length: five", b'Content-Length: "5"',
    b"Content-Length: 5;", b"Content-Length: 5\0", b"Content-Length: \x0b5", b"Content-Length: 5\xa0",
    b"Content-Length: \xb2", "Content-Length: \uff15".encode(), b"Content-Length: 1_0",
    b"Content-Length: " + b"9" * 19, b"Content-Length: " + b"9" * 5000,
    b"Content-Length : 5", b" Content-Length: 5", b"Content-Length\0: 5",
    b"X: y\r\n Content-Length: 5", b"Content-Length:\r\n 5",
    b"X: y\nContent-Length: 5", b"X: y\rContent-Length: 5",
    b"Content_Length: 5", b"Content-Length; 5", b"X: y",
]  # fmt: skip
STARTS = [
    b"POST /mcp", b"POST  /mcp HTTP/1.1", b"POST\t/mcp HTTP/1.1",
    b" POST /mcp HTTP/1.1", b"POST /mcp HTTP/1.1 ",
    b"POST /m cp HTTP/1.1", b"POST /mcp HTTP/0.9", b"POST /mcp HTTP/2.0", b"POST /mcp HTTP/1.10",
    b"POST /mcp http/1.1", b"POST /mcp HTTP/1.1\rX: y", b"POST /mcp HTTP/1.1\nX: y", b"POST /mcp\0 HTTP/1.1",
    b"POST /mcp?\x7f HTTP/1.1", b"POST mcp HTTP/1.1", b"POST * HTTP/1.1", b"POST localhost:80 HTTP/1.1",
    b"POST http://evil.example/mcp HTTP/1.1", b"POST https://localhost/mcp HTTP/1.1",
    b"POST //mcp HTTP/1.1", b"POST /./mcp HTTP/1.1", b"POST /%6dcp HTTP/1.1", b"POST /mcp# HTTP/1.1",
    b"P\xd6ST /mcp HTTP/1.1", b"CONNECT localhost:80 HTTP/1.1", b"PRI * HTTP/2.0", b"HTTP/1.1 200 OK", b"",
    b"POST /mcp HTTP/1.1\r\nHost: localhost", b"POST /mcp HTTP/1.1\r\nHost: evil.example",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x05\x01\x00", b"*1\r\n$4\r\nPING", b"{",
]  # fmt: skip
CHUNKS = b"0\r\n\r\n"
DISGUISES = {
    **{f"coding {number}": post(CHUNKS, line, length=False) for number, line in enumerate(CODINGS)},
    **{f"coding {number} and a length": post(CHUNKS, line) for number, line in enumerate(CODINGS)},
    **{f"length {number}": post(CHUNKS, line, length=False) for number, line in enumerate(LENGTHS)},
    **{f"start {number}": post(b"", start=start) for number, start in enumerate(STARTS)},
}


@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES)
def test_nothing_is_smuggled(server: HttpServer, disguise: bytes) -> None:
    """What two parsers could delimit differently is refused, and what follows it is not looked at."""
    answers = exchange(server, disguise + SMUGGLED)
    assert len(answers) == 1, answers
    assert answers[0].is_last
    assert answers[0].status in (400, 403, 404, 405, 411, 413, 505)
    assert not has_task(server, "smuggled")


def test_what_would_be_smuggled_is_good_by_itself(tmp_path: Path) -> None:
    """The request that no disguise gets through makes a task when it comes undisguised."""
    with HttpServer(tmp_path) as server:
        assert [answer.status for answer in exchange(server, HEALTH + SMUGGLED)] == [200, 200]
        assert has_task(server, "smuggled")


TOKENS = st.sampled_from(
    [
        b"Content-Length", b"Transfer-Encoding", b"Host", b"Connection", b"chunked", b"close", b": ", b":",
        b" ", b"\t", b"\r\n", b"\n", b"\r", b"\0", b"\x0b", b"\xa0", b",", b";", b"3", b"0", b"+", b"-",
        b"HTTP/1.1", b"HTTP/1.0", b"GET", b"/", b"localhost", b"\r\n\r\n", b"X",
    ]
)  # fmt: skip
HEADS = st.tuples(
    st.sampled_from(
        [HEALTH, post(b"abc"), post(b"abc", b"Connection: close"), post(b"", b"Expect: 100-continue")]
    ),
    st.lists(st.tuples(st.integers(0), st.integers(0, 4), TOKENS | st.binary(max_size=2)), max_size=3),
)


def spoilt(drawn: tuple[bytes, list[tuple[int, int, bytes]]]) -> bytes:
    """Return a request with some of its bytes replaced by others."""
    message, changes = drawn
    for at, cut, inserted in changes:
        at %= len(message)
        message = message[:at] + inserted + message[at + cut :]
    return message


Delimited = tuple[bytes, bytes, bool]  # method, body as far as it is there, and whether that is all of it


def as_here(message: bytes) -> Delimited | None:
    """Return how this server reads a message; None if it refuses it, or waits for more of its head."""
    buffer = bytearray(message)
    try:
        head = take_head(buffer)
    except HttpError:
        return None
    if head is None:
        return None
    body = bytes(buffer[: head.content_length])
    return head.method.encode(), body, len(body) == head.content_length


def as_elsewhere(message: bytes) -> Delimited:
    """Return how h11 reads a message; raises h11.RemoteProtocolError if it refuses it."""
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(message.lstrip(b"\r\n"))
    head, body = reader.next_event(), b""
    assert isinstance(head, h11.Request)
    while isinstance(event := reader.next_event(), h11.Data):
        body += event.data
    return head.method, body, isinstance(event, h11.EndOfMessage)


def delimit(examples: int, is_repeatable: bool = False) -> None:
    """Have so many spoilt messages read here and elsewhere."""
    accepted: list[bytes] = []

    @settings(max_examples=examples, derandomize=is_repeatable)
    @given(HEADS.map(spoilt))
    def compare(message: bytes) -> None:
        if (found := as_here(message)) is not None:
            accepted.append(message)
            assert found == as_elsewhere(message)

    compare()
    assert examples / 20 < len(accepted) < examples


def test_others_delimit_alike_what_is_accepted() -> None:
    """A spoilt request that is accepted all the same is read by another parser as it is here."""
    delimit(500, is_repeatable=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_others_delimit_alike_what_is_accepted_at_length() -> None:
    """The same as the short test, with very many requests, others each time."""
    delimit(30_000)


# --- Answers and their requests -----------------------------------------------------------------------------

NUMBERS = st.integers(0, 2**53)
QUESTIONS = st.one_of(
    st.just((HEALTH, None)),
    NUMBERS.map(lambda number: (post(ping(number)), number)),
    NUMBERS.map(lambda number: (post(ping(number, SMUGGLED.decode())), number)),
    NUMBERS.map(lambda number: (b"\r\n" + post(ping(number, "x" * 5000), b"Expect: 100-continue"), number)),
)


def answer_in_order(server: HttpServer, examples: int, is_repeatable: bool = False) -> None:
    """Send so many rows of requests ahead, cut anywhere."""

    @settings(max_examples=examples, derandomize=is_repeatable)
    @given(st.lists(QUESTIONS, min_size=1, max_size=8), st.lists(st.integers(1, 400), max_size=12))
    def ask(questions: list[tuple[bytes, int | None]], cuts: list[int]) -> None:
        answers = exchange(server, *pieces(b"".join(question for question, _ in questions), cuts))
        final = [answer for answer in answers if answer.status != 100]
        assert [answer.status for answer in final] == [200] * len(questions)
        assert [json.loads(answer.body).get("id") for answer in final] == [number for _, number in questions]

    ask()


def pieces(data: bytes, lengths: list[int]) -> Iterator[bytes]:
    for length in lengths:
        yield data[:length]
        data = data[length:]
    yield data


@needs_proc
def test_an_answer_belongs_to_its_request(server: HttpServer) -> None:
    """Requests sent ahead and cut anywhere, whole requests inside some bodies, are answered in order."""
    answer_in_order(server, 5, True)
    with unharmed_service(server):
        answer_in_order(server, 60, True)
    assert not has_task(server, "smuggled")


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_proc
def test_an_answer_belongs_to_its_request_at_length(server: HttpServer) -> None:
    """The same as the short test, with very many rows, others each time."""
    answer_in_order(server, 5, True)
    with unharmed_service(server):
        answer_in_order(server, 3000)
    assert not has_task(server, "smuggled")


def send_spoilt(server: HttpServer, examples: int, is_repeatable: bool = False) -> None:
    """Send so many spoilt requests, each followed by a good one."""

    @settings(max_examples=examples, derandomize=is_repeatable)
    @given(HEADS.map(spoilt) | st.binary(max_size=200))
    def send(message: bytes) -> None:
        answers = exchange(server, message + HEALTH)
        assert all(answer.status < 500 or answer.status == 505 for answer in answers), answers
        assert not any(answer.is_last for answer in answers[:-1]), answers

    send()


@needs_proc
def test_spoilt_requests_do_no_harm(server: HttpServer) -> None:
    """Whatever arrives is answered by whole answers, of which none follows the last one."""
    send_spoilt(server, 10, True)
    with unharmed_service(server):
        send_spoilt(server, 150, True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_proc
def test_spoilt_requests_do_no_harm_at_length(server: HttpServer) -> None:
    """The same as the short test, with very many requests, others each time."""
    send_spoilt(server, 10, True)
    with unharmed_service(server):
        send_spoilt(server, 10_000)


# --- Floods, and peers that misbehave -----------------------------------------------------------------------


def flood_with_headers(server: HttpServer, connection: socket.socket) -> None:
    """Send headers until they are refused."""
    with suppress(ConnectionError):
        connection.sendall(HEALTH[:-2] + b"X: y\r\n" * HEADER_BYTES)
    assert status_of(connection) == 400


def send_one_byte_too_many(server: HttpServer, connection: socket.socket) -> None:
    """Send headers that are as long as they may be, and then one byte longer."""
    start, end = HEALTH[:-2] + b"X: ", b"\r\n\r\n"
    longest = start + b"y" * (HEADER_BYTES - len(start + end)) + end
    connection.sendall(longest)
    assert status_of(connection) == 200
    connection.sendall(longest.replace(b"X: ", b"X: y"))
    assert status_of(connection) == 400


def flood_with_empty_lines(server: HttpServer, connection: socket.socket) -> None:
    """Send what is ignored before a request, and then a request."""
    connection.sendall(b"\r\n" * 100_000 + HEALTH)
    assert status_of(connection) == 200


def send_chunks(server: HttpServer, connection: socket.socket) -> None:
    """Send a body in chunks without end."""
    with suppress(ConnectionError):
        connection.sendall(post(b"", b"Transfer-Encoding: chunked", length=False) + b"1\r\nx\r\n" * 1000)
    assert status_of(connection) == 411


def vanish_within_a_large_body(server: HttpServer, connection: socket.socket) -> None:
    """Send all of the largest body but one byte, and crash."""
    connection.sendall(post(b" " * MESSAGE_BYTES)[:-1])
    reset(connection)


def vanish_everywhere(server: HttpServer, connection: socket.socket) -> None:
    """Crash after each byte of a request, and after it."""
    connection.close()
    message = post(ping(1))
    for end in range(0, len(message) + 1, 7):
        with connect(server) as other:
            other.sendall(message[:end])
            reset(other)


def half_close_everywhere(server: HttpServer, connection: socket.socket) -> None:
    """Say after each byte of a request that there will be no more: the whole one is answered."""
    connection.close()
    message = post(ping(1))
    for end in [*range(0, len(message), 7), len(message)]:
        answers = exchange(server, message[:end])
        assert [answer.status for answer in answers] == ([200] if end == len(message) else [])


def leave_answers_unread(server: HttpServer, connection: socket.socket) -> None:
    """Ask for a hundred answers that are large, read none, and crash."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listing = json.dumps(request("tools/list")).encode()
    with suppress(ConnectionError, BlockingIOError):
        connection.setblocking(False)
        connection.sendall(post(listing) * 100)
    reset(connection)


def leave_after_asking(server: HttpServer, connection: socket.socket) -> None:
    """Ask for a claim that waits, and go."""
    claim = {"name": "claim_task", "arguments": {"agent": "nobody", "tag": "none", "wait_seconds": 50}}
    connection.sendall(post(json.dumps(request("tools/call", claim)).encode()))
    reset(connection)


def send_slowly(server: HttpServer, connection: socket.socket) -> None:
    """Send a byte now and then, until it has taken too long."""
    connection.settimeout(0.05)
    for byte in HEALTH[:10] + b"y" * 1000:
        with suppress(ConnectionError):
            connection.sendall(bytes([byte]))
        with suppress(TimeoutError):
            assert connection.recv(1000, socket.MSG_PEEK).startswith(b"HTTP/1.1 408 ")
            return
    pytest.fail("a slow sender was waited for")


def status_of(connection: socket.socket) -> int:
    """Return the status of the first answer."""
    return int(connection.recv(1 << 16).split(b" ", 2)[1])


MISBEHAVIOUR = [
    flood_with_headers, send_one_byte_too_many, flood_with_empty_lines, send_chunks, leave_answers_unread,
    vanish_within_a_large_body, vanish_everywhere, half_close_everywhere, leave_after_asking, send_slowly,
]  # fmt: skip
Misbehaviour = Callable[[HttpServer, socket.socket], None]


@pytest.fixture(scope="module")
def quick_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """Yield a service whose clients must be quick."""
    with HttpServer(tmp_path_factory.mktemp("quick"), prelude=QUICK) as server:
        yield server
        assert server.stderr().count("\n") == 1


def misbehave(server: HttpServer, misbehaviour: Misbehaviour, times: int) -> None:
    """Have so many peers misbehave, four at a time."""
    with ThreadPoolExecutor(4) as peers:
        for outcome in [peers.submit(misbehave_once, server, misbehaviour) for _ in range(times)]:
            outcome.result()


def misbehave_once(server: HttpServer, misbehaviour: Misbehaviour) -> None:
    with connect(server) as connection:
        misbehaviour(server, connection)


@pytest.mark.parametrize("misbehaviour", MISBEHAVIOUR)
@needs_proc
def test_peers_that_misbehave_do_no_harm(quick_server: HttpServer, misbehaviour: Misbehaviour) -> None:
    """After a few such peers the service is as before."""
    misbehave(quick_server, misbehaviour, 4)
    with unharmed_service(quick_server):
        misbehave(quick_server, misbehaviour, 8)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("misbehaviour", MISBEHAVIOUR)
@needs_proc
def test_many_peers_that_misbehave_do_no_harm(quick_server: HttpServer, misbehaviour: Misbehaviour) -> None:
    """After very many such peers the service is as before."""
    misbehave(quick_server, misbehaviour, 4)
    with unharmed_service(quick_server):
        misbehave(quick_server, misbehaviour, 200)


# --- Sessions that come and go ------------------------------------------------------------------------------

WAVE = 50  # streams that are open at the same time


def open_and_drop(server: HttpServer, sessions: int) -> None:
    """Open so many streams, wave after wave; some work, and they end in every way."""
    for first in range(0, sessions, WAVE):
        with ExitStack() as ends:
            clients = [SseClient(server) for _ in range(WAVE)]
            for number, client in enumerate(clients, first):
                ends.callback(client.close)
                if number % 5 == 0:
                    client.initialize()
                if number % 10 == 0:
                    client.call("claim_task", agent=f"agent-{number}", task_id="kept")
                    client.call(
                        "handoff_task",
                        task_id="kept",
                        from_agent=f"agent-{number}",
                        to_agent="any",
                        reason="r",
                    )
                if number % 3 == 0:
                    reset(client.socket)
                elif number % 3 == 1:
                    client.socket.shutdown(socket.SHUT_WR)
        McpClient(server).result("initialize", HELLO)


HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


def known_sessions(folder: Path) -> int:
    """Return how many sessions the database knows."""
    with closing(sqlite3.connect(folder / "tasks.db")) as connection:
        found: int = connection.execute("SELECT count(*) FROM sessions").fetchone()[0]
        return found


def check_sessions(folder: Path, sessions: int, spawned: int) -> None:
    """Hold that so many streams, and some processes, leave nothing of themselves."""
    with HttpServer(folder) as server:
        create(McpClient(server), "kept")
        open_and_drop(server, 2 * WAVE)
        with unharmed_service(server):
            open_and_drop(server, sessions)
            for _ in range(spawned):
                with stdio(folder) as client:
                    client.call("claim_task", agent="spawned", task_id="kept")
                    client.call(
                        "handoff_task", task_id="kept", from_agent="spawned", to_agent="any", reason="r"
                    )
                    assert client.close() == 0
        wait_until(lambda: known_sessions(folder) == 0, "no session is known")
        assert McpClient(server).call("get_task", task_id="kept")["status"] == "handoff_ready"


@needs_proc
def test_sessions_that_end_leave_nothing(tmp_path: Path) -> None:
    """Hundreds of sessions that were opened, used and dropped cost no memory, socket, thread or row."""
    check_sessions(tmp_path, sessions=400, spawned=3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_proc
def test_ten_thousand_sessions_leave_nothing(tmp_path: Path) -> None:
    """Ten thousand sessions that were opened, used and dropped cost no memory, socket, thread or row."""
    check_sessions(tmp_path, sessions=10_000, spawned=50)
