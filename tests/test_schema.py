"""Every answer at every revision, against that revision's official JSON schema; and the tool list."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema.validators import validator_for  # type: ignore[import-untyped]
from make_tool_list import made_tool_list
from support import StdioClient

from config import CLAIM_WAIT_SECONDS
from protocol import META_CAPABILITIES, META_SERVER, META_VERSION, REVISIONS, SERVER_INFO, JsonObject
from tool_list import list_tools

SCHEMAS = Path(__file__).parent / "schema"
DATES = [revision.date for revision in REVISIONS]
*HANDSHAKES, STATELESS = DATES
INITIALIZE = {"capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}

# What is asked: method and params, and the definition that the result must fit; None where an error is due.
CALLS: dict[str, tuple[str, JsonObject, str | None]] = {
    "tools/list": ("tools/list", {}, "ListToolsResult"),
    "call": ("tools/call", {"name": "get_task", "arguments": {"task_id": "t"}}, "CallToolResult"),
    "call a list": ("tools/call", {"name": "list_tasks"}, "CallToolResult"),
    "call refused": ("tools/call", {"name": "get_task", "arguments": {"task_id": "none"}}, "CallToolResult"),
    "call for a brief": (
        "tools/call",
        {"name": "get_task", "arguments": {"task_id": "t", "view": "resume"}},
        "CallToolResult",
    ),
    "call for nothing": (
        "tools/call",
        {"name": "claim_task", "arguments": {"agent": "a", "tag": "none"}},
        "CallToolResult",
    ),
    "call invalid": ("tools/call", {"name": "get_task", "arguments": {"x": []}}, "CallToolResult"),
    "resources/list": ("resources/list", {}, "ListResourcesResult"),
    "templates": ("resources/templates/list", {}, "ListResourceTemplatesResult"),
    "read task": ("resources/read", {"uri": "task://t"}, "ReadResourceResult"),
    "read text": ("resources/read", {"uri": "task://t/artifacts/1"}, "ReadResourceResult"),
    "read blob": ("resources/read", {"uri": "task://t/artifacts/2"}, "ReadResourceResult"),
    "prompts/list": ("prompts/list", {}, "ListPromptsResult"),
    "prompt": ("prompts/get", {"name": "resume_task", "arguments": {"task_id": "t"}}, "GetPromptResult"),
    "completion": (
        "completion/complete",
        {"ref": {"type": "ref/prompt", "name": "wrap_up"}, "argument": {"name": "task_id", "value": "t"}},
        "CompleteResult",
    ),
    "unknown method": ("no/such/method", {}, None),
    "unknown tool": ("tools/call", {"name": "none"}, None),
    "bad cursor": ("resources/list", {"cursor": "none"}, None),
    "bad uri": ("resources/read", {"uri": "none"}, None),
    "no resource": ("resources/read", {"uri": "task://none"}, None),
    "unknown prompt": ("prompts/get", {"name": "none"}, None),
}
RESULTS = {label: definition for label, (_, _, definition) in CALLS.items() if definition}
ERRORS = [label for label, (_, _, definition) in CALLS.items() if not definition]

Transcript = dict[str, JsonObject]  # the response to each of CALLS, and to what comes first ("opening")


@pytest.fixture(scope="module")
def transcripts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Transcript]]:
    """Return what one server answers at each revision, in the order of the table."""
    with StdioClient(tmp_path_factory.mktemp("schema")) as client:
        client.initialize()
        client.call("create_task", task_id="t", title="Title", goal="Goal", remaining_steps=["a"])
        client.call("attach_artifact", task_id="t", name="a.log", type="log", content="text\n")
        client.call("attach_artifact", task_id="t", name="a.bin", content="AP8=", encoding="base64")
        client.call("handoff_task", task_id="t", from_agent="a", to_agent="b", reason="r", test_results="ok")
        yield {date: transcript(client, date) for date in DATES}


def transcript(client: StdioClient, date: str) -> Transcript:
    if date == STATELESS:
        meta = {"_meta": {META_VERSION: date, META_CAPABILITIES: {}}}
        opening = client.request("server/discover", meta)
    else:
        meta = {}
        opening = client.request("initialize", {"protocolVersion": date, **INITIALIZE})
    answers = {
        label: client.request(method, {**params, **meta}) for label, (method, params, _) in CALLS.items()
    }
    return {"opening": opening, **answers}


@cache
def definitions(date: str) -> JsonObject:
    """Return the definitions of a revision's schema."""
    schema = json.loads((SCHEMAS / f"{date}.json").read_text())
    found: JsonObject = schema.get("$defs") or schema["definitions"]
    return found


