"""Notices: what happened to an agent without it reaches it with the next answer, once, and only it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support import DirectClient, HttpServer, JsonObject, McpClient, sse, stdio

from config import CLAIM_WAIT_SECONDS
from store import Store
from tools import Wait, call_tool

# What an agent may call with its name that leaves what waits for it alone.
CALLS: dict[str, JsonObject] = {
    "create_task": {"title": "New", "goal": "G", "agent": "bob"},
    "claim_task": {"agent": "bob", "tag": "nothing has it"},
    "save_checkpoint": {"task_id": "bobs", "agent": "bob", "files": ["f"]},
    "handoff_task": {"task_id": "bobs", "from_agent": "bob", "to_agent": "any", "reason": "r"},
    "mark_exhausted": {"task_id": "bobs", "agent": "bob", "reason": "r"},
    "attach_artifact": {"task_id": "bobs", "agent": "bob", "name": "n", "content": "c"},
}
each_call = pytest.mark.parametrize("tool", CALLS)


class Agents:
    """Agents that work on one store, each through a connection of its own."""

    def __init__(self, folder: Path) -> None:
        (folder / "artifacts").mkdir()
        self.store = Store(str(folder / "tasks.db"), str(folder / "artifacts"))

    def __getitem__(self, agent: str) -> DirectClient:
        return DirectClient(self.store, agent)

    def has(self, agent: str, task_id: str) -> None:
        """Have `agent` at work on a task, which is made if need be."""
        self[agent].call("create_task", task_id=task_id, title="T", goal="G")
        self[agent].call("save_checkpoint", task_id=task_id, agent=agent)

    def hand(self, task_id: str, to_agent: str, reason: str = "r") -> None:
        """Have alice hand a task over."""
        self["alice"].call(
            "handoff_task", task_id=task_id, from_agent="alice", to_agent=to_agent, reason=reason
        )

    def take_over(self, agent: str, former: str, task_id: str) -> JsonObject:
        """Have `agent` claim what `former` left behind."""
        self.store.end_session(former, lambda _: None)
        return self[agent].call("claim_task", task_id=task_id, agent=agent)

    def told(self, agent: str) -> str | None:
        """Return the notice of a call that changes nothing."""
        notice: str | None = self[agent].call("claim_task", agent=agent, tag="nothing has it").get("notice")
        return notice


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    agents = Agents(tmp_path)
    with closing(agents.store):
        agents.has("alice", "given")
        agents.has("bob", "bobs")
        yield agents


@each_call
def test_a_handoff_is_told_once_to_its_addressee(agents: Agents, tool: str) -> None:
    """The next answer to a call that names the addressee tells it, and no other answer ever does."""
    agents.hand("given", "bob")
    assert agents.told("carl") is None
    assert "notice" not in agents["bob"].call("get_task", task_id="given")
    assert "notice" not in agents["bob"].call("list_tasks", current_owner="bob")
    assert "notice" not in agents["bob"].call("update_task", task_id="given", priority=1)
    notice = agents["bob"].call(tool, **CALLS[tool])["notice"]
    assert "given" in notice
    assert "claim_task" in notice
    assert agents.told("bob") is None
    assert agents.told("carl") is None


@each_call
def test_a_lost_task_is_told_once_to_its_former_owner(agents: Agents, tool: str) -> None:
    """An agent whose task was taken over hears of it, and by whom, with its next call."""
    agents.has("bob", "lost")
    agents.take_over("carl", "bob", "lost")
    assert agents.told("carl") is None
    notice = agents["bob"].call(tool, **CALLS[tool])["notice"]
    assert "lost" in notice
    assert "carl" in notice
    assert agents.told("bob") is None


def test_both_are_told_in_one_line(agents: Agents) -> None:
    """What waits and what was lost come in one short line, by the agent's name in any spelling."""
    agents.has("bob", "lost")
    agents.take_over("carl", "bob", "lost")
    agents.hand("given", "BOB ")
    notice = agents.told(" Bob")
    assert notice is not None
    assert "given" in notice
    assert "lost" in notice
    assert "\n" not in notice
    assert agents.told("bob") is None


def test_each_change_is_told(agents: Agents) -> None:
    """What happens after a notice is told with the next one, and nothing else is told again."""
    agents.hand("given", "bob")
    assert "given" in (agents.told("bob") or "")
    agents.has("alice", "second")
    agents.hand("second", "bob")
    notice = agents.told("bob")
    assert notice is not None
    assert "second" in notice
    assert "given" not in notice


