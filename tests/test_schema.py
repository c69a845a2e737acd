"""Every answer at every handshake revision, against that revision's official JSON schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema.validators import validator_for  # type: ignore[import-untyped]
from support import StdioClient

from protocol import REVISIONS, JsonObject

SCHEMAS = Path(__file__).parent / "schema"
DATES = [revision.date for revision in REVISIONS]
UPCOMING = "2026-07-28"
INITIALIZE = {"capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}

# What is asked: method and params, and the definition that the result must fit; None where an error is due.
CALLS: dict[str, tuple[str, JsonObject, str | None]] = {
    "ping": ("ping", {}, "EmptyResult"),
    "tools/list": ("tools/list", {}, "ListToolsResult"),
    "call": ("tools/call", {"name": "get_task", "arguments": {"task_id": "t"}}, "CallToolResult"),
    "call a list": ("tools/call", {"name": "list_tasks"}, "CallToolResult"),
    "call refused": ("tools/call", {"name": "get_task", "arguments": {"task_id": "none"}}, "CallToolResult"),
    "call invalid": ("tools/call", {"name": "get_task", "arguments": {"x": []}}, "CallToolResult"),
    "resources/list": ("resources/list", {}, "ListResourcesResult"),
    "templates": ("resources/templates/list", {}, "ListResourceTemplatesResult"),
    "read task": ("resources/read", {"uri": "task://t"}, "ReadResourceResult"),
    "read text": ("resources/read", {"uri": "task://t/artifacts/1"}, "ReadResourceResult"),
    "read blob": ("resources/read", {"uri": "task://t/artifacts/2"}, "ReadResourceResult"),
    "unknown method": ("no/such/method", {}, None),
    "unknown tool": ("tools/call", {"name": "none"}, None),
    "bad cursor": ("resources/list", {"cursor": "none"}, None),
    "bad uri": ("resources/read", {"uri": "none"}, None),
    "no resource": ("resources/read", {"uri": "task://none"}, None),
}
RESULTS = {label: definition for label, (_, _, definition) in CALLS.items() if definition}
ERRORS = [label for label, (_, _, definition) in CALLS.items() if not definition]

Transcript = dict[str, JsonObject]  # the response to each of CALLS, and to "initialize"


@pytest.fixture(scope="module")
def transcripts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Transcript]]:
    """Return what one server answers at each revision."""
    with StdioClient(tmp_path_factory.mktemp("schema")) as client:
        client.initialize()
        client.call("create_task", task_id="t", title="Title", goal="Goal", remaining_steps=["a"])
        client.call("attach_artifact", task_id="t", name="a.log", type="log", content="text\n")
        client.call("attach_artifact", task_id="t", name="a.bin", content="AP8=", encoding="base64")
        client.call("handoff_task", task_id="t", from_agent="a", to_agent="b", reason="r", test_results="ok")
        yield {date: transcript(client, date) for date in DATES}


def transcript(client: StdioClient, date: str) -> Transcript:
    opening = client.request("initialize", {"protocolVersion": date, **INITIALIZE})
    answers = {label: client.request(method, params) for label, (method, params, _) in CALLS.items()}
    return {"initialize": opening, **answers}


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
    named = definitions(date)[definition].get("properties")
    assert named is None or not set(value) - set(named), definition


each_revision = pytest.mark.parametrize("date", DATES)


@each_revision
@pytest.mark.parametrize("label", ["initialize", *RESULTS])
def test_results_are_valid(transcripts: dict[str, Transcript], date: str, label: str) -> None:
    """Each method's result, and the response around it, is what the revision's schema says."""
    response = transcripts[date][label]
    envelope = "JSONRPCResponse" if "JSONRPCError" in definitions(date) else "JSONRPCResultResponse"
    assert_fits(response, date, envelope)
    assert_fits(response["result"], date, RESULTS.get(label, "InitializeResult"))


@each_revision
@pytest.mark.parametrize("label", ERRORS)
def test_errors_are_valid(transcripts: dict[str, Transcript], date: str, label: str) -> None:
    """Each error response is what the revision's schema says."""
    envelope = "JSONRPCError" if "JSONRPCError" in definitions(date) else "JSONRPCErrorResponse"
    assert_fits(transcripts[date][label], date, envelope)


@each_revision
def test_a_ping_is_answered_with_nothing(transcripts: dict[str, Transcript], date: str) -> None:
    """The empty result is exactly empty: some clients reject one extra member."""
    assert transcripts[date]["ping"]["result"] == {}


