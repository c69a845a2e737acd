"""The STDIO transport: framing, bad lines, signals and ends."""

from __future__ import annotations

import array
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from support import (
    PATIENCE,
    SERVER,
    StdioClient,
    environment,
    held_database,
    stdio,
    thread_count,
    wait_until,
)

from config import BATCH_MESSAGES, JSON_DEPTH, MESSAGE_BYTES, MIB

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
STOPPED_IN = 2.0  # seconds that a signal or an end of file may take
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which Linux has")


def unread(pipe: IO[bytes] | None) -> int:
    """Return how many bytes lie in a pipe, unread."""
    assert pipe is not None
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def peak_memory(client: StdioClient) -> int:
    """Return the most memory, in bytes, that the server has ever had resident."""
    status = Path(f"/proc/{client.process.pid}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def ping(request_id: Any, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "method": "ping", "params": params}).encode()


def sized_ping(request_id: int, size: int) -> bytes:
    """Return a ping of exactly `size` bytes."""
    return ping(request_id, padding="x" * (size - len(ping(request_id, padding=""))))


def is_served(client: StdioClient) -> bool:
    """Return whether the next thing that arrives is the answer to a request sent now."""
    client.send_raw(ping("still there?") + b"\n")
    return bool(client.receive() == {"jsonrpc": "2.0", "id": "still there?", "result": {}})


def ends_well(client: StdioClient, act: Callable[[], object]) -> bool:
    """Return whether `act` makes the server exit 0 in good time, and without a word."""
    started = time.monotonic()
    act()
    status = client.process.wait(PATIENCE)
    assert (status, client.stderr()) == (0, "")
    return time.monotonic() - started < STOPPED_IN


def test_a_2024_client_gets_the_exact_answer(tmp_path: Path) -> None:
    """The answer to a 2024-11-05 `initialize` is fixed byte for byte."""
    with StdioClient(tmp_path) as client:
        client.send_raw(
            b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2024-11-05",'
            b'"capabilities":{},"clientInfo":{"name":"c","version":"1"}}}\n'
        )
        assert client.receive_line() == (
            b'{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2024-11-05","capabilities":'
            b'{"tools":{"listChanged":false},"resources":{"subscribe":false,"listChanged":false}},'
            b'"serverInfo":{"name":"mcp-task-server","version":"1.0.0"}}}'
        )
        assert client.close() == 0


# --- Bad lines ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StdioClient]:
    """One client of one server, which all bad lines come to; the server must outlive them without a word."""
    with stdio(tmp_path_factory.mktemp("served")) as client:
        yield client
        assert ends_well(client, client.close)


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        pytest.param(b"not json", PARSE_ERROR, None, id="no JSON"),
        pytest.param(b'{"jsonrpc":"2.0","id":1,"method":"ping"', PARSE_ERROR, None, id="cut off"),
        pytest.param(ping(1) + b" " + ping(2), PARSE_ERROR, None, id="two messages in a line"),
        pytest.param(b'{"jsonrpc":"2.0","id":1,"method":"p\xff"}', PARSE_ERROR, None, id="no UTF-8"),
        pytest.param(ping("x").replace(b"x", b"\xed\xa0\x80"), PARSE_ERROR, None, id="surrogate as UTF-8"),
        pytest.param(b"\xef\xbb\xbf" + ping(1), PARSE_ERROR, None, id="byte order mark"),
        pytest.param(b"\0" + ping(1), PARSE_ERROR, None, id="NUL before the message"),
        pytest.param(ping("a\1").replace(b"\\u0001", b"\0"), PARSE_ERROR, None, id="NUL in a string"),
        pytest.param(ping(1, x=[[]]).replace(b"[[]]", b"NaN"), PARSE_ERROR, None, id="NaN"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, PARSE_ERROR, None, id="very deep"),
        pytest.param(b'{"a":' * 100_000, PARSE_ERROR, None, id="very deep and cut off"),
        pytest.param(b"1", INVALID_REQUEST, None, id="a number"),
        pytest.param(b"[]", INVALID_REQUEST, None, id="an empty batch"),
        pytest.param(b"[" + ping(1) + b"]", INVALID_REQUEST, None, id="a batch in 2025-11-25"),
        pytest.param(ping("a\0"), INVALID_REQUEST, None, id="NUL in an id"),
        pytest.param(ping(None), INVALID_REQUEST, None, id="null as id"),
        pytest.param(ping(True), INVALID_REQUEST, None, id="a boolean as id"),
        pytest.param(ping(1.5), INVALID_REQUEST, None, id="a fraction as id"),
        pytest.param(ping(7).replace(b'"2.0"', b'"1.0"'), INVALID_REQUEST, 7, id="JSON-RPC 1.0"),
        pytest.param(ping("").replace(b'"ping"', b"null"), INVALID_REQUEST, "", id="no method"),
        pytest.param(ping(0).replace(b"ping", b"pong"), METHOD_NOT_FOUND, 0, id="unknown method"),
        pytest.param(ping(3).replace(b"{}", b"[1]"), INVALID_PARAMS, 3, id="params in an array"),
    ],
)
def test_a_bad_line_gets_its_error_and_the_loop_goes_on(
    served: StdioClient, line: bytes, code: int, request_id: object
) -> None:
    """A line that is no good request is answered with its error, and the next request is served."""
    served.send_raw(line + b"\n")
    answer = served.receive()
    assert set(answer) == {"jsonrpc", "id", "error"}
    assert (answer["error"]["code"], answer["id"]) == (code, request_id)
    assert is_served(served)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b'{"jsonrpc":"2.0","method":"notifications/nobody_knows"}', id="unknown"),
        pytest.param(
            b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":[{}]}}', id="bad id"
        ),
        pytest.param(b'{"jsonrpc":"2.0","method":"tools/call","params":[1,2]}', id="bad params"),
        pytest.param(b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"no_tool"}}', id="no tool"),
        pytest.param(b'{"jsonrpc":"2.0","id":5,"result":{}}', id="a response nobody waits for"),
        pytest.param(b'{"jsonrpc":"2.0","id":5,"error":{"code":1,"message":"m"}}', id="an error response"),
        pytest.param(b" \t \r", id="blanks"),
        pytest.param(b"\r\n\n\r\n", id="blank lines"),
    ],
)
def test_what_is_no_request_is_never_answered(served: StdioClient, line: bytes) -> None:
    """Notifications, also those that fail, responses and blank lines draw no answer."""
    served.send_raw(line + b"\n")
    assert is_served(served)


