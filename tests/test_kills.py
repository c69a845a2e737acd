"""kill -9 while clients of every kind make changes of every kind: nothing is lost, and nothing half done."""

from __future__ import annotations

import itertools
import random
import sqlite3
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import pytest
from histories import (
    MARKED,
    Board,
    Call,
    Connection,
    Outcome,
    Recorder,
    Stored,
    Worker,
    read_stored,
    violations,
)
from support import HttpServer, JsonObject, McpClient, Process, StdioClient, ToolCaller, sse, stdio

NAMES = ("stdio-1", "stdio-2", "sse", "mcp")
DEATHLESS = "mcp"  # a client without a connection outlives its server
RACES = 3  # dead owners' tasks that all clients claim at once, in each round


class Seat(NamedTuple):
    """A worker and the connection that it has in this round."""

    worker: Worker
    connection: Connection


class Campaign:
    """Rounds of work on one database, each of which ends with the death of servers."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.recorder = Recorder()
        self.stored = Stored({}, [], {}, {})
        self.deaths: dict[str, float] = {}
        self.killed = 0
        self.raced = 0
        self._folder = folder
        self._chance = random.Random(seed)
        board = Board()
        self._workers = [
            Worker(name, board, self.recorder, random.Random(f"{seed} {name}")) for name in NAMES
        ]

    def fight(self, number: int) -> None:
        """Play one round, and check all that has happened up to its end."""
        with ExitStack() as stack, ThreadPoolExecutor(len(NAMES)) as pool:
            seats = self._start(stack, pool, number)
            repeated = self._repeat_unanswered(seats)
            self._share_out_the_dead(seats, pool, repeated)
            self._work_and_kill(seats, pool)
        self.stored = read_stored(self._folder)
        assert violations(self.recorder.calls, self.stored, self.deaths) == []

    def _start(self, stack: ExitStack, pool: ThreadPoolExecutor, number: int) -> list[Seat]:
        """Start three servers and connect the four clients."""
        service_coming = pool.submit(HttpServer, self._folder)
        first, second = map(stack.enter_context, pool.map(stdio, (self._folder, self._folder)))
        service = stack.enter_context(service_coming.result())
        clients: list[tuple[ToolCaller, Process]] = [
            (first, first),
            (second, second),
            (stack.enter_context(sse(service)), service),
            (McpClient(service, "2026-07-28"), service),
        ]
        seats = []
        for worker, (client, server) in zip(self._workers, clients, strict=True):
            name = worker.name
            if name != DEATHLESS:
                name = f"{name}@{number}"
                worker.mine.clear()
            seats.append(Seat(worker, Connection(name, client, server)))
        return seats

    # --- After a kill ---------------------------------------------------------------------------------

    def _repeat_unanswered(self, seats: list[Seat]) -> set[str]:
        """Send again, through any client, the calls without an answer; return the tasks they are about.

        The same call again is promised to change nothing on an unchanged task only, so what was carried
        out is repeated first, and not at all if the task went on since.
        """
        events = {event.trace: event for event in self.stored.events}
        tasks = self.stored.tasks
        unanswered = [call for call in self._latest_of_each() if call.outcome is Outcome.UNKNOWN]
        repeated = set()
        for call in sorted(unanswered, key=lambda call: call.trace not in events):
            event = events.get(call.trace)
            if call.tool == "claim_task":
                if event is not None and call.connection == DEATHLESS:
                    self._claim_again(seats[-1], tasks[event.task_id], str(event.agent))
                continue
            if event is None or event.version == tasks[event.task_id]["version"]:
                seat = self._chance.choice(seats)
                again = seat.worker.make(seat.connection, call.tool, call.arguments)
                assert event is None or again.answer["version"] == event.version
                repeated.add(str(call.arguments["task_id"]))
        return repeated

    def _latest_of_each(self) -> list[Call]:
        return list({call.trace: call for call in self.recorder.calls}.values())

    def _claim_again(self, seat: Seat, task: JsonObject, agent: str) -> None:
        """Find out by naming the task that a claim without an answer was carried out."""
        if (task["status"], task["current_owner"]) == ("in_progress", agent):
            answer = seat.connection.client.call("claim_task", agent=agent, task_id=task["task_id"])
            assert (answer["claim"], answer["task"]["version"]) == ({"how": "mine"}, task["version"])
            seat.worker.mine[task["task_id"]] = agent

    def _share_out_the_dead(self, seats: list[Seat], pool: ThreadPoolExecutor, repeated: set[str]) -> None:
        """Check whose owners are gone, and have all clients claim some of their tasks at once."""
        client = self._chance.choice(seats).connection.client
        listed = client.call("list_tasks", owner_state="gone", limit=100)
        gone = {row["task_id"]: row["current_owner"] for row in listed["tasks"]}
        assert listed["total"] == len(gone)
        assert gone.keys() - repeated == self._left_behind() - repeated
        for task_id in self._chance.sample(sorted(gone), min(RACES, len(gone))):
            start = threading.Barrier(len(seats))

            def claim(seat: Seat, task_id: str = task_id, start: threading.Barrier = start) -> Call:
                arguments = {"agent": seat.worker.mark(), "task_id": task_id}
                start.wait()
                return seat.worker.make(seat.connection, "claim_task", arguments)

            calls = list(pool.map(claim, seats))
            [winner] = [call for call in calls if call.outcome is Outcome.OK]
            assert winner.answer["claim"] == {"how": "gone", "from": gone[task_id]}
            codes = [call.answer["error"]["code"] for call in calls if call is not winner]
            assert codes == ["not_owner"] * (len(seats) - 1)
            self.raced += 1

    def _left_behind(self) -> set[str]:
        """Return the tasks that belong to clients whose connection has ended."""
        through = {
            call.trace: call.connection
            for call in self.recorder.calls  # the latest counts: the owner goes on where it called again
            if call.outcome is not Outcome.FAILED
        }
        connections: dict[str, str] = {}
        for event in self.stored.events:
            is_owners = event.what in ("checkpoint", "claimed", "takeover", "artifact")
            if is_owners and event.agent == self.stored.tasks[event.task_id]["current_owner"]:
                connections[event.task_id] = through[event.trace]
        at_work = [task_id for task_id, task in self.stored.tasks.items() if task["status"] == "in_progress"]
        return {task_id for task_id in at_work if connections[task_id] != DEATHLESS}

    # --- Up to the kill -------------------------------------------------------------------------------

    def _work_and_kill(self, seats: list[Seat], pool: ThreadPoolExecutor) -> None:
        """Let all clients work, and kill servers at the moments when so many calls have been answered.

        The client that got the answer kills: the calls of all others are somewhere on their way.
        """
        servers = list(dict.fromkeys(seat.connection.server for seat in seats))
        last = self._chance.randrange(20, 90)
        kills = defaultdict[int, list[Process]](list)
        for server in self._chance.sample(servers, self._chance.randint(1, len(servers))):
            kills[self._chance.randint(1, last)].append(server)
        if self._chance.random() < 0.5:
            kills[last] = servers
        is_over = threading.Event()
        answers = itertools.count(1)

        def after_answer() -> None:
            count = next(answers)
            for server in kills[count]:
                self._end(seats, server, is_killed=True)
            if count == last:
                is_over.set()

        self.recorder.after_answer = after_answer
        list(pool.map(lambda seat: seat.worker.work(seat.connection, is_over.is_set), seats))
        self.recorder.after_answer = lambda: None
        for server in servers:
            self._end(seats, server, is_killed=False)

    def _end(self, seats: list[Seat], server: Process, is_killed: bool) -> None:
        """End a server that still runs, and note when its connections died."""
        if server.process.returncode is not None:
            return
        for _, connection in seats:
            if connection.server is server and connection.name != DEATHLESS:
                self.deaths[connection.name] = time.monotonic()
        if is_killed:
            server.kill()
            self.killed += 1
        else:
            assert (server.close() if isinstance(server, StdioClient) else server.terminate()) == 0

    # --- In the end -----------------------------------------------------------------------------------

    def compare_with_tools(self) -> None:
        """Check that what a client can read is what is stored, to the byte."""
        by_task = defaultdict[str, list[tuple[str, str | None, int | None]]](list)
        for event in self.stored.events:
            by_task[event.task_id].append((event.what, event.agent, event.checkpoint))
        with stdio(self._folder) as client:
            assert client.call("list_tasks")["total"] == len(self.stored.tasks)
            for task_id, task in self.stored.tasks.items():
                shown = client.call("get_task", task_id=task_id)
                assert {name: shown[name] for name in shown.keys() & task.keys()}.items() <= task.items()
                assert history_of(client, task_id) == by_task[task_id]
            for (task_id, number), decisions in self.stored.decisions.items():
                checkpoint = client.call("get_task", task_id=task_id, checkpoint=number)
                assert checkpoint["decisions"] == decisions
            for (task_id, number), content in self.stored.artifacts.items():
                shown = client.call("get_task", task_id=task_id, artifact=number)
                assert shown["text"].encode() == content


def history_of(client: ToolCaller, task_id: str) -> list[tuple[str, str | None, int | None]]:
    """Return what happened to a task, by whom and with which checkpoint, oldest first."""
    events, page = list[JsonObject](), dict[str, str]()
    while True:
        answer = client.call("get_task", task_id=task_id, view="history", **page)
        events += answer["events"]
        if "next_cursor" not in answer:
            break
        page = {"cursor": answer["next_cursor"]}
    changes = [event for event in reversed(events) if event["what"] != "session_ended"]
    return [(event["what"], event["agent"], event.get("checkpoint")) for event in changes]


def wage(folder: Path, rounds: int, seed: int) -> Campaign:
    """Play that many rounds; check that they were worth something: every tool has met every fate."""
    campaign = Campaign(folder, seed)
    for number in range(rounds):
        campaign.fight(number)
    campaign.compare_with_tools()
    assert campaign.killed >= rounds
    assert campaign.raced > 0
    assert {call.tool for call in campaign.recorder.calls if call.outcome is Outcome.OK} == MARKED.keys()
    assert any(call.outcome is Outcome.UNKNOWN for call in campaign.recorder.calls)
    return campaign


def test_nothing_is_lost_or_half_done_in_some_kills(tmp_path: Path) -> None:
    """Over 10 rounds of kills, four clients lose nothing they were told, and every task has one owner."""
    wage(tmp_path, 10, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_is_lost_or_half_done_in_many_kills(tmp_path: Path) -> None:
    """Over 200 rounds of kills, four clients lose nothing they were told, and every task has one owner."""
    campaign = wage(tmp_path, 200, seed=2)
    unknown = {call.tool for call in campaign.recorder.calls if call.outcome is Outcome.UNKNOWN}
    assert unknown == MARKED.keys()


# --- Every moment of one write --------------------------------------------------------------------------

IMAGED = """
import os, sqlite3, subprocess
connect = sqlite3.connect

