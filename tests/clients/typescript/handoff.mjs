// The scenario: one agent works, runs out and hands over, and the other continues where it left off.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";

const TOOLS = [
  "attach_artifact",
  "claim_task",
  "create_task",
  "get_task",
  "handoff_task",
  "list_tasks",
  "mark_exhausted",
  "save_checkpoint",
  "update_task",
];
// Upper case, a dot and a dash: what URL normalisation would change.
const TASK_ID = "Fix-Login.7";
const TASK_URI = `task://${TASK_ID}`;
const GOAL = 'POST /login answers 200 again, also for "Zoë"';
const STEPS = [
  "reproduce the 500 on POST /login",
  "write a failing test: naïve café ✓",
  "set the cookie before the redirect",
  "run the whole suite",
];
const DECISIONS = ["keep the session cookie SameSite=Lax", "the redirect stays a 303"];
const DEAD_ENDS = ["clearing the cache changes nothing"];
const RESUME_PROMPT = "Set the cookie in finish_login(), then run the suite.";
const REASON = "context window nearly full";
const DIFF = "--- a/shop/login.py\r\n+++ b/shop/login.py\n@@ -1 +1 @@\n-naïve\n+café ✓ 終\n";
const BYTES = Buffer.from([...Array(768).keys()].map((number) => number % 256));

export async function handoff(sender, receiver) {
  for (const agent of [sender, receiver]) {
    assert.deepEqual(await agent.tools(), TOOLS, `${agent.name}: tools`);
  }
  await workBegins(sender);
  await artifactsAreAttached(sender);
  await receiver.watching(TASK_URI, () => taskIsHandedOver(sender, receiver));
  await taskIsFound(receiver);
  await promptsAreOffered(sender, receiver);
  await stateIsAllThere(sender, receiver);
  await artifactsAreRead(receiver);
  await workContinues(receiver);
  await formerOwnerIsRefused(sender, receiver);
  await taskIsFinished(sender, receiver);
}

// Create the task and save two checkpoints.
async function workBegins(sender) {
  const created = await sender.call("create_task", {
    task_id: TASK_ID,
    title: "Fix the login",
    goal: GOAL,
    remaining_steps: STEPS,
    agent: sender.name,
  });
  assert.deepEqual([created.task_id, created.status], [TASK_ID, "open"], "create_task");
  const first = await sender.call("save_checkpoint", {
    task_id: TASK_ID,
    agent: sender.name,
    completed_steps: STEPS.slice(0, 1),
    decisions: DECISIONS.slice(0, 1),
  });
  assert.deepEqual([first.checkpoint, first.status, first.current_owner], [1, "in_progress", sender.name]);
  const second = await sender.call("save_checkpoint", {
    task_id: TASK_ID,
    agent: sender.name,
    completed_steps: STEPS.slice(1, 2),
    dead_ends: DEAD_ENDS,
    test_results: [{ command: "pytest -q", status: "failed", summary: "1 failed, 11 passed" }],
  });
  assert.equal(second.checkpoint, 2, "second save_checkpoint");
  assert.ok(second.version > first.version, "a checkpoint raises the version");
}

// Attach text and bytes.
async function artifactsAreAttached(sender) {
  const attached = [
    [Buffer.from(DIFF), { name: "login.diff", type: "diff", content: DIFF }],
    [BYTES, { name: "core.bin", content: BYTES.toString("base64"), encoding: "base64" }],
  ];
  for (const [index, [bytes, args]] of attached.entries()) {
    const ack = await sender.call("attach_artifact", { task_id: TASK_ID, agent: sender.name, ...args });
    const { number, name, size, sha256 } = ack.artifact;
    const expected = [index + 1, args.name, bytes.length, createHash("sha256").update(bytes).digest("hex")];
    assert.deepEqual([number, name, size, sha256], expected, `attach_artifact ${index + 1}`);
  }
}

// Hand the task over with the last of its state; the addressee becomes the owner.
async function taskIsHandedOver(sender, receiver) {
  const ack = await sender.call("handoff_task", {
    task_id: TASK_ID,
    from_agent: sender.name,
    to_agent: receiver.name,
    reason: REASON,
    decisions: DECISIONS.slice(1),
    resume_prompt: RESUME_PROMPT,
  });
  assert.deepEqual([ack.status, ack.current_owner], ["handoff_ready", receiver.name], "handoff_task");
}

// Find the task by owner and status, among the resources, and by a template.
async function taskIsFound(receiver) {
  const waiting = await receiver.call("list_tasks", { current_owner: receiver.name, status: "handoff_ready" });
  assert.deepEqual(waiting.tasks.map((row) => row.task_id), [TASK_ID], "list_tasks by owner and status");
  const listed = await receiver.resources();
  assert.deepEqual([...listed.keys()], [TASK_URI], "resources");
  assert.equal(listed.get(TASK_URI).mimeType, "application/json", "mimeType of a task");
  const uris = (await receiver.templates()).map((template) => template.replace("{task_id}", TASK_ID));
  assert.ok(uris.includes(TASK_URI), `one of the templates leads to ${TASK_URI}: ${uris}`);
}

