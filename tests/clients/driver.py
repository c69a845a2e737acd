"""Play one scenario with one SDK: two clients in this process, each on a server of its own.

The plan is JSON: `{"scenario": name, "servers": [server, server]}`. When every answer was right,
one JSON line on standard output tells which SDK played and what each client negotiated; otherwise
the exit status is 1 and standard error says why.
"""

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from importlib.metadata import version

from .handoff_steps import SCENARIOS
from .sessions import Agent, Connect, Json, Server, Service, StdioServer, UnexpectedAnswerError

AGENTS = ("Claude-1", "codex")
SECONDS = 20


def run(plan_json: str, connect: Connect, distribution: str = "mcp") -> None:
    """Play the plan with clients of `distribution` that `connect` opens, and print the outcome."""
    plan: Json = json.loads(plan_json)
    servers = [server_of(description) for description in plan["servers"]]
    try:
        revisions = asyncio.run(play(plan["scenario"], servers, connect))
    except Exception as error:
        sys.exit("\n".join(reasons(error)))
    print(json.dumps({"sdk": version(distribution), "revisions": revisions}))


def server_of(description: Json) -> Server:
    """Read one server of the plan."""
    return Service(**description) if "url" in description else StdioServer(**description)


async def play(scenario: str, servers: list[Server], connect: Connect) -> list[str]:
    """Keep both agents connected throughout the scenario, and return their revisions."""
    async with asyncio.timeout(SECONDS), AsyncExitStack() as stack:
        sender, receiver = [
            Agent(name, await stack.enter_async_context(connect(server)), server)
            for name, server in zip(AGENTS, servers, strict=True)
        ]
        await SCENARIOS[scenario](sender, receiver)
        return [sender.session.revision, receiver.session.revision]


def reasons(error: BaseException) -> list[str]:
    """Name the causes inside the exception groups that an SDK's task groups wrap around them."""
    if isinstance(error, BaseExceptionGroup):
        return [reason for each in error.exceptions for reason in reasons(each)]
    if isinstance(error, TimeoutError):
        return [f"not finished within {SECONDS} s"]
    if isinstance(error, UnexpectedAnswerError):
        return [str(error)]
    return [f"{type(error).__name__}: {error}"]
