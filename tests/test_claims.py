"""claim_task: who gets which task, and that of any number of agents exactly one wins it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from support import (
    HttpServer,
    JsonObject,
    McpClient,
    StdioClient,
    ToolCaller,
    at_work,
    create,
    owner_state,
    sse,
    stdio,
    wait_until,
)

NOTHING = {"task": None}
T = TypeVar("T")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[StdioClient]:
    """Return a client over STDIO, whose agents live as long as the test."""
    with stdio(tmp_path) as connected:
        yield connected


def handed(client: ToolCaller, task_id: str, to_agent: str, **details: Any) -> str:
    """Make a task that Alice hands over."""
    create(client, task_id, **details)
    client.call("handoff_task", task_id=task_id, from_agent="Alice", to_agent=to_agent, reason="quota")
    return task_id


def exhausted(client: ToolCaller, task_id: str, **details: Any) -> str:
    """Make a task that Alice gives up."""
    create(client, task_id, **details)
    client.call("mark_exhausted", task_id=task_id, agent="Alice", reason="quota")
    return task_id


def left_behind(folder: Path, *task_ids: str, agent: str = "Dave", **details: Any) -> None:
    """Make tasks whose owner dies over them."""
    with stdio(folder) as dying:
        for task_id in task_ids:
            at_work(dying, task_id, agent, **details)
        dying.kill()


def claimed(answer: JsonObject) -> tuple[str, JsonObject]:
    """Return which task a claim took, and how it came."""
    return answer["task"]["task_id"], answer["claim"]


def claim_all(client: ToolCaller, agent: str, **wanted: Any) -> list[tuple[str, JsonObject]]:
    """Claim until nothing is left."""
    taken = []
    while (answer := client.call("claim_task", agent=agent, **wanted))["task"] is not None:
        taken.append(claimed(answer))
    return taken


def events(client: ToolCaller, task_id: str) -> list[JsonObject]:
    """Return the task's history, newest first."""
    found: list[JsonObject] = client.call("get_task", task_id=task_id, view="history")["events"]
    return found


def winners(client: ToolCaller, task_id: str) -> list[str]:
    """Return who claimed the task, as its history tells."""
    return [event["agent"] for event in events(client, task_id) if event["what"] == "claimed"]


# --- What there is to take ------------------------------------------------------------------------------


def test_tasks_come_in_order(client: StdioClient, tmp_path: Path) -> None:
    """By name, to any, exhausted, owner gone, open; in each the urgent first, then the oldest; then none."""
    # What is taken last is made first: neither age nor priority outweighs how a task comes.
    for name, priority in (("open-2", 2), ("open-3", 2), ("open-4", 3), ("open-1", 0)):
        create(client, name, priority=priority)
    for name, priority in (("gone-2", 2), ("gone-3", 2), ("gone-1", 1)):
        left_behind(tmp_path, name, agent=f"owner of {name}", priority=priority)
    for name, priority in (("tired-2", 4), ("tired-1", 2)):
        exhausted(client, name, priority=priority)
    for name, priority in (("any-2", 2), ("any-3", 2), ("any-1", 1)):
        handed(client, name, "any", priority=priority)
    for name, priority in (("named-2", 3), ("named-1", 2), ("named-3", 4)):
        handed(client, name, "BOB ", priority=priority)

    handoff, tired = {"how": "handoff", "from": "Alice"}, {"how": "exhausted", "from": "Alice"}
    assert claim_all(client, "Bob") == [
        *((f"named-{number}", handoff) for number in (1, 2, 3)),
        *((f"any-{number}", handoff) for number in (1, 2, 3)),
        *((f"tired-{number}", tired) for number in (1, 2)),
        *((f"gone-{number}", {"how": "gone", "from": f"owner of gone-{number}"}) for number in (1, 2, 3)),
        *((f"open-{number}", {"how": "open"}) for number in (1, 2, 3, 4)),
    ]
    assert client.call("claim_task", agent="Bob") == NOTHING


