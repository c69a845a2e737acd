"""The official Python SDK 2.x as the client: `python -m clients.mcp2_driver PLAN MODE`."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from mcp.client.client import Client

from .driver import run
from .sessions import Server, Session, transport


@asynccontextmanager
async def connect(server: Server, *, mode: str) -> AsyncIterator[Session]:
    """Open a `Client` on the server, which negotiates as `mode` says: auto or legacy."""
    async with Client(transport(server), mode=mode) as client:
        yield Session(
            revision=client.protocol_version,
            list_tools=client.list_tools,
            call_tool=client.call_tool,
            list_resources=lambda cursor: client.list_resources(cursor=cursor),
            list_resource_templates=client.list_resource_templates,
            read_resource=client.read_resource,
        )


if __name__ == "__main__":
    run(sys.argv[1], partial(connect, mode=sys.argv[2]))
