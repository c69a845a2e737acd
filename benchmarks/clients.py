"""Clients that time one call after another, over STDIO and over HTTP.

Requests are made before the clock runs, and answers parsed after it has stopped.
"""

from __future__ import annotations

import json
import os
import re
import select
import selectors
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple, Protocol

from benchmarks.contenders import Call, Command, Contender, Failed, JsonObject
from benchmarks.processes import Process

PATIENCE = 60.0  # seconds for one answer
REVISION = "2025-06-18"  # of MCP: the newest that all peers speak
_CHUNK = 1 << 20
_STRIDE = 7919  # between the numbers of two tasks that are read one after the other
_REFUSED_CALL_SHOWN = 500  # characters


class Wire(Protocol):
    """A connection with at most one request on its way."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when something has come."""

    def send(self, request: bytes) -> None:
        """Send a request."""

    def receive(self) -> bytes | None:
        """Read what has come; return the answer once it is there."""

    def failure(self, what: str) -> Failed:
        """Return an error that says which server did what."""


class Requests:
    """The requests to one database: writes make its next task, reads go through all that it holds."""

    def __init__(self, contender: Contender, stored: int = 0) -> None:
        self.stored = stored
        self._contender = contender
        self._sent = 0

    def message(self, method: str, parameters: JsonObject) -> bytes:
        """Return a request as JSON."""
        self._sent += 1
        message = {"jsonrpc": "2.0", "id": self._sent, "method": method, "params": parameters}
        return json.dumps(message, separators=(",", ":")).encode()

    def initialize(self) -> bytes:
        """Return the first request of a connection."""
        client = {"name": "benchmarks", "version": "1"}
        parameters = {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": client}
        return self.message("initialize", parameters)

    def write(self) -> bytes:
        """Return a request that makes one more task."""
        self.stored += 1
        return self._call(self._contender.write, self.stored)

    def read(self) -> bytes:
        """Return a request for one of the stored tasks."""
        return self._call(self._contender.read, 1 + self._sent * _STRIDE % self.stored)

    def writes(self, count: int) -> list[bytes]:
        """Return `count` requests that each make a task."""
        return [self.write() for _ in range(count)]

    def reads(self, count: int) -> list[bytes]:
        """Return `count` requests that each read a task."""
        return [self.read() for _ in range(count)]

    def _call(self, call: Call, number: int) -> bytes:
        return self.message("tools/call", call.parameters(number))


INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'


class StdioServer(Process):
    """A server over STDIO, and its client."""

    def __init__(self, contender: Contender, folder: str, requests: Requests | None = None) -> None:
        super().__init__(contender, contender.stdio, folder)
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self._input, self._output = self.popen.stdin.fileno(), self.popen.stdout.fileno()
        self._readable = select.poll()
        self._readable.register(self._output, select.POLLIN)
        self._unread = b""
        self.requests = requests or Requests(contender)

    def fileno(self) -> int:
        """Return the descriptor of its stdout."""
        return self._output

    def send(self, request: bytes) -> None:
        """Send a request; raises Failed if the server is gone."""
        unsent = memoryview(request + b"\n")
        try:
            while unsent:
                unsent = unsent[os.write(self._input, unsent) :]
        except OSError as error:
            raise self.failure(f"takes no request: {error}") from error

    def receive(self) -> bytes | None:
        """Read what has come; return the answer once it is there. Notifications are passed over."""
        chunk = os.read(self._output, _CHUNK)
        if not chunk:
            raise self.failure("closed its stdout")
        self._unread += chunk
        while b"\n" in self._unread:
            line, _, self._unread = self._unread.partition(b"\n")
            if b'"result"' in line or b'"error"' in line:
                return line
        return None

    def exchange(self, request: bytes) -> tuple[float, bytes]:
        """Send a request; return the seconds until its answer had come, and the answer."""
        begun = time.perf_counter()
        self.send(request)
        while True:
            if not self._readable.poll(PATIENCE * 1000):
                raise self.failure(f"gave no answer in {PATIENCE:.0f} s")
            if (answer := self.receive()) is not None:
                return time.perf_counter() - begun, answer

    def call(self, request: bytes) -> float:
        """Return the seconds that a tool call took; raises Failed for a refusal."""
        seconds, answer = self.exchange(request)
        result_of(self.name, answer)
        return seconds

    def list_tools(self) -> list[JsonObject]:
        """Open the connection and return the tools, of one page: what a client asks before anything else."""
        result_of(self.name, self.exchange(self.requests.initialize())[1])
        self.send(INITIALIZED)
        answer = self.exchange(self.requests.message("tools/list", {}))[1]
        tools: list[JsonObject] = result_of(self.name, answer)["tools"]
        return tools


def result_of(name: str, answer: bytes) -> JsonObject:
    """Return the result in an answer; raises Failed for an error, also a tool's."""
    message = json.loads(answer)
    result: JsonObject = message.get("result", {})
    if "result" not in message or result.get("isError"):
        raise Failed(f"{name}: a call failed: {json.dumps(message)[:_REFUSED_CALL_SHOWN]}")
    return result


class HttpServer(Process):
    """A server as a service on a free port of 127.0.0.1."""

    def __init__(self, contender: Contender, command: Command, folder: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        super().__init__(contender, command, folder, port)
        self.requests = Requests(contender)
        self._headers = (
            f"Host: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Accept: application/json, text/event-stream\r\n"
        )

    def open(self) -> None:
        """Wait until it listens."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.connect().close()
            except OSError:
                if self.popen.poll() is not None or time.monotonic() > deadline:
                    raise self.failure("does not listen") from None
            time.sleep(0.005)

    def connect(self) -> socket.socket:
        """Return a new connection; raises OSError."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def initialize(self) -> None:
        """Open a session at /mcp, if the server has such, for all later requests."""
        with self.wires(1) as (wire,):
            drive([wire], [self.post(self.requests.initialize())])
            session = re.search(rb"\r\nmcp-session-id: *(\S+)", wire.head, re.I)
            self._headers += f"MCP-Protocol-Version: {REVISION}\r\n"
            self._headers += f"Mcp-Session-Id: {session[1].decode()}\r\n" if session else ""
            drive([wire], [self.post(INITIALIZED)])

    def post(self, message: bytes) -> bytes:
        """Return an HTTP request to /mcp."""
        head = f"POST /mcp HTTP/1.1\r\n{self._headers}Content-Length: {len(message)}\r\n\r\n"
        return head.encode() + message

    @contextmanager
    def wires(self, count: int) -> Iterator[list[HttpWire]]:
        """Open `count` connections that are kept alive."""
        wires: list[HttpWire] = []
        try:
            for _ in range(count):
                wires.append(HttpWire(self))  # noqa: PERF401 (those that were opened are closed in any case)
            yield wires
        finally:
            for wire in wires:
                wire.socket.close()

    def open_stream(self) -> socket.socket:
        """Return an event stream from /sse, after its first event."""
        stream = self.connect()
        head = f"GET /sse HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAccept: text/event-stream\r\n\r\n"
        stream.sendall(head.encode())
        received = b""
        while not re.search(rb"data:[^\n]*\n\r?\n", received):
            chunk = stream.recv(_CHUNK)
            received += chunk
            if not chunk or not received.startswith(b"HTTP/1.1 200"[: len(received)]):
                stream.close()
                raise self.failure(f"opens no stream: {received[:200]!r}")
        return stream


class HttpWire:
    """A connection of a service that is kept alive."""

    def __init__(self, server: HttpServer) -> None:
        self.socket = server.connect()
        self.head = b""
        self.failure = server.failure
        self._unread = b""

    def fileno(self) -> int:
        """Return the descriptor of its socket."""
        return self.socket.fileno()

    def send(self, request: bytes) -> None:
        """Send a request."""
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """Read what has come; return the body of the response once it is there."""
        chunk = self.socket.recv(_CHUNK)
        if not chunk:
            raise self.failure(f"closed a connection: {self._unread[:200]!r}")
        self._unread += chunk
        head, found, body = self._unread.partition(b"\r\n\r\n")
        if not found:
            return None
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")) or length is None:
            raise self.failure(f"no JSON answer with its length: {self._unread[:300]!r}")
        if len(body) < int(length[1]):
            return None
        self.head, self._unread = head, b""
        return body


class Run(NamedTuple):
    """Requests that were sent: the seconds until each answer, those that all took, and the answers."""

    waits: list[float]
    seconds: float
    answers: list[bytes]


def drive(wires: Sequence[Wire], requests: Iterable[bytes]) -> Run:
    """Send `requests`, on each wire the next one as soon as the last one is answered."""
    waits, answers, sent = list[float](), list[bytes](), dict[int, float]()
    unsent = iter(requests)
    with selectors.DefaultSelector() as selector:
        begun = time.perf_counter()
        for wire, request in zip(wires, islice(unsent, len(wires)), strict=False):
            selector.register(wire, selectors.EVENT_READ, wire)
            sent[wire.fileno()] = time.perf_counter()
            wire.send(request)
        while sent:
            if not (ready := selector.select(PATIENCE)):
                raise wires[0].failure(f"gave no answer in {PATIENCE:.0f} s")
            for key, _ in ready:
                answer = key.data.receive()
                if answer is None:
                    continue
                waits.append(time.perf_counter() - sent.pop(key.fd))
                answers.append(answer)
                if (following := next(unsent, None)) is None:
                    selector.unregister(key.fd)
                    continue
                sent[key.fd] = time.perf_counter()
                key.data.send(following)
        return Run(waits, time.perf_counter() - begun, answers)
