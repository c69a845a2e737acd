"""The scenarios, written once for every SDK: a handoff between two agents, and ids inside URIs."""

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from mcp.types import PromptReference, ResourceTemplateReference

from .sessions import Agent, Json, StdioServer, expect, expect_true

TOOLS = [
    "attach_artifact",
    "claim_task",
    "create_task",
    "get_task",
    "handoff_task",
    "list_tasks",
    "mark_exhausted",
    "save_checkpoint",
    "update_task",
]
TASK_KEYS = {
    "task_id",
    "title",
    "goal",
    "status",
    "current_owner",
    "repo_path",
    "completed_steps",
    "remaining_steps",
    "resume_prompt",
    "test_results",
    "decisions",
    "dead_ends",
    "files",
    "artifacts",
    "handoffs",
    "created_at",
    "updated_at",
    "version",
}

# Upper case, a dot and a dash: what URL normalisation would change.
TASK_ID = "Fix-Login.7"
TASK_URI = f"task://{TASK_ID}"
DECOY_ID = "Decoy-Task.1"
TITLE = "Fix the login"
GOAL = 'POST /login answers 200 again, also for "Zoë"'
REPO_PATH = "/srv/shop"
STEPS = [
    "reproduce the 500 on POST /login",
    "bisect to the cookie change",
    "write a failing test: naïve café ✓",
    "set the cookie before the redirect",
    "run the whole suite",
]
DECISIONS = [
    "keep the session cookie SameSite=Lax",
    "no new dependency",
    "the redirect stays a 303",
]
DEAD_ENDS = ["clearing the cache changes nothing", "the proxy is not involved"]
FILES = ["shop/login.py", "tests/test_login.py"]
FAILED_RUN = {
    "command": "pytest -q tests/test_login.py",
    "status": "failed",
    "summary": "1 failed, 11 passed",
}
PASSED_RUN = {"command": "pytest -q", "status": "passed", "summary": "212 passed"}
RESUME_PROMPT = "Set the cookie in finish_login(), then run the suite."
REASON = "context window nearly full"

DIFF = "--- a/shop/login.py\r\n+++ b/shop/login.py\n@@ -1 +1 @@\n-naïve\n+café ✓ 終\n".encode()
BYTES = bytes(range(256)) * 3
LOG_NAME = "test-run.log"


async def handoff(sender: Agent, receiver: Agent) -> None:
    """Let one agent work, run out and hand over, and the other continue where it left off."""
    for agent in (sender, receiver):
        expect(await agent.tools(), TOOLS, f"{agent.name}: tools")
    await work_begins(sender)
    artifacts = await artifacts_are_attached(sender)
    async with receiver.watching(TASK_URI):
        await task_is_handed_over(sender, receiver)
    await task_is_found(receiver)
    await prompts_are_offered(sender, receiver)
    await state_is_all_there(sender, receiver, artifacts)
    await artifacts_are_read(receiver, artifacts)
    await work_continues(receiver)
    await former_owner_is_refused(sender, receiver)
    await task_is_finished(sender, receiver)


async def work_begins(sender: Agent) -> None:
    """Create the task and save two checkpoints."""
    await sender.call("create_task", task_id=DECOY_ID, title="Another", goal="Stay out of the way")
    created = await sender.call(
        "create_task",
        task_id=TASK_ID,
        title=TITLE,
        goal=GOAL,
        repo_path=REPO_PATH,
        remaining_steps=STEPS,
        agent=sender.name,
    )
    expect((created["task_id"], created["status"]), (TASK_ID, "open"), "create_task")
    first = await sender.call(
        "save_checkpoint",
        task_id=TASK_ID,
        agent=sender.name,
        completed_steps=STEPS[:2],
        decisions=DECISIONS[:1],
        dead_ends=DEAD_ENDS[:1],
        files=FILES[:1],
    )
    owned = (first["checkpoint"], first["status"], first["current_owner"])
    expect(owned, (1, "in_progress", sender.name), "first save_checkpoint")
    second = await sender.call(
        "save_checkpoint",
        task_id=TASK_ID,
        agent=sender.name,
        completed_steps=STEPS[2:3],
        decisions=DECISIONS[1:2],
        dead_ends=DEAD_ENDS[1:],
        files=FILES[1:],
        test_results=[FAILED_RUN],
        resume_prompt="to be replaced by the handoff",
    )
    expect(second["checkpoint"], 2, "second save_checkpoint")
    expect_true(second["version"] > first["version"], "a checkpoint raises the version")


