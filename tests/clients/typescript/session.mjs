// What both SDKs have in common: how to reach a server, and hearing of updated resources.

import { openSync, readFileSync } from "node:fs";

const UPDATE_MILLISECONDS = 5_000;

// Return "1.2.3", the installed release of a package.
export function releaseOf(name) {
  const manifest = new URL(`./node_modules/${name}/package.json`, import.meta.url);
  return JSON.parse(readFileSync(manifest, "utf8")).version;
}

// Return the SDK's transport to the server: a process to spawn, or a service by the URL of its endpoint.
export function transportOf(server, { StdioClientTransport, SSEClientTransport, StreamableHTTPClientTransport }) {
  if (server.url === undefined) {
    const [command, ...args] = server.command;
    const { env, cwd } = server;
    return new StdioClientTransport({ command, args, env, cwd, stderr: openSync(server.stderr, "w") });
  }
  const url = new URL(server.url);
  return isStreamable(server) ? new StreamableHTTPClientTransport(url) : new SSEClientTransport(url);
}

// Tell whether the server is reached by Streamable HTTP.
export function isStreamable(server) {
  return server.url !== undefined && server.url.endsWith("/mcp");
}

// The URIs of updated resources, in the order in which the client heard of them.
export class Updates {
  #heard = [];
  #waiting = [];

  add(uri) {
    const waiting = this.#waiting.shift();
    if (waiting === undefined) {
      this.#heard.push(uri);
    } else {
      waiting(uri);
    }
  }

  // Wait for the next update and return its URI; rejects if none comes.
  next() {
    if (this.#heard.length > 0) {
      return Promise.resolve(this.#heard.shift());
    }
    return new Promise((resolve, reject) => {
      const late = new Error(`heard of no update within ${UPDATE_MILLISECONDS / 1000} s`);
      const timer = setTimeout(() => reject(late), UPDATE_MILLISECONDS);
      this.#waiting.push((uri) => {
        clearTimeout(timer);
        resolve(uri);
      });
    });
  }
}
