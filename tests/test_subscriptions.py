"""Change notifications: one process listens, another one changes the task, and the first hears of it.

To show that something is *not* told, no test waits for silence: it makes a change that must be told after
it, or asks for an answer on the same connection, and looks at the order.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import (
    META,
    HttpServer,
    Listener,
    Process,
    SseClient,
    StdioClient,
    enveloped,
    request,
    sse,
    stdio,
    wait_until,
)

from config import STREAM_QUEUE_BYTES, WATCHED_URIS
from protocol import Peer
from store import Store
from subscriptions import Subscriptions

JsonObject = dict[str, Any]
Client = StdioClient | SseClient | Listener
Connection = StdioClient | SseClient
SECOND = 1.0
NUMBERS = itertools.count()
SUBSCRIBING = ["2025-03-26", "2025-06-18", "2025-11-25"]

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc to look into")


# --- Listeners, and those who change tasks ----------------------------------------------------------------


def updated(uri: str, listen_id: int | str | None = None) -> JsonObject:
    mark = {} if listen_id is None else {"_meta": {META + "subscriptionId": listen_id}}
    return {"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {**mark, "uri": uri}}


def listed(listen_id: int | str) -> JsonObject:
    params = {"_meta": {META + "subscriptionId": listen_id}}
    return {"jsonrpc": "2.0", "method": "notifications/resources/list_changed", "params": params}


def listen(client: Connection, notifications: Any, listen_id: int | str = "L") -> JsonObject:
    """Start a listen on a connection and return what was acknowledged."""
    client.send(request("subscriptions/listen", enveloped({"notifications": notifications}), listen_id))
    return acknowledged(client, listen_id)


def acknowledged(client: Client, listen_id: int | str) -> JsonObject:
    frame = client.receive()
    assert frame["method"] == "notifications/subscriptions/acknowledged", frame
    told = frame["params"]["_meta"][META + "subscriptionId"]
    assert (told, type(told)) == (listen_id, type(listen_id))
    honoured: JsonObject = frame["params"]["notifications"]
    return honoured


def watching(*task_ids: str) -> JsonObject:
    return {"resourceSubscriptions": [f"task://{task_id}" for task_id in task_ids]}


def cancel(client: Connection, listen_id: Any) -> None:
    params = {"requestId": listen_id}
    client.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})


def assert_nothing_waits(client: Connection) -> None:
    """Ask for an answer: whatever was sent before stands before it."""
    client.send(request("server/discover", enveloped(), "sentinel"))
    assert client.receive().get("id") == "sentinel"


def call(server: HttpServer, tool: str, **arguments: Any) -> None:
    """Call a tool at /mcp that must succeed."""
    _, answer = server.post(request("tools/call", {"name": tool, "arguments": arguments}))
    assert answer["result"]["isError"] is False, answer


class Other(NamedTuple):
    """Another process on the same database."""

    process: StdioClient | HttpServer

    def call(self, tool: str, **arguments: Any) -> None:
        if isinstance(self.process, HttpServer):
            call(self.process, tool, **arguments)
        else:
            self.process.call(tool, **arguments)

    def create(self, *task_ids: str) -> None:
        for task_id in task_ids:
            self.call("create_task", task_id=task_id, title=task_id, goal="Be watched")

    def change(self, *task_ids: str) -> None:
        for task_id in task_ids:
            title = f"{task_id} {time.monotonic_ns()}"
            self.call("update_task", task_id=task_id, title=title)


def thread_count(server: Process) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/task"))


def descriptor_count(server: Process) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("subscriptions")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[HttpServer]:
    """Run the service that listeners over HTTP are connected to."""
    with HttpServer(folder) as service:
        yield service


@pytest.fixture(scope="module")
def others(folder: Path) -> Iterator[dict[str, Other]]:
    with stdio(folder) as piped, HttpServer(folder) as served:
        yield {"stdio": Other(piped), "http": Other(served)}


@pytest.fixture(params=["stdio", "http"])
def other(request: pytest.FixtureRequest, others: dict[str, Other]) -> Other:
    """Another process that changes tasks, over each transport."""
    found: Other = others[request.param]
    return found


@pytest.fixture
def somebody(others: dict[str, Other]) -> Other:
    return others["stdio"]


@pytest.fixture
def task(somebody: Other) -> str:
    """Make a task of the test's own."""
    task_id = f"task-{next(NUMBERS)}"
    somebody.create(task_id)
    return task_id


