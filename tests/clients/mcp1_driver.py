"""The official Python SDK 1.x as the client: `python -m clients.mcp1_driver PLAN`."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.client.session import ClientSession
from mcp.types import PaginatedRequestParams

from .driver import run
from .sessions import Inbox, Server, Session, as_sent, subscription, transport


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[Session]:
    """Open a `ClientSession` on the server and initialize it."""
    inbox = Inbox()
    async with (
        transport(server) as (read, write),
        ClientSession(read, write, message_handler=inbox.take) as client,
    ):
        initialized = as_sent(await client.initialize())
        yield Session(
            revision=initialized["protocolVersion"],
            capabilities=initialized["capabilities"],
            list_tools=client.list_tools,
            call_tool=client.call_tool,
            list_resources=lambda cursor: client.list_resources(
                params=PaginatedRequestParams(cursor=cursor) if cursor else None
            ),
            list_resource_templates=client.list_resource_templates,
            read_resource=client.read_resource,
            list_prompts=client.list_prompts,
            get_prompt=client.get_prompt,
            complete=client.complete,
            watch=lambda uri: subscription(client, uri, inbox),
        )


if __name__ == "__main__":
    run(sys.argv[1], connect)