def test_batches_are_served_where_the_revision_has_them(tmp_path: Path) -> None:
    """At 2025-03-26 a batch is answered in one line, up to the limit; one of notifications is not."""
    with stdio(tmp_path, "2025-03-26") as client:
        note = {"jsonrpc": "2.0", "method": "notifications/x"}
        pings = [{"jsonrpc": "2.0", "id": n, "method": "ping"} for n in range(BATCH_MESSAGES)]
        client.send(pings)
        assert [one["id"] for one in client.receive()] == list(range(BATCH_MESSAGES))
        client.send([note])
        client.send([note, *pings])
        assert client.receive()["error"]["code"] == INVALID_REQUEST
        assert is_served(client)


@pytest.mark.parametrize(("levels", "member"), [(JSON_DEPTH, "result"), (JSON_DEPTH + 1, "error")])
def test_nesting_is_accepted_up_to_the_limit(served: StdioClient, levels: int, member: str) -> None:
    """A message may be JSON_DEPTH levels deep, and not one more."""
    inner = levels - 2  # the message and its params are two
    served.send_raw(ping(1, x=0).replace(b'"x": 0', b'"x": ' + b"[" * inner + b"]" * inner) + b"\n")
    assert member in served.receive()
    assert is_served(served)


# --- Long lines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\n", b""], ids=["with a line end", "at the end of input"])
def test_a_line_may_have_exactly_the_limit(tmp_path: Path, end: bytes) -> None:
    """A message of 8 MiB is served; one byte more is refused, and neither disturbs the next message."""
    with stdio(tmp_path) as client:
        client.send_raw(sized_ping(1, MESSAGE_BYTES) + b"\n" + sized_ping(2, MESSAGE_BYTES + 1) + b"\n")
        assert client.receive() == {"jsonrpc": "2.0", "id": 1, "result": {}}
        refusal = client.receive()
        assert (refusal["id"], refusal["error"]["code"]) == (None, INVALID_REQUEST)
        assert str(MESSAGE_BYTES) in refusal["error"]["message"]
        assert is_served(client)
        client.send_raw(sized_ping(3, MESSAGE_BYTES + 1) + end)
        assert ends_well(client, client.close)
        assert client.receive()["error"]["code"] == INVALID_REQUEST


