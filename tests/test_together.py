"""Calls that arrive at the same time: answered together, with one commit, each as if it had come alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from http.client import HTTPException, HTTPResponse
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, HttpServer, JsonObject, request, thread_count, turn_taken, wait_until

from config import GROUPED_BYTES
from database import Row
from dispatcher import Dispatcher
from errors import Alone, Conflict, NotFound, StorageError
from methods import TaskMethods
from models import NewTask, TaskFilter
from protocol import BY_DATE, Peer, Received
from store import Store
from tools import Workplace

# --- The store ------------------------------------------------------------------------------------------


def new_task(task_id: str, title: str = "Title") -> NewTask:
    return NewTask(task_id=task_id, title=title, goal="Goal", repo_path=None, remaining_steps=[])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return a store with the task `t`."""
    (tmp_path / "artifacts").mkdir()
    store = Store(str(tmp_path / "tasks.db"), str(tmp_path / "artifacts"))
    store.create_task(new_task("t"))
    yield store
    store.close()


def task_ids(store: Store) -> list[str]:
    return sorted(task["task_id"] for task in store.recent_tasks(50, None).tasks)


def commits(folder: Path) -> int:
    """Return how often the database was changed, as its header counts it.

    Not for a store of this process: closing the file drops SQLite's locks.
    """
    with (folder / "tasks.db").open("rb") as file:
        return int.from_bytes(file.read(28)[24:], "big")


def before_statement(patch: pytest.MonkeyPatch, store: Store, start: str, act: Callable[[], None]) -> None:
    """Have `act` run before each statement that begins with `start`; if it raises, in place of it."""
    execute = store._db.execute

    def hooked(statement: str, values: Sequence[Any] = ()) -> list[Row]:
        if statement.startswith(start):
            act()
        return execute(statement, values)

    patch.setattr(store._db, "execute", hooked)


LOOK = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('SELECT task_id FROM tasks'))"


def do_together(store: Store, *changes: Callable[[], object]) -> None:
    with store.together():
        for change in changes:
            change()


def full_disk() -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


