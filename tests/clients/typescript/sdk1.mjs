// The official TypeScript SDK 1.x, `@modelcontextprotocol/sdk`, as the client.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { ResourceUpdatedNotificationSchema } from "@modelcontextprotocol/sdk/types.js";

import { Updates, releaseOf, transportOf } from "./session.mjs";

export const release = releaseOf("@modelcontextprotocol/sdk");

// Open a client on the server and initialize it.
export async function connect(server) {
  const transport = transportOf(server, {
    StdioClientTransport,
    SSEClientTransport,
    StreamableHTTPClientTransport,
  });
  // The client does not tell what it negotiated, but it tells its transport.
  let revision;
  const told = transport.setProtocolVersion?.bind(transport);
  transport.setProtocolVersion = (negotiated) => {
    revision = negotiated;
    told?.(negotiated);
  };
  const client = new Client({ name: "test", version: "1" });
  const complaints = [];
  client.onerror = (error) => complaints.push(error);
  const updates = new Updates();
  client.setNotificationHandler(ResourceUpdatedNotificationSchema, ({ params }) => updates.add(params.uri));
  await client.connect(transport);

  // Subscribe to a resource; returns what ends the subscription.
  async function watch(uri) {
    await client.subscribeResource({ uri });
    return () => client.unsubscribeResource({ uri });
  }
  return { client, revision, updates, watch, complaints };
}