@cache
def validator(date: str, definition: str) -> Any:
    schema = json.loads((SCHEMAS / f"{date}.json").read_text())
    place = "$defs" if "$defs" in schema else "definitions"
    return validator_for(schema)({**schema, "$ref": f"#/{place}/{definition}"})


def assert_fits(value: Any, date: str, definition: str) -> None:
    """Fail unless `value` is valid and has no member that the definition does not name."""
    problems = [
        f"{problem.json_path}: {problem.message}"
        for problem in validator(date, definition).iter_errors(value)
    ]
    assert not problems
    named = members(date, definition)
    assert not named or not set(value) - named, definition


def members(date: str, definition: str) -> set[str]:
    """Return the members that a definition names, itself or in those that it is made of."""
    defined = definitions(date)[definition]
    named = set(defined.get("properties", ()))
    for part in [*defined.get("allOf", ()), *([defined] if "$ref" in defined else [])]:
        named |= members(date, part["$ref"].rpartition("/")[2]) if "$ref" in part else set(part["properties"])
    return named


each_revision = pytest.mark.parametrize("date", DATES)


@each_revision
@pytest.mark.parametrize("label", ["opening", *RESULTS])
def test_results_are_valid(transcripts: dict[str, Transcript], date: str, label: str) -> None:
    """Each method's result, and the response around it, is what the revision's schema says."""
    response = transcripts[date][label]
    envelope = "JSONRPCResponse" if "JSONRPCError" in definitions(date) else "JSONRPCResultResponse"
    assert_fits(response, date, envelope)
    opening = "DiscoverResult" if date == STATELESS else "InitializeResult"
    assert_fits(response["result"], date, RESULTS.get(label, opening))


@each_revision
@pytest.mark.parametrize("label", ERRORS)
def test_errors_are_valid(transcripts: dict[str, Transcript], date: str, label: str) -> None:
    """Each error response is what the revision's schema says."""
    envelope = "JSONRPCError" if "JSONRPCError" in definitions(date) else "JSONRPCErrorResponse"
    assert_fits(transcripts[date][label], date, envelope)


@each_revision
@pytest.mark.parametrize("label", RESULTS)
def test_results_are_marked_without_a_handshake(
    transcripts: dict[str, Transcript], date: str, label: str
) -> None:
    """A stateless client needs its marks, and an older one must not see them."""
    result = transcripts[date][label]["result"]
    marks = {name: result.get(name) for name in ("resultType", "_meta")}
    told = {"resultType": "complete", "_meta": {META_SERVER: SERVER_INFO}}
    assert marks == (told if date == STATELESS else {"resultType": None, "_meta": None})
    assert ("ttlMs" in result) == ("cacheScope" in result)
    assert ("ttlMs" in result) == (date == STATELESS and RESULTS[label][:4] in ("List", "Read"))


@pytest.mark.parametrize(
    ("label", "member", "definition"),
    [
        ("tools/list", "tools", "Tool"),
        ("resources/list", "resources", "Resource"),
        ("templates", "resourceTemplates", "ResourceTemplate"),
        ("prompts/list", "prompts", "Prompt"),
    ],
)
@each_revision
def test_listed_entries_are_valid(
    transcripts: dict[str, Transcript], date: str, label: str, member: str, definition: str
) -> None:
    """Tools, resources, templates and prompts have the members that the revision knows, and no others."""
    entries = transcripts[date][label]["result"][member]
    assert entries
    for entry in entries:
        assert_fits(entry, date, definition)
        if "annotations" in entry:
            assert_fits(entry["annotations"], date, "ToolAnnotations")


@each_revision
def test_the_opening_is_valid(transcripts: dict[str, Transcript], date: str) -> None:
    """What the server says of itself has the members that the revision knows, and no others."""
    opening = transcripts[date]["opening"]["result"]
    if date == STATELESS:
        assert opening["supportedVersions"] == DATES[::-1]
    else:
        assert opening["protocolVersion"] == date
        assert_fits(opening["serverInfo"], date, "Implementation")
    assert_fits(opening["capabilities"], date, "ServerCapabilities")
    assert opening["capabilities"] == CAPABILITIES.get(date, SINCE_2025)


SINCE_2025 = {
    "tools": {"listChanged": False},
    "resources": {"subscribe": True, "listChanged": False},
    "prompts": {"listChanged": False},
    "completions": {},
}
CAPABILITIES = {
    # What a 2024-11-05 client gets is fixed, byte for byte.
    HANDSHAKES[0]: {
        "tools": {"listChanged": False},
        "resources": {"subscribe": False, "listChanged": False},
    },
    STATELESS: {**SINCE_2025, "resources": {"subscribe": True, "listChanged": True}},
}


