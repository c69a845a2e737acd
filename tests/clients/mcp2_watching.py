"""Watching a resource with the official Python SDK 2.x, and with what is built on it."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from mcp.client.session import ClientSession
from mcp.client.subscriptions import ResourceUpdated, listen

from .sessions import STATELESS_SINCE, Inbox, NextUpdate, expect, subscription


def watch(client: ClientSession, uri: str, inbox: Inbox) -> AbstractAsyncContextManager[NextUpdate]:
    """Watch `uri` in the way of the era that the client is in."""
    if (client.protocol_version or "") >= STATELESS_SINCE:
        return listening(client, uri)
    return subscription(client, uri, inbox)


@asynccontextmanager
async def listening(client: ClientSession, uri: str) -> AsyncIterator[NextUpdate]:
    """Listen for updates of `uri`, which the server must honour."""
    async with listen(client, resource_subscriptions=[uri]) as events:
        expect(events.honored.resource_subscriptions, [uri], "subscriptions/listen: what is honoured")

        async def next_update() -> str:
            event = await anext(events)
            return event.uri if isinstance(event, ResourceUpdated) else repr(event)

        yield next_update