class Connection(sqlite3.Connection):
    moment = 0

    def execute(self, statement, values=()):
        found = super().execute(statement, values)
        if os.path.exists({images!r}):
            Connection.moment += 1
            image = os.path.join({images!r}, str(Connection.moment))
            os.mkdir(image)
            # Not in this process, which would lose SQLite's locks.
            subprocess.run(["cp", {database!r}, {database!r} + "-journal", image], check=True)
        return found

def connect_without_memory(path, **options):
    connection = connect(path, factory=Connection, **options)
    connection.execute("PRAGMA cache_size = 1")  # so that half a transaction is in the file before its end
    return connection

sqlite3.connect = connect_without_memory
"""
TOLD = ("task_id", "title", "status", "current_owner", "version")
LARGE = "x" * 20_000  # more than SQLite keeps in memory there
WRITES: tuple[tuple[str, JsonObject], ...] = (
    ("create_task", {"task_id": "new", "title": "T", "goal": LARGE, "depends_on": ["t"], "tags": ["a", "b"]}),
    ("save_checkpoint", {"task_id": "t", "agent": "Ann", "decisions": [LARGE]}),
    (
        "handoff_task",
        {"task_id": "t", "from_agent": "Ann", "to_agent": "Ben", "reason": LARGE, "files": ["f"]},
    ),
    ("claim_task", {"agent": "Ben"}),
    ("attach_artifact", {"task_id": "t", "name": "n", "content": LARGE, "agent": "Ben"}),
    ("mark_exhausted", {"task_id": "t", "agent": "Ben", "reason": LARGE, "decisions": ["d"]}),
    ("update_task", {"task_id": "t", "status": "done", "goal": LARGE, "tags": ["c"]}),
)


def content_of_database(folder: Path) -> list[list[tuple[object, ...]]]:
    """Return the rows of all tables, the tables of the full-text index among them."""
    with closing(sqlite3.connect(folder / "tasks.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        return [connection.execute(f"SELECT * FROM {name}").fetchall() for (name,) in tables.fetchall()]


def test_a_write_is_whole_or_absent_after_every_statement(tmp_path: Path) -> None:
    """Whenever a server dies within a write of any tool, its files hold all of that write or nothing."""
    images, database = tmp_path / "images", str(tmp_path / "tasks.db")
    states_of_file = 0
    with stdio(tmp_path, prelude=IMAGED.format(images=str(images), database=database)) as client:
        client.call("create_task", task_id="t", title="Title", goal="Goal")
        for tool, arguments in WRITES:
            before = content_of_database(tmp_path)
            images.mkdir()
            client.call(tool, **arguments)
            taken = images.rename(tmp_path / f"images of {tool}")
            after = content_of_database(tmp_path)
            states_of_file += len({(image / "tasks.db").read_bytes() for image in taken.iterdir()})
            moments = [content_of_database(image) for image in taken.iterdir()]
            assert [found for found in moments if found not in (before, after)] == []
            assert before in moments
            assert after in moments
    assert states_of_file > 2 * len(WRITES)  # some were taken of half a transaction


# --- The answer that never came -------------------------------------------------------------------------

DYING = """
import os, signal, sqlite3
connect = sqlite3.connect

