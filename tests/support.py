"""The real server as a process, and small clients for its wires. No test sleeps: all wait for a condition."""

from __future__ import annotations

import base64
import fcntl
import http.client
import json
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from store import Store
from tools import Wait, Workplace, call_tool

PROJECT = Path(__file__).resolve().parent.parent
SERVER = PROJECT / "server.py"
PATIENCE = 60.0  # seconds after which a condition is taken never to come true, also on a busy machine
STATELESS = "2026-07-28"
META = "io.modelcontextprotocol/"
JsonObject = dict[str, Any]


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Return the first true value of `condition`; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.005)
    return value


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """Return an environment whose server keeps all it has in `folder`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MCP_")}
    own = {"MCP_TASK_DB_PATH": str(folder / "tasks.db"), "MCP_TASK_ARTIFACTS_DIR": str(folder / "artifacts")}
    return inherited | own | settings


_PRELUDED = """
import sys
sys.path.insert(0, {0!r})
{1}
import server
sys.exit(server.main(sys.argv[1:]))
"""


@contextmanager
def turn_taken(folder: Path) -> Iterator[None]:
    """Be another process that keeps all servers from writing inside the block; they may read."""
    with (folder / "tasks.db.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


@contextmanager
def held_database(folder: Path) -> Iterator[None]:
    """Be another process that keeps the turn and the whole database to itself inside the block."""
    with turn_taken(folder):
        connection = sqlite3.connect(folder / "tasks.db", timeout=PATIENCE, isolation_level=None)
        try:
            connection.execute("BEGIN EXCLUSIVE")
            yield
        finally:
            connection.close()


def thread_count(server: Process) -> int:
    """Return how many threads the server has; one more than usual waits for its turn to write."""
    return len(os.listdir(f"/proc/{server.process.pid}/task"))


def opened_files(pid: int) -> list[str]:
    """Return what the descriptors of a process point at, sorted; some may come and go meanwhile."""
    folder = f"/proc/{pid}/fd"
    found = []
    for number in os.listdir(folder):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"{folder}/{number}"))
    return sorted(found)


def request(method: str, params: JsonObject | None = None, request_id: int | str = 1) -> JsonObject:
    """Return a JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}}


def enveloped(params: JsonObject | None = None, version: Any = STATELESS) -> JsonObject:
    """Return `params` with what every request of the stateless era carries."""
    return (params or {}) | {"_meta": {META + "protocolVersion": version, META + "clientCapabilities": {}}}


def mirrored(message: JsonObject) -> dict[str, str]:
    """Return the headers that repeat a stateless request at /mcp."""
    method, params = message["method"], message["params"]
    headers = {"MCP-Protocol-Version": str(params["_meta"][META + "protocolVersion"]), "Mcp-Method": method}
    named_by = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}.get(method, "")
    if isinstance(name := params.get(named_by), str):
        encoded = base64.b64encode(name.encode()).decode()
        headers["Mcp-Name"] = name if name.isascii() else f"=?base64?{encoded}?="
    return headers