@needs_proc
def test_a_line_of_100_mb_costs_no_memory(tmp_path: Path) -> None:
    """An endless line is refused once, and is not kept while it arrives."""
    with stdio(tmp_path) as client:
        before = peak_memory(client)
        for _ in range(100):
            client.send_raw(b"x" * 1_000_000)
        client.send_raw(b"\n")
        assert client.receive()["error"]["code"] == INVALID_REQUEST
        assert is_served(client)
        assert peak_memory(client) - before < MESSAGE_BYTES + 8 * MIB


# --- Framing ------------------------------------------------------------------------------------------


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    """What only some call a line end may stand in a string; CR before LF is not part of the message."""
    name = "a\u2028b\u2029c\x85d"
    with stdio(tmp_path) as client:
        message = {"jsonrpc": "2.0", "id": name, "method": "ping"}
        raw = json.dumps(message, ensure_ascii=False, separators=("\r,", "\r:")).encode()
        client.send_raw(b"\n\r\n  \n" + raw + b"\r\n")
        line = client.receive_line()
        assert line.isascii()
        assert json.loads(line) == {"jsonrpc": "2.0", "id": name, "result": {}}


def test_a_message_may_arrive_byte_by_byte(tmp_path: Path) -> None:
    """Messages are put together however the pipe cuts them, also within a character."""
    raw = '{"jsonrpc":"2.0","id":"é🎈","method":"ping"}\n'.encode()
    with stdio(tmp_path) as client:
        for number in range(len(raw)):
            client.send_raw(raw[number : number + 1])
            wait_until(lambda: not unread(client.process.stdin), "the server reads")
        assert client.receive() == {"jsonrpc": "2.0", "id": "é🎈", "result": {}}


def test_a_last_line_without_a_line_end_is_served(tmp_path: Path) -> None:
    """The end of input ends a line too, and the answer still comes."""
    with stdio(tmp_path) as client:
        client.send_raw(ping("last"))
        assert ends_well(client, client.close)
        assert client.receive() == {"jsonrpc": "2.0", "id": "last", "result": {}}


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    """A thousand requests sent without waiting are all answered, each once, in the order sent."""
    methods = ["ping", "resources/templates/list", "no/method", "resources/list"]
    lines = b"".join(
        json.dumps({"jsonrpc": "2.0", "id": n, "method": methods[n % 4]}).encode() + b"\n"
        for n in range(1000)
    )
    with stdio(tmp_path) as client:
        sender = threading.Thread(target=client.send_raw, args=(lines,))
        sender.start()
        answers = [client.receive() for _ in range(1000)]
        sender.join()
        assert [answer["id"] for answer in answers] == list(range(1000))
        assert all(("error" in answer) is (answer["id"] % 4 == 2) for answer in answers)
        assert ends_well(client, client.close)


