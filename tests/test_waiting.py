"""claim_task with wait_seconds: woken by other processes, in nobody's way, and ended by whoever asked."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from support import (
    HttpServer,
    JsonObject,
    McpClient,
    Process,
    SseClient,
    StdioClient,
    ToolCaller,
    at_work,
    create,
    owner_state,
    sse,
    stdio,
    thread_count,
    tool_answer,
    turn_taken,
    wait_until,
)

from protocol import Peer
from store import Store
from tools import Wait
from waiting import WaitingCalls

PROMPTLY = 1.0  # seconds from a handoff to the answer of a call that waits for it
NOTHING = {"task": None}
HANDED = {"how": "handoff", "from": "Alice"}


CLAIM = "claim"  # the id of the call that waits
CANCEL = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": CLAIM}}


def claim_message(**arguments: Any) -> JsonObject:
    call = {"name": "claim_task", "arguments": {"agent": "Bob", "wait_seconds": 50} | arguments}
    return {"jsonrpc": "2.0", "id": CLAIM, "method": "tools/call", "params": call}


class Waiter(Protocol):
    """A client with a call of claim_task under way in `server`."""

    server: Process

    def start(self, **arguments: Any) -> None:
        """Send the call; returns once the server has begun to wait."""

    def answer(self, seconds: float) -> tuple[JsonObject, bool]:
        """Return what the tool answers within so many seconds, and whether that is a refusal."""

    def drop(self) -> None:
        """Close the connection without a word."""


class StdioWaiter:
    def __init__(self, client: StdioClient) -> None:
        self.server: Process = client
        self.client = client

    def start(self, **arguments: Any) -> None:
        self.client.send(claim_message(**arguments))
        assert self.client.result("ping") == {}

    def answer(self, seconds: float) -> tuple[JsonObject, bool]:
        response = self.client.receive(seconds)
        assert response["id"] == CLAIM
        return tool_answer(response)

    def cancel(self) -> None:
        self.client.send(CANCEL)
        assert self.client.result("ping") == {}

    def drop(self) -> None:
        self.client.close()


class SseWaiter:
    def __init__(self, server: HttpServer, client: SseClient) -> None:
        self.server: Process = server
        self.client = client

    def start(self, **arguments: Any) -> None:
        assert self.client.post(json.dumps(claim_message(**arguments)))[0] == 202

    def answer(self, seconds: float) -> tuple[JsonObject, bool]:
        self.client.socket.settimeout(seconds)
        response = json.loads(self.client.event()[1])
        assert response["id"] == CLAIM
        return tool_answer(response)

    def cancel(self) -> None:
        assert self.client.post(json.dumps(CANCEL))[0] == 202

    def drop(self) -> None:
        self.client.close()


class McpWaiter:
    def __init__(self, server: HttpServer, revision: str) -> None:
        self.server: Process = server
        self._client = McpClient(server, revision)
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port)

    def start(self, **arguments: Any) -> None:
        quiet = thread_count(self.server)
        self.send(**arguments)
        wait_until(lambda: thread_count(self.server) > quiet, "somebody looks for changes")

    def send(self, **arguments: Any) -> None:
        """Send the call, and wait for nothing."""
        message = claim_message(**arguments)
        body, headers = self._client.message(message["method"], message["params"])
        self._connection.request("POST", "/mcp", body, headers)

    def answer(self, seconds: float) -> tuple[JsonObject, bool]:
        assert self._connection.sock is not None
        self._connection.sock.settimeout(seconds)
        response = self._connection.getresponse()
        assert response.status == 200
        return tool_answer(json.loads(response.read()))

    def drop(self) -> None:
        self._connection.close()


KINDS = ["stdio", "sse", "2025-06-18", "2026-07-28"]


@contextmanager
def waiting(folder: Path, kind: str) -> Iterator[Waiter]:
    """Yield a client of this kind that can wait, in a process of its own."""
    with ExitStack() as stack:
        if kind == "stdio":
            yield StdioWaiter(stack.enter_context(stdio(folder)))
            return
        server = stack.enter_context(HttpServer(folder))
        assert server.request("GET", "/health")[0] == 200  # all its threads are there
        if kind == "sse":
            yield SseWaiter(server, stack.enter_context(sse(server)))
            return
        waiter = McpWaiter(server, kind)
        stack.callback(waiter.drop)
        yield waiter


@pytest.fixture
def alice(tmp_path: Path) -> Iterator[StdioClient]:
    """Return another process, which hands tasks over."""
    with stdio(tmp_path) as connected:
        yield connected


def hand(client: ToolCaller, task_id: str, to_agent: str = "Bob") -> None:
    client.call("handoff_task", task_id=task_id, from_agent="Alice", to_agent=to_agent, reason="quota")


def calms(server: Process, quiet: int) -> None:
    """Wait until nobody waits any more, and the thread that looked for changes has ended."""
    wait_until(lambda: thread_count(server) <= quiet, "nobody waits any more")


# --- Being woken ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("waker", ["stdio", "http"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_handoff_wakes_who_waits(tmp_path: Path, alice: StdioClient, kind: str, waker: str) -> None:
    """Over every wire a waiting claim is answered within a second of a handoff made in another process."""
    with waiting(tmp_path, kind) as waiter, ExitStack() as stack:
        sender: ToolCaller = alice
        if waker == "http":
            sender = McpClient(stack.enter_context(HttpServer(tmp_path)))
        at_work(sender, "t", "Alice")
        waiter.start()
        hand(sender, "t")
        answer, is_error = waiter.answer(PROMPTLY)
        assert (answer["task"]["task_id"], answer["claim"], is_error) == ("t", HANDED, False)
        task = alice.call("get_task", task_id="t")
        lives = "live" if kind in ("stdio", "sse") else "unknown"
        assert (task["status"], task["current_owner"], task["owner_state"]) == ("in_progress", "Bob", lives)


def test_a_client_of_the_same_service_wakes_who_waits(tmp_path: Path) -> None:
    """A waiting claim hears of what its own process does too."""
    with HttpServer(tmp_path) as server, sse(server) as client:
        waiter = SseWaiter(server, client)
        waiter.start()
        create(McpClient(server), "t")
        assert waiter.answer(PROMPTLY)[0]["claim"] == {"how": "open"}


@pytest.mark.parametrize("change", ["created", "exhausted", "ready", "reopened"])
def test_whatever_makes_a_task_free_wakes_who_waits(tmp_path: Path, alice: StdioClient, change: str) -> None:
    """A task that is made, given up, reopened, or has nothing to wait for any more, ends the waiting."""
    at_work(alice, "needed", "Alice")
    create(alice, "t", depends_on=["needed"])
    with waiting(tmp_path, "stdio") as waiter:
        waiter.start()
        expected: tuple[str, JsonObject]
        match change:
            case "created":
                expected = create(alice, "new"), {"how": "open"}
            case "exhausted":
                alice.call("mark_exhausted", task_id="needed", agent="Alice", reason="quota")
                expected = "needed", {"how": "exhausted", "from": "Alice"}
            case "ready":
                alice.call("update_task", task_id="needed", status="done")
                expected = "t", {"how": "open"}
            case _:
                alice.call("update_task", task_id="needed", status="open")
                expected = "needed", {"how": "open"}
        answer, _ = waiter.answer(PROMPTLY)
        assert (answer["task"]["task_id"], answer["claim"]) == expected


def test_a_death_wakes_who_waits(tmp_path: Path, alice: StdioClient) -> None:
    """That an owner died, which changes nothing in the database, is noticed within two seconds."""
    with stdio(tmp_path) as dying, waiting(tmp_path, "stdio") as waiter:
        at_work(dying, "t", "Dave")
        assert isinstance(waiter, StdioWaiter)
        waiter.start()
        assert waiter.client.is_silent(0.5)  # several looks long
        dying.kill()
        assert waiter.answer(2)[0]["claim"] == {"how": "gone", "from": "Dave"}
        assert owner_state(alice, "t") == "live"


@pytest.mark.parametrize("wanted", [{"tag": "docs"}, {"repo_path": "/here"}])
def test_a_filter_holds_while_waiting(tmp_path: Path, alice: StdioClient, wanted: JsonObject) -> None:
    """What the filter leaves out does not end the waiting; what it lets through does."""
    with waiting(tmp_path, "stdio") as waiter:
        waiter.start(**wanted)
        create(alice, "other", tags=["other"], repo_path="/elsewhere", priority=0)
        create(alice, "t", tags=["docs"], repo_path="/here")
        assert waiter.answer(PROMPTLY)[0]["task"]["task_id"] == "t"
        assert alice.call("get_task", task_id="other")["status"] == "open"


def test_what_is_there_is_taken_at_once(tmp_path: Path, alice: StdioClient) -> None:
    """With something to take a claim does not wait, however long it may."""
    create(alice, "t")
    with waiting(tmp_path, "stdio") as waiter:
        assert isinstance(waiter, StdioWaiter)
        waiter.client.send(claim_message())
        assert waiter.answer(PROMPTLY)[0]["task"]["task_id"] == "t"


def test_one_task_ends_one_waiting(tmp_path: Path, alice: StdioClient) -> None:
    """Of several that wait exactly one gets the task; the others go on waiting and get the next ones."""
    with ExitStack() as stack:
        waiters = [stack.enter_context(waiting(tmp_path, kind)) for kind in ("stdio", "sse", "stdio")]
        for number, waiter in enumerate(waiters):
            waiter.start(agent=f"agent {number}", wait_seconds=3)
        for number in range(2):
            create(alice, f"t{number}")
        answers = [waiter.answer(5)[0] for waiter in waiters]
        taken = [answer["task"] and answer["task"]["task_id"] for answer in answers]
        assert sorted(map(str, taken)) == ["None", "t0", "t1"]


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_no_notice_is_lost_by_waiting(tmp_path: Path, alice: StdioClient, is_cancelled: bool) -> None:
    """What an agent should be told when it begins to wait, it is told with the answer, or else later."""
    with stdio(tmp_path) as dying:
        at_work(dying, "lost", "Bob")
        dying.kill()
    alice.call("claim_task", agent="Carol", task_id="lost")
    with stdio(tmp_path) as client:
        waiter = StdioWaiter(client)
        waiter.start()
        if is_cancelled:
            waiter.cancel()
            answer = client.call("claim_task", agent="Bob")
        else:
            create(alice, "t")
            answer, _ = waiter.answer(PROMPTLY)
        assert "lost (taken over by Carol)" in answer["notice"]


# --- A task that somebody else has ----------------------------------------------------------------------


def test_waiting_for_a_task_of_somebody_else(tmp_path: Path, alice: StdioClient) -> None:
    """With task_id a claim waits until that task can be had, whatever else there is to take."""
    at_work(alice, "t", "Alice")
    with waiting(tmp_path, "stdio") as waiter:
        waiter.start(task_id="t")
        create(alice, "other")
        hand(alice, "t")
        answer, is_error = waiter.answer(PROMPTLY)
        assert (answer["task"]["task_id"], answer["claim"], is_error) == ("t", HANDED, False)
        assert alice.call("get_task", task_id="other")["status"] == "open"


def test_waiting_in_vain_for_a_task_of_somebody_else(tmp_path: Path, alice: StdioClient) -> None:
    """If that task is not handed over in time, also not to another agent, the claim ends with not_owner."""
    at_work(alice, "t", "Alice")
    with waiting(tmp_path, "stdio") as waiter:
        waiter.start(task_id="t", wait_seconds=1)
        hand(alice, "t", "Carol")
        answer, is_error = waiter.answer(3)
        assert (answer["error"]["code"], is_error) == ("not_owner", True)


def test_waiting_for_a_task_that_is_done_meanwhile(tmp_path: Path, alice: StdioClient) -> None:
    """A task that is finished while a claim waits for it ends the claim at once, with invalid_state."""
    at_work(alice, "t", "Alice")
    with waiting(tmp_path, "stdio") as waiter:
        waiter.start(task_id="t")
        alice.call("update_task", task_id="t", status="done")
        answer, is_error = waiter.answer(PROMPTLY)
        assert (answer["error"]["code"], is_error) == ("invalid_state", True)


# --- In nobody's way ------------------------------------------------------------------------------------


def test_stdio_goes_on_while_a_claim_waits(tmp_path: Path) -> None:
    """On the pipe on which a claim waits, pings and tool calls are answered; its answer comes in between."""
    with stdio(tmp_path) as client:
        waiter = StdioWaiter(client)
        waiter.start()
        for _ in range(3):
            assert client.result("ping") == {}
            assert client.call("list_tasks") == {"tasks": [], "total": 0}
        at_work(client, "t", "Alice")
        client.send({"jsonrpc": "2.0", "id": 77, "method": "tools/call", "params": HANDOFF})
        found = {response["id"]: response for response in (client.receive(), client.receive())}
        assert tool_answer(found[77])[0]["status"] == "handoff_ready"
        assert tool_answer(found[CLAIM])[0]["claim"] == HANDED


HANDOFF = {
    "name": "handoff_task",
    "arguments": {"task_id": "t", "from_agent": "Alice", "to_agent": "Bob", "reason": "quota"},
}


def test_a_stream_goes_on_while_a_claim_waits(tmp_path: Path) -> None:
    """On the stream on which a claim waits, pings and tool calls are answered."""
    with HttpServer(tmp_path) as server, sse(server) as client:
        waiter = SseWaiter(server, client)
        waiter.start(wait_seconds=2)
        for _ in range(3):
            assert client.request("ping")["result"] == {}
            assert client.call("list_tasks") == {"tasks": [], "total": 0}
        assert waiter.answer(4) == (NOTHING, False)


def test_waiting_claims_cost_no_threads(tmp_path: Path, alice: StdioClient) -> None:
    """A hundred claims that wait on one service cost one thread in all, and each gets its task."""
    with HttpServer(tmp_path) as server, sse(server) as client, ExitStack() as stack:
        quiet = thread_count(server)
        for number in range(50):
            message = claim_message(agent=f"agent {number}") | {"id": number}
            assert client.post(json.dumps(message))[0] == 202
        callers = [McpWaiter(server, "2026-07-28") for _ in range(50)]
        for number, caller in enumerate(callers, 50):
            stack.callback(caller.drop)
            caller.send(agent=f"agent {number}")
        for number in range(100):
            create(alice, f"t{number}")
            if number == 49:  # half of them wait on
                wait_until(lambda: thread_count(server) == quiet + 1, "one thread serves all who wait")
        answers = [tool_answer(json.loads(client.event()[1])) for _ in range(50)]
        answers += [caller.answer(10) for caller in callers]
        assert len({answer["task"]["task_id"] for answer, _ in answers}) == 100
        calms(server, quiet)


def test_in_a_batch_a_claim_does_not_wait(tmp_path: Path, alice: StdioClient) -> None:
    """A batch is answered as a whole and at once; a claim inside it takes what there is."""
    with stdio(tmp_path, "2025-03-26") as client:
        batch = [claim_message(), {"jsonrpc": "2.0", "id": 2, "method": "ping"}]
        for expected in (None, "t"):
            client.send(batch)
            answers = {response["id"]: response for response in client.receive(PROMPTLY)}
            task = tool_answer(answers[CLAIM])[0]["task"]
            assert (task and task["task_id"], answers[2]["result"]) == (expected, {})
            create(alice, "t")


# --- Time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_time_runs_out(tmp_path: Path, kind: str) -> None:
    """After wait_seconds, and not before, the answer is that there is nothing."""
    with waiting(tmp_path, kind) as waiter:
        began = time.monotonic()
        waiter.start(wait_seconds=1)
        assert waiter.answer(3) == (NOTHING, False)
        assert time.monotonic() - began >= 1


@pytest.mark.parametrize("seconds", [-0.1, -1, 50.1, 51, 1e9, "soon"])
def test_wait_seconds_has_bounds(alice: StdioClient, seconds: object) -> None:
    """wait_seconds below 0, over 50, or no number, is refused, and the bounds are told."""
    refusal = alice.refusal("claim_task", agent="Bob", wait_seconds=seconds)
    assert refusal["code"] == "invalid_arguments"
    assert "wait_seconds" in refusal["message"]


@pytest.mark.parametrize("seconds", [0, 0.0, "0", None])
def test_no_seconds_mean_no_waiting(alice: StdioClient, seconds: object) -> None:
    """wait_seconds of 0, or null, answers at once."""
    assert alice.call("claim_task", agent="Bob", wait_seconds=seconds) == NOTHING


def test_fifty_seconds_are_allowed(tmp_path: Path) -> None:
    """The longest wait is accepted, and parts of a second count."""
    with stdio(tmp_path) as client:
        waiter = StdioWaiter(client)
        waiter.start(wait_seconds=50)
        waiter.cancel()
        waiter.start(wait_seconds=0.2)
        assert waiter.answer(PROMPTLY) == (NOTHING, False)


# --- Being ended ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stdio", "sse"])
def test_cancelling_frees_a_waiting_claim(tmp_path: Path, alice: StdioClient, kind: str) -> None:
    """A cancelled claim is never answered, and takes nothing of what comes later."""
    with waiting(tmp_path, kind) as waiter:
        assert isinstance(waiter, StdioWaiter | SseWaiter)
        quiet = thread_count(waiter.server)
        waiter.start()
        waiter.cancel()
        create(alice, "t")
        calms(waiter.server, quiet)
        answer = waiter.client.call("list_tasks")  # would find the claim's answer before its own
        assert [task["status"] for task in answer["tasks"]] == ["open"]


def test_cancelling_ends_only_the_call_it_names(tmp_path: Path, alice: StdioClient) -> None:
    """Another call that waits on the same connection goes on waiting, and what is unknown is ignored."""
    with stdio(tmp_path) as client:
        client.send(claim_message(agent="Carol") | {"id": "other"})
        waiter = StdioWaiter(client)
        waiter.start()
        client.send(CANCEL | {"params": {"requestId": "unknown"}})
        waiter.cancel()
        create(alice, "t")
        response = client.receive(PROMPTLY)
        assert (response["id"], tool_answer(response)[0]["task"]["task_id"]) == ("other", "t")


@pytest.mark.parametrize("kind", ["sse", "2025-06-18", "2026-07-28"])
def test_a_dropped_connection_cancels(tmp_path: Path, alice: StdioClient, kind: str) -> None:
    """What a claim waited for is not taken once its client has closed the connection."""
    with waiting(tmp_path, kind) as waiter:
        quiet = thread_count(waiter.server)
        waiter.start()
        waiter.drop()
        calms(waiter.server, quiet)
        create(alice, "t")
        assert alice.call("get_task", task_id="t")["status"] == "open"
        assert alice.call("claim_task", agent="Carol")["task"]["task_id"] == "t"


def test_the_end_of_input_ends_a_waiting_claim(tmp_path: Path, alice: StdioClient) -> None:
    """When its client goes, a process that waits exits with 0 within two seconds and takes nothing more."""
    with waiting(tmp_path, "stdio") as waiter:
        assert isinstance(waiter, StdioWaiter)
        waiter.start()
        began = time.monotonic()
        assert waiter.client.close() == 0
        assert time.monotonic() - began < 2
        create(alice, "t")
        assert alice.call("get_task", task_id="t")["status"] == "open"
        assert waiter.client.stderr() == ""


LINGERING = """
import pathlib, time, methods
def observe(*_):
    pathlib.Path("leaving").touch()
    while not pathlib.Path("leave").exists():
        time.sleep(0.005)