@pytest.fixture
def committed(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that grows by one with each COMMIT of the store."""
    commits: list[None] = []
    before_statement(monkeypatch, store, "COMMIT", lambda: commits.append(None))
    return commits


def test_changes_made_together_are_committed_once(
    store: Store, committed: list[None], tmp_path: Path
) -> None:
    """However many changes a group makes, there is one commit, and before it nobody else sees any of them."""
    with store.together():
        for number in range(5):
            store.create_task(new_task(f"new{number}"))
            assert store.get_task(f"new{number}").version == 1
        assert store.list_tasks(TaskFilter(), 10, None)[1] == 6
        assert not committed
        seen = subprocess.check_output([sys.executable, "-c", LOOK, str(tmp_path / "tasks.db")])
        assert seen == b"('t',)\n"
    assert len(committed) == 1
    assert task_ids(store) == ["new0", "new1", "new2", "new3", "new4", "t"]


def test_a_group_that_only_reads_commits_nothing(store: Store, committed: list[None], tmp_path: Path) -> None:
    """Reads in a group take no turn and write nothing."""
    with turn_taken(tmp_path), store.together():
        assert store.get_task("t").title == "Title"
        with pytest.raises(NotFound):
            store.get_task("nobody")
    assert not committed


def test_a_change_that_is_refused_is_undone_alone(store: Store) -> None:
    """A refusal in a group leaves the changes before it and after it."""
    with store.together():
        store.create_task(new_task("before"))
        with pytest.raises(Conflict):
            store.create_task(new_task("t", "Another title"))
        store.create_task(new_task("after"))
    assert task_ids(store) == ["after", "before", "t"]
    assert store.get_task("t").title == "Title"


def test_what_fails_half_way_is_undone_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle of one change leaves nothing of that one, and all of the others."""
    with store.together():
        store.create_task(new_task("before"))
        with monkeypatch.context() as patch:
            before_statement(patch, store, "INSERT INTO recent_words", full_disk)
            with pytest.raises(StorageError):
                store.create_task(new_task("half"))
        store.create_task(new_task("after"))
    assert task_ids(store) == ["after", "before", "t"]
    history, _ = store.history("after", 5, None)
    assert [event["what"] for event in history] == ["created"]


@pytest.mark.parametrize("start", ["INSERT INTO recent_words", "ROLLBACK TO"])
def test_a_group_that_is_lost_changes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """Where SQLite has undone everything, or cannot undo one part, the others are told to come alone."""

    def undo_all() -> None:
        store._db._connection.execute("ROLLBACK")
        full_disk()

    def change() -> None:
        store.create_task(new_task("before"))
        with monkeypatch.context() as patch:
            before_statement(patch, store, "INSERT INTO recent_words", full_disk)
            before_statement(patch, store, start, undo_all)
            with pytest.raises(StorageError):
                store.create_task(new_task("half"))
        with pytest.raises(Alone):
            store.create_task(new_task("after"))

    with pytest.raises(Alone):
        do_together(store, change)
    assert task_ids(store) == ["t"]
    store.create_task(new_task("alone"))
    assert task_ids(store) == ["alone", "t"]


def test_a_commit_that_fails_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the one commit fails, none of the changes is there, and each may be made again alone."""
    with monkeypatch.context() as patch:
        before_statement(patch, store, "COMMIT", full_disk)
        with pytest.raises(Alone):
            do_together(store, *(partial(store.create_task, new_task(task_id)) for task_id in ("one", "two")))
    assert task_ids(store) == ["t"]
    store.create_task(new_task("one"))
    assert task_ids(store) == ["one", "t"]


def test_a_change_that_cannot_be_settled_takes_the_group_with_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that is refused at its very end is not committed with the others."""

    def change() -> None:
        store.create_task(new_task("before"))
        with monkeypatch.context() as patch:
            before_statement(patch, store, "RELEASE", full_disk)
            with pytest.raises(StorageError):
                store.create_task(new_task("refused"))

    with pytest.raises(Alone):
        do_together(store, change)
    assert task_ids(store) == ["t"]


@pytest.mark.parametrize("has_happened", [True, False])
def test_a_commit_of_unknown_outcome_is_read_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, has_happened: bool
) -> None:
    """When a commit fails, a group is taken as committed only if all that it changed is found stored."""

    def fail() -> None:
        if has_happened:
            store._db._connection.execute("COMMIT")
        full_disk()

    creates = [partial(store.create_task, new_task(task_id)) for task_id in ("one", "two")]
    with monkeypatch.context() as patch:
        before_statement(patch, store, "COMMIT", fail)
        if has_happened:
            do_together(store, *creates)
        else:
            with pytest.raises(Alone):
                do_together(store, *creates)
    assert task_ids(store) == (["one", "t", "two"] if has_happened else ["t"])


