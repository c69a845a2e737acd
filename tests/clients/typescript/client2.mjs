// The official TypeScript SDK 2.x, `@modelcontextprotocol/client`, as the client.

import { Client, SSEClientTransport, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import assert from "node:assert/strict";

import { Updates, releaseOf, transportOf } from "./session.mjs";

export const release = releaseOf("@modelcontextprotocol/client");

// Open a client on the server, which negotiates as `mode` says: legacy, its default, or auto.
export async function connect(server, mode) {
  const transport = transportOf(server, {
    StdioClientTransport,
    SSEClientTransport,
    StreamableHTTPClientTransport,
  });
  const options = mode === "auto" ? { versionNegotiation: { mode } } : {};
  const client = new Client({ name: "test", version: "1" }, options);
  const complaints = [];
  client.onerror = (error) => complaints.push(error);
  const updates = new Updates();
  client.setNotificationHandler("notifications/resources/updated", ({ params }) => updates.add(params.uri));
  await client.connect(transport);

  // Watch a resource in the way of the era that the client is in; returns what ends it.
  async function watch(uri) {
    if (client.getProtocolEra() === "legacy") {
      await client.subscribeResource({ uri });
      return () => client.unsubscribeResource({ uri });
    }
    const subscription = await client.listen({ resourceSubscriptions: [uri] });
    assert.deepEqual(subscription.honoredFilter.resourceSubscriptions, [uri], "subscriptions/listen: honoured");
    return async () => {
      await subscription.close();
      assert.equal(await subscription.closed, "local", "subscriptions/listen: how it ended");
    };
  }
  return { client, revision: client.getNegotiatedProtocolVersion(), updates, watch, complaints };
}