@pytest.mark.parametrize(
    ("label", "member", "definition"),
    [
        ("tools/list", "tools", "Tool"),
        ("resources/list", "resources", "Resource"),
        ("templates", "resourceTemplates", "ResourceTemplate"),
    ],
)
@pytest.mark.parametrize("date", [*DATES, UPCOMING])
def test_listed_entries_are_valid(
    transcripts: dict[str, Transcript], date: str, label: str, member: str, definition: str
) -> None:
    """Tools, resources and templates have the members that the revision knows, and no others."""
    entries = transcripts[min(date, DATES[-1])][label]["result"][member]
    assert entries
    for entry in entries:
        assert_fits(entry, date, definition)
        if "annotations" in entry:
            assert_fits(entry["annotations"], date, "ToolAnnotations")


@each_revision
def test_the_opening_is_valid(transcripts: dict[str, Transcript], date: str) -> None:
    """What the server says of itself has the members that the revision knows, and no others."""
    opening = transcripts[date]["initialize"]["result"]
    assert opening["protocolVersion"] == date
    assert_fits(opening["serverInfo"], date, "Implementation")
    assert_fits(opening["capabilities"], date, "ServerCapabilities")
    assert opening["capabilities"] == {
        "tools": {"listChanged": False},
        "resources": {"subscribe": False, "listChanged": False},
    }


@pytest.mark.parametrize(
    ("since", "label", "path"),
    [
        ("2025-03-26", "initialize", "instructions"),
        ("2025-03-26", "tools/list", "tools.annotations"),
        ("2025-06-18", "initialize", "serverInfo.title"),
        ("2025-06-18", "tools/list", "tools.title"),
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
    assert block["text"] == json.dumps(answer, separators=(",", ":"))


# --- The tool list --------------------------------------------------------------------------------------

NAMES = [
    "create_task",
    "get_task",
    "save_checkpoint",
    "handoff_task",
    "mark_exhausted",
    "attach_artifact",
    "list_tasks",
    "update_task",
]
SCALARS = {"string": {"enum"}, "integer": {"minimum"}}


@pytest.fixture(scope="module")
def listed(transcripts: dict[str, Transcript]) -> list[JsonObject]:
    tools: list[JsonObject] = transcripts[DATES[-1]]["tools/list"]["result"]["tools"]
    return tools


def assert_flat(schema: JsonObject, path: str) -> None:
    """Fail unless `schema` keeps to what the model API of every client accepts."""
    allowed = {"type", "description"}
    assert isinstance(schema["type"], str), path
    if schema["type"] == "object":
        allowed |= {"properties", "required"}
        assert set(schema.get("required", ())) <= set(schema["properties"]), path
        for name, inner in schema["properties"].items():
            assert re.fullmatch("[a-z_]{1,40}", name), path
            assert_flat(inner, f"{path}.{name}")
    elif schema["type"] == "array":
        allowed |= {"items"}
        assert_flat(schema["items"], f"{path}[]")
    else:
        allowed |= SCALARS[schema["type"]]
        assert all(isinstance(value, str) for value in schema.get("enum", ())), path
    assert set(schema) <= allowed, path


def test_input_schemas_are_flat(listed: list[JsonObject]) -> None:
    """A root object, one type per property, arrays with items; no anyOf, $ref, null, const or title."""
    for tool in listed:
        assert tool["inputSchema"]["type"] == "object"
        assert_flat(tool["inputSchema"], tool["name"])


def test_the_eight_tools_are_listed(listed: list[JsonObject]) -> None:
    """The tools are these eight, under names that every host accepts."""
    assert [tool["name"] for tool in listed] == NAMES
    assert all(re.fullmatch("[a-z_]{1,40}", name) for name in NAMES)


@pytest.mark.parametrize(
    ("name", "required"),
    [
        ("create_task", {"title", "goal"}),
        ("get_task", {"task_id"}),
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
    """Each tool has a title, a description of a few sentences, and hints that say a repeat is harmless."""
    for tool in listed:
        assert tool["title"]
        assert 40 <= len(tool["description"]) <= 250
        assert tool["annotations"]["idempotentHint"] is True
        assert tool["annotations"]["openWorldHint"] is False
    readers = {tool["name"] for tool in listed if tool["annotations"]["readOnlyHint"]}
    assert readers == {"get_task", "list_tasks"}


def test_the_tool_list_is_cheap(listed: list[JsonObject]) -> None:
    """What every session of every agent pays for the tools stays below a fixed number of bytes."""
    shown = [{name: tool[name] for name in ("name", "description", "inputSchema")} for tool in listed]
    assert sum(len(json.dumps(tool, separators=(",", ":"))) for tool in shown) < 7_700