@pytest.fixture(params=["stdio", "sse"])
def client(request: pytest.FixtureRequest, folder: Path, service: HttpServer) -> Iterator[Connection]:
    """Return a connection that has shaken hands, and may listen in both eras."""
    if request.param == "stdio":
        with stdio(folder) as piped:
            yield piped
    else:
        with sse(service) as streamed:
            yield streamed


# --- Hearing ----------------------------------------------------------------------------------------------

LISTENERS = [*(f"{how} {date}" for how in ("stdio", "sse") for date in SUBSCRIBING), "stdio", "sse", "mcp"]
ONE_OF_EACH = ["stdio 2025-11-25", "sse 2025-03-26", "stdio", "sse", "mcp"]


def listener(kind: str, folder: Path, service: HttpServer, uri: str, stack: ExitStack) -> tuple[Client, Any]:
    """Return a client that watches `uri`, in the way of its kind, and the id that its frames carry."""
    transport, _, date = kind.partition(" ")
    if transport == "mcp":
        listening = stack.enter_context(closing(Listener(service, {"resourceSubscriptions": [uri]}, 7)))
        assert acknowledged(listening, 7) == {"resourceSubscriptions": [uri]}
        return listening, 7
    client: Connection
    if transport == "stdio":
        client = stack.enter_context(StdioClient(folder))
    else:
        client = stack.enter_context(closing(SseClient(service)))
    if not date:
        assert listen(client, {"resourceSubscriptions": [uri]}) == {"resourceSubscriptions": [uri]}
        return client, "L"
    capabilities = client.initialize(date)["capabilities"]
    assert capabilities["resources"] == {"subscribe": True, "listChanged": False}
    assert client.request("resources/subscribe", {"uri": uri})["result"] == {}
    return client, None


@pytest.mark.parametrize("kind", LISTENERS)
def test_a_handoff_by_another_process_is_heard_within_a_second(
    kind: str, folder: Path, service: HttpServer, other: Other, task: str
) -> None:
    """Whoever watches a task hears that another process handed it off, whatever the two speak."""
    other.call("save_checkpoint", task_id=task, agent="ann", remaining_steps=["one"])
    with ExitStack() as stack:
        client, listen_id = listener(kind, folder, service, f"task://{task}", stack)
        other.call("handoff_task", task_id=task, from_agent="ann", to_agent="bob", reason="quota")
        told = time.monotonic()
        assert client.receive() == updated(f"task://{task}", listen_id)
        assert time.monotonic() - told < SECOND


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_changes_of_the_own_process_are_heard_too(
    kind: str, folder: Path, service: HttpServer, task: str
) -> None:
    """A change through the listener's own process, even its own connection, is a change like any other."""
    with ExitStack() as stack:
        client, listen_id = listener(kind, folder, service, f"task://{task}", stack)
        frame = updated(f"task://{task}", listen_id)
        if isinstance(client, Listener):
            call(service, "update_task", task_id=task, title="Changed here")
            assert client.receive() == frame
            return
        arguments = {"task_id": task, "title": "Changed here"}
        params = {"name": "update_task", "arguments": arguments}
        client.send(request("tools/call", enveloped(params), "own"))
        received = [client.receive(), client.receive()]
        assert frame in received
        assert [message["result"]["isError"] for message in received if message.get("id") == "own"] == [False]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_task_can_be_watched_before_it_exists(
    kind: str, folder: Path, service: HttpServer, somebody: Other
) -> None:
    """Its creation is the first that is heard of it."""
    task_id = f"later-{kind.replace(' ', '-')}"
    with ExitStack() as stack:
        client, listen_id = listener(kind, folder, service, f"task://{task_id}", stack)
        somebody.create(task_id)
        assert client.receive() == updated(f"task://{task_id}", listen_id)