async def artifacts_are_attached(sender: Agent) -> list[bytes]:
    """Attach text, bytes and, over STDIO, a file; return their bytes in order, number 1 first."""
    attached = [DIFF, BYTES]
    texts = (DIFF.decode(), base64.b64encode(BYTES).decode())
    await attach(sender, 1, DIFF, name="login.diff", type="diff", content=texts[0])
    await attach(sender, 2, BYTES, name="core.bin", content=texts[1], encoding="base64")
    if isinstance(sender.server, StdioServer):
        attached.append(Path(sender.server.cwd, LOG_NAME).read_bytes())
        await attach(sender, 3, attached[2], name=LOG_NAME, type="log", path=LOG_NAME)
    else:
        await sender.refused(
            "attach_artifact", task_id=TASK_ID, name=LOG_NAME, path=LOG_NAME, agent=sender.name
        )
    return attached


async def attach(sender: Agent, number: int, want_bytes: bytes, **arguments: str) -> None:
    """Attach an artifact, whose acknowledgement must fit the bytes it should hold."""
    ack = await sender.call("attach_artifact", task_id=TASK_ID, agent=sender.name, **arguments)
    want = {
        "number": number,
        "name": arguments["name"],
        "type": arguments.get("type", "file"),
        "size": len(want_bytes),
        "sha256": hashlib.sha256(want_bytes).hexdigest(),
    }
    expect({key: ack["artifact"][key] for key in want}, want, f"attach_artifact {number}")


async def task_is_handed_over(sender: Agent, receiver: Agent) -> None:
    """Hand the task over with the last of its state; the addressee becomes the owner."""
    ack = await sender.call(
        "handoff_task",
        task_id=TASK_ID,
        from_agent=sender.name,
        to_agent=receiver.name,
        reason=REASON,
        resume_prompt=RESUME_PROMPT,
    )
    expect((ack["status"], ack["current_owner"]), ("handoff_ready", receiver.name), "handoff_task")


async def task_is_found(receiver: Agent) -> None:
    """Find the task by owner and status, among the resources, and by a template."""
    found = await receiver.call("list_tasks", current_owner=receiver.name, status="handoff_ready")
    expect([row["task_id"] for row in found["tasks"]], [TASK_ID], "list_tasks by owner and status")
    expect(found["total"], 1, "list_tasks: total")
    listed = await receiver.resources()
    for uri in (TASK_URI, f"task://{DECOY_ID}"):
        expect_true(uri in listed, f"{uri} is among the resources {sorted(listed)}")
    expect(listed[TASK_URI]["mimeType"], "application/json", "mimeType of a task")
    templates = await receiver.templates()
    uris = [template.replace("{task_id}", TASK_ID) for template in templates]
    expect_true(TASK_URI in uris, f"one of the templates {templates} leads to {TASK_URI}")


async def prompts_are_offered(sender: Agent, receiver: Agent) -> None:
    """Get both prompts for the task, whose id can be completed from its first letters."""
    prompts = await receiver.prompts()
    expect(sorted(prompts), ["resume_task", "wrap_up"], "prompts")
    for name, prompt in prompts.items():
        arguments = [(argument["name"], argument["required"]) for argument in prompt["arguments"]]
        expect(arguments, [("task_id", True)], f"arguments of {name}")
        text = await receiver.prompt(name, task_id=TASK_ID)
        expect_true(TASK_ID in text, f"the prompt {name} names the task: {text}")
    resume = await receiver.prompt("resume_task", task_id=TASK_ID)
    for told in (sender.name, json.dumps(RESUME_PROMPT), json.dumps(STEPS[3])):
        expect_true(told in resume, f"the prompt resume_task tells {told}: {resume}")
    by_prompt = PromptReference(type="ref/prompt", name="resume_task")
    by_template = ResourceTemplateReference(type="ref/resource", uri="task://{task_id}")
    for ref in (by_prompt, by_template):
        expect(await receiver.completions(ref, "task_id", TASK_ID[:3]), [TASK_ID], "completion of an id")
    everything = await receiver.completions(by_prompt, "task_id", "")
    expect(everything, [TASK_ID, DECOY_ID], "completion of nothing: all tasks, newest change first")