// Get both prompts for the task, whose id can be completed from its first letters.
async function promptsAreOffered(sender, receiver) {
  const { prompts } = await receiver.client.listPrompts();
  assert.deepEqual(prompts.map(({ name }) => name).sort(), ["resume_task", "wrap_up"], "prompts");
  const resume = await receiver.prompt("resume_task", { task_id: TASK_ID });
  for (const told of [TASK_ID, sender.name, JSON.stringify(RESUME_PROMPT), JSON.stringify(STEPS[3])]) {
    assert.ok(resume.includes(told), `the prompt resume_task tells ${told}: ${resume}`);
  }
  assert.ok((await receiver.prompt("wrap_up", { task_id: TASK_ID })).includes(TASK_ID), "wrap_up");
  for (const ref of [
    { type: "ref/prompt", name: "resume_task" },
    { type: "ref/resource", uri: "task://{task_id}" },
  ]) {
    assert.deepEqual(await receiver.completions(ref, "task_id", "Fix"), [TASK_ID], "completion of an id");
    assert.deepEqual(await receiver.completions(ref, "task_id", "None"), [], "completion of no id");
  }
}

// Compare what the addressee is given with everything the sender reported.
async function stateIsAllThere(sender, receiver) {
  const task = await fullTask(receiver);
  const expected = {
    task_id: TASK_ID,
    goal: GOAL,
    status: "handoff_ready",
    current_owner: receiver.name,
    completed_steps: STEPS.slice(0, 2),
    remaining_steps: STEPS.slice(2),
    decisions: DECISIONS,
    dead_ends: DEAD_ENDS,
    resume_prompt: RESUME_PROMPT,
  };
  const got = Object.fromEntries(Object.keys(expected).map((key) => [key, task[key]]));
  assert.deepEqual(got, expected, "the task as handed over");
  const handoffs = task.handoffs.map(({ from_agent, to_agent, reason }) => [from_agent, to_agent, reason]);
  assert.deepEqual(handoffs, [[sender.name, receiver.name, REASON]], "handoffs");
}

// Return the task as the tool gives it, which must be what the resource holds.
async function fullTask(agent) {
  const task = await agent.call("get_task", { task_id: TASK_ID });
  const content = await agent.read(TASK_URI);
  assert.deepEqual(JSON.parse(content.text), task, `${TASK_URI} against get_task`);
  return task;
}

// Read both artifacts as resources; their bytes arrive unchanged, and a third is not there.
async function artifactsAreRead(receiver) {
  const text = await receiver.read(`${TASK_URI}/artifacts/1`);
  assert.deepEqual([text.mimeType, text.text], ["text/x-diff", DIFF], "artifact 1");
  const binary = await receiver.read(`${TASK_URI}/artifacts/2`);
  assert.deepEqual(Buffer.from(binary.blob, "base64"), BYTES, "artifact 2");
  await receiver.misses(`${TASK_URI}/artifacts/3`);
}

// Checkpoint as the addressee, which takes the task and adds to what the sender had done.
async function workContinues(receiver) {
  const ack = await receiver.call("save_checkpoint", {
    task_id: TASK_ID,
    agent: receiver.name,
    completed_steps: STEPS.slice(2),
    remaining_steps: [],
  });
  assert.deepEqual([ack.status, ack.current_owner], ["in_progress", receiver.name], "the receiver's checkpoint");
  assert.deepEqual((await fullTask(receiver)).completed_steps, STEPS, "completed_steps of both agents");
}

// Checkpoint a task of somebody else: the refusal names the owner and changes nothing.
async function formerOwnerIsRefused(sender, receiver) {
  const before = await fullTask(receiver);
  const late = { task_id: TASK_ID, agent: sender.name, completed_steps: ["one step too late"] };
  const error = await sender.refused("save_checkpoint", late);
  assert.equal(error.code, "not_owner", "code of the refusal");
  assert.ok((error.message + error.hint).includes(receiver.name), `the refusal names ${receiver.name}`);
  assert.deepEqual(await fullTask(receiver), before, "the task after the refusal");
}

// Set the task done, of which both servers must tell the same.
async function taskIsFinished(sender, receiver) {
  const { version } = await fullTask(receiver);
  const ack = await receiver.call("update_task", { task_id: TASK_ID, status: "done", expected_version: version });
  assert.deepEqual([ack.status, ack.version], ["done", version + 1], "update_task");
  assert.deepEqual(await fullTask(sender), await fullTask(receiver), "the finished task on both servers");
  const done = await sender.call("list_tasks", { status: "done" });
  assert.deepEqual(done.tasks.map((row) => row.task_id), [TASK_ID], "list_tasks of what is done");
}