def test_every_kind_of_change_is_heard(client: Connection, somebody: Other, task: str) -> None:
    """Each write to a task is one notification; a repeated call, which changes nothing, is none."""
    listen(client, watching(task))
    frame = updated(f"task://{task}", "L")
    writes: list[tuple[str, JsonObject]] = [
        ("save_checkpoint", {"agent": "ann"}),
        ("attach_artifact", {"name": "x", "content": "x"}),
        ("handoff_task", {"from_agent": "ann", "to_agent": "any", "reason": "r"}),
        ("save_checkpoint", {"agent": "bob"}),
        ("mark_exhausted", {"agent": "bob", "reason": "r"}),
        ("update_task", {"status": "done"}),
    ]
    for tool, arguments in writes:
        somebody.call(tool, task_id=task, **arguments)
        assert client.receive() == frame
    somebody.call("update_task", task_id=task, status="done")
    somebody.create(f"{task}-2")
    listen(client, watching(f"{task}-2"), "M")
    somebody.change(f"{task}-2")
    assert client.receive() == updated(f"task://{task}-2", "M")


@pytest.mark.parametrize("form", ["task://{}/artifacts/1", "TASK://{}", "task://{}/", "task://%74{}"])
def test_a_uri_is_told_as_it_was_given(client: Connection, somebody: Other, task: str, form: str) -> None:
    """What a client watches is what it is told, also where another URI would mean the same task."""
    uri = form.format(task.removeprefix("t") if "%74" in form else task)
    assert listen(client, {"resourceSubscriptions": [uri]}) == {"resourceSubscriptions": [uri]}
    somebody.change(task)
    assert client.receive() == updated(uri, "L")


# --- What is told, and under which id ---------------------------------------------------------------------


def test_a_listen_is_known_by_its_id(client: Connection, service: HttpServer) -> None:
    """The acknowledgement comes first and carries the id in its own JSON type, on all transports."""
    listen_ids: list[int | str] = [0, 1, -1, 2**53, "", "0", "listen:0", "\u00e9\U0001f600"]
    for listen_id in listen_ids:
        assert listen(client, {}, listen_id) == {}
        with closing(Listener(service, {}, listen_id)) as streamed:
            assert acknowledged(streamed, listen_id) == {}


def test_only_what_can_be_told_is_acknowledged(client: Connection, service: HttpServer) -> None:
    """Tools and prompts never change: what is wished for beyond tasks is left out, not refused."""
    pairs: list[tuple[JsonObject, JsonObject]] = [
        ({}, {}),
        ({"resourcesListChanged": True}, {"resourcesListChanged": True}),
        ({"resourcesListChanged": False, "resourceSubscriptions": []}, {}),
        ({"toolsListChanged": True, "promptsListChanged": True}, {}),
        ({"toolsListChanged": True, "resourcesListChanged": True}, {"resourcesListChanged": True}),
        ({"tasksListChanged": True, "x": {"y": 1}}, {}),
        (watching("a", "b") | {"promptsListChanged": False}, watching("a", "b")),
        (watching("b", "a", "b"), watching("b", "a")),
    ]
    for wanted, honoured in pairs:
        assert listen(client, wanted) == honoured
        with closing(Listener(service, wanted)) as streamed:
            assert acknowledged(streamed, 1) == honoured


def test_only_what_was_asked_for_is_told(client: Connection, somebody: Other, task: str) -> None:
    """No frame about another task, and none about the list unless it was asked for."""
    somebody.create(f"{task}-other")
    listen(client, watching(task))
    somebody.change(f"{task}-other")
    somebody.create(f"{task}-new")
    somebody.change(task)
    assert client.receive() == updated(f"task://{task}", "L")
    assert_nothing_waits(client)