async def state_is_all_there(sender: Agent, receiver: Agent, artifacts: list[bytes]) -> None:
    """Compare what the addressee is given with everything the sender reported."""
    task = await full_task(receiver)
    want = {
        "task_id": TASK_ID,
        "title": TITLE,
        "goal": GOAL,
        "status": "handoff_ready",
        "current_owner": receiver.name,
        "repo_path": REPO_PATH,
        "completed_steps": STEPS[:3],
        "remaining_steps": STEPS[3:],
        "resume_prompt": RESUME_PROMPT,
        "decisions": DECISIONS[:2],
        "dead_ends": DEAD_ENDS,
        "files": FILES,
    }
    expect({key: task[key] for key in want}, want, "the task as handed over")
    expect_run(task, FAILED_RUN)
    expect_handoff(task, sender, receiver)
    listed = sorted((each["number"], each["size"]) for each in task["artifacts"])
    sizes = [(number, len(content)) for number, content in enumerate(artifacts, 1)]
    expect(listed, sizes, "numbers and sizes of the artifacts")


async def full_task(agent: Agent) -> Json:
    """Return the task as the tool gives it, which must be what the resource holds."""
    task = await agent.call("get_task", task_id=TASK_ID)
    expect(TASK_KEYS - set(task), frozenset(), "get_task: missing keys")
    content = await agent.read(TASK_URI)
    expect(content["mimeType"], "application/json", f"mimeType of {TASK_URI}")
    expect(json.loads(content["text"]), task, f"{TASK_URI} against get_task")
    return task


def expect_run(task: Json, want: Json) -> None:
    """Compare the task's test results with this one run."""
    runs = [{key: run[key] for key in want} for run in task["test_results"]]
    expect(runs, [want], "test_results")


def expect_handoff(task: Json, sender: Agent, receiver: Agent) -> None:
    """Compare the task's handoffs with the one of this scenario."""
    want = {"from_agent": sender.name, "to_agent": receiver.name, "reason": REASON}
    handoffs = [{key: handoff[key] for key in want} for handoff in task["handoffs"]]
    expect(handoffs, [want], "handoffs")


async def artifacts_are_read(receiver: Agent, artifacts: list[bytes]) -> None:
    """Read every artifact by tool and by resource: its bytes arrive unchanged, and one more is not there."""
    for number, content in enumerate(artifacts, 1):
        by_tool = await artifact_by_tool(receiver, number)
        expect(by_tool, content, f"artifact {number} by get_task")
        by_resource = await receiver.read(f"{TASK_URI}/artifacts/{number}")
        binary = content == BYTES
        expect(
            ("blob" in by_resource, "text" in by_resource),
            (binary, not binary),
            f"artifact {number}",
        )
        got = base64.b64decode(by_resource["blob"]) if binary else by_resource["text"].encode()
        expect(got, content, f"artifact {number} by resource")
    await receiver.misses(f"{TASK_URI}/artifacts/{len(artifacts) + 1}")


async def artifact_by_tool(agent: Agent, number: int) -> bytes:
    """Read an artifact with get_task, chunk by chunk to its end."""
    whole = b""
    offset = 0
    while True:
        chunk = await agent.call("get_task", task_id=TASK_ID, artifact=number, offset=offset)
        told = (chunk["task_id"], chunk["artifact"]["number"], chunk["offset"])
        expect(told, (TASK_ID, number, offset), "get_task with artifact")
        whole += base64.b64decode(chunk["blob"]) if "blob" in chunk else chunk["text"].encode()
        if "next_offset" not in chunk:
            return whole
        expect_true(chunk["next_offset"] > offset, f"{chunk['next_offset']} follows {offset}")
        offset = chunk["next_offset"]


