"""Many servers on one database: what any of them acknowledged is there, also after kill -9 of all of them."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from support import HttpServer, JsonObject, SseClient, StdioClient, server_script, sse, stdio

EVENTS = {  # what each tool leaves in the event log
    "create_task": "created",
    "save_checkpoint": "checkpoint",
    "handoff_task": "handoff",
    "mark_exhausted": "exhausted",
    "update_task": "updated",
    "attach_artifact": "artifact",
}


class Write(NamedTuple):
    """A call that writes."""

    tool: str
    arguments: JsonObject

    def params(self) -> JsonObject:
        return {"name": self.tool, "arguments": self.arguments}


class Acknowledged(NamedTuple):
    """A write, and what the server answered to it."""

    write: Write
    answer: JsonObject


class Database(NamedTuple):
    """Everything that is stored, as another program reads it."""

    tasks: dict[str, JsonObject]
    events: dict[str, list[JsonObject]]  # by task, in order
    checkpoints: dict[tuple[str, int], JsonObject]


def read_database(folder: Path) -> Database:
    """Check that the database is sound, and return its content."""
    connection = sqlite3.connect(folder / "tasks.db")
    connection.row_factory = sqlite3.Row
    try:
        assert [tuple(row) for row in connection.execute("PRAGMA integrity_check")] == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        tasks, checkpoints, events = (
            [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY {order}")]
            for table, order in (("tasks", 1), ("checkpoints", 2), ("events", 1))
        )
    finally:
        connection.close()
    assert [event["event_id"] for event in events] == list(range(1, len(events) + 1))
    by_task = defaultdict(list)
    for event in events:
        by_task[event["task_id"]].append(event)
    return Database(
        {task["task_id"]: task for task in tasks},
        by_task,
        {(checkpoint["task_id"], checkpoint["number"]): checkpoint for checkpoint in checkpoints},
    )


def changes_of(found: Database, task_id: str) -> list[JsonObject]:
    """Return the events that changed a task: the end of a session does not."""
    return [event for event in found.events[task_id] if event["what"] != "session_ended"]


def audit(folder: Path, acknowledged: list[Acknowledged]) -> Database:
    """Check that what is stored is consistent, and that all that was acknowledged is there."""
    found = read_database(folder)
    assert set(found.events) == set(found.tasks)
    for task_id, task in found.tasks.items():
        events = changes_of(found, task_id)
        assert [event["version"] for event in events] == list(range(1, task["version"] + 1))
        assert task["born"] == events[0]["event_id"]
        assert task["changed"] == events[-1]["event_id"]
        numbers = [number for of_task, number in found.checkpoints if of_task == task_id]
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
        artifacts = json.loads(task["body"])["artifacts"]
        assert [artifact["number"] for artifact in artifacts] == list(range(1, len(artifacts) + 1))
        for artifact in artifacts:
            content = (folder / "artifacts" / artifact["sha256"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == artifact["sha256"]
            assert len(content) == artifact["size"]
    for write, answer in acknowledged:
        task_id = write.arguments["task_id"]
        event = changes_of(found, task_id)[answer["version"] - 1]
        assert (event["what"], event["at"]) == (EVENTS[write.tool], answer["updated_at"])
        if "checkpoint" in answer:
            checkpoint = found.checkpoints[task_id, answer["checkpoint"]]
            assert set(write.arguments["decisions"]) <= set(json.loads(checkpoint["progress"])["decisions"])
        if write.tool == "attach_artifact":
            artifact = json.loads(found.tasks[task_id]["body"])["artifacts"][answer["artifact"]["number"] - 1]
            assert artifact["sha256"] == hashlib.sha256(write.arguments["content"].encode()).hexdigest()
    return found


def life_of(task_id: str, rounds: int) -> Iterator[Write]:
    """Yield the writes of a task that two agents pass to and fro: one, and four for each round."""
    yield Write("create_task", {"task_id": task_id, "title": task_id, "goal": "Goal"})
    agents = ("ann", "ben")
    for number in range(rounds):
        agent, other = agents[number % 2], agents[(number + 1) % 2]
        decided = [f"{task_id} {number}"]
        yield Write("save_checkpoint", {"task_id": task_id, "agent": agent, "decisions": decided})
        content = f"{task_id} {number} " + "x" * 1000
        yield Write("attach_artifact", {"task_id": task_id, "name": f"log {number}", "content": content})
        yield Write("update_task", {"task_id": task_id, "title": f"{task_id} {number}"})
        passed = {
            "from_agent": agent,
            "to_agent": other,
            "reason": "r",
            "decisions": [f"{task_id} {number}!"],
        }
        yield Write("handoff_task", {"task_id": task_id, **passed})


def together(number: int, write: Callable[[int], list[Acknowledged]]) -> list[Acknowledged]:
    """Call `write` with 0, 1, 2, ... at once, each in a thread, and return what all of them return."""
    with ThreadPoolExecutor(number) as pool:
        return [one for found in pool.map(write, range(number)) for one in found]


def write_all(client: StdioClient | SseClient, writes: Iterator[Write]) -> list[Acknowledged]:
    """Carry out writes, all of which must succeed."""
    return [Acknowledged(write, client.call(write.tool, **write.arguments)) for write in writes]


def renames(task_id: str, writer: str, number: int) -> Iterator[Write]:
    for n in range(number):
        yield Write("update_task", {"task_id": task_id, "title": f"{writer} {n}"})


def outcomes(clients: list[StdioClient], calls: list[Write]) -> list[JsonObject]:
    """Have each client make its call at the same moment, and return the answers."""
    for number, (client, call) in enumerate(zip(clients, calls, strict=True)):
        client.send(
            {"jsonrpc": "2.0", "id": f"race-{number}", "method": "tools/call", "params": call.params()}
        )
    answers = []
    for number, client in enumerate(clients):
        response = client.receive()
        assert response["id"] == f"race-{number}"
        answers.append(response["result"]["structuredContent"])
    return answers


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[StdioClient]]:
    """Yield eight servers, each with its own client, on one database; every test has tasks of its own."""
    folder = tmp_path_factory.mktemp("eight")
    with ExitStack() as stack:
        clients = [stack.enter_context(StdioClient(folder)) for _ in range(8)]
        for client in clients:
            client.initialize()
        yield clients
        assert [client.close() for client in clients] == [0] * 8
        assert [client.stderr() for client in clients] == [""] * 8


def test_eight_processes_write_at_once(eight: list[StdioClient]) -> None:
    """All of some 370 concurrent writes succeed and are there: on tasks of their own, and on a shared one."""
    acknowledged = write_all(eight[0], life_of("shared", 0))

    def write(number: int) -> list[Acknowledged]:
        found = write_all(eight[number], life_of(f"task-{number}", 9))
        return found + write_all(eight[number], renames("shared", f"writer {number}", 9))

    acknowledged += together(8, write)
    found = audit(eight[0].folder, acknowledged)
    assert len(acknowledged) == 1 + 8 * (37 + 9)
    assert [found.tasks[f"task-{number}"]["version"] for number in range(8)] == [37] * 8
    on_shared = {one.answer["version"]: one for one in acknowledged if one.answer["task_id"] == "shared"}
    assert sorted(on_shared) == list(range(1, 74))
    for client in eight:
        assert client.call("list_tasks")["total"] == len(found.tasks)
        assert client.call("get_task", task_id="shared")["title"] == on_shared[73].write.arguments["title"]


def test_an_expected_version_is_taken_once(eight: list[StdioClient]) -> None:
    """Of eight processes that change the same version, one succeeds and the others get a `conflict`."""
    eight[0].call("create_task", task_id="versions", title="Title", goal="Goal")
    for version in range(1, 6):
        calls = [
            Write(
                "update_task", {"task_id": "versions", "title": f"{version} {n}", "expected_version": version}
            )
            for n in range(8)
        ]
        answers = outcomes(eight, calls)
        (winner,) = (n for n, answer in enumerate(answers) if "error" not in answer)
        codes = [answer["error"]["code"] for n, answer in enumerate(answers) if n != winner]
        assert codes == ["conflict"] * 7
        task = eight[version].call("get_task", task_id="versions")
        assert (task["version"], task["title"]) == (version + 1, f"{version} {winner}")
    audit(eight[0].folder, [])


def test_one_process_gets_the_task(eight: list[StdioClient]) -> None:
    """Of eight agents that take a new, handed on or given up task at once, one has it and all are told."""
    for number in range(5):
        task_id = f"taken-{number}"
        eight[0].call("create_task", task_id=task_id, title="Title", goal="Goal")

        def save(agent: str, task_id: str = task_id) -> Write:
            return Write("save_checkpoint", {"task_id": task_id, "agent": agent, "decisions": [agent]})

        def hand(agent: str, task_id: str = task_id) -> Write:
            passed = {"from_agent": agent, "to_agent": f"{agent}'s heir", "reason": f"{agent} is tired"}
            return Write("handoff_task", {"task_id": task_id, **passed})

        owner = winner_of(eight, save)
        eight[0].call("handoff_task", task_id=task_id, from_agent=owner, to_agent="any", reason="r")
        owner = winner_of(eight, save)
        eight[0].call("mark_exhausted", task_id=task_id, agent=owner, reason="r")
        owner = winner_of(eight, hand)
        task = eight[1].call("get_task", task_id=task_id)
        assert (task["current_owner"], task["version"]) == (f"{owner}'s heir", 6)
        assert task["handoffs"][0]["reason"] == f"{owner} is tired"
    audit(eight[0].folder, [])


def winner_of(clients: list[StdioClient], call: Callable[[str], Write]) -> str:
    """Have agents of all clients race; return the only one whose call succeeded."""
    agents = [f"agent-{number}" for number in range(len(clients))]
    answers = dict(zip(agents, outcomes(clients, [call(agent) for agent in agents]), strict=True))
    (winner,) = (agent for agent, answer in answers.items() if "error" not in answer)
    owner = answers.pop(winner)["current_owner"]
    for answer in answers.values():
        assert answer["error"]["code"] == "not_owner"
        assert f"'{owner}'" in answer["error"]["message"]
    return winner


def test_one_task_is_created(eight: list[StdioClient]) -> None:
    """Eight processes that create the same task at once make one; with other content, it is a `conflict`."""
    created: set[str] = set()
    for number in range(4):
        same = {"title": f"Title {number}", "goal": "Goal", "remaining_steps": ["a", "b"]}
        named = outcomes(eight, [Write("create_task", {"task_id": f"same-{number}", **same})] * 8)
        assert named == [named[0]] * 8
        unnamed = outcomes(eight, [Write("create_task", same)] * 8)
        assert unnamed == [unnamed[0]] * 8
        others = [{"task_id": f"other-{number}", "title": f"Title {n}", "goal": "Goal"} for n in range(8)]
        answers = outcomes(eight, [Write("create_task", other) for other in others])
        (winner,) = (n for n, answer in enumerate(answers) if "error" not in answer)
        codes = [answer["error"]["code"] for n, answer in enumerate(answers) if n != winner]
        assert codes == ["conflict"] * 7
        assert eight[number].call("get_task", task_id=f"other-{number}")["title"] == f"Title {winner}"
        created |= {f"other-{number}", f"same-{number}", unnamed[0]["task_id"]}
    found = audit(eight[0].folder, [])
    assert {len(found.events[task_id]) for task_id in created} == {1}
    assert len(created) == 12


def test_one_artifact_is_attached(eight: list[StdioClient]) -> None:
    """Eight processes that attach the same bytes make one file; under one name, one artifact."""
    files = eight[0].folder / "artifacts"
    before = {path.name for path in files.iterdir()}
    eight[0].call("create_task", task_id="artifacts", title="Title", goal="Goal")
    attached = {"task_id": "artifacts", "content": "y" * 100_000}
    same = outcomes(eight, [Write("attach_artifact", {**attached, "name": "log"})] * 8)
    assert same == [same[0]] * 8
    named = outcomes(eight, [Write("attach_artifact", {**attached, "name": f"{n}"}) for n in range(8)])
    assert sorted(answer["artifact"]["number"] for answer in named) == list(range(2, 10))
    assert {path.name for path in files.iterdir()} - before == {same[0]["artifact"]["sha256"]}
    audit(eight[0].folder, [])


def test_stdio_and_http_share_a_database(tmp_path: Path) -> None:
    """Clients of one HTTP service and of STDIO servers write at once; all of it is there."""
    with ExitStack() as stack:
        service = stack.enter_context(HttpServer(tmp_path))
        clients: list[StdioClient | SseClient] = [stack.enter_context(sse(service)) for _ in range(3)]
        clients += [stack.enter_context(stdio(tmp_path)) for _ in range(3)]
        acknowledged = write_all(clients[0], life_of("shared", 0))

        def write(number: int) -> list[Acknowledged]:
            found = write_all(clients[number], life_of(f"task-{number}", 5))
            return found + write_all(clients[number], renames("shared", f"writer {number}", 5))

        acknowledged += together(6, write)
        assert audit(tmp_path, acknowledged).tasks["shared"]["version"] == 31
        views = [client.call("get_task", task_id="shared") for client in clients]
        assert views == [views[0]] * 6
        assert service.request("GET", "/health")[0] == 200
        assert service.terminate() == 0


def test_pipelined_calls_are_all_carried_out(tmp_path: Path) -> None:
    """Sixteen calls sent at once are answered in their order, each seeing what the one before did."""
    writes = list(life_of("t", 3)) + list(renames("t", "writer", 3))
    with stdio(tmp_path) as client:
        for number, write in enumerate(writes):
            client.send(
                {"jsonrpc": "2.0", "id": 100 + number, "method": "tools/call", "params": write.params()}
            )
        responses = [client.receive() for _ in writes]
        assert [response["id"] for response in responses] == list(range(100, 116))
        answers = [response["result"]["structuredContent"] for response in responses]
        assert [answer["version"] for answer in answers] == list(range(1, 17))
        audit(tmp_path, [Acknowledged(*pair) for pair in zip(writes, answers, strict=True)])


def written_until_killed(client: StdioClient, writes: list[Write]) -> list[Acknowledged]:
    """Send all writes ahead; return what the server acknowledged before somebody killed it."""
    lines = (
        json.dumps({"jsonrpc": "2.0", "id": 100 + number, "method": "tools/call", "params": write.params()})
        for number, write in enumerate(writes)
    )
    with suppress(BrokenPipeError):  # killed before it had read them all
        client.send_raw("".join(line + "\n" for line in lines).encode())
    assert client.process.stdout is not None
    answers = client.process.stdout.read().splitlines(keepends=True)
    results = [json.loads(line)["result"] for line in answers if line.endswith(b"\n")]
    assert [result for result in results if result["isError"]] == []
    return [
        Acknowledged(write, result["structuredContent"])
        for write, result in zip(writes, results, strict=False)
    ]


POOL = 4  # tasks that the servers of one round compete for


def with_claims(life: list[Write], agent: str, tag: str) -> list[Write]:
    """Have an agent claim tasks between the first writes of a life, more of them than there are."""
    claims = [Write("claim_task", {"agent": agent, "tag": tag})] * (2 * POOL)
    head = [one for pair in zip(life[1:], claims, strict=False) for one in pair]
    return [life[0], *head, *life[1 + len(claims) :]]


def claimed_in(acknowledged: list[Acknowledged]) -> list[str]:
    """Return the tasks that the claims among some calls were told they have."""
    answers = [answer for write, answer in acknowledged if write.tool == "claim_task"]
    return [answer["task"]["task_id"] for answer in answers if answer["task"] is not None]


def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path: Path) -> None:
    """Two of three servers are killed while they write and claim, twelve times: nothing told is lost."""
    chance = random.Random(2)
    with stdio(tmp_path) as survivor:
        acknowledged = write_all(survivor, life_of("shared", 0))
        for number in range(12):
            tag, agents = f"round-{number}", [f"agent-{number}-{n}" for n in range(2)]
            pool_ids = [f"pool-{number}-{n}" for n in range(POOL)]
            for task_id in pool_ids:
                survivor.call("create_task", task_id=task_id, title=task_id, goal="Goal", tags=[tag])
            lives = [with_claims(list(life_of(f"task-{number}-{n}", 40)), agents[n], tag) for n in range(2)]
            with stdio(tmp_path) as first, stdio(tmp_path) as second, ThreadPoolExecutor(2) as pool:
                found = pool.map(written_until_killed, (first, second), lives)
                acknowledged += write_all(survivor, renames("shared", f"{number}", chance.randrange(1, 20)))
                for killed in (first, second):
                    killed.kill()
                by_server = list(found)
            acknowledged += [one for of_server in by_server for one in of_server if one.write.tool in EVENTS]
            stored = audit(tmp_path, acknowledged)
            for life, of_server in zip(lives, by_server, strict=True):
                events = stored.events[life[0].arguments["task_id"]] if of_server else []
                told = [one for one in of_server if one.write.tool in EVENTS]
                assert len(told) <= len(events) <= len(told) + 1
                unanswered = [write for write in life[len(of_server) :] if write.tool in EVENTS][:1]
                acknowledged += write_all(survivor, iter(unanswered))  # whether or not it was carried out
            told_claims = {agent: claimed_in(told) for agent, told in zip(agents, by_server, strict=True)}
            assert_shared_out(survivor, stored, pool_ids, told_claims, tag)
        assert survivor.close() == 0
    audit(tmp_path, acknowledged)


def assert_shared_out(
    survivor: StdioClient, stored: Database, pool_ids: list[str], told: dict[str, list[str]], tag: str
) -> None:
    """Check that each task has the one owner that claimed it last, who is dead, and goes to one more."""
    owners, claims_of = dict[str, str](), defaultdict[str, list[str]](list)
    for task_id in pool_ids:
        _, *claims = stored.events[task_id]
        # Whoever is killed last may have taken over what the other one had.
        assert [event["what"] for event in claims] in ([], ["claimed"], ["claimed", "takeover"])
        assert len({event["agent"] for event in claims}) == len(claims)
        assert stored.tasks[task_id]["current_owner"] == (claims[-1]["agent"] if claims else None)
        for event in claims:
            owners[task_id] = event["agent"]
            claims_of[event["agent"]].append(task_id)
    for agent, claimed in told.items():
        assert len(claimed) == len(set(claimed))
        assert set(claimed) <= set(claims_of[agent])
        assert len(claims_of[agent]) <= len(claimed) + 1  # a claim whose answer was lost
    found = {}
    while (answer := survivor.call("claim_task", agent="survivor", tag=tag))["task"] is not None:
        assert answer["task"]["task_id"] not in found
        found[answer["task"]["task_id"]] = answer["claim"]
    assert set(found) == set(pool_ids)
    for task_id, claim in found.items():
        wanted = {"how": "gone", "from": owners[task_id]} if task_id in owners else {"how": "open"}
        assert claim == wanted


SPILLING_SERVER = """
import os, runpy, signal, sqlite3, sys
sys.path.insert(0, os.path.dirname({server}))
connect = sqlite3.connect