def test_the_list_changes_with_new_tasks_only(client: Connection, somebody: Other, task: str) -> None:
    """A change of the list is told once for a new task, and not for a change of one that is there."""
    listen(client, {"resourcesListChanged": True}, "list")
    listen(client, watching(task), "witness")
    somebody.change(task)
    assert client.receive() == updated(f"task://{task}", "witness")
    assert_nothing_waits(client)
    somebody.create(f"{task}-new")
    assert client.receive() == listed("list")
    somebody.change(task)
    assert client.receive() == updated(f"task://{task}", "witness")
    assert_nothing_waits(client)


def test_one_connection_has_many_listens(client: Connection, somebody: Other, task: str) -> None:
    """Each is told what it asked for under its own id; legacy subscriptions go on beside them."""
    somebody.create(f"{task}-2")
    assert client.request("resources/subscribe", {"uri": f"task://{task}"})["result"] == {}
    listen(client, watching(task), 1)
    listen(client, watching(task, f"{task}-2"), "1")
    listen(client, watching(f"{task}-2") | {"resourcesListChanged": True}, 0)
    somebody.change(task)
    frames = [client.receive() for _ in range(3)]
    expected = [updated(f"task://{task}", listen_id) for listen_id in (None, 1, "1")]
    assert sorted(frames, key=repr) == sorted(expected, key=repr)
    somebody.change(f"{task}-2")
    frames = [client.receive() for _ in range(2)]
    assert frames == [updated(f"task://{task}-2", listen_id) for listen_id in ("1", 0)]
    assert_nothing_waits(client)


def test_a_listen_does_not_hold_up_its_connection(client: Connection, task: str) -> None:
    """While it is open every other request is answered, in both eras."""
    listen(client, watching(task) | {"resourcesListChanged": True})
    assert client.request("ping")["result"] == {}
    assert client.request("tools/list", enveloped())["result"]["tools"]
    assert client.call("get_task", task_id=task)["task_id"] == task
    assert listen(client, {}, "M") == {}


# --- Ending -----------------------------------------------------------------------------------------------


def test_unsubscribing_ends_it(client: Connection, somebody: Other, task: str) -> None:
    """What was unsubscribed is not told any more, what else is watched is; twice is no error."""
    uri, other_uri = f"task://{task}", f"task://{task}-2"
    somebody.create(f"{task}-2")
    for watched in (uri, other_uri, uri):
        assert client.request("resources/subscribe", {"uri": watched})["result"] == {}
    for _ in range(2):
        assert client.request("resources/unsubscribe", {"uri": uri})["result"] == {}
    somebody.change(task, f"{task}-2")
    assert client.receive() == updated(other_uri)
    assert client.request("resources/unsubscribe", {"uri": other_uri})["result"] == {}
    assert client.request("resources/unsubscribe", {"uri": "task://never"})["result"] == {}
    listen(client, watching(f"{task}-2"))
    somebody.change(task, f"{task}-2")
    assert client.receive() == updated(other_uri, "L")
    assert_nothing_waits(client)


def test_a_cancel_ends_the_listen_of_its_id(client: Connection, somebody: Other, task: str) -> None:
    """It ends without a word, and no other: 1 is not "1", and what is no id ends nothing."""
    listen(client, watching(task), 1)
    listen(client, watching(task), "1")
    assert client.request("resources/subscribe", {"uri": f"task://{task}"})["result"] == {}
    for nobody in (None, True, 1.0, [1], {"id": 1}, "2", 2):
        cancel(client, nobody)
    somebody.change(task)
    frames = [client.receive() for _ in range(3)]
    expected = [updated(f"task://{task}", listen_id) for listen_id in (None, 1, "1")]
    assert sorted(frames, key=repr) == sorted(expected, key=repr)
    cancel(client, 1)
    somebody.change(task)
    frames = [client.receive() for _ in range(2)]
    assert sorted(frames, key=repr) == sorted([expected[0], expected[2]], key=repr)
    assert_nothing_waits(client)