@pytest.mark.parametrize("how", ["claim_task", "save_checkpoint", "mark_exhausted", "handoff_task"])
def test_what_was_taken_is_not_told(agents: Agents, how: str) -> None:
    """The call that takes a task up does not say that it waits, and none after it does."""
    agents.hand("given", "bob")
    taking: dict[str, JsonObject] = {
        "claim_task": {"agent": "bob"},
        "save_checkpoint": {"agent": "bob"},
        "mark_exhausted": {"agent": "bob", "reason": "r"},
        "handoff_task": {"from_agent": "bob", "to_agent": "carl", "reason": "r"},
    }
    assert "notice" not in agents["bob"].call(how, task_id="given", **taking[how])
    assert agents.told("bob") is None


def test_a_redirected_handoff_is_told_to_its_new_addressee(agents: Agents) -> None:
    """Who was addressed first hears nothing of it any more, who is addressed now does."""
    agents.hand("given", "bob")
    agents.hand("given", "carl")
    assert agents.told("bob") is None
    assert "given" in (agents.told("carl") or "")


def test_a_handoff_made_twice_is_named_once(agents: Agents) -> None:
    """A task that was handed to the same agent again is named once."""
    agents.hand("given", "bob")
    agents.hand("given", "bob", reason="another reason")
    assert (agents.told("bob") or "").count("given") == 1


def test_a_handoff_to_whoever_comes_is_nobodys_notice(agents: Agents) -> None:
    """A handoff to any agent concerns none in particular."""
    agents.hand("given", "any")
    assert agents.told("bob") is None


def test_a_handoff_to_oneself_is_told_in_the_next_session(agents: Agents) -> None:
    """An agent that hands a task to its own next session is told there, not by that very call."""
    handed = agents["alice"].call(
        "handoff_task", task_id="given", from_agent="alice", to_agent="alice", reason="Context is full"
    )
    assert "notice" not in handed
    agents.store.end_session("alice", lambda _: None)
    assert "given" in (agents.told("alice") or "")
    assert agents.told("alice") is None


def test_what_came_back_is_not_lost(agents: Agents) -> None:
    """An agent that has its task again is not told that it lost it."""
    agents.has("bob", "lost")
    agents.take_over("carl", "bob", "lost")
    assert "notice" not in agents.take_over("bob", "carl", "lost")
    assert agents.told("bob") is None
    assert "lost" in (agents.told("carl") or "")


def test_what_was_lost_and_handed_back_waits(agents: Agents) -> None:
    """A task that was taken over and then handed back is told as waiting only."""
    agents.has("bob", "lost")
    agents.take_over("carl", "bob", "lost")
    agents["carl"].call("handoff_task", task_id="lost", from_agent="carl", to_agent="bob", reason="r")
    notice = agents.told("bob")
    assert notice is not None
    assert notice.count("lost") == 1
    assert "carl" not in notice


def test_many_notices_are_short(agents: Agents) -> None:
    """However much happened, a notice names a few tasks and tells how many more there are."""
    lost, given = ([f"{kind}{number:02}" + "x" * 122 for number in range(40)] for kind in ("lost", "give"))
    for task_id in lost:
        agents.has("bob", task_id)
    agents.store.end_session("bob", lambda _: None)
    for task_id in lost:
        agents["carl"].call("claim_task", task_id=task_id, agent="carl" + "y" * 124)
    for task_id in given:
        agents.has("alice", task_id)
        agents.hand(task_id, "bob")
    notice = agents.told("bob")
    assert notice is not None
    assert len(notice) < 2500
    assert notice.count("35 more") == 2
    assert agents.told("bob") is None


REFUSED: dict[str, tuple[str, JsonObject]] = {
    "conflict": ("create_task", {"task_id": "bobs", "title": "Other", "goal": "G", "agent": "bob"}),
    "not_owner": ("save_checkpoint", {"task_id": "alices", "agent": "bob"}),
    "invalid_state": ("mark_exhausted", {"task_id": "done", "agent": "bob", "reason": "r"}),
    "not_found": ("attach_artifact", {"task_id": "none", "agent": "bob", "name": "n", "content": "c"}),
    "invalid_arguments": ("claim_task", {"agent": "bob", "wait_seconds": CLAIM_WAIT_SECONDS + 1}),
}


@pytest.mark.parametrize("code", REFUSED)
def test_a_refused_call_keeps_the_notice_for_the_next(agents: Agents, code: str) -> None:
    """A call that is refused tells nothing and loses nothing."""
    agents.has("alice", "alices")
    agents["x"].call("create_task", task_id="done", title="T", goal="G")
    agents["x"].call("update_task", task_id="done", status="done")
    agents.hand("given", "bob")
    tool, arguments = REFUSED[code]
    assert agents["bob"].refusal(tool, **arguments)["code"] == code
    assert agents["bob"].refusal("claim_task", task_id="alices", agent="bob")["code"] == "not_owner"
    assert "given" in (agents.told("bob") or "")