def test_what_is_not_free_is_not_offered(client: StdioClient) -> None:
    """A task of a live owner, and one that is handed to another, done, waiting or assigned, is not taken."""
    at_work(client, "at-work", "Carol")
    handed(client, "handed", "Carol")
    create(client, "done")
    client.call("update_task", task_id="done", status="done")
    create(client, "waits", depends_on=["at-work"])
    create(client, "assigned")
    client.call("update_task", task_id="assigned", current_owner="Carol")
    assert client.call("claim_task", agent="Bob") == NOTHING
    assert claim_all(client, "Carol") == [
        ("handed", {"how": "handoff", "from": "Alice"}),
        ("assigned", {"how": "open"}),
    ]


def test_nothing_at_all_is_no_error(client: StdioClient) -> None:
    """An empty database answers a claim with a null task, and without an error."""
    assert client.answer("claim_task", agent="Bob") == (NOTHING, False)


def test_a_claim_returns_the_brief(client: StdioClient) -> None:
    """The answer holds what the receiver needs to go on: the brief that get_task shows."""
    create(client, "t", remaining_steps=["first", "second"])
    report = {"completed_steps": ["first"], "resume_prompt": "Go on with the second."}
    client.call("handoff_task", task_id="t", from_agent="Alice", to_agent="Bob", reason="quota", **report)
    brief = client.call("claim_task", agent="Bob")["task"]
    assert brief["remaining_steps"] == ["second"]
    assert brief["resume_prompt"] == "Go on with the second."
    assert (brief["status"], brief["current_owner"]) == ("in_progress", "Bob")
    shown = client.call("get_task", task_id="t", view="resume")
    assert {name: shown[name] for name in brief if name in shown and "age" not in name} == {
        name: value for name, value in brief.items() if "age" not in name
    }


@pytest.mark.parametrize("how", ["handoff", "exhausted", "gone", "open", "mine"])
def test_a_claim_by_id_says_how_it_came(client: StdioClient, tmp_path: Path, how: str) -> None:
    """With task_id the same task comes the same way; `from` names whom it came from, where there was one."""
    create(client, "bait", priority=0)
    match how:
        case "handoff":
            handed(client, "t", "any")
        case "exhausted":
            exhausted(client, "t")
        case "gone":
            left_behind(tmp_path, "t", agent="Alice")
        case "open":
            create(client, "t")
        case _:
            at_work(client, "t", "bob")
    came = {"how": how, "from": "Alice"} if how in ("handoff", "exhausted", "gone") else {"how": how}
    assert claimed(client.call("claim_task", agent="Bob", task_id="t")) == ("t", came)


def test_claiming_ones_own_changes_nothing(client: StdioClient) -> None:
    """A task that is mine already stays as it is, in version, time and history, however I write my name."""
    at_work(client, "t", "Bob")
    before, history = client.call("get_task", task_id="t"), events(client, "t")
    assert claimed(client.call("claim_task", agent="  bOB", task_id="t")) == ("t", {"how": "mine"})
    assert client.call("get_task", task_id="t") == before
    assert events(client, "t") == history


# --- What cannot be had ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task_id", "code"),
    [("done", "invalid_state"), ("handed", "not_owner"), ("at-work", "not_owner"), ("none", "not_found")],
)
def test_a_task_that_cannot_be_had_is_refused(client: StdioClient, task_id: str, code: str) -> None:
    """Done is invalid_state, another's is not_owner, unknown is not_found; the refusal changes nothing."""
    create(client, "done")
    client.call("update_task", task_id="done", status="done")
    handed(client, "handed", "Carol")
    at_work(client, "at-work", "Carol")
    before = client.call("list_tasks")
    refusal = client.refusal("claim_task", agent="Bob", task_id=task_id)
    assert refusal["code"] == code
    assert task_id in refusal["message"]
    assert client.call("list_tasks") == before


