"""Thousands of idle connections on one service while others work, and what is said beyond its limits."""

from __future__ import annotations

import json
import re
import resource
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from fuzzing import connect, needs_proc, vitals
from support import (
    HttpServer,
    McpClient,
    SseClient,
    ToolCaller,
    create,
    opened_files,
    request,
    turn_taken,
    wait_until,
)

from config import CONNECTIONS, KIB, QUEUED_REQUESTS, RESERVED_DESCRIPTORS, SLOW_ANSWERS, STREAMS

MEMORY_EACH = 4 * KIB  # of the process; what the kernel keeps for a socket is not in its resident set
ANSWERED_IN = 5.0  # seconds: a client that waits longer for one of many calls is starved
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
PINGED = "import config\nconfig.STREAM_PING_SECONDS = 1.0\n"  # more often than ever in service
HEALTHY = b'{"status": "ok"}'
LAST_STREAM = b"GET /sse HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@contextmanager
def open_files(wanted: int) -> Iterator[None]:
    """Let this process, and the service it starts, have so many open files each; skip if it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, and the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def kept_alive(server: HttpServer) -> socket.socket:
    """Return a connection that is idle after a request."""
    connection = connect(server)
    ask_again(connection)
    return connection


def ask_again(connection: socket.socket) -> None:
    connection.sendall(HEALTH)
    received = b""
    while not received.endswith(HEALTHY):
        chunk = connection.recv(1 << 16)
        assert chunk, f"closed after {received!r}"
        received += chunk


@contextmanager
def idle(server: HttpServer, streams: int, connections: int) -> Iterator[None]:
    """Keep so many event streams and connections idle; at the end of the block all of them still work."""
    with ExitStack() as ends:
        listeners = [ends.enter_context(closing(SseClient(server))) for _ in range(streams)]
        kept = [ends.enter_context(kept_alive(server)) for _ in range(connections)]
        yield
        for listener in listeners:
            assert listener.socket.recv(1, socket.MSG_PEEK) == b":"  # it was kept alive meanwhile
            assert listener.request("ping")["result"] == {}
        for connection in kept:
            ask_again(connection)


# --- Within the limits ------------------------------------------------------------------------------------


def work(client: ToolCaller, agent: str, calls: int) -> float:
    """Take a task so many steps further, reading as often as writing; return the longest time of a call."""
    slowest = 0.0
    create(client, f"task-of-{agent}")
    for step in range(calls // 2):
        started = time.monotonic()
        client.call("save_checkpoint", task_id=f"task-of-{agent}", agent=agent, completed_steps=[f"{step}"])
        between = time.monotonic()
        task = client.call("get_task", task_id=f"task-of-{agent}")
        slowest = max(slowest, between - started, time.monotonic() - between)
        assert task["completed_steps"][-1] == f"{step}"
    return slowest


def work_at_once(server: HttpServer, clients: int, calls: int) -> float:
    """Have so many clients work, half of them on streams; return the longest time of a call."""
    with ExitStack() as ends, ThreadPoolExecutor(clients) as threads:
        callers: list[ToolCaller] = [McpClient(server) for _ in range(clients // 2)]
        for _ in range(clients - len(callers)):
            listener = ends.enter_context(closing(SseClient(server)))
            listener.initialize()
            callers.append(listener)
        agents = [f"agent-{number}" for number in range(clients)]
        return max(threads.map(work, callers, agents, [calls] * clients))


def carry(folder: Path, streams: int, connections: int, calls: int) -> None:
    """Hold what is promised of a service with so many idle connections while fifty clients work."""
    total = streams + connections
    with open_files(total + 256), HttpServer(folder, prelude=PINGED) as server:
        with idle(server, 100, 100):  # what is made once is there from now on
            create(McpClient(server), "any")
        wait_until(lambda: open_sockets(server) == 0, "none is open")
        before = vitals(server)
        with idle(server, streams, connections):
            after = vitals(server)
            assert after.threads == before.threads
            assert (after.memory - before.memory) / total <= MEMORY_EACH
            assert work_at_once(server, 50, calls) <= ANSWERED_IN
            wait_until(lambda: vitals(server).threads <= before.threads + 1, "only the threads that work")
        assert server.stderr().count("\n") == 1


def open_sockets(server: HttpServer) -> int:
    """Return how many connections the service has, beside the three sockets that are its own."""
    return sum(name.startswith("socket:") for name in opened_files(server.process.pid)) - 3


@needs_proc
def test_idle_connections_cost_little(tmp_path: Path) -> None:
    """Hundreds of idle connections cost no thread, 4 KiB each at most, and no working client its turn."""
    carry(tmp_path, streams=300, connections=100, calls=4)


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_proc
def test_six_thousand_idle_connections_cost_little(tmp_path: Path) -> None:
    """5,000 idle streams and 1,000 idle connections cost as little each as a few hundred do."""
    carry(tmp_path, streams=5000, connections=1000, calls=100)


# --- Beyond the limits ------------------------------------------------------------------------------------


class Limits(NamedTuple):
    connections: int
    streams: int
    requests: int


REAL = Limits(CONNECTIONS, STREAMS, QUEUED_REQUESTS)
LOW = Limits(60, 30, 5)


def lowered(limits: Limits) -> str:
    """Return the prelude of a service with such limits."""
    return (
        f"import config\nconfig.CONNECTIONS, config.STREAMS = {limits.connections}, {limits.streams}\n"
        f"config.QUEUED_REQUESTS = {limits.requests}\n"
    )


def all_of(connection: socket.socket) -> bytes:
    """Return what arrives until the service closes."""
    received = b""
    while chunk := connection.recv(1 << 16):
        received += chunk
    return received


def assert_told_to_come_back(received: bytes) -> None:
    assert received.startswith(b"HTTP/1.1 503 "), received
    assert re.search(rb"\r\nRetry-After: [1-9][0-9]*\r\n", received)


def overfill(folder: Path, limits: Limits, surplus: int) -> None:
    """Fill a service with streams, then with connections; hold what so many clients more are told."""
    needed = limits.connections + surplus + RESERVED_DESCRIPTORS + 64
    with open_files(needed), HttpServer(folder, prelude=lowered(limits)) as server, ExitStack() as ends:
        streams = [ends.enter_context(closing(SseClient(server))) for _ in range(limits.streams)]
        for _ in range(surplus):
            assert_told_to_come_back(server.raw(LAST_STREAM))
        kept = [ends.enter_context(kept_alive(server)) for _ in range(limits.connections - limits.streams)]
        crowd = [ends.enter_context(connect(server)) for _ in range(surplus)]
        for connection in crowd:
            connection.sendall(HEALTH)
        for connection in crowd:
            assert_told_to_come_back(all_of(connection))
            connection.close()
        for connection in kept:
            ask_again(connection)
            connection.close()
        wait_until(lambda: open_sockets(server) == limits.streams, "there is room again")
        for listener in streams:
            assert listener.request("ping")["result"] == {}
        assert server.stderr().count("\n") == 1


@needs_proc
def test_a_crowd_is_told_to_come_back(tmp_path: Path) -> None:
    """Every client beyond the limit of streams or connections gets 503 with Retry-After, also in a crowd."""
    overfill(tmp_path, LOW, surplus=100)


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_proc
def test_a_crowd_beyond_the_real_limits_is_told_to_come_back(tmp_path: Path) -> None:
    """The same at the limits as they are."""
    overfill(tmp_path, REAL, surplus=500)


def queue_up(folder: Path, limits: Limits, surplus: int) -> None:
    """Let all answers be slow and the queue be full; hold what those beyond it are told, and those in it."""
    most = SLOW_ANSWERS + limits.requests
    with open_files(most + surplus + 128), HttpServer(folder, prelude=lowered(limits)) as server:
        with ExitStack() as ends:
            crowd = [ends.enter_context(connect(server)) for _ in range(most + surplus)]
            with turn_taken(folder):
                for number, connection in enumerate(crowd):
                    connection.sendall(writing(f"task-{number}"))
                wait_until(lambda: answered(crowd) >= surplus, "those beyond the limit are answered")
            received = [all_of(connection) for connection in crowd]
        served = sum(answer.startswith(b"HTTP/1.1 200 ") for answer in received)
        for answer in received:
            if not answer.startswith(b"HTTP/1.1 200 "):
                assert_told_to_come_back(answer)
        assert limits.requests <= served <= most
        assert McpClient(server).call("list_tasks")["total"] == served


def answered(crowd: list[socket.socket]) -> int:
    """Return on how many connections something has arrived."""
    poll = select.poll()
    for connection in crowd:
        poll.register(connection, select.POLLIN)
    return len(poll.poll(0))


def writing(task_id: str) -> bytes:
    """Return the bytes of a last request that makes a task."""
    arguments = {"task_id": task_id, "title": "Title", "goal": "Goal"}
    body = json.dumps(request("tools/call", {"name": "create_task", "arguments": arguments})).encode()
    head = f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body


def test_more_requests_than_can_wait_are_told_to_come_back(tmp_path: Path) -> None:
    """What waits behind slow answers is bounded: 503 with Retry-After; the rest is served."""
    queue_up(tmp_path, LOW, surplus=20)


@pytest.mark.slow
def test_more_requests_than_can_really_wait_are_told_to_come_back(tmp_path: Path) -> None:
    """The same at the limit as it is."""
    queue_up(tmp_path, REAL, surplus=200)