NOISE = """
import os, subprocess, sys, dispatcher
quiet = dispatcher.list_tools
def noisy():
    print("from print")
    sys.__stdout__.write("from the old stdout\\n")
    sys.__stdout__.flush()
    os.write(1, b"from the descriptor\\n")
    subprocess.run(["echo", "from a child"], check=True)
    return quiet()
dispatcher.list_tools = noisy
"""


def test_only_the_protocol_reaches_stdout(tmp_path: Path) -> None:
    """Whatever prints, by whatever way, prints to stderr: stdout carries answers and nothing else."""
    with stdio(tmp_path, prelude=NOISE) as client:
        client.send({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
        assert client.receive()["id"] == 1
        assert is_served(client)
        assert client.close() == 0
        assert client.process.stdout is not None
        assert client.process.stdout.read() == b""
        for origin in ("print", "the old stdout", "the descriptor", "a child"):
            assert f"from {origin}\n" in client.stderr()


# --- Ends ---------------------------------------------------------------------------------------------


def test_the_end_of_input_ends_the_server(tmp_path: Path) -> None:
    """A client that closes stdin is gone: exit 0, at once and silently."""
    with stdio(tmp_path) as client:
        client.call("create_task", title="t", goal="g")
        assert ends_well(client, client.close)


def test_no_input_at_all_is_a_proper_end(tmp_path: Path) -> None:
    """A server that is started without a client ends as properly as one that had a client."""
    ended = subprocess.run(
        [sys.executable, str(SERVER)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(tmp_path),
        timeout=PATIENCE,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def test_a_closed_stdout_ends_the_server(tmp_path: Path) -> None:
    """A client that reads no more, and says so by closing the pipe, is gone: exit 0, no traceback."""
    with stdio(tmp_path) as client:
        assert client.process.stdout is not None
        client.process.stdout.close()
        assert ends_well(client, lambda: client.send_raw(ping(1) + b"\n"))


def block_in_write(client: StdioClient) -> None:
    """Have the server answer more than a pipe holds, and do not read it."""
    assert client.process.stdout is not None
    capacity = fcntl.fcntl(client.process.stdout, fcntl.F_GETPIPE_SZ)
    client.send_raw(ping("x" * 4 * capacity) + b"\n")
    wait_until(lambda: unread(client.process.stdout) >= capacity, "the pipe is full")


@needs_proc
def test_a_reader_that_closes_a_full_pipe_ends_the_server(tmp_path: Path) -> None:
    """A server that waits for its reader sees that the reader is gone: exit 0, no traceback."""
    with stdio(tmp_path) as client:
        block_in_write(client)
        assert client.process.stdout is not None
        assert ends_well(client, client.process.stdout.close)


NO_LAST_RESORT = "import config\nconfig.STOP_SECONDS = 60.0\n"  # the loop has to notice by itself


@SIGNALS
def test_a_signal_ends_an_idle_server(tmp_path: Path, number: signal.Signals) -> None:
    """While the server waits for its client, a signal ends it: exit 0, no traceback."""
    with stdio(tmp_path, prelude=NO_LAST_RESORT) as client:
        assert ends_well(client, lambda: client.process.send_signal(number))


@needs_proc
@SIGNALS
def test_a_signal_ends_a_server_that_cannot_write(tmp_path: Path, number: signal.Signals) -> None:
    """While the server waits for a reader that does not read, a signal ends it: exit 0, no traceback."""
    with stdio(tmp_path, prelude=NO_LAST_RESORT) as client:
        block_in_write(client)
        assert ends_well(client, lambda: client.process.send_signal(number))


@needs_proc
@SIGNALS
def test_a_signal_ends_a_server_that_waits_for_the_database(tmp_path: Path, number: signal.Signals) -> None:
    """While another process keeps the database to itself, a signal ends the server: exit 0, no traceback."""
    call = {"name": "create_task", "arguments": {"task_id": "t1", "title": "t", "goal": "g"}}
    with stdio(tmp_path) as client:
        client.call("list_tasks")  # from here on it has its database open
        with held_database(tmp_path):
            client.send({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call})
            wait_until(lambda: thread_count(client) > 1, "the server waits for its turn")
            assert ends_well(client, lambda: client.process.send_signal(number))


def test_a_busy_database_holds_nobody_up_who_does_not_need_it(tmp_path: Path) -> None:
    """While another process has the database to itself, a new server lists its tools, and ends in time."""
    with stdio(tmp_path) as first:
        first.call("list_tasks")
    with held_database(tmp_path), StdioClient(tmp_path) as client:
        assert client.is_silent(0.1)  # it has tried to open the database by now
        assert client.initialize()["serverInfo"]
        assert client.result("tools/list")["tools"]
        assert client.close() == 0


SLOW_WRITE = """
import store, sys, time
create_task = store.Store.create_task
def slowly(*given):
    print("under way", file=sys.stderr, flush=True)
    time.sleep(0.2)
    return create_task(*given)
store.Store.create_task = slowly
"""


@SIGNALS
def test_a_signal_lets_the_call_in_hand_finish(tmp_path: Path, number: signal.Signals) -> None:
    """A write that is under way when the signal comes is made, and answered, before the server ends."""
    call = {"name": "create_task", "arguments": {"task_id": "t1", "title": "t", "goal": "g"}}
    with stdio(tmp_path, prelude=SLOW_WRITE) as client:
        client.send({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call})
        wait_until(lambda: "under way" in client.stderr(), "the call is under way")
        client.process.send_signal(number)
        assert client.receive()["result"]["isError"] is False
        assert client.process.wait(STOPPED_IN) == 0
    with stdio(tmp_path) as client:
        assert client.call("get_task", task_id="t1")["title"] == "t"


def test_a_normal_run_says_nothing_on_stderr(tmp_path: Path) -> None:
    """A working session with good and bad calls leaves stderr empty, and a debug log only when asked."""
    for debug, is_silent in (("", True), ("1", False)):
        with stdio(tmp_path, MCP_DEBUG=debug) as client:
            client.call("list_tasks")
            client.refusal("get_task", task_id="none")
            client.request("no/such/method")
            assert client.close() == 0
            assert (client.stderr() == "") is is_silent


# --- Ends of all kinds --------------------------------------------------------------------------------

SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'


def test_a_batch_leaves_its_notifications_out(tmp_path: Path) -> None:
    """A batch of requests and notifications is answered by valid JSON with the requests' answers alone."""
    note = {"jsonrpc": "2.0", "method": "notifications/x"}
    pings = [{"jsonrpc": "2.0", "id": n, "method": "ping"} for n in range(2)]
    with stdio(tmp_path, "2025-03-26") as client:
        client.send([note, *pings, note])
        assert [one["id"] for one in json.loads(client.receive_line())] == [0, 1]
        client.send([note, note])  # no answer at all
        client.send(pings[0])
        assert client.receive() == {"jsonrpc": "2.0", "id": 0, "result": {}}


def test_no_depth_of_nesting_ends_the_server(tmp_path: Path) -> None:
    """Deep nesting is an error at every depth, beside an escaped character too, and the loop goes on."""
    with stdio(tmp_path) as client:
        for depth in range(900, 1100):
            client.send_raw(b"[" * depth + b'"\\ud83d\\ude00"' + b"]" * depth + b"\n")
            assert client.receive()["error"]["code"] == -32700
        client.send_raw(PING)
        assert client.receive()["result"] == {}


@SIGNALS
def test_a_signal_ends_a_server_that_waits_to_start(tmp_path: Path, number: signal.Signals) -> None:
    """A server that finds the database busy at its start can be told to stop: exit 0, no traceback."""
    with stdio(tmp_path) as first:
        assert first.close() == 0
    busy = "import database, sys\nwait = database.Database._prepare\ndef prepare(self):\n"
    busy += "    print('opening', file=sys.stderr, flush=True)\n    wait(self)\n"
    busy += "database.Database._prepare = prepare\n"
    with held_database(tmp_path), StdioClient(tmp_path, prelude=busy) as client:
        wait_until(lambda: "opening" in client.stderr(), "the server opens the database")
        client.process.send_signal(number)
        assert client.process.wait(PATIENCE) == 0
        assert client.stderr() == "opening\n"


def test_two_signals_end_the_server_as_one_does(tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches the server, and so does its client's SIGTERM: still exit 0, silently."""
    for _ in range(4):
        with stdio(tmp_path) as client:
            client.process.send_signal(signal.SIGINT)
            client.process.send_signal(signal.SIGTERM)
            assert (client.process.wait(PATIENCE), client.stderr()) == (0, "")
    for _ in range(4):
        with stdio(tmp_path) as client:
            client.process.send_signal(signal.SIGSTOP)
            client.process.send_signal(signal.SIGINT)
            client.process.send_signal(signal.SIGTERM)
            client.process.send_signal(signal.SIGCONT)
            assert (client.process.wait(PATIENCE), client.stderr()) == (0, "")
    for pause in range(0, 12, 2):  # the second one comes while the interpreter ends
        with stdio(tmp_path) as client:
            client.process.send_signal(signal.SIGINT)
            threading.Event().wait(pause / 1000)
            if client.process.poll() is None:
                client.process.send_signal(signal.SIGTERM)
            assert (client.process.wait(PATIENCE), client.stderr()) == (0, "")


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_a_stdout_that_takes_nothing_ends_the_server(tmp_path: Path, redirection: str) -> None:
    """A stdout that was closed from the start, or fails, is as good as closed: no traceback."""
    ended = subprocess.run(
        ["sh", "-c", f'exec "$0" "$1" {redirection}', sys.executable, str(SERVER)],
        input=PING,
        capture_output=True,
        env=environment(tmp_path),
        timeout=PATIENCE,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_pipes_may_be_non_blocking(tmp_path: Path) -> None:
    """A client that leaves its end's flags on a shared pipe is served as any other."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    with subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=read_end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(tmp_path),
    ) as server, os.fdopen(write_end, "wb", buffering=0) as pipe:  # fmt: skip
        os.close(read_end)
        assert server.stdout is not None
        for _ in range(2):
            pipe.write(PING)
            assert json.loads(server.stdout.readline())["result"] == {}
            assert server.poll() is None
        assert not select.select([server.stdout], [], [], 0.3)[0]  # it waits; it has not ended
        pipe.write(PING)
        assert json.loads(server.stdout.readline())["result"] == {}
        pipe.close()
        assert server.wait(PATIENCE) == 0
        assert server.stderr is not None
        assert server.stderr.read() == b""


def test_a_debug_log_that_nobody_reads_costs_no_answer(tmp_path: Path) -> None:
    """A client that closes the server's stderr is still served, also with MCP_DEBUG."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    server = subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=write_end,
        env=environment(tmp_path, MCP_DEBUG="1"),
    )
    os.close(write_end)
    out, _ = server.communicate(PING * 2, timeout=PATIENCE)
    assert out.count(b"\n") == 2


def test_a_batch_answer_is_bounded(tmp_path: Path) -> None:
    """Four kilobytes of batch do not make the server hold hundreds of megabytes."""
    (tmp_path / "big").write_bytes(b"\x80" * (8 << 20))
    read = {"jsonrpc": "2.0", "method": "resources/read", "params": {"uri": "task://t/artifacts/1"}}
    with stdio(tmp_path, "2025-03-26") as client:
        client.call("create_task", task_id="t", title="t", goal="g")
        client.call("attach_artifact", task_id="t", name="big", path=str(tmp_path / "big"))
        client.send([{**read, "id": number} for number in range(50)])
        assert client.process.stdout is not None
        client.process.stdout.read(1)
        status = Path(f"/proc/{client.process.pid}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) < 300 * 1024