class Connection(sqlite3.Connection):
    def execute(self, statement, values=()):
        found = super().execute(statement, values)
        if statement == "COMMIT" and os.path.exists({order!r}):
            os.kill(os.getpid(), signal.SIGKILL)
        return found

sqlite3.connect = lambda path, **options: connect(path, factory=Connection, **options)
"""


def test_a_write_is_repeated_after_its_answer_was_lost(tmp_path: Path) -> None:
    """A server dies between commit and answer: the same call again changes nothing and says what was done."""
    order = tmp_path / "die after commit"
    with stdio(tmp_path) as survivor:
        survivor.call("create_task", task_id="t", title="Title", goal="Goal")
        for number, (tool, arguments) in enumerate(WRITES):
            task_id = arguments.get("task_id", "t")
            version = survivor.call("get_task", task_id="t")["version"] if number else 0
            with stdio(tmp_path, prelude=DYING.format(order=str(order))) as dying:
                dying.result("resources/list")  # from here on its database is open
                order.touch()
                lost = Recorder().call(Connection("dying", dying, dying), tool, arguments)
                order.unlink()
            assert lost.outcome is Outcome.UNKNOWN
            done = survivor.call("get_task", task_id=task_id), history_of(survivor, task_id)
            assert done[0]["version"] == version + 1
            # A claim is repeated by naming the task: otherwise it asks for another one.
            answer = survivor.call(tool, **{"task_id": task_id, **arguments})
            told = answer["task"] if tool == "claim_task" else answer
            assert [told[name] for name in TOLD] == [done[0][name] for name in TOLD]
            again = survivor.call("get_task", task_id=task_id), history_of(survivor, task_id)
            if "owner_state" in done[0]:  # the owner is back, through the repeated call
                assert (done[0].pop("owner_state"), again[0].pop("owner_state")) == ("gone", "live")
            assert again == done
