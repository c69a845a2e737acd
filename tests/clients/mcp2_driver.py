"""The official Python SDK 2.x as the client: `python -m clients.mcp2_driver MODE PLAN`."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from mcp.client.client import Client

from .driver import run
from .mcp2_watching import watch
from .sessions import Inbox, Server, Session, as_sent, transport


@asynccontextmanager
async def connect(server: Server, *, mode: str) -> AsyncIterator[Session]:
    """Open a `Client` on the server, which negotiates as `mode` says: auto or legacy."""
    inbox = Inbox()
    async with Client(transport(server), mode=mode, message_handler=inbox.take) as client:
        yield Session(
            revision=client.protocol_version,
            capabilities=as_sent(client.server_capabilities),
            list_tools=client.list_tools,
            call_tool=client.call_tool,
            list_resources=lambda cursor: client.list_resources(cursor=cursor),
            list_resource_templates=client.list_resource_templates,
            read_resource=client.read_resource,
            list_prompts=client.list_prompts,
            get_prompt=client.get_prompt,
            complete=client.complete,
            watch=lambda uri: watch(client.session, uri, inbox),
        )


if __name__ == "__main__":
    run(sys.argv[2], partial(connect, mode=sys.argv[1]))