def test_a_repeated_call_answers_with_the_same_notice(agents: Agents) -> None:
    """A client that lost an answer gets the notice again with the answer to the same call."""
    agents.hand("given", "bob")
    report: JsonObject = {"task_id": "bobs", "agent": "bob", "files": ["f"]}
    answer = agents["bob"].call("save_checkpoint", **report)
    assert "given" in answer["notice"]
    assert agents["bob"].call("save_checkpoint", **report) == answer


def test_a_waiting_claim_keeps_the_notice_for_its_answer(agents: Agents) -> None:
    """A claim that waits carries what is new with the answer it gives at last, whichever that is."""
    agents.has("bob", "lost")
    agents.take_over("carl", "bob", "lost")
    arguments = {"agent": "bob", "tag": "later", "wait_seconds": 5}
    wait, _ = call_tool("claim_task", arguments, agents["bob"].workplace)
    assert isinstance(wait, Wait)
    assert wait.attempt() is None
    agents["x"].call("create_task", task_id="new", title="T", goal="G", tags=["later"])
    answer = wait.attempt()
    assert answer is not None
    assert "lost" in answer["notice"]
    assert agents.told("bob") is None


def test_a_claim_that_waited_in_vain_keeps_no_notice_from_anyone(tmp_path: Path) -> None:
    """A wait that is cancelled loses no notice; one that runs out of time answers with it."""
    with stdio(tmp_path) as alice, stdio(tmp_path) as bob:
        alice.call("create_task", task_id="t", title="T", goal="G")
        alice.call("handoff_task", task_id="t", from_agent="alice", to_agent="bob", reason="r")
        waiting = {"agent": "bob", "tag": "none", "wait_seconds": 50}
        bob.send(
            {"jsonrpc": "2.0", "id": "w", "method": "tools/call",
             "params": {"name": "claim_task", "arguments": waiting}}
        )  # fmt: skip
        bob.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "w"}})
        bob.result("ping")
        answer = bob.call("claim_task", agent="bob", tag="none", wait_seconds=0.1)
        assert answer["task"] is None
        assert "t;" in answer["notice"]
        assert "notice" not in bob.call("claim_task", agent="bob", tag="none")


def test_notices_survive_restarts(tmp_path: Path) -> None:
    """What an agent was told, and what not yet, is known to every process after this one."""
    with stdio(tmp_path) as alice:
        alice.call("create_task", task_id="t", title="T", goal="G")
        alice.call("handoff_task", task_id="t", from_agent="alice", to_agent="bob", reason="r")
        alice.kill()
    with stdio(tmp_path) as bob:
        assert "t;" in bob.call("claim_task", agent="bob", tag="none")["notice"]
        bob.kill()
    with stdio(tmp_path) as bob:
        assert "notice" not in bob.call("claim_task", agent="bob", tag="none")


def test_a_takeover_of_a_dead_process_is_told_when_it_is_back(tmp_path: Path) -> None:
    """An agent that was killed and started again hears that somebody else goes on with its task."""
    with stdio(tmp_path) as bob:
        bob.call("create_task", task_id="t", title="T", goal="G")
        bob.call("save_checkpoint", task_id="t", agent="bob")
        bob.kill()
    with stdio(tmp_path) as carl:
        assert carl.call("claim_task", agent="carl")["claim"] == {"how": "gone", "from": "bob"}
        with stdio(tmp_path) as bob:
            refused = bob.refusal("save_checkpoint", task_id="t", agent="bob")
            assert refused["code"] == "not_owner"
            told = bob.call("create_task", title="Other", goal="G", agent="bob")["notice"]
            assert "t (taken over by carl)" in told


@pytest.mark.parametrize("wire", ["sse", "mcp", "mcp 2026"])
def test_notices_come_over_every_wire(tmp_path: Path, wire: str) -> None:
    """A notice is part of the answer on every transport, in its text and in its structure."""
    with HttpServer(tmp_path) as server:
        with stdio(tmp_path) as alice:
            alice.call("create_task", task_id="t", title="T", goal="G")
            alice.call("handoff_task", task_id="t", from_agent="alice", to_agent="bob", reason="r")
        if wire == "sse":
            with sse(server) as client:
                assert "t;" in client.call("claim_task", agent="bob", tag="none")["notice"]
        else:
            revision = "2026-07-28" if wire.endswith("2026") else "2025-11-25"
            arguments = {"name": "claim_task", "arguments": {"agent": "bob", "tag": "none"}}
            result = McpClient(server, revision).result("tools/call", arguments)
            assert "t;" in result["structuredContent"]["notice"]
            assert "t;" in result["content"][0]["text"]


def test_notices_do_not_grow_with_the_past(agents: Agents) -> None:
    """An agent that was told everything costs no write: the database is left as it is."""
    agents.hand("given", "bob")
    agents.told("bob")
    path = agents.store.own_files()[0]
    before = os.stat(path).st_mtime_ns, os.stat(path).st_size
    assert agents.told("bob") is None
    assert (os.stat(path).st_mtime_ns, os.stat(path).st_size) == before
