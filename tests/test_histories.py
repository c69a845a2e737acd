"""Concurrent clients of every kind, each call recorded: what is stored must be what the calls can explain."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from histories import (
    MARKED,
    TOOLS,
    Board,
    Call,
    Connection,
    Dropped,
    Event,
    Outcome,
    Recorder,
    Stored,
    Worker,
    content_of,
    read_stored,
    violations,
)
from support import PATIENCE, HttpServer, JsonObject, McpClient, StdioClient, sse, stdio

NO_TURNS = "import locks\nlocks.WriterTurns._open = lambda self: None\n"  # as where there is no flock


class HastyClient(McpClient):
    """A client at /mcp that now and then hangs up before it has the answer."""

    def __init__(self, server: HttpServer, chance: random.Random) -> None:
        super().__init__(server)
        self._chance = chance

    def request(self, method: str, params: JsonObject | None = None) -> JsonObject:
        if self._chance.random() > 0.1:
            return super().request(method, params)
        body, headers = self.message(method, params)
        connection = HTTPConnection("127.0.0.1", self._server.port, timeout=PATIENCE)
        connection.request("POST", "/mcp", body, headers)
        connection.close()
        raise Dropped


def make_history(folder: Path, calls_each: int, seed: int, prelude: str = "") -> Recorder:
    """Have six clients of four servers make so many calls each, and check what became of it.

    Two of them leave early: what they had at work may then be taken over.
    """
    recorder, board, deaths = Recorder(), Board(), dict[str, float]()
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(stdio(folder, prelude=prelude)) for _ in range(3))
        service = stack.enter_context(HttpServer(folder, prelude=prelude))
        stays = {
            Connection("stdio-1", first, first): calls_each // 3,
            Connection("stdio-2", second, second): calls_each // 2,
            Connection("stdio-3", third, third): calls_each,
            Connection("sse", stack.enter_context(sse(service)), service): calls_each,
            Connection("mcp", McpClient(service, "2026-07-28"), service): calls_each,
            Connection("hasty", HastyClient(service, random.Random(seed)), service): calls_each,
        }

        def work(connection: Connection) -> None:
            worker = Worker(connection.name, board, recorder, random.Random(f"{seed} {connection.name}"))
            calls = itertools.count()
            worker.work(connection, lambda: next(calls) == stays[connection])
            if isinstance(connection.client, StdioClient):
                deaths[connection.name] = time.monotonic()
                assert connection.client.close() == 0

        with ThreadPoolExecutor(len(stays)) as pool:
            list(pool.map(work, stays))
        assert service.terminate() == 0
    assert violations(recorder.calls, read_stored(folder), deaths) == []
    return recorder


@pytest.mark.parametrize("prelude", ["", NO_TURNS], ids=["in turn", "without turns"])
def test_a_short_history_is_explained_by_its_calls(tmp_path: Path, prelude: str) -> None:
    """Six clients write and claim 550 times at once, some hang up: all is there once, in order, one owner."""
    recorder = make_history(tmp_path, 120, 1, prelude)
    outcomes = {(call.tool, call.outcome) for call in recorder.calls}
    assert {tool for tool, outcome in outcomes if outcome is Outcome.OK} == MARKED.keys()
    assert {outcome for _, outcome in outcomes} == set(Outcome)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("prelude", ["", NO_TURNS], ids=["in turn", "without turns"])
def test_a_long_history_is_explained_by_its_calls(tmp_path: Path, prelude: str, seed: int) -> None:
    """Six clients write and claim some 15,000 times at once: all is there once, in order, with one owner."""
    recorder = make_history(tmp_path, 3300, seed, prelude)
    assert {(call.tool, call.outcome) for call in recorder.calls} >= {
        (tool, outcome) for tool in MARKED for outcome in (Outcome.OK, Outcome.UNKNOWN)
    }


# --- The check itself -----------------------------------------------------------------------------------


CAME = {  # by the status before: what a claim of that task answers
    "open": {"how": "open"},
    "handoff_ready": {"how": "handoff", "from": "Ann"},
    "in_progress": {"how": "gone", "from": "Ben"},
}


def error(code: str) -> JsonObject:
    return {"error": {"code": code, "message": "m", "hint": "h"}}


class History:
    """One task's life as it should be: Ann hands it to Ben, who dies; Cid takes over and finishes it.

    A checkpoint of Ann's that came too late was refused, and an update was never answered.
    """

    def __init__(self) -> None:
        self.task: JsonObject = {"task_id": "t", "title": "t", "artifacts": [], "decisions": []}
        self.calls: list[Call] = []
        self.events: list[Event] = []
        self.decisions: dict[tuple[str, int], list[str]] = {}
        self.artifacts = {("t", 1): content_of("n1").encode()}
        self.deaths = {"ben's": 5.5}
        self.happen("created", "ann's", "open", None)
        self.happen("claimed", "ann's", "in_progress", "Ann", agent="Ann")
        self.happen("checkpoint", "ann's", "in_progress", "Ann", agent="Ann", decisions=["c1"])
        self.happen("artifact", "ann's", "in_progress", "Ann", agent="Ann", name="n1")
        handed = {"from_agent": "Ann", "to_agent": "any", "reason": "h1", "decisions": ["h1"]}
        self.happen("handoff", "ann's", "handoff_ready", "any", **handed)
        self.happen("claimed", "ben's", "in_progress", "Ben", agent="Ben")
        self.call("checkpoint", "ann's", Outcome.FAILED, error("not_owner"), agent="Ann", decisions=["c2"])
        self.call("updated", "ben's", Outcome.UNKNOWN, {}, title="u1")
        self.happen("takeover", "cid's", "in_progress", "Cid", agent="Cid")
        done = {"title": "u2", "status": "done", "expected_version": 7}
        self.happen("updated", "ann's", "done", "Cid", **done)

    def call(
        self, what: str, connection: str, outcome: Outcome, answer: JsonObject, /, **arguments: Any
    ) -> None:
        """Record a call; the n-th one takes the second half of second n."""
        began = len(self.events) + 0.5
        arguments = {"task_id": "t"} | arguments
        self.calls.append(Call(connection, TOOLS[what], arguments, began, began + 0.4, outcome, answer))

    def happen(self, what: str, connection: str, status: str, owner: str | None, /, **arguments: Any) -> None:
        """Let a call succeed, and store what came of it."""
        before = dict(self.task)
        self.task["version"] = len(self.events) + 1
        title = arguments.get("title", self.task["title"])
        self.task |= {"status": status, "current_owner": owner, "title": title}
        checkpoint = None
        if "decisions" in arguments:
            checkpoint = len(self.decisions) + 1
            self.task["decisions"] = self.task["decisions"] + arguments["decisions"]
            self.decisions["t", checkpoint] = self.task["decisions"]
        if what == "artifact":
            self.task["artifacts"] = [{"number": 1, "name": arguments["name"]}]
        answer = dict(self.task)
        if TOOLS[what] == "claim_task":
            answer = {"task": answer, "claim": CAME[before["status"]]}
        self.call(what, connection, Outcome.OK, answer, **arguments)
        agent = arguments.get("agent") or arguments.get("from_agent")
        mark = self.calls[-1].trace[1]
        version = self.task["version"]
        self.events.append(Event(version, "t", version, "", what, agent, checkpoint, mark))

    def violations(self) -> list[str]:
        stored = Stored({"t": self.task}, self.events, self.decisions, self.artifacts)
        return violations(self.calls, stored, self.deaths)

    def change_event(self, number: int, **changes: Any) -> None:
        self.events[number - 1] = self.events[number - 1]._replace(**changes)

    def change_call(self, number: int, **changes: Any) -> None:
        self.calls[number - 1] = self.calls[number - 1]._replace(**changes)


def test_a_good_history_has_no_violation() -> None:
    """A life in which all is as it should be is not objected to."""
    assert History().violations() == []


def test_an_unanswered_call_may_have_been_carried_out() -> None:
    """A call whose answer was lost may be there once; sent again, it is there once all the same."""
    history = History()
    history.change_call(10, outcome=Outcome.UNKNOWN, answer={}, ended=math.inf)
    assert history.violations() == []
    history.calls.append(History().calls[-1])
    assert history.violations() == []


def lose_the_last_write(history: History) -> None:
    history.events.pop()
    history.task |= {"version": 7, "status": "in_progress", "title": "t"}


def lose_an_event(history: History) -> None:
    del history.events[2]


def double_a_write(history: History) -> None:
    history.events.append(history.events[-1]._replace(position=9, version=9))
    history.task["version"] = 9


def double_an_unanswered_write(history: History) -> None:
    double_a_write(history)
    history.change_call(10, outcome=Outcome.UNKNOWN, answer={})


def leave_a_gap(history: History) -> None:
    history.change_event(8, version=9)
    history.task["version"] = 9


def give_two_writes_one_version(history: History) -> None:
    history.change_event(4, version=3)


def rob_a_living_owner(history: History) -> None:
    del history.deaths["ben's"]


def let_an_owner_die_too_late(history: History) -> None:
    history.deaths["ben's"] = history.calls[8].ended + 0.1


def claim_from_an_owner_at_work(history: History) -> None:
    history.change_event(7, what="claimed")


def save_for_another(history: History) -> None:
    history.change_event(3, agent="Ben")


def carry_out_what_was_refused(history: History) -> None:
    history.calls[2] = history.calls[2]._replace(outcome=Outcome.FAILED, answer=error("not_owner"))


def fail_without_need(history: History) -> None:
    history.change_call(7, answer=error("busy"))


def forget_a_task_for_a_while(history: History) -> None:
    history.change_call(7, answer=error("not_found"))


def make_up_an_event(history: History) -> None:
    history.change_event(4, mark="n2")


def let_a_later_call_come_first(history: History) -> None:
    history.change_call(3, began=9.0, ended=9.1)


def answer_with_another_version(history: History) -> None:
    history.change_call(4, answer=history.calls[3].answer | {"version": 3})


def answer_with_another_owner(history: History) -> None:
    history.change_call(4, answer=history.calls[3].answer | {"current_owner": "Ben"})


def say_otherwise_how_a_task_came(history: History) -> None:
    history.change_call(6, answer=history.calls[5].answer | {"claim": {"how": "open"}})


def overlook_an_expected_version(history: History) -> None:
    history.change_call(10, arguments=history.calls[9].arguments | {"expected_version": 6})


def hand_off_without_the_checkpoint(history: History) -> None:
    history.change_event(5, checkpoint=None)


def lose_a_decision(history: History) -> None:
    history.decisions["t", 2] = ["h1"]


def number_checkpoints_from_two(history: History) -> None:
    history.decisions = {("t", number + 1): found for (_, number), found in history.decisions.items()}


def cut_an_artifact_short(history: History) -> None:
    history.artifacts["t", 1] = b"n1"


def attach_an_artifact_twice(history: History) -> None:
    history.task["artifacts"] *= 2


def store_another_owner(history: History) -> None:
    history.task["current_owner"] = "Ben"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lose_the_last_write, "is lost"),
        (lose_an_event, "its history has"),
        (double_a_write, "carried out 2 times"),
        (double_an_unanswered_write, "carried out 2 times"),
        (leave_a_gap, "its history has"),
        (give_two_writes_one_version, "its history has"),
        (rob_a_living_owner, "takeover by Cid was not permitted"),
        (let_an_owner_die_too_late, "takeover by Cid was not permitted"),
        (claim_from_an_owner_at_work, "claimed by Cid was not permitted"),
        (save_for_another, "checkpoint by Ben was not permitted"),
        (carry_out_what_was_refused, "although its client was told otherwise"),
        (fail_without_need, "failed: {'code': 'busy'"),
        (forget_a_task_for_a_while, "failed: {'code': 'not_found'"),
        (make_up_an_event, "was called for by nobody"),
        (let_a_later_call_come_first, "and comes after it"),
        (answer_with_another_version, "was told"),
        (answer_with_another_owner, "was told current_owner Ben"),
        (say_otherwise_how_a_task_came, "was told {'how': 'open'}"),
        (overlook_an_expected_version, "expected version 6 and changed 7"),
        (hand_off_without_the_checkpoint, "the checkpoint of"),
        (lose_a_decision, "the checkpoint of"),
        (number_checkpoints_from_two, "has the checkpoints [2, 3]"),
        (cut_an_artifact_short, "the bytes of"),
        (attach_an_artifact_twice, "has the artifacts [1, 1]"),
        (store_another_owner, "current_owner of t is Ben, not Cid"),
    ],
)
def test_a_spoilt_history_is_found_out(spoil: Callable[[History], None], words: str) -> None:
    """Each thing that must not happen to a history is named by the check."""
    history = History()
    spoil(history)
    assert [sentence for sentence in history.violations() if words in sentence]