class Process:
    """A server process that ends with its `with` block; its stderr is kept.

    `prelude` is Python that the process runs first: it shortens a deadline, or plays a part that misbehaves.
    """

    def __init__(
        self, folder: Path, *arguments: str, cwd: Path | None = None, prelude: str = "", **settings: str
    ) -> None:
        self.folder = folder
        program = [str(SERVER)] if not prelude else ["-c", _PRELUDED.format(str(PROJECT), prelude)]
        # Appending: the offset is shared with the server, and reading moves it.
        self._errors = (folder / f"stderr-{time.monotonic_ns()}.log").open("a+b")
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=cwd or folder,
            env=environment(folder, **settings),
            bufsize=0,
        )

    def stderr(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode()

    def kill(self) -> None:
        """End it as a crash would: SIGKILL."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def terminate(self, seconds: float = PATIENCE) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self._errors):
            if pipe is not None:
                pipe.close()


@contextmanager
def server_script(folder: Path, script: str, **values: str) -> Iterator[None]:
    """Have `script`, Python with `{server}` and `values` to be filled in, start the servers of the block."""
    global SERVER
    path, original = folder / "server_script.py", SERVER
    path.write_text(
        script.format(server=repr(str(SERVER)), **{name: repr(text) for name, text in values.items()})
    )
    SERVER = path
    try:
        yield
    finally:
        SERVER = original


class ToolCaller:
    """A client that can make requests; what it gets from tools, unwrapped."""

    def request(self, method: str, params: JsonObject | None = None) -> JsonObject:
        """Send a request and return the whole response to it."""
        raise NotImplementedError

    def result(self, method: str, params: JsonObject | None = None) -> JsonObject:
        response = self.request(method, params)
        assert "result" in response, response
        result: JsonObject = response["result"]
        return result

    def answer(self, tool: str, **arguments: Any) -> tuple[JsonObject, bool]:
        """Call a tool; return its answer, and whether that is a refusal."""
        return tool_answer(self.request("tools/call", {"name": tool, "arguments": arguments}))

    def call(self, tool: str, **arguments: Any) -> JsonObject:
        """Call a tool that must succeed; return its answer."""
        answer, is_error = self.answer(tool, **arguments)
        assert not is_error, answer
        return answer

    def refusal(self, tool: str, **arguments: Any) -> JsonObject:
        """Call a tool that must be refused; return code, message and hint."""
        answer, is_error = self.answer(tool, **arguments)
        assert is_error, answer
        assert set(answer["error"]) == {"code", "message", "hint"}
        error: JsonObject = answer["error"]
        return error


def tool_answer(response: JsonObject) -> tuple[JsonObject, bool]:
    """Return what a tool answered, and whether that is a refusal."""
    assert "result" in response, response
    return json.loads(response["result"]["content"][0]["text"]), response["result"]["isError"]


def create(client: ToolCaller, task_id: str, **details: Any) -> str:
    """Make a task and return its id."""
    client.call("create_task", task_id=task_id, title=f"Title of {task_id}", goal="Goal", **details)
    return task_id


def at_work(client: ToolCaller, task_id: str, agent: str, **details: Any) -> str:
    """Make a task and have `agent` work on it."""
    create(client, task_id, **details)
    client.call("save_checkpoint", task_id=task_id, agent=agent)
    return task_id


def owner_state(client: ToolCaller, task_id: str) -> str | None:
    """Return whether the owner's session lives, as this client sees it."""
    found: str | None = client.call("get_task", task_id=task_id).get("owner_state")
    return found


class StdioClient(ToolCaller, Process):
    """A server over STDIO, and its only client."""

    _next_id = 0
    _unread = b""

    def send_raw(self, data: bytes) -> None:
        assert self.process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self.process.stdin.write(view) or 0 :]

    def send(self, message: Any) -> None:
        self.send_raw(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float = PATIENCE) -> Any:
        """Return the next message from the server."""
        return json.loads(self.receive_line(seconds))

    def receive_line(self, seconds: float = PATIENCE) -> bytes:
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            readable, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"no answer in {seconds} s; stderr: {self.stderr()}"
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            assert chunk, f"the server closed stdout; stderr: {self.stderr()}"
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def is_silent(self, seconds: float) -> bool:
        """Return whether nothing arrives for so long."""
        assert self.process.stdout is not None
        return not self._unread and not select.select([self.process.stdout], [], [], seconds)[0]

    def request(self, method: str, params: JsonObject | None = None) -> JsonObject:
        """Send a request and return the whole response to it."""
        self._next_id += 1
        message: JsonObject = {"jsonrpc": "2.0", "id": self._next_id, "method": method}
        self.send(message if params is None else {**message, "params": params})
        response: JsonObject = self.receive()
        assert response["id"] == self._next_id, response
        return response

    def initialize(self, revision: str = "2025-11-25") -> JsonObject:
        client = {"name": "test", "version": "1"}
        result = self.result(
            "initialize", {"protocolVersion": revision, "capabilities": {}, "clientInfo": client}
        )
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return result

    def close(self) -> int:
        """Close stdin, as a client does that goes, and return the exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(PATIENCE)


def stdio(folder: Path, revision: str = "2025-11-25", **options: Any) -> StdioClient:
    """Return a client whose server has answered `initialize`."""
    client = StdioClient(folder, **options)
    client.initialize(revision)
    return client


class HttpServer(Process):
    """A server over HTTP on a free port of 127.0.0.1."""

    def __init__(self, folder: Path, *arguments: str, **settings: str) -> None:
        super().__init__(folder, "--http", "--port", "0", *arguments, cwd=None, **settings)
        try:
            self.url = wait_until(self._announced, "the service says where it listens")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.port = int(self.url.rpartition(":")[2])

    def _announced(self) -> str | None:
        assert self.process.poll() is None, self.stderr()
        _, found, url = self.stderr().partition("listening on ")
        return url.strip() if found and url.endswith("\n") else None

    def request(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Make one request on a connection of its own; return status, headers (lower case) and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, response.read()
        finally:
            connection.close()

    def post(self, message: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Post a message to /mcp, bytes as they are; return the status and what the body says."""
        wanted = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        body = message if isinstance(message, bytes) else json.dumps(message)
        status, _, answer = self.request("POST", "/mcp", body, wanted | (headers or {}))
        return status, json.loads(answer) if answer else None

    def raw(self, data: bytes, seconds: float = PATIENCE) -> bytes:
        """Send bytes as they are and return all that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(data)
            received = b""
            while chunk := connection.recv(1 << 16):
                received += chunk
            return received


class EventSource:
    """The client's end of an event stream, opened by a request as it stands."""

    def __init__(self, server: HttpServer, opening: bytes, receive_buffer: int = 0) -> None:
        self._unread = b""
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", server.port))
        self.socket.sendall(opening)
        self.head = self._read_to(b"\r\n\r\n").decode()

    def _read_to(self, end: bytes) -> bytes:
        while end not in self._unread:
            chunk = self.socket.recv(1 << 16)
            assert chunk, "the server closed the stream"
            self._unread += chunk
        found, _, self._unread = self._unread.partition(end)
        return found

    def event(self) -> tuple[str, str]:
        """Return the next event's name and data; comments are passed over."""
        while (block := self._read_to(b"\n\n").decode()).startswith(":"):
            pass
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        return fields["event"], fields["data"]

    def receive(self) -> Any:
        """Return the next JSON-RPC message."""
        event, data = self.event()
        assert event == "message", event
        return json.loads(data)

    def has_ended(self) -> bool:
        """Wait for the next bytes; return whether there are none because the server closed the stream."""
        return not self._unread and not self.socket.recv(1)

    def close(self) -> None:
        self.socket.close()