def test_a_sender_does_not_get_a_named_handoff_back(client: StdioClient) -> None:
    """What was handed to another by name is the addressee's alone, also against the sender."""
    handed(client, "t", "Bob")
    assert client.call("claim_task", agent="Alice") == NOTHING
    assert client.refusal("claim_task", agent="Alice", task_id="t")["code"] == "not_owner"


def test_a_silent_owner_is_not_robbed(client: StdioClient, tmp_path: Path) -> None:
    """An owner with a connection is never gone, not even silent for longer than the idle time."""
    with stdio(tmp_path, MCP_TASK_IDLE_SECONDS="1") as other:
        create(other, "called")
        other.call("update_task", task_id="called", status="in_progress", current_owner="Carol")
        at_work(client, "t", "Alice")
        wait_until(lambda: owner_state(other, "called") == "gone", "an agent that only called is gone")
        assert other.refusal("claim_task", agent="Bob", task_id="t")["code"] == "not_owner"
        assert [task_id for task_id, _ in claim_all(other, "Bob")] == ["called"]
        assert owner_state(other, "t") == "live"


# --- Filters and dependencies ---------------------------------------------------------------------------


def test_a_repository_narrows_the_claim(client: StdioClient) -> None:
    """With repo_path only its tasks are taken, however urgent others are; a final slash does not matter."""
    handed(client, "elsewhere", "Bob", repo_path="/elsewhere", priority=0)
    handed(client, "nowhere", "Bob", priority=0)
    create(client, "here", repo_path="/here")
    assert claim_all(client, "Bob", repo_path="/here/") == [("here", {"how": "open"})]


def test_a_tag_narrows_the_claim(client: StdioClient, tmp_path: Path) -> None:
    """With tag only tasks that carry it are taken, in whatever case it is written."""
    handed(client, "other", "Bob", tags=["docs", "slow"], priority=0)
    left_behind(tmp_path, "gone", tags=["Parser", "docs"])
    create(client, "open", tags=["parser"])
    create(client, "both", tags=["parser"], repo_path="/here")
    assert claim_all(client, "Bob", tag="PARSER", repo_path="/here") == [("both", {"how": "open"})]
    assert [task_id for task_id, _ in claim_all(client, "Bob", tag="PARSER")] == ["gone", "open"]
    assert client.call("claim_task", agent="Bob", tag="unheard of") == NOTHING


def test_a_task_is_offered_once_all_it_needs_is_done(client: StdioClient) -> None:
    """An open task waits for every dependency, and waits again when one of them is reopened."""
    for needed in ("one", "two"):
        at_work(client, needed, "Alice")
    create(client, "t", depends_on=["one", "two"], priority=0)
    for needed in ("one", "two"):
        assert client.call("claim_task", agent="Bob") == NOTHING
        client.call("update_task", task_id=needed, status="done")
    client.call("update_task", task_id="one", status="in_progress", current_owner="Alice")
    assert client.call("claim_task", agent="Bob") == NOTHING
    client.call("update_task", task_id="one", status="done")
    assert claim_all(client, "Bob") == [("t", {"how": "open"})]


def test_only_open_tasks_wait_for_others(client: StdioClient) -> None:
    """A task that somebody has worked on is offered although what it depends on is not done."""
    at_work(client, "needed", "Alice")
    handed(client, "handed", "any", depends_on=["needed"])
    exhausted(client, "tired", depends_on=["needed"])
    assert [task_id for task_id, _ in claim_all(client, "Bob")] == ["handed", "tired"]


def test_dropped_dependencies_make_a_task_ready(client: StdioClient) -> None:
    """update_task may take the dependencies away, or give an open task new ones."""
    at_work(client, "needed", "Alice")
    create(client, "freed", depends_on=["needed"])
    create(client, "bound")
    client.call("update_task", task_id="freed", depends_on=[])
    client.call("update_task", task_id="bound", depends_on=["needed"])
    assert [task_id for task_id, _ in claim_all(client, "Bob")] == ["freed"]


# --- What a claim leaves --------------------------------------------------------------------------------