methods.observe = observe
"""


def test_a_leaving_process_takes_nothing_more(tmp_path: Path, alice: StdioClient) -> None:
    """Once its client has gone, a process that still records the end of its session takes no task."""
    with stdio(tmp_path, prelude=LINGERING) as client:
        at_work(client, "mine", "Bob")
        StdioWaiter(client).start()
        assert client.process.stdin is not None
        client.process.stdin.close()
        wait_until((tmp_path / "leaving").exists, "the process records the end of its session")
        create(alice, "t")
        calms(client, 1)
        (tmp_path / "leave").touch()
        assert client.process.wait(5) == 0
    assert alice.call("get_task", task_id="t")["status"] == "open"


@pytest.mark.parametrize("kind", ["sse", "2025-06-18", "2026-07-28"])
def test_a_connection_dropped_before_the_waiting_begins(
    tmp_path: Path, alice: StdioClient, kind: str
) -> None:
    """A claim whose client goes while its first attempt is under way does not begin to wait."""
    at_work(alice, "t", "Alice")
    with waiting(tmp_path, kind) as waiter, ThreadPoolExecutor(1) as pool:
        assert isinstance(waiter, SseWaiter | McpWaiter)
        server = waiter.server
        assert isinstance(server, HttpServer)
        quiet = thread_count(server)
        with turn_taken(tmp_path):
            if isinstance(waiter, SseWaiter):
                pool.submit(waiter.start, task_id="t")
            else:
                waiter.send(task_id="t")
            wait_until(lambda: thread_count(server) > quiet, "the claim waits for its turn")
            waiter.drop()
            if isinstance(waiter, SseWaiter):
                wait_until(lambda: waiter.client.post("{}")[0] == 404, "the stream is forgotten")
            assert server.request("GET", "/health")[0] == 200
        calms(server, quiet)
        hand(alice, "t")
        assert alice.call("claim_task", agent="Bob")["claim"] == HANDED


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_won_for_nobody_is_given_back(tmp_path: Path, alice: StdioClient, kind: str) -> None:
    """A claim that wins while its client cancels or goes gives the task back as it was, and records that."""
    with stdio(tmp_path) as dying, waiting(tmp_path, kind) as waiter:
        at_work(dying, "t", "Dave")
        before = alice.call("get_task", task_id="t")
        quiet = thread_count(waiter.server)
        waiter.start()
        with turn_taken(tmp_path):
            dying.kill()
            wait_until(lambda: thread_count(waiter.server) > quiet + 1, "the claim waits for its turn")
            if isinstance(waiter, StdioWaiter):
                waiter.cancel()
            else:
                waiter.drop()
                assert isinstance(waiter.server, HttpServer)
                assert waiter.server.request("GET", "/health")[0] == 200
        wait_until(lambda: newest_event(alice, "t") == "returned", "the task is given back")
        after = alice.call("get_task", task_id="t")
        changed = {name for name in after if after[name] != before[name]}
        assert changed == {"version", "updated_at", "owner_state"}
        assert after["owner_state"] == "gone"
        assert alice.call("claim_task", agent="Carol")["claim"] == {"how": "gone", "from": "Dave"}


def newest_event(client: ToolCaller, task_id: str) -> str:
    what: str = client.call("get_task", task_id=task_id, view="history")["events"][0]["what"]
    return what


@pytest.mark.parametrize("kind", KINDS)
def test_stopping_answers_who_waits(tmp_path: Path, alice: StdioClient, kind: str) -> None:
    """SIGTERM ends a waiting claim with the answer that there is nothing, and the process with 0."""
    with waiting(tmp_path, kind) as waiter:
        waiter.start()
        waiter.server.process.send_signal(signal.SIGTERM)
        assert waiter.answer(2) == (NOTHING, False)
        waiter.drop()
        assert waiter.server.process.wait(3) == 0
        create(alice, "t")
        assert alice.call("get_task", task_id="t")["status"] == "open"


# --- The very moment ------------------------------------------------------------------------------------


class Moment:
    """A Wait whose attempt succeeds when it is told to."""

    def __init__(self) -> None:
        self.is_trying = threading.Event()
        self.may_succeed = threading.Event()
        self.is_undone = threading.Event()
        self.answers: list[JsonObject] = []
        self.wait = Wait(self._attempt, self.is_undone.set, 50, lambda: (NOTHING, False))

    def _attempt(self) -> JsonObject | None:
        self.is_trying.set()
        assert self.may_succeed.wait(20)
        return {"task": "taken"}

    def finish(self, answer: JsonObject, is_error: bool) -> None:
        self.answers.append(answer)


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[WaitingCalls]:
    store = Store(str(tmp_path / "tasks.db"), str(tmp_path / "artifacts"))
    calls = WaitingCalls(store)
    yield calls
    calls.close()
    wait_until(lambda: "waiting" not in {thread.name for thread in threading.enumerate()}, "the thread ends")
    store.close()


PEER = Peer(lambda _: None, "a")


@pytest.mark.parametrize(
    "end",
    [lambda calls: calls.cancel(PEER, 1), lambda calls: calls.forget(PEER), lambda calls: calls.close()],
    ids=["cancel", "forget", "close"],
)
def test_what_was_won_too_late_is_undone(calls: WaitingCalls, end: Callable[[WaitingCalls], None]) -> None:
    """A claim that wins in the very moment in which it is ended gives back what it took."""
    moment = Moment()
    calls.add(PEER, 1, moment.wait, moment.finish)
    assert moment.is_trying.wait(20)
    end(calls)
    moment.may_succeed.set()
    assert moment.is_undone.wait(20)
    assert moment.answers in ([], [NOTHING])


def test_what_was_won_in_time_is_kept(calls: WaitingCalls) -> None:
    """A claim that wins is answered once, undoes nothing, and cannot be ended afterwards."""
    moment = Moment()
    moment.may_succeed.set()
    calls.add(PEER, 1, moment.wait, moment.finish)
    wait_until(lambda: moment.answers, "the answer")
    calls.cancel(PEER, 1)
    calls.close()
    assert moment.answers == [{"task": "taken"}]
    assert not moment.is_undone.is_set()
