"""FastMCP, both TypeScript SDKs and the Inspector play a handoff on every transport that they have.

They live outside this environment: `tests/clients/install.sh` installs them, and what it has not
installed is skipped. See `clients/servers.py` for the drivers and the servers.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients.inspector import Inspector
from clients.servers import TYPESCRIPT, Sdk, Servers, interpreter, new_servers, require_node


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Servers on a new database, which end with the test: all of them with 0, without complaint."""
    with new_servers(tmp_path) as running:
        yield running


@pytest.mark.parametrize("transports", ["stdio-stdio", "sse-sse", "mcp-mcp"])
def test_fastmcp_plays_a_handoff(servers: Servers, transports: str) -> None:
    """FastMCP hands a task over; it negotiates 2026-07-28 but for HTTP+SSE, where it never does."""
    driver = [interpreter("fastmcp"), "-m", "clients.fastmcp_driver"]
    sdk = Sdk("4.1.", driver, "2026-07-28", {"sse": "2025-11-25"})
    sdk.play("handoff", servers, transports.split("-"))


@pytest.mark.parametrize("transports", ["stdio-stdio", "sse-sse", "mcp-mcp"])
@pytest.mark.parametrize(
    ("name", "release", "revision"),
    [
        ("sdk1", "1.32.", "2025-11-25"),
        ("client2", "2.4.", "2025-11-25"),
        ("client2-auto", "2.4.", "2026-07-28"),
    ],
)
def test_typescript_plays_a_handoff(
    servers: Servers, name: str, release: str, revision: str, transports: str
) -> None:
    """The TypeScript SDKs hand a task over, 2.x both as it comes and told to probe for 2026-07-28."""
    require_node()
    sdk = Sdk(release, ["node", str(TYPESCRIPT / "driver.mjs"), name], revision)
    sdk.play("handoff", servers, transports.split("-"))


@pytest.mark.parametrize("transport", ["stdio", "sse", "mcp"])
def test_inspector_plays_a_handoff(servers: Servers, tmp_path: Path, transport: str) -> None:
    """The Inspector hands a task over from one era to the other and finds nothing to complain of."""
    require_node()
    sender = Inspector(servers.add(transport), "legacy", tmp_path)
    receiver = Inspector(servers.add(transport), "auto", tmp_path)
    assert sender.request("initialize")["protocolVersion"] == "2025-11-25"
    assert receiver.request("initialize")["protocolVersion"] == "2026-07-28"
    assert len(sender.request("tools/list", "--strict")["tools"]) == 9

    task_id, done = "Fix-Login.7", ["reproduce naïve café"]
    sender.call(
        "create_task", task_id=task_id, title="Fix the login", goal="POST /login: 200", agent="Claude-1"
    )
    sender.call(
        "handoff_task",
        task_id=task_id,
        from_agent="Claude-1",
        to_agent="codex",
        completed_steps=done,
        reason="quota",
    )
    late = sender.refused("save_checkpoint", task_id=task_id, agent="Claude-1", completed_steps=["too late"])
    assert late["code"] == "not_owner"

    [waiting] = receiver.call("list_tasks", current_owner="codex", status="handoff_ready")["tasks"]
    [listed] = receiver.request("resources/list")["resources"]
    assert (waiting["task_id"], listed["uri"]) == (task_id, f"task://{task_id}")
    [content] = receiver.request("resources/read", "--uri", listed["uri"])["contents"]
    assert json.loads(content["text"])["completed_steps"] == done
    prompt = receiver.request(
        "prompts/get", "--prompt-name", "resume_task", "--prompt-args", f"task_id={task_id}"
    )
    assert task_id in prompt["messages"][0]["content"]["text"]
    assert receiver.call("update_task", task_id=task_id, status="done")["status"] == "done"