def test_a_claim_is_recorded(client: StdioClient) -> None:
    """A claim is one version and one event, which says who, how and from whom."""
    handed(client, "t", "any")
    before = client.call("get_task", task_id="t")
    client.call("claim_task", agent="Bob")
    after = client.call("get_task", task_id="t")
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"status", "current_owner", "version", "updated_at", "owner_state"}
    assert (after["status"], after["current_owner"]) == ("in_progress", "Bob")
    assert (after["version"], after["owner_state"]) == (before["version"] + 1, "live")
    newest, *older = events(client, "t")
    assert newest.pop("at") == after["updated_at"]
    assert newest == {"what": "claimed", "agent": "Bob", "how": "handoff", "from": "Alice"}
    assert [event["what"] for event in older] == ["handoff", "created"]


def test_a_takeover_is_recorded(client: StdioClient, tmp_path: Path) -> None:
    """A task taken from an owner that is gone says so in its history: `takeover`, by whom, from whom."""
    left_behind(tmp_path, "t")
    version = client.call("get_task", task_id="t")["version"]
    client.call("claim_task", agent="Bob", task_id="t")
    newest = events(client, "t")[0]
    assert (newest["what"], newest["agent"], newest["from"]) == ("takeover", "Bob", "Dave")
    assert client.call("get_task", task_id="t")["version"] == version + 1


# --- Races ----------------------------------------------------------------------------------------------


def all_at_once(*calls: Callable[[], T]) -> list[T]:
    """Make calls at the same moment, each in a thread of its own, and return what they return."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_of_many_claimants_exactly_one_wins_each_task(tmp_path: Path) -> None:
    """8 processes and 14 clients of every kind claim 200 tasks as fast as they can: each has one winner."""
    with ExitStack() as stack:
        claimants: list[ToolCaller] = [stack.enter_context(stdio(tmp_path)) for _ in range(5)]
        for _ in range(3):
            server = stack.enter_context(HttpServer(tmp_path))
            claimants += [
                stack.enter_context(sse(server)),
                McpClient(server),
                McpClient(server, "2026-07-28"),
            ]
        task_ids = [create(claimants[0], f"t{number}", priority=number % 5) for number in range(160)]
        task_ids += [handed(claimants[0], f"h{number}", "any") for number in range(20)]
        task_ids += [exhausted(claimants[0], f"e{number}") for number in range(20)]
        taken = all_at_once(
            *(partial(claim_all, claimant, f"agent {number}") for number, claimant in enumerate(claimants))
        )
        won = [(task_id, f"agent {number}") for number, some in enumerate(taken) for task_id, _ in some]
        assert sorted(task_id for task_id, _ in won) == sorted(task_ids)
        assert len({agent for _, agent in won}) > 1
        for task_id, agent in won:
            assert winners(claimants[0], task_id) == [agent]
            assert claimants[1].call("get_task", task_id=task_id)["current_owner"] == agent


def test_of_many_who_name_the_same_task_one_wins(tmp_path: Path) -> None:
    """Five processes name the same tasks in the same order: one wins each, all others are told not_owner."""
    with ExitStack() as stack:
        claimants = [stack.enter_context(stdio(tmp_path)) for _ in range(5)]
        task_ids = [create(claimants[0], f"t{number}") for number in range(30)]

        def claim_each(number: int) -> list[str]:
            answers = (
                claimants[number].answer("claim_task", agent=f"agent {number}", task_id=task_id)
                for task_id in task_ids
            )
            return [answer["error"]["code"] if refused else "won" for answer, refused in answers]

        outcomes = all_at_once(*(partial(claim_each, number) for number in range(5)))
        for one in zip(*outcomes, strict=True):
            assert Counter(one) == {"won": 1, "not_owner": 4}


@pytest.mark.parametrize("kind", ["sse", "2025-06-18", "2026-07-28"])
def test_two_agents_race_one_handoff(client: StdioClient, tmp_path: Path, kind: str) -> None:
    """Over STDIO and HTTP at once exactly one agent gets a handoff to any; the other is told not_owner."""
    with ExitStack() as stack:
        server = stack.enter_context(HttpServer(tmp_path))
        remote = stack.enter_context(sse(server)) if kind == "sse" else McpClient(server, kind)
        for number in range(15):
            task_id = handed(client, f"t{number}", "any")
            answers = all_at_once(
                partial(client.answer, "claim_task", agent="Bob", task_id=task_id),
                partial(remote.answer, "claim_task", agent="Carol", task_id=task_id),
            )
            [loser] = [answer for answer, refused in answers if refused]
            [winner] = [answer for answer, refused in answers if not refused]
            assert loser["error"]["code"] == "not_owner"
            assert claimed(winner) == (task_id, {"how": "handoff", "from": "Alice"})
            owner = "Bob" if answers[0][0] is winner else "Carol"
            assert client.call("get_task", task_id=task_id)["current_owner"] == owner
            assert winners(client, task_id) == [owner]


def test_an_owner_that_wakes_up_too_late_changes_nothing(client: StdioClient, tmp_path: Path) -> None:
    """After a takeover every write of the old owner is not_owner, and the new owner's task is untouched."""
    with HttpServer(tmp_path, MCP_TASK_IDLE_SECONDS="1") as server:
        sleeper = McpClient(server)
        at_work(sleeper, "t", "Alice")
        wait_until(lambda: owner_state(sleeper, "t") == "gone", "an agent that no longer calls is gone")
        with stdio(tmp_path, MCP_TASK_IDLE_SECONDS="1") as successor:
            successor.call("claim_task", agent="Bob", task_id="t")
            before, history = successor.call("get_task", task_id="t"), events(successor, "t")
            report = {"completed_steps": ["mine"], "remaining_steps": ["also mine"]}
            for tool, who in (
                ("save_checkpoint", {"agent": "Alice"}),
                ("handoff_task", {"from_agent": "Alice", "to_agent": "any", "reason": "r"}),
                ("mark_exhausted", {"agent": "Alice", "reason": "r"}),
                ("claim_task", {"agent": "Alice"}),
            ):
                said = {} if tool == "claim_task" else report
                refusal = sleeper.refusal(tool, task_id="t", **who, **said)
                assert (refusal["code"], "'Bob'" in refusal["message"]) == ("not_owner", True)
            assert successor.call("get_task", task_id="t") == before
            assert events(successor, "t") == history


