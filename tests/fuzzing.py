"""What a service must be like after it was treated badly: alive, quick, and no larger than before."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from support import PATIENCE, HttpServer, McpClient, Process, thread_count, wait_until

from config import MIB

MEMORY_BACK = 20 * MIB  # what the treatment may leave behind
ANSWERED_IN = 1.0  # seconds for the next request
needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc, which Linux has")


class Vitals(NamedTuple):
    """What a process takes: bytes of memory, open files, threads."""

    memory: int
    files: int
    threads: int


def vitals(server: Process) -> Vitals:
    folder = Path(f"/proc/{server.process.pid}")
    pages = int((folder / "statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE")
    return Vitals(memory, len(os.listdir(folder / "fd")), thread_count(server))


@contextmanager
def unharmed(server: Process, *requests: Callable[[], object]) -> Iterator[None]:
    """Hold that the block leaves the server as it was before, without a word on stderr.

    Each of `requests` is answered within ANSWERED_IN after it. What the server makes once and keeps must be
    there already: treat it in the same way before.
    """
    before, said = vitals(server), server.stderr()
    yield
    assert server.process.poll() is None, server.stderr()
    for request in requests:
        started = time.monotonic()
        request()
        assert (taken := time.monotonic() - started) < ANSWERED_IN, f"{taken:.2f} s"
    wait_until(lambda: vitals(server).files <= before.files, f"{before.files} open files again")
    wait_until(lambda: vitals(server).threads <= before.threads, f"{before.threads} threads again")
    grown = vitals(server).memory - before.memory
    assert grown <= MEMORY_BACK, f"{grown / MIB:.1f} MiB more than before"
    assert server.stderr() == said


@contextmanager
def unharmed_service(server: HttpServer) -> Iterator[None]:
    """Hold the same of a service, which answers for its health and a tool."""
    with unharmed(server, lambda: check_health(server), lambda: McpClient(server).call("list_tasks")):
        yield


def check_health(server: HttpServer) -> None:
    assert server.request("GET", "/health")[0] == 200


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)


def reset(connection: socket.socket) -> None:
    """Close as a peer does that crashed: what was sent and not yet read is gone with it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
