// Play one scenario with one SDK: two clients in this process, each on a server of its own.
//
//     node driver.mjs sdk1|client2|client2-auto PLAN
//
// The plan is JSON: {"scenario": "handoff", "servers": [server, server]}, a server being either
// {"url"} or {"command", "env", "cwd", "stderr"}. When every answer was right, one JSON line on
// standard output tells which SDK played and what each client negotiated; otherwise the exit status is
// 1 and standard error says why.

import { Agent } from "./agent.mjs";
import * as client2 from "./client2.mjs";
import { handoff } from "./handoff.mjs";
import * as sdk1 from "./sdk1.mjs";

const SDKS = {
  sdk1: { release: sdk1.release, connect: sdk1.connect },
  client2: { release: client2.release, connect: (server) => client2.connect(server, "legacy") },
  "client2-auto": { release: client2.release, connect: (server) => client2.connect(server, "auto") },
};
const SCENARIOS = { handoff };
const AGENTS = ["Claude-1", "codex"];
const MILLISECONDS = 20_000;

async function play({ scenario, servers }, { release, connect }) {
  const agents = [];
  for (const [index, server] of servers.entries()) {
    agents.push(new Agent(AGENTS[index], await connect(server), server));
  }
  await SCENARIOS[scenario](...agents);
  for (const agent of agents) {
    await agent.leave();
  }
  return { sdk: release, revisions: agents.map((agent) => agent.session.revision) };
}

function fail(reason) {
  console.error(reason);
  process.exit(1);
}

setTimeout(() => fail(`not finished within ${MILLISECONDS / 1000} s`), MILLISECONDS).unref();
const [name, plan] = process.argv.slice(2);
play(JSON.parse(plan), SDKS[name]).then(
  (outcome) => console.log(JSON.stringify(outcome)),
  (error) => fail(error.name === "AssertionError" ? error.message : error.stack),
);
