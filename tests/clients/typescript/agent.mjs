// A named agent on one session; every answer is checked before it is used.

import assert from "node:assert/strict";

import { isStreamable } from "./session.mjs";

const STRUCTURED_CONTENT_SINCE = "2025-06-18";
const STATELESS_SINCE = "2026-07-28";

export class Agent {
  constructor(name, session, server) {
    this.name = name;
    this.session = session;
    this.server = server;
    this.client = session.client;
  }

  // Call a tool that must succeed and return its JSON object.
  async call(tool, args = {}) {
    const { answer, isError } = await this.#call(tool, args);
    assert.ok(!isError, `${this.name}: ${tool} is refused: ${JSON.stringify(answer)}`);
    return answer;
  }

  // Call a tool that must be refused and return its error: code, message and hint.
  async refused(tool, args) {
    const { answer, isError } = await this.#call(tool, args);
    assert.ok(isError, `${this.name}: ${tool} is not refused: ${JSON.stringify(answer)}`);
    assert.deepEqual(Object.keys(answer.error).sort(), ["code", "hint", "message"], `${tool}: an error`);
    return answer.error;
  }

  async #call(tool, args) {
    const result = await this.client.callTool({ name: tool, arguments: args });
    assert.deepEqual(result.content.map(({ type }) => type), ["text"], `${tool}: content blocks`);
    const answer = JSON.parse(result.content[0].text);
    const mirrored = this.session.revision >= STRUCTURED_CONTENT_SINCE ? answer : undefined;
    assert.deepEqual(result.structuredContent, mirrored, `${tool}: structured content against the text`);
    return { answer, isError: result.isError ?? false };
  }

  // Return the names of the tools, sorted.
  async tools() {
    const { tools } = await this.client.listTools();
    return tools.map(({ name }) => name).sort();
  }

  // Return the resources of the first page by URI.
  async resources() {
    const { resources } = await this.client.listResources();
    return new Map(resources.map((resource) => [resource.uri, resource]));
  }

  // Return the URI templates of the resources.
  async templates() {
    const { resourceTemplates } = await this.client.listResourceTemplates();
    return resourceTemplates.map(({ uriTemplate }) => uriTemplate);
  }

  // Read a resource and return its only content.
  async read(uri) {
    const { contents } = await this.client.readResource({ uri });
    assert.deepEqual(contents.map((content) => content.uri), [uri], "resources/read: uri");
    return contents[0];
  }

  // Read a resource that is not there: the error, whose code depends on the revision, names it.
  async misses(uri) {
    const error = await this.client.readResource({ uri }).then(
      () => assert.fail(`${uri} is there`),
      (reason) => reason,
    );
    assert.deepEqual(error.data, { uri }, `resources/read of what is not there: ${error}`);
  }

  // Get a prompt, which must be one message of the user, and return its text.
  async prompt(name, args) {
    const { messages } = await this.client.getPrompt({ name, arguments: args });
    const shape = messages.map(({ role, content }) => [role, content.type]);
    assert.deepEqual(shape, [["user", "text"]], `prompts/get: messages of ${name}`);
    return messages[0].content.text;
  }

  // Return what an argument's value can become.
  async completions(ref, name, value) {
    const { completion } = await this.client.complete({ ref, argument: { name, value } });
    assert.equal(completion.total, completion.values.length, "completion/complete: total");
    return completion.values;
  }

  // Watch a resource while `change` runs, which must update it: the client hears of it, if it can at all.
  // It cannot where the handshake era meets Streamable HTTP without sessions, and must be told so.
  async watching(uri, change) {
    const canWatch = this.session.revision >= STATELESS_SINCE || !isStreamable(this.server);
    const { subscribe } = this.client.getServerCapabilities().resources;
    assert.equal(subscribe, canWatch, "resources.subscribe");
    const end = canWatch ? await this.session.watch(uri) : undefined;
    await change();
    if (canWatch) {
      assert.equal(await this.session.updates.next(), uri, `what ${this.name} heard of`);
      await end();
    }
  }

  // Close the session, which must have had nothing to complain of.
  async leave() {
    assert.deepEqual(this.session.complaints.map(String), [], `what ${this.name}'s client complains of`);
    await this.client.close();
  }
}