def test_the_oldest_opening_is_fixed(transcripts: dict[str, Transcript]) -> None:
    """A client of the first revision gets its exact answer, member for member, in this order."""
    assert json.dumps(transcripts["2024-11-05"]["opening"]["result"], separators=(",", ":")) == (
        '{"protocolVersion":"2024-11-05","capabilities":{"tools":{"listChanged":false},'
        '"resources":{"subscribe":false,"listChanged":false}},'
        '"serverInfo":{"name":"mcp-task-server","version":"1.0.0"}}'
    )


@pytest.mark.parametrize(
    ("since", "label", "path"),
    [
        ("2025-03-26", "opening", "instructions"),
        ("2025-03-26", "tools/list", "tools.annotations"),
        ("2025-06-18", "tools/list", "tools.title"),
        ("2025-06-18", "prompts/list", "prompts.title"),
        ("2025-06-18", "resources/list", "resources.title"),
        ("2025-06-18", "templates", "resourceTemplates.title"),
        ("2025-06-18", "call", "structuredContent"),
        ("2025-06-18", "call refused", "structuredContent"),
    ],
)
@each_revision
def test_members_appear_with_their_revision(
    transcripts: dict[str, Transcript], date: str, since: str, label: str, path: str
) -> None:
    """A member that came with a revision is there from then on, and absent before."""
    place = transcripts[date][label]["result"]
    *outer, member = path.split(".")
    for name in outer:
        place = place[name]
    places = place if isinstance(place, list) else [place]
    assert places
    assert {member in found for found in places} == {date >= since}


@pytest.mark.parametrize("date", HANDSHAKES)
def test_the_server_has_a_title_since_2025_06(transcripts: dict[str, Transcript], date: str) -> None:
    """The server's title came with the same revision as all titles."""
    assert ("title" in transcripts[date]["opening"]["result"]["serverInfo"]) == (date >= "2025-06-18")


@each_revision
def test_nothing_is_null_that_may_be_absent(transcripts: dict[str, Transcript], date: str) -> None:
    """No protocol member is ever null; what a task holds may be."""

    def nulls(value: Any, path: str) -> Iterator[str]:
        if value is None:
            yield path
        if isinstance(value, dict):
            value = {name: inner for name, inner in value.items() if name != "structuredContent"}
        for name, inner in value.items() if isinstance(value, dict) else ():
            yield from nulls(inner, f"{path}.{name}")
        for number, inner in enumerate(value if isinstance(value, list) else ()):
            yield from nulls(inner, f"{path}[{number}]")

    assert not list(nulls(transcripts[date], date))


@each_revision
@pytest.mark.parametrize("label", [label for label, name in RESULTS.items() if name == "CallToolResult"])
def test_a_tool_answers_in_one_text_block(transcripts: dict[str, Transcript], date: str, label: str) -> None:
    """A tool's answer is one text block of JSON; where structuredContent exists, it is the same object."""
    result = transcripts[date][label]["result"]
    (block,) = result["content"]
    assert block["type"] == "text"
    answer = json.loads(block["text"])
    assert isinstance(answer, dict)
    assert result["isError"] is (list(answer) == ["error"])
    assert result.get("structuredContent", answer) == answer
    assert block["text"] == json.dumps(answer, separators=(",", ":"), ensure_ascii=False)


# --- The tool list ------------------------------------------------------------------------------------

NAMES = [
    "create_task",
    "get_task",
    "claim_task",
    "save_checkpoint",
    "handoff_task",
    "mark_exhausted",
    "attach_artifact",
    "list_tasks",
    "update_task",
]
SCALARS: dict[str, set[str]] = {"string": {"enum"}, "integer": set(), "number": set(), "boolean": set()}
TOOL_LIST_BYTES = 6_680  # of name, description and input schema; 1,600 tokens (o200k) at 4.18 bytes each
RUNS = {"type": "array", "items": {"type": "object"}}


@pytest.fixture(scope="module")
def listed(transcripts: dict[str, Transcript]) -> list[JsonObject]:
    tools: list[JsonObject] = transcripts[DATES[-1]]["tools/list"]["result"]["tools"]
    return tools