def test_a_cancel_reaches_ones_own_connection_only(service: HttpServer, somebody: Other, task: str) -> None:
    """Two clients may use the same id; neither can end the other's listen."""
    with sse(service) as first, sse(service) as second:
        listen(first, watching(task))
        listen(second, watching(task))
        cancel(first, "L")
        assert_nothing_waits(first)
        somebody.change(task)
        assert second.receive() == updated(f"task://{task}", "L")
        assert_nothing_waits(first)


@needs_proc
@pytest.mark.parametrize("kind", ["unsubscribe", "cancel"])
def test_a_pipe_without_listeners_has_no_thread(folder: Path, task: str, kind: str) -> None:
    """The thread that watches the database lives as long as somebody listens, and comes back."""
    with stdio(folder) as client:
        usual = thread_count(client)
        for _ in range(2):
            if kind == "unsubscribe":
                client.request("resources/subscribe", {"uri": f"task://{task}"})
            else:
                listen(client, watching(task))
            assert thread_count(client) == usual + 1
            if kind == "unsubscribe":
                client.request("resources/unsubscribe", {"uri": f"task://{task}"})
            else:
                cancel(client, "L")
            wait_until(lambda: thread_count(client) == usual, "nobody watches the database")


@needs_proc
def test_who_goes_is_forgotten(folder: Path, task: str) -> None:
    """A closed stream ends what was listened to on it: thread and descriptors are given back."""
    with HttpServer(folder) as service, sse(service) as first:
        first.call("get_task", task_id=task)
        before = thread_count(service), descriptor_count(service)
        with ExitStack() as stack:
            for _ in range(5):
                streamed = stack.enter_context(closing(Listener(service, watching(task))))
                acknowledged(streamed, 1)
                second = stack.enter_context(sse(service))
                listen(second, watching(task))
                second.request("resources/subscribe", {"uri": f"task://{task}"})
            assert thread_count(service) == before[0] + 1
        wait_until(lambda: thread_count(service) == before[0], "nobody watches the database")
        wait_until(lambda: descriptor_count(service) <= before[1], "all connections are closed")


@needs_proc
def test_nothing_is_polled_while_nobody_listens(folder: Path, task: str) -> None:
    """A process without listeners does not wake up once; with one it looks some times a second."""
    with stdio(folder) as client:
        wait_until(lambda: wakes(client, 0.25) == 0, "nothing happens")
        listen(client, watching(task))
        assert all(wakes(client, 0.25) for _ in range(3))
        cancel(client, "L")
        wait_until(lambda: wakes(client, 0.25) == 0, "nothing happens any more")


def wakes(client: StdioClient, seconds: float) -> int:
    """Return how often the process went from waiting to running while its client was silent."""
    before = switches(client)
    assert client.is_silent(seconds)
    return switches(client) - before