def test_reads_in_a_group_do_not_wait_long(store: Store, tmp_path: Path) -> None:
    """While others keep the whole database, the calls of a group are soon told to wait each alone."""
    started = time.monotonic()
    with closing(sqlite3.connect(tmp_path / "tasks.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with store.together():
            for _ in range(20):
                with pytest.raises(Alone):
                    store.get_task("t")
    assert time.monotonic() - started < PATIENCE / 20


def test_an_error_of_ours_undoes_the_group(store: Store) -> None:
    """What leaves the block by any other exception is not committed."""
    with pytest.raises(ZeroDivisionError):
        do_together(store, partial(store.create_task, new_task("one")), lambda: 1 // 0)
    assert task_ids(store) == ["t"]


def test_a_group_does_not_wait_long_for_its_turn(store: Store, tmp_path: Path) -> None:
    """While another process writes, the calls of a group are soon told to wait each alone."""

    def refused() -> None:
        with pytest.raises(Alone):
            store.create_task(new_task("new"))

    started = time.monotonic()
    with turn_taken(tmp_path), pytest.raises(Alone):
        do_together(store, *[refused] * 20)
    assert time.monotonic() - started < PATIENCE / 20
    assert task_ids(store) == ["t"]


def test_a_group_is_its_threads_own(store: Store) -> None:
    """Another thread neither joins a group nor sees it before it is committed."""
    seen: list[list[str]] = []

    def look() -> None:
        store.require_alone()
        seen.append(task_ids(store))

    other = threading.Thread(target=look)
    with store.together():
        store.create_task(new_task("one"))
        other.start()
        other.join(0.1)  # long enough to see what it must not
        assert (other.is_alive(), seen) == (True, [])
        with pytest.raises(Alone):
            store.require_alone()
    other.join()
    store.require_alone()
    assert seen == [["one", "t"]]


# --- The service ----------------------------------------------------------------------------------------


def posted(message: Any) -> bytes:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    head = (
        "POST /mcp HTTP/1.1", "Host: localhost", "MCP-Protocol-Version: 2025-03-26",
        "Content-Type: application/json", f"Content-Length: {len(body)}",
    )  # fmt: skip
    return "\r\n".join((*head, "", "")).encode() + body


def called(tool: str, request_id: int = 1, **arguments: Any) -> JsonObject:
    return request("tools/call", {"name": tool, "arguments": arguments}, request_id)


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def writes(number: int) -> list[JsonObject]:
    """Return calls that each make a task."""
    return [called("create_task", n, task_id=f"new{n}", title="T", goal="G") for n in range(number)]


@contextmanager
def service(folder: Path, prelude: str = "") -> Iterator[HttpServer]:
    """Serve a store with the task `t`."""
    with HttpServer(folder, prelude=prelude) as server:
        server.post(called("create_task", task_id="t", title="Title", goal="Goal"))
        yield server


def answers_to(
    server: HttpServer,
    *messages: Any,
    before: Callable[[], object] = lambda: None,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[Any]:
    """Have messages arrive in the same moment, each on its own connection; return the answers in order.

    `before` is called before the first is sent, `meanwhile` as soon as they have arrived.
    """
    with ExitStack() as ends:
        clients = [
            ends.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
            for _ in messages
        ]
        for client in clients:  # the service has accepted all of them
            client.sendall(HEALTH)
            read_body(client)
        server.process.send_signal(signal.SIGSTOP)
        os.waitpid(server.process.pid, os.WUNTRACED)
        before()
        for client, message in zip(clients, messages, strict=True):
            client.sendall(posted(message))
        server.process.send_signal(signal.SIGCONT)
        meanwhile()
        return [read_body(client) for client in clients]


def read_body(client: socket.socket) -> Any:
    response = HTTPResponse(client)
    response.begin()
    body = response.read()
    return json.loads(body) if body else None


def told(answer: JsonObject) -> JsonObject:
    """Return what a tool answered."""
    found: JsonObject = json.loads(answer["result"]["content"][0]["text"])
    return found


def test_calls_at_the_same_time_share_a_commit(tmp_path: Path) -> None:
    """Twelve clients that write in the same moment are all answered after one commit."""
    with service(tmp_path) as server:
        before = commits(tmp_path)
        creates = writes(12)
        answers = answers_to(server, *creates)
        assert commits(tmp_path) == before + 1
        assert [answer["id"] for answer in answers] == list(range(12))
        assert [told(answer)["task_id"] for answer in answers] == [f"new{number}" for number in range(12)]
        _, found = server.post(called("list_tasks"))
        assert told(found)["total"] == 13


def test_calls_of_all_kinds_at_the_same_time(tmp_path: Path) -> None:
    """Reads, refusals, slow tools, batches and nonsense are each answered as if they came alone."""
    with HttpServer(tmp_path) as server:
        for task_id in ("t", "u", "v"):
            server.post(called("create_task", task_id=task_id, title="Title", goal="Goal"))
        server.post(called("create_task", task_id="r", title="Title", goal="Goal", repo_path=str(tmp_path)))
        batch = [
            called("create_task", 1, task_id="b", title="T", goal="G"),
            called("get_task", 2, task_id="b"),
        ]
        answers = answers_to(
            server,
            called("create_task", task_id="new", title="T", goal="G"),
            called("create_task", task_id="t", title="Other", goal="G"),
            called("save_checkpoint", task_id="u", agent="a", decisions=["one"]),
            called("save_checkpoint", task_id="r", agent="a", decisions=["two"]),
            called("handoff_task", task_id="v", from_agent="a", to_agent="b", reason="tired"),
            called("get_task", task_id="t"),
            called("get_task", task_id="r", view="resume"),
            called("get_task", task_id="nobody"),
            called("list_tasks"),
            called("no_such_tool"),
            request("ping"),
            {"jsonrpc": "2.0", "method": "notifications/initialized"},
            b"{",
            batch,
        )
        created, conflict, saved, saved_too, handed, read, resumed, missing, listed, *others = answers
        assert told(created)["task_id"] == "new"
        assert told(conflict)["error"]["code"] == "conflict"
        assert [told(saved)["checkpoint"], told(saved_too)["checkpoint"]] == [1, 1]
        assert told(handed)["status"] == "handoff_ready"
        assert told(read)["title"] == "Title"
        assert told(resumed)["task_id"] == "r"
        assert told(missing)["error"]["code"] == "not_found"
        assert told(listed)["total"] in (4, 5, 6)
        unknown, pong, nothing, nonsense, batched = others
        assert unknown["error"]["code"] == -32602
        assert pong["result"] == {}
        assert nothing is None
        assert nonsense["error"]["code"] == -32700
        assert [told(answer)["task_id"] for answer in batched] == ["b", "b"]


def test_a_batch_in_a_group_is_carried_out_once(tmp_path: Path) -> None:
    """A JSON-RPC batch that cannot be answered in a group leaves nothing there that is done again later."""
    with service(tmp_path) as server:
        batch = [
            called("save_checkpoint", 1, task_id="t", agent="a", decisions=["d"]),
            called("list_tasks", 2),
        ]
        answers_to(server, batch, called("update_task", task_id="t", title="Other"))
        _, found = server.post(called("get_task", task_id="t"))
        assert told(found)["version"] == 3


def test_a_crowd_of_writers_is_answered_group_by_group(tmp_path: Path) -> None:
    """More clients than are answered together all get their answers, after a few commits."""
    with service(tmp_path) as server:
        before = commits(tmp_path)
        creates = writes(100)
        assert [told(answer)["version"] for answer in answers_to(server, *creates)] == [1] * 100
        assert commits(tmp_path) - before <= 20


def test_one_of_two_that_want_the_same_is_refused(tmp_path: Path) -> None:
    """Within a group the first of two agents gets an open task, and the other hears who has it."""
    with service(tmp_path) as server:
        answers = answers_to(
            server, *(called("save_checkpoint", task_id="t", agent=agent) for agent in ("ann", "bob"))
        )
        codes = [told(answer).get("error", {}).get("code") for answer in answers]
        assert sorted(codes, key=str) == [None, "not_owner"]
        _, found = server.post(called("get_task", task_id="t"))
        assert told(found)["current_owner"] == ("ann" if codes[0] is None else "bob")


def test_a_group_that_meets_a_writer_is_answered_all_the_same(tmp_path: Path) -> None:
    """Calls that come together while another process writes wait each alone, and none is lost."""
    with service(tmp_path) as server:
        creates = writes(8)
        with ExitStack() as turn:
            turn.enter_context(turn_taken(tmp_path))
            release = threading.Timer(0.2, turn.close)  # longer than a group waits
            answers = answers_to(server, *creates, meanwhile=release.start)
            release.join()
        assert [told(answer)["version"] for answer in answers] == [1] * 8


def test_a_service_that_is_told_to_stop_answers_the_crowd(tmp_path: Path) -> None:
    """SIGTERM while more requests wait than are answered together: each is answered, then the exit is 0."""
    with service(tmp_path) as server:
        creates = writes(80)
        with ExitStack() as turn:
            turn.enter_context(turn_taken(tmp_path))
            release = threading.Timer(0.5, turn.close)

            def stop() -> None:
                server.process.terminate()
                release.start()

            answers = answers_to(server, *creates, meanwhile=stop)
            release.join()
        assert [told(answer)["version"] for answer in answers] == [1] * 80
        assert server.process.wait(PATIENCE) == 0
        assert server.stderr().count("\n") == 1


HANGS = """
import os, time, database
commit = database.Database._commit

def hang(self, deadline, is_recorded):
    if os.path.exists({flag!r}):
        time.sleep(4)
    commit(self, deadline, is_recorded)

database.Database._commit = hang
"""


def test_what_needs_no_database_does_not_wait_for_a_group(tmp_path: Path) -> None:
    """While the commit of a group hangs, a client that asks for something else is answered."""
    flag, waited = tmp_path / "hang", list[float]()

    def ping() -> None:
        started = time.monotonic()
        assert server.post(request("ping"))[1]["result"] == {}
        waited.append(time.monotonic() - started)

    with service(tmp_path, HANGS.format(flag=str(flag))) as server:
        flag.touch()
        creates = writes(4)
        answers = answers_to(server, *creates, meanwhile=ping)
        assert [told(answer)["version"] for answer in answers] == [1] * 4
        assert waited[0] < 3


def test_the_health_of_a_service_does_not_wait_for_a_group(tmp_path: Path) -> None:
    """/health that arrives in the same moment as a group, whose commit hangs, is answered before it."""
    flag = tmp_path / "hang"
    with service(tmp_path, HANGS.format(flag=str(flag))) as server, ExitStack() as ends:
        watcher = ends.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
        watcher.sendall(HEALTH)
        read_body(watcher)
        flag.touch()
        waited: list[float] = []

        def watch() -> None:
            started = time.monotonic()
            assert read_body(watcher) == {"status": "ok"}
            waited.append(time.monotonic() - started)

        answers = answers_to(server, *writes(4), before=lambda: watcher.sendall(HEALTH), meanwhile=watch)
        assert [told(answer)["version"] for answer in answers] == [1] * 4
        assert waited[0] < 3


FEW = "import config\nconfig.SLOW_ANSWERS = 1\nconfig.QUEUED_REQUESTS = 1\n"


def test_clients_that_go_while_their_requests_wait_do_no_harm(tmp_path: Path) -> None:
    """A service that has no place for a request goes on when the client is gone before it can be told so."""
    with service(tmp_path, FEW) as server:
        with ExitStack() as ends:
            clients = [
                ends.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
                for _ in range(12)
            ]
            handoff = called("handoff_task", task_id="t", from_agent="a", to_agent="b", reason="r")
            usual = thread_count(server)
            with turn_taken(tmp_path):
                server.process.send_signal(signal.SIGSTOP)
                os.waitpid(server.process.pid, os.WUNTRACED)
                clients[0].sendall(posted(called("create_task", task_id="n", title="T", goal="G")))
                for client in clients[1:]:
                    client.sendall(posted(handoff))
                server.process.send_signal(signal.SIGCONT)
                wait_until(lambda: thread_count(server) > usual, "the group waits for its turn")
                for client in clients[1:]:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.close()
                wait_until(lambda: server.request("GET", "/health")[0] == 200, "others are served")
            assert read_body(clients[0]) is not None
        wait_until(lambda: server.post(called("get_task", task_id="t"))[0] == 200, "there is room again")
        assert server.terminate() == 0
        assert server.stderr().count("\n") == 1


FAILS_ONCE = """
import os, sqlite3, database
commit = database.Database._commit

def fail_once(self, deadline, is_recorded):
    if os.path.exists({flag!r}):
        os.unlink({flag!r})
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error
    commit(self, deadline, is_recorded)

database.Database._commit = fail_once
"""


def test_a_group_whose_commit_fails_is_answered_one_by_one(tmp_path: Path) -> None:
    """Nothing is said of changes that were not committed: each is made again, alone, and answered then."""
    flag = tmp_path / "fail"
    with service(tmp_path, FAILS_ONCE.format(flag=str(flag))) as server:
        before = commits(tmp_path)
        flag.touch()
        creates = writes(8)
        assert [told(answer)["version"] for answer in answers_to(server, *creates)] == [1] * 8
        assert not flag.exists()
        assert commits(tmp_path) == before + 8
        _, found = server.post(called("list_tasks"))
        assert told(found)["total"] == 9


def write_until_killed(port: int, name: str, acknowledged: list[str]) -> None:
    """Create tasks, one after the other, on one connection; note those that were acknowledged."""
    with suppress(OSError, HTTPException), socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        for number in count():
            task_id = f"{name}-{number}"
            client.sendall(posted(called("create_task", task_id=task_id, title="T", goal="G")))
            if told(read_body(client))["task_id"] == task_id:
                acknowledged.append(task_id)


def _is_longer(some: list[str], number: int) -> bool:
    return len(some) > number


def test_a_service_that_is_killed_among_many_writers_loses_nothing(tmp_path: Path) -> None:
    """With kill -9 while 16 clients write, again and again, all that any of them was told of is there."""
    acknowledged: list[str] = []
    for life in range(5):
        with HttpServer(tmp_path) as server:
            enough = len(acknowledged) + 100 + 7 * life
            writers = [
                threading.Thread(target=write_until_killed, args=(server.port, f"{life}-{n}", acknowledged))
                for n in range(16)
            ]
            for writer in writers:
                writer.start()
            wait_until(partial(_is_longer, acknowledged, enough), "they write")
            server.process.kill()
            for writer in writers:
                writer.join()
    with closing(sqlite3.connect(tmp_path / "tasks.db")) as database:
        stored = {task_id for (task_id,) in database.execute("SELECT task_id FROM tasks")}
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert set(acknowledged) <= stored
    assert len(acknowledged) == len(set(acknowledged)) > 500


# --- What is answered alone -----------------------------------------------------------------------------

ALONE: list[JsonObject] = [
    called("handoff_task", task_id="t", from_agent="a", to_agent="b", reason="r"),
    called("mark_exhausted", task_id="t", agent="a", reason="r"),
    called("claim_task", agent="a"),
    called("attach_artifact", task_id="t", name="n", content="c"),
    called("list_tasks"),
    called("save_checkpoint", task_id="r", agent="a"),
    called("get_task", task_id="r", view="resume"),
    called("get_task", task_id="large"),
    called("update_task", task_id="large", title="New"),
    called("get_task", task_id="t", artifact=1),
    called("create_task", title="T", goal="x" * GROUPED_BYTES),
    request("resources/list"),
    request("resources/read", {"uri": "task://t"}),
    request("prompts/list"),
    request("completion/complete", {"ref": {"type": "ref/prompt", "name": "continue"}}),
]
TOGETHER: list[JsonObject] = [
    called("create_task", title="T", goal="G"),
    called("get_task", task_id="t"),
    called("get_task", task_id="t", view="resume"),
    called("save_checkpoint", task_id="t", agent="a"),
    called("update_task", task_id="t", title="New"),
    request("ping"),
    request("tools/list"),
]


def test_what_takes_long_or_tells_others_is_answered_alone(store: Store) -> None:
    """Git, files, commands, waiting, long lists, much text: a group hands each of these back undone."""
    store.create_task(new_task("r").model_copy(update={"repo_path": "/"}))
    store.create_task(new_task("large").model_copy(update={"goal": "x" * GROUPED_BYTES}))
    dispatcher = Dispatcher(lambda patience: TaskMethods(Workplace(store)))
    peer = Peer(lambda message: None, None)
    peer.revision = BY_DATE["2025-06-18"]
    dispatcher.prepare()
    before = store.last_position()
    alone = dispatcher.handle_together([Received(json.dumps(message).encode(), peer) for message in ALONE])
    assert alone == [None] * len(ALONE)
    assert store.last_position() == before
    replies = dispatcher.handle_together([Received(json.dumps(one).encode(), peer) for one in TOGETHER])
    assert all(reply is not None and b'"result"' in reply.body for reply in replies)
    assert store.last_position() == before + 3