class Connection(sqlite3.Connection):
    def execute(self, statement, values=()):
        if statement == "COMMIT" and os.path.exists({flag}):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(statement, values)

def connect_without_memory(path, **options):
    connection = connect(path, factory=Connection, **options)
    connection.execute("PRAGMA cache_size = 1")
    return connection

sqlite3.connect = connect_without_memory
runpy.run_path({server}, run_name="__main__")
"""


def test_half_a_transaction_on_disk_is_undone(tmp_path: Path) -> None:
    """A server that dies when half of a transaction is in the database file leaves no trace of it."""
    flag, path = tmp_path / "die-in-commit", tmp_path / "tasks.db"
    with server_script(tmp_path, SPILLING_SERVER, flag=str(flag)):
        dying = stdio(tmp_path)
        dying.result("resources/list")  # from here on its database is open; it does not wait for others
    with stdio(tmp_path) as survivor, dying:
        acknowledged = write_all(survivor, life_of("t", 1))
        before = survivor.call("get_task", task_id="t"), path.read_bytes()
        flag.touch()
        lost = {"task_id": "t", "agent": "ben", "decisions": [f"{n} {'x' * 9000}" for n in range(9)]}
        assert written_until_killed(dying, [Write("save_checkpoint", lost)]) == []
        assert path.read_bytes() != before[1]
        assert (tmp_path / "tasks.db-journal").read_bytes()[:8] != bytes(8)
        assert survivor.call("get_task", task_id="t") == before[0]
        acknowledged += write_all(survivor, iter([Write("save_checkpoint", lost)]))
        assert acknowledged[-1].answer["version"] == 6
    audit(tmp_path, acknowledged)