def switches(server: Process) -> int:
    folder = Path(f"/proc/{server.process.pid}/task")
    lines = [line for task in folder.iterdir() for line in (task / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


class CountingStore(Store):
    """A store that counts how often it is asked for changes."""

    polls = 0

    def change_marker(self) -> object:
        self.polls += 1
        return super().change_marker()


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "subscriptions"]


def test_the_store_is_asked_only_for_listeners(tmp_path: Path) -> None:
    """One thread asks for all of them, and it ends with the last one."""
    store = CountingStore(str(tmp_path / "tasks.db"), str(tmp_path))
    hub, peers = Subscriptions(store), [Peer(lambda message: None, "a") for _ in range(3)]
    assert (store.polls, watchers()) == (0, [])
    hub.subscribe(peers[0], "task://t", "t")
    hub.listen(peers[1], 1, {"task://t": "t"}, False)
    hub.listen(peers[2], 1, {}, True)
    [watcher] = watchers()
    wait_until(lambda: store.polls > 1, "the store is asked")
    hub.unsubscribe(peers[0], "task://t")
    hub.cancel(peers[1], 1)
    assert watchers() == [watcher]
    hub.forget(peers[2])
    watcher.join()
    polls = store.polls
    for peer in peers:
        hub.forget(peer)
        hub.unsubscribe(peer, "task://t")
        hub.cancel(peer, 1)
    assert (store.polls, watchers()) == (polls, [])
    store.close()


@pytest.mark.parametrize("listen_id", [0, ""])
@pytest.mark.parametrize("transport", ["stdio", "sse", "mcp"])
def test_a_stop_ends_every_listen_with_its_response(
    folder: Path, transport: str, listen_id: int | str
) -> None:
    """SIGTERM: each listen gets the response it was waiting for, a legacy subscription nothing; exit 0."""
    with ExitStack() as stack:
        server: StdioClient | HttpServer
        client: Client
        if transport == "stdio":
            server = client = stack.enter_context(stdio(folder))
        else:
            server = stack.enter_context(HttpServer(folder))
        if transport == "mcp":
            client = stack.enter_context(closing(Listener(server, {}, listen_id)))  # type: ignore[arg-type]
            acknowledged(client, listen_id)
        elif transport == "sse":
            client = stack.enter_context(sse(server))  # type: ignore[arg-type]
        expected = [listen_id]
        if not isinstance(client, Listener):
            client.request("resources/subscribe", {"uri": "task://t"})
            for another in (listen_id, "another"):
                listen(client, {}, another)
            expected.append("another")
        assert server.terminate(5) == 0
        check_ends(client, expected)
        assert server.stderr().count("\n") == (0 if transport == "stdio" else 1)


def check_ends(client: Client, expected: list[int | str]) -> None:
    for listen_id in expected:
        answer = client.receive()
        assert (answer["id"], type(answer["id"])) == (listen_id, type(listen_id))
        assert answer["result"]["resultType"] == "complete"
        assert answer["result"]["_meta"][META + "subscriptionId"] == listen_id
    if isinstance(client, StdioClient):
        assert client.process.stdout is not None
        assert client.process.stdout.read() == b""
    else:
        assert client.has_ended()


def test_a_closed_pipe_ends_a_listening_process(folder: Path, somebody: Other, task: str) -> None:
    """A client that goes while it listens leaves no process behind, and no complaint."""
    with stdio(folder) as client:
        listen(client, watching(task))
        somebody.change(task)
        assert client.receive() == updated(f"task://{task}", "L")
        assert client.close() == 0
        assert client.stderr() == ""


# --- Many listeners, and bad ones -------------------------------------------------------------------------


@needs_proc
def test_two_hundred_listeners_cost_no_thread_each(folder: Path, somebody: Other, task: str) -> None:
    """They share one thread, and one change of another process reaches all of them within two seconds."""
    with HttpServer(folder) as service, ExitStack() as stack:
        listeners = [stack.enter_context(closing(Listener(service, watching(task))))]
        acknowledged(listeners[0], 1)
        one = thread_count(service)
        for _ in range(199):
            listeners.append(stack.enter_context(closing(Listener(service, watching(task)))))
            acknowledged(listeners[-1], 1)
        assert thread_count(service) == one
        somebody.change(task)
        changed = time.monotonic()
        for streamed in listeners:
            assert streamed.receive() == updated(f"task://{task}", 1)
        assert time.monotonic() - changed < 2 * SECOND
        assert thread_count(service) == one


def spellings(task_id: str, count: int) -> list[str]:
    """Return so many URIs of one task, long ones: each letter is percent-encoded, or not."""
    assert 2 ** len(task_id) >= count
    return ["task://" + "".join(map(spelling, task_id, bits(number))) for number in range(count)]


def spelling(letter: str, is_plain: int) -> str:
    return letter if is_plain else f"%{ord(letter):02X}"


def bits(number: int) -> Iterator[int]:
    while True:
        yield number & 1
        number >>= 1


LONG = "w" * 120


@needs_proc
def test_a_listener_that_stops_reading_is_dropped(folder: Path, somebody: Other) -> None:
    """Its queue fills up and it is cut off; those who read hear every change, before and after."""
    somebody.create(LONG)
    many = {"resourceSubscriptions": spellings(LONG, WATCHED_URIS)}
    with HttpServer(folder) as service, closing(Listener(service, watching(LONG))) as reader:
        acknowledged(reader, 1)
        before = thread_count(service), descriptor_count(service)
        with closing(Listener(service, many, receive_buffer=4096)) as stuck:
            changes = 0
            while changes == 0 or descriptor_count(service) > before[1]:
                somebody.change(LONG)
                assert reader.receive() == updated(f"task://{LONG}", 1)
                changes += 1
                assert changes < 100, "a listener that reads nothing is kept"
            assert thread_count(service) == before[0]
            told = changes * sum(len(uri) for uri in many["resourceSubscriptions"])
            assert told > STREAM_QUEUE_BYTES
            received = 0
            while chunk := stuck.socket.recv(1 << 20):
                received += len(chunk)
            assert received < told
        somebody.change(LONG)
        assert reader.receive() == updated(f"task://{LONG}", 1)
        assert service.post(request("ping"))[0] == 200


def test_a_pipe_that_is_not_read_can_be_ended(folder: Path, somebody: Other) -> None:
    """A process whose client took its eyes off the pipe ends all the same when it is told to."""
    somebody.create(LONG)
    with stdio(folder) as client:
        uris = spellings(LONG, 100)
        assert listen(client, {"resourceSubscriptions": uris}) == {"resourceSubscriptions": uris}
        somebody.change(LONG)
        assert [client.receive() for _ in uris] == [updated(uri, "L") for uri in uris]
        pipe = client.process.stdout
        assert pipe is not None
        wait_until(lambda: somebody.change(LONG) or is_full(pipe.fileno()), "the pipe is full")
        client.process.send_signal(signal.SIGTERM)
        assert client.process.wait(5) == 0


def is_full(pipe: int) -> bool:
    """Return whether there is no place for another frame: Linux fills 16 pages, each with whole frames."""
    waiting = int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4), "little")
    return waiting > 16 * 3500


