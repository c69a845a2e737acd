"""The measurements. Each takes the servers in turn, and gives each that it starts a new folder."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from statistics import fmean

from benchmarks.clients import HttpServer, Requests, StdioServer, drive, result_of
from benchmarks.contenders import Contender, JsonObject, prose
from benchmarks.figures import Compared, Figure, percentile, turns
from benchmarks.stored import fill

QUIET = 0.2  # seconds
PEER_LEVEL = 10_000  # tasks: peers are filled by calls, which would take too long for more
WRITERS = 4
CONNECTIONS = (1, 16)
_WARM_UP = 3  # calls that bring a server back into the caches, at each of its turns
_SETTLED = 0.5  # seconds after which a server has done what an opened stream makes it do
_TELLABLE = 4  # KiB: memory grows by pages
_MS = 1000.0  # in a second


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    start_rounds: int = 15
    call_rounds: int = 20
    writes: int = 20  # in a row; they add to what is stored
    reads: int = 50
    http_rounds: int = 8
    http_calls: int = 1000  # in a row
    http_stored: int = 100  # tasks
    writer_rounds: int = 5
    writer_calls: int = 1000  # of all writers together
    stream_rounds: int = 3
    streams: int = 1000


QUICK = Sizes(
    start_rounds=1, call_rounds=2, writes=3, reads=3, http_rounds=2, http_calls=20, http_stored=5,
    writer_rounds=1, writer_calls=40, stream_rounds=1, streams=50,
)  # fmt: skip


@contextmanager
def new_folder() -> Iterator[str]:
    """Yield a new folder that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as path:
        yield path


@contextmanager
def started(contender: Contender) -> Iterator[StdioServer]:
    """Yield a server over STDIO in a new folder."""
    with new_folder() as folder, StdioServer(contender, folder) as server:
        yield server


def tool_list(contender: Contender) -> list[JsonObject]:
    """Return a server's tools as a model sees them: name, description, input schema."""
    shown = ("name", "description", "inputSchema")
    with started(contender) as server:
        return [{key: tool[key] for key in shown if key in tool} for tool in server.list_tools()]


# --- Starting -----------------------------------------------------------------------------------------


def starts(contenders: Sequence[Contender], rounds: int) -> dict[str, Figure]:
    """Measure what a client waits for first, and the memory that is taken by then; `bare` is Python alone."""
    figures = {
        "bare": Figure("`python -c pass`", "ms"),
        "listed": Figure("spawn to `tools/list` answered", "ms"),
        "written": Figure("spawn to first durable write answered", "ms"),
        "quiet": Figure(f"first write after {QUIET * _MS:.0f} ms of quiet", "ms"),
        "memory listed": Figure("peak memory after `tools/list`", "MiB"),
        "memory called": Figure("peak memory after a call", "MiB"),
    }
    for contender, counts in turns(contenders, rounds):
        found = {"bare": _bare_run(), **_start_and_wait(contender), **_start_and_write(contender)}
        for name, value in found.items() if counts else ():
            figures[name].add(contender.name, value)
    return figures


def _bare_run() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return (time.perf_counter() - begun) * _MS


def _start_and_wait(contender: Contender) -> dict[str, float]:
    with started(contender) as server:
        server.list_tools()
        found = {"listed": (time.perf_counter() - server.started) * _MS}
        found["memory listed"] = server.peak_memory()
        if contender.has_calls:
            time.sleep(QUIET)
            found["quiet"] = server.call(server.requests.write()) * _MS
            found["memory called"] = server.peak_memory()
        return found


def _start_and_write(contender: Contender) -> dict[str, float]:
    if not contender.has_calls:
        return {}
    with started(contender) as server:
        server.list_tools()
        server.call(server.requests.write())
        return {"written": (time.perf_counter() - server.started) * _MS}


# --- Calls over STDIO ---------------------------------------------------------------------------------

Calls = dict[tuple[str, int], Figure]  # by the kind of call and the number of stored tasks


def calls(contenders: Sequence[Contender], levels: Sequence[int], sizes: Sizes) -> tuple[Calls, Figure]:
    """Measure a read and a durable write with so many tasks stored; and, for scale, a bare commit.

    A round's value is the mean of the calls that it makes in a row.
    """
    figures = {
        (kind, level): Figure(f"STDIO {kind}, {level:,} tasks stored", "ms", Compared.AS_SPEED)
        for level in levels
        for kind in ("read", "write")
    }
    bare = Figure("a bare commit", "ms")
    with ExitStack() as stack:
        commits = stack.enter_context(_bare_commits())
        servers = {
            (contender.name, level): stack.enter_context(_filled(contender, level))
            for contender in contenders
            for level in levels
            if contender.is_ours or level <= PEER_LEVEL
        }
        for (name, level), counts in turns(list(servers), sizes.call_rounds):
            server = servers[name, level]
            writes = server.requests.writes(_WARM_UP + sizes.writes)
            found = {figures["write", level]: [server.call(request) for request in writes]}
            reads = server.requests.reads(_WARM_UP + sizes.reads)
            found[figures["read", level]] = [server.call(request) for request in reads]
            if level == levels[0]:
                found[bare] = [next(commits) for _ in range(_WARM_UP + sizes.writes)]
            for figure, waits in found.items() if counts else ():
                figure.add(name, fmean(waits[_WARM_UP:]) * _MS)
    return figures, bare