def assert_flat(schema: JsonObject, path: str) -> None:
    """Fail unless a property keeps to what the model API of every client accepts."""
    kind = schema["type"]
    assert isinstance(kind, str), path
    assert schema.get("description", "x"), path
    if kind == "array":
        assert set(schema) <= {"type", "description", "items"}, path
        assert set(schema["items"]) == {"type"}, path
        assert schema["items"]["type"] == ("object" if path.endswith(".test_results") else "string"), path
    else:
        assert set(schema) <= {"type", "description"} | SCALARS[kind], path
        assert all(isinstance(value, str) and value for value in schema.get("enum", ["x"])), path
        assert schema.get("enum") != [], path


def test_input_schemas_are_flat(listed: list[JsonObject]) -> None:
    """A root object, one type per property, arrays with items; no anyOf, $ref, null, const or title."""
    for tool in listed:
        schema = tool["inputSchema"]
        assert set(schema) <= {"type", "properties", "required"}
        assert schema["type"] == "object"
        assert set(schema.get("required", ())) <= set(schema["properties"])
        assert schema.get("required") != []
        for name, inner in schema["properties"].items():
            assert re.fullmatch("[a-z_]{1,40}", name), name
            assert_flat(inner, f"{tool['name']}.{name}")


def test_what_a_test_run_is_stands_in_its_description(listed: list[JsonObject]) -> None:
    """An entry of test_results is an object whose members are told in words, once, with save_checkpoint."""
    runs = {
        tool["name"]: dict(tool["inputSchema"]["properties"]["test_results"])
        for tool in listed
        if "test_results" in tool["inputSchema"]["properties"]
    }
    told = runs["save_checkpoint"].pop("description")
    assert set(re.findall(r"[a-z]+", told)) >= {"command", "status", "summary", "passed", "failed", "skipped"}
    assert set(runs) == {"save_checkpoint", "handoff_task", "mark_exhausted", "update_task"}
    assert all(schema == RUNS for schema in runs.values())


def test_limits_in_descriptions_are_the_limits(listed: list[JsonObject]) -> None:
    """A number that a description tells is the one that is enforced."""
    properties = {tool["name"]: tool["inputSchema"]["properties"] for tool in listed}
    assert properties["claim_task"]["wait_seconds"] == {
        "type": "number",
        "description": f"Up to {CLAIM_WAIT_SECONDS}",
    }


def test_the_nine_tools_are_listed(listed: list[JsonObject]) -> None:
    """The tools are these nine, under names that every host accepts."""
    assert [tool["name"] for tool in listed] == NAMES
    assert all(re.fullmatch("[a-z_]{1,40}", name) for name in NAMES)


@pytest.mark.parametrize(
    ("name", "required"),
    [
        ("create_task", {"title", "goal"}),
        ("get_task", {"task_id"}),
        ("claim_task", {"agent"}),
        ("save_checkpoint", {"task_id", "agent"}),
        ("handoff_task", {"task_id", "from_agent", "to_agent", "reason"}),
        ("mark_exhausted", {"task_id", "agent", "reason"}),
        ("attach_artifact", {"task_id", "name"}),
        ("list_tasks", set()),
        ("update_task", {"task_id"}),
    ],
)
def test_required_arguments_are_told(listed: list[JsonObject], name: str, required: set[str]) -> None:
    """A schema requires exactly what the tool cannot do without."""
    (schema,) = [tool["inputSchema"] for tool in listed if tool["name"] == name]
    assert set(schema.get("required", ())) == required


def test_every_tool_says_what_it_is(listed: list[JsonObject]) -> None:
    """Each tool has a title, a description of a few sentences, and hints; a repeated claim may take more."""
    for tool in listed:
        assert tool["title"]
        assert 40 <= len(tool["description"]) <= 250
        assert tool["annotations"] == {
            "readOnlyHint": tool["name"] in ("get_task", "list_tasks"),
            "destructiveHint": False,
            "idempotentHint": tool["name"] != "claim_task",
            "openWorldHint": False,
        }


def test_no_description_promises_what_another_tool_does(listed: list[JsonObject]) -> None:
    """update_task replaces its lists; its schema does not say that anything is added."""
    (eraser,) = [tool for tool in listed if tool["name"] == "update_task"]
    assert "dded" not in json.dumps(eraser["inputSchema"])


def test_the_tool_list_is_cheap(listed: list[JsonObject]) -> None:
    """What every session of every agent pays for the tools stays below a fixed number of bytes."""
    shown = [{name: tool[name] for name in ("name", "description", "inputSchema")} for tool in listed]
    assert sum(len(json.dumps(tool, separators=(",", ":"))) for tool in shown) < TOOL_LIST_BYTES


def test_the_tool_list_is_that_of_the_tools() -> None:
    """tool_list.json, which the server reads, says what the tools and their models say."""
    assert list_tools() == made_tool_list(), "write it anew: python tests/make_tool_list.py"