# --- Limits -----------------------------------------------------------------------------------------------


def test_a_listen_has_its_limit(client: Connection, service: HttpServer) -> None:
    """At n URIs it is acknowledged whole, at n+1 it is refused, and nothing is listened to."""
    full = watching(*(f"t{number}" for number in range(WATCHED_URIS)))
    over = watching(*(f"t{number}" for number in range(WATCHED_URIS + 1)))
    assert listen(client, full) == full
    refused = client.request("subscriptions/listen", enveloped({"notifications": over}))
    assert refused["error"]["code"] == -32602
    with closing(Listener(service, full)) as streamed:
        assert acknowledged(streamed, 1) == full


def test_a_connection_has_its_limit(folder: Path, somebody: Other, task: str) -> None:
    """It may subscribe to n URIs, not to n+1; whoever unsubscribes one may have another."""
    with stdio(folder) as client:
        for number in range(WATCHED_URIS):
            client.send(request("resources/subscribe", {"uri": f"task://t{number}"}, number))
        for number in range(WATCHED_URIS):
            assert client.receive() == {"jsonrpc": "2.0", "id": number, "result": {}}
        mine = {"uri": f"task://{task}"}
        assert client.request("resources/subscribe", mine)["error"]["code"] == -32602
        assert client.request("resources/unsubscribe", {"uri": "task://t0"})["result"] == {}
        assert client.request("resources/subscribe", mine)["result"] == {}
        somebody.change(task)
        assert client.receive() == updated(f"task://{task}")
