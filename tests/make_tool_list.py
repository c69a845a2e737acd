"""Makes the list of tools from the tools, as tool_list.json must hold it.

`python tests/make_tool_list.py` writes that file anew, after a tool has changed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from arguments import CheckpointArguments  # noqa: E402 (only now can it be found)
from tools import TOOLS, SaveCheckpoint, Tool  # noqa: E402

JsonObject = dict[str, Any]


def made_tool_list() -> list[JsonObject]:
    """Return the tools as `tools/list` shows them, in the newest revision's shape."""
    return [
        {
            "name": tool.name,
            "title": tool.title,
            "description": tool.description,
            "inputSchema": _flat_schema(tool),
            # Every write is safe to repeat, nothing reaches beyond the task store, and nothing is
            # destroyed: what update_task replaces stays in the event log. Some hosts refuse tools that
            # do not say so.
            "annotations": {
                "readOnlyHint": tool.read_only,
                "destructiveHint": False,
                "idempotentHint": tool.repeatable,
                "openWorldHint": False,
            },
        }
        for tool in TOOLS.values()
    ]


_SCHEMA_MEMBERS = ("type", "description", "enum", "items", "properties", "required")


def _flat_schema(tool: Tool) -> JsonObject:
    """Return the input schema in the subset that every client's model API accepts.

    A root object, each property with a single type, arrays with items; no anyOf, $ref, null or titles.
    Every request of a model pays for it: the fields of a report are described once, with save_checkpoint.
    """
    schema = tool.arguments.model_json_schema()
    flat = _flattened(schema, schema.get("$defs", {}))
    if tool.arguments is not SaveCheckpoint:
        for name in CheckpointArguments.model_fields.keys() & flat["properties"].keys():
            flat["properties"][name].pop("description", None)
    return flat


def _flattened(schema: JsonObject, definitions: JsonObject) -> JsonObject:
    if "anyOf" in schema:  # an optional argument: the alternative to null
        schema = {**schema["anyOf"][0], **schema}
    if "$ref" in schema:  # a definition's own description is for readers of the code
        schema = {**definitions[schema["$ref"].rpartition("/")[2]], "description": None, **schema}
    flat = {name: schema[name] for name in _SCHEMA_MEMBERS if schema.get(name) is not None}
    if "items" in flat:  # of objects the description says all
        items = _flattened(flat["items"], definitions)
        flat["items"] = {"type": "object"} if items["type"] == "object" else items
    if "properties" in flat:
        required_first = sorted(flat["properties"], key=lambda name: name not in flat.get("required", ()))
        flat["properties"] = {
            name: _flattened(schema["properties"][name], definitions) for name in required_first
        }
    return flat


if __name__ == "__main__":
    (PROJECT / "tool_list.json").write_text(json.dumps(made_tool_list(), indent=1) + "\n")