async def work_continues(receiver: Agent) -> None:
    """Checkpoint as the addressee, which takes the task and adds to what the sender had done."""
    ack = await receiver.call(
        "save_checkpoint",
        task_id=TASK_ID,
        agent=receiver.name,
        completed_steps=STEPS[3:],
        remaining_steps=[],
        decisions=DECISIONS[2:],
        test_results=[PASSED_RUN],
    )
    expect(
        (ack["status"], ack["current_owner"]),
        ("in_progress", receiver.name),
        "the receiver's checkpoint",
    )
    task = await full_task(receiver)
    expect(task["completed_steps"], STEPS, "completed_steps of both agents")
    expect(task["remaining_steps"], [], "remaining_steps")
    expect(task["decisions"], DECISIONS, "decisions of both agents")
    expect(task["dead_ends"], DEAD_ENDS, "dead_ends of the sender")


async def former_owner_is_refused(sender: Agent, receiver: Agent) -> None:
    """Checkpoint a task of somebody else: the refusal names the owner and changes nothing."""
    before = await full_task(receiver)
    error = await sender.refused(
        "save_checkpoint", task_id=TASK_ID, agent=sender.name, completed_steps=["one step too late"]
    )
    expect(error["code"], "not_owner", "code of the refusal")
    told = error["message"] + error["hint"]
    expect_true(receiver.name in told, f"the refusal {told!r} names {receiver.name}")
    expect(await full_task(receiver), before, "the task after the refusal")


async def task_is_finished(sender: Agent, receiver: Agent) -> None:
    """Set the task done, of which both servers must tell the same."""
    version = (await full_task(receiver))["version"]
    arguments = {"status": "done", "expected_version": version}
    ack = await receiver.call("update_task", task_id=TASK_ID, **arguments)
    expect((ack["status"], ack["version"]), ("done", version + 1), "update_task")
    task = await full_task(receiver)
    expect(await full_task(sender), task, "the finished task, as the sender's server tells it")
    expect((task["status"], task["version"]), ("done", version + 1), "the finished task")
    expect(task["completed_steps"], STEPS, "completed_steps of the finished task")
    expect_run(task, PASSED_RUN)
    expect_handoff(task, sender, receiver)
    waiting = await receiver.call("list_tasks", current_owner=receiver.name, status="handoff_ready")
    expect((waiting["tasks"], waiting["total"]), ([], 0), "list_tasks after the end")
    done = await sender.call("list_tasks", status="done")
    expect([row["task_id"] for row in done["tasks"]], [TASK_ID], "list_tasks of what is done")


# Each reads as something else to a URL parser that folds case, knows IPv4 or resolves dots.
DELICATE_IDS = [
    "UPPER",
    "MiXed-Case.9_x",
    "EXAMPLE.COM",
    "0x7F.1",
    "127.1",
    "a..b",
    "Z.",
    "xn--A",
    "7",
    "A" * 128,
]


async def ids(writer: Agent, reader: Agent) -> None:
    """Find every id unchanged in the resource list, and read the task by that URI."""
    for task_id in DELICATE_IDS:
        await writer.call("create_task", task_id=task_id, title=task_id, goal="be found by its URI")
        await writer.call("attach_artifact", task_id=task_id, name="id.txt", content=task_id)
    listed = await reader.resources()
    expect(sorted(listed), sorted(f"task://{task_id}" for task_id in DELICATE_IDS), "resources")
    for task_id in DELICATE_IDS:
        uri = f"task://{task_id}"
        task = json.loads((await reader.read(uri))["text"])
        expect(task["task_id"], task_id, f"task_id in {uri}")
        expect((await reader.read(f"{uri}/artifacts/1"))["text"], task_id, f"artifact of {uri}")


SCENARIOS: dict[str, Callable[[Agent, Agent], Awaitable[None]]] = {"handoff": handoff, "ids": ids}