def test_an_owner_that_wakes_up_in_time_keeps_its_task(client: StdioClient, tmp_path: Path) -> None:
    """While a successor takes over, the old owner comes back and writes: one of them gets not_owner."""
    task_ids = [f"t{number}" for number in range(20)]
    left_behind(tmp_path, *task_ids, agent="Alice")
    with stdio(tmp_path) as returning:
        for task_id in task_ids:
            (written, too_late), (taken, refused) = all_at_once(
                partial(
                    returning.answer, "save_checkpoint", task_id=task_id, agent="Alice", decisions=["mine"]
                ),
                partial(client.answer, "claim_task", agent="Bob", task_id=task_id),
            )
            assert too_late is not refused
            assert (written if too_late else taken)["error"]["code"] == "not_owner"
            task = client.call("get_task", task_id=task_id)
            owner, decisions = ("Bob", []) if too_late else ("Alice", ["mine"])
            assert (task["current_owner"], task["decisions"]) == (owner, decisions)
            assert task["owner_state"] == "live"


def test_a_claim_over_http_is_as_good_as_any(tmp_path: Path) -> None:
    """What one client of a service claims, another client of it cannot have; each has its own sessions."""
    with HttpServer(tmp_path) as server, sse(server) as one, sse(server) as other:
        create(one, "t")
        assert claimed(one.call("claim_task", agent="Bob")) == ("t", {"how": "open"})
        assert other.call("claim_task", agent="Carol") == NOTHING
        assert other.refusal("claim_task", agent="Carol", task_id="t")["code"] == "not_owner"