@contextmanager
def _filled(contender: Contender, level: int) -> Iterator[StdioServer]:
    """Yield a server that has just been started on so many tasks."""
    with new_folder() as folder:
        fill(contender, folder, level)
        with StdioServer(contender, folder, Requests(contender, level)) as server:
            server.list_tools()
            yield server


@contextmanager
def _bare_commits() -> Iterator[Iterator[float]]:
    """Yield what commits a row at each step, as durably as the server does, and says how long it took."""
    with new_folder() as folder, closing(_durable_connection(folder)) as connection:
        connection.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, text TEXT)")
        yield _commits(connection)


def _durable_connection(folder: str) -> sqlite3.Connection:
    connection = sqlite3.connect(os.path.join(folder, "bare.db"), isolation_level=None)
    connection.execute("PRAGMA journal_mode = PERSIST")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _commits(connection: sqlite3.Connection) -> Iterator[float]:
    number = 0
    while True:
        number += 1
        row = (number, prose(number))
        begun = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO rows VALUES (?, ?)", row)
        connection.execute("COMMIT")
        yield time.perf_counter() - begun


# --- Several at once ----------------------------------------------------------------------------------


def http_calls(contenders: Sequence[Contender], sizes: Sizes) -> list[Figure]:
    """Measure how many calls a service answers in a second at /mcp."""
    figures = []
    with ExitStack() as stack:
        servers = [stack.enter_context(_service(contender, sizes.http_stored)) for contender in contenders]
        for kind in ("read", "write"):
            for connections in CONNECTIONS:
                plural = "s" if connections > 1 else ""
                what = f"`/mcp` {kind}, {connections} connection{plural}"
                figure = Figure(what, "calls/s", Compared.AS_RATE)
                for server, counts in turns(servers, sizes.http_rounds):
                    rate = _rate(server, kind, connections, sizes.http_calls)
                    if counts:
                        figure.add(server.name, rate)
                figures.append(figure)
    return figures


@contextmanager
def _service(contender: Contender, stored: int) -> Iterator[HttpServer]:
    with new_folder() as folder, HttpServer(contender, contender.http, folder) as server:
        server.open()
        server.initialize()
        _rate(server, "write", 1, stored)
        yield server


def _rate(server: HttpServer, kind: str, connections: int, count: int) -> float:
    requests = server.requests.writes(count) if kind == "write" else server.requests.reads(count)
    with server.wires(connections) as wires:
        run = drive(wires, [server.post(request) for request in requests])
    for answer in run.answers:
        result_of(server.name, answer)
    return count / run.seconds


def writers(contenders: Sequence[Contender], sizes: Sizes) -> list[Figure]:
    """Measure how long writers wait that are processes of their own, on one database, all at once."""
    usual = Figure(f"{WRITERS} writing processes, p99 of the waits", "ms")
    worst = Figure(f"{WRITERS} writing processes, worst wait", "ms", summary=max)
    for contender, _ in turns(contenders, sizes.writer_rounds, warming=0):
        requests = Requests(contender)
        with ExitStack() as stack:
            folder = stack.enter_context(new_folder())
            servers = [stack.enter_context(StdioServer(contender, folder, requests)) for _ in range(WRITERS)]
            for server in servers:
                server.list_tools()
                server.call(requests.write())
            run = drive(servers, requests.writes(sizes.writer_calls))
        for answer in run.answers:
            result_of(contender.name, answer)
        usual.add(contender.name, percentile(run.waits, 99) * _MS)
        worst.add(contender.name, max(run.waits) * _MS)
    return [usual, worst]


def idle_streams(contenders: Sequence[Contender], sizes: Sizes) -> Figure:
    """Measure what each of many open event streams costs that nothing is sent on."""
    figure = Figure("memory of an idle `/sse` stream", "KiB")
    for contender, _ in turns(contenders, sizes.stream_rounds, warming=0):
        with ExitStack() as stack:
            folder = stack.enter_context(new_folder())
            server = stack.enter_context(HttpServer(contender, contender.sse, folder))
            server.open()
            server.open_stream().close()  # what is loaded for a first stream is not what a stream costs
            time.sleep(_SETTLED)
            before = server.resident_memory()
            for _ in range(sizes.streams):
                stack.enter_context(server.open_stream())
            time.sleep(_SETTLED)
            grown = max(_TELLABLE, server.resident_memory() - before)
            figure.add(contender.name, grown / sizes.streams)
    return figure