class SseClient(ToolCaller, EventSource):
    """A client of the HTTP+SSE transport: one open stream, posts on connections of their own."""

    def __init__(self, server: HttpServer, headers: str = "") -> None:
        self._server = server
        self._next_id = 0
        opening = f"GET /sse HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{headers}\r\n"
        super().__init__(server, opening.encode())
        event, self.endpoint = self.event()
        assert event == "endpoint", event

    def send(self, message: Any) -> None:
        """Post a message that must be accepted."""
        assert self.post(json.dumps(message)) == (202, b"")

    def post(self, body: bytes | str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Post a body as it is; return status and response body."""
        wanted = {"Content-Type": "application/json"} | (headers or {})
        status, _, answer = self._server.request("POST", self.endpoint, body, wanted)
        return status, answer

    def request(self, method: str, params: JsonObject | None = None) -> JsonObject:
        """Send a request and return the response that arrives on the stream."""
        self._next_id += 1
        self.send({"jsonrpc": "2.0", "id": self._next_id, "method": method, "params": params or {}})
        response: JsonObject = self.receive()
        assert response["id"] == self._next_id, response
        return response

    def initialize(self, revision: str = "2025-11-25") -> JsonObject:
        client = {"name": "test", "version": "1"}
        params = {"protocolVersion": revision, "capabilities": {}, "clientInfo": client}
        result: JsonObject = self.request("initialize", params)["result"]
        self.post(json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}))
        return result


class Listener(EventSource):
    """A subscriptions/listen at /mcp: its response is an event stream."""

    def __init__(
        self,
        server: HttpServer,
        notifications: JsonObject,
        request_id: int | str = 1,
        receive_buffer: int = 0,
    ) -> None:
        message = request("subscriptions/listen", enveloped({"notifications": notifications}), request_id)
        body = json.dumps(message)
        headers = mirrored(message) | {
            "Host": f"127.0.0.1:{server.port}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }
        lines = ["POST /mcp HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", body]
        super().__init__(server, "\r\n".join(lines).encode(), receive_buffer)


@contextmanager
def sse(server: HttpServer, revision: str = "2025-11-25") -> Iterator[SseClient]:
    """Yield an initialized client; its stream closes with the block."""
    client = SseClient(server)
    try:
        client.initialize(revision)
        yield client
    finally:
        client.close()


class McpClient(ToolCaller):
    """A client of the Streamable HTTP transport, which has no connection: a request is all there is."""

    def __init__(self, server: HttpServer, revision: str = "2025-11-25") -> None:
        self._server = server
        self._revision = revision
        self._next_id = 0

    def message(self, method: str, params: JsonObject | None = None) -> tuple[bytes, dict[str, str]]:
        """Return the body of a request and the headers that go with it."""
        self._next_id += 1
        params = dict(params or {})
        headers = {"Content-Type": "application/json", "MCP-Protocol-Version": self._revision}
        if self._revision >= "2026":
            prefix = "io.modelcontextprotocol/"
            params["_meta"] = {f"{prefix}protocolVersion": self._revision, f"{prefix}clientCapabilities": {}}
            headers |= {"Mcp-Method": method, "Mcp-Name": params.get("name", "")}
        body = {"jsonrpc": "2.0", "id": self._next_id, "method": method, "params": params}
        return json.dumps(body).encode(), headers

    def request(self, method: str, params: JsonObject | None = None) -> JsonObject:
        body, headers = self.message(method, params)
        status, _, answer = self._server.request("POST", "/mcp", body, headers)
        assert status == 200, (status, answer)
        response: JsonObject = json.loads(answer)
        return response


class DirectClient(ToolCaller):
    """A client without a server between: its calls go straight to the tools, as through one connection."""

    def __init__(self, store: Store, session_id: str = "direct") -> None:
        self.workplace = Workplace(store, session_id=session_id)

    def answer(self, tool: str, **arguments: Any) -> tuple[JsonObject, bool]:
        answer, is_error = call_tool(tool, arguments, self.workplace)
        assert not isinstance(answer, Wait)
        return json.loads(answer if isinstance(answer, str) else json.dumps(answer)), is_error
