"""FastMCP as the client: `python -m clients.fastmcp_driver PLAN`."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastmcp import Client  # type: ignore[import-not-found]  # it lives in an environment of its own
from fastmcp.client.transports import (  # type: ignore[import-not-found]
    SSETransport,
    StdioTransport,
    StreamableHttpTransport,
)

from .driver import run
from .mcp2_watching import watch
from .sessions import Inbox, Server, Service, Session, as_sent


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[Session]:
    """Open a `Client` on the server, which negotiates as it likes."""
    inbox = Inbox()
    async with Client(fastmcp_transport(server), message_handler=inbox.take) as client:
        yield Session(
            revision=client.protocol_version,
            capabilities=as_sent(client.server_capabilities),
            list_tools=client.list_tools_mcp,
            call_tool=client.call_tool_mcp,
            list_resources=lambda cursor: client.list_resources_mcp(cursor=cursor),
            list_resource_templates=client.list_resource_templates_mcp,
            read_resource=client.read_resource_mcp,
            list_prompts=client.list_prompts_mcp,
            get_prompt=client.get_prompt_mcp,
            complete=client.complete_mcp,
            watch=lambda uri: watch(client.session, uri, inbox),
        )


def fastmcp_transport(server: Server) -> Any:
    """Return FastMCP's own transport to the server."""
    if isinstance(server, Service):
        return (StreamableHttpTransport if server.is_streamable else SSETransport)(server.url)
    command, *args = server.command
    spawn = partial(StdioTransport, command, args, env=server.env, cwd=server.cwd, keep_alive=False)
    return spawn(log_file=Path(server.stderr))


if __name__ == "__main__":
    run(sys.argv[1], connect, "fastmcp-slim")
