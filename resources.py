"""Tasks and artifacts as MCP resources: `task://<task_id>` and `task://<task_id>/artifacts/<number>`."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote

from config import RESOURCE_BYTES, RESOURCES_PAGE
from errors import InvalidArguments, NotFound, ToolError
from protocol import InternalError, InvalidParams, JsonObject, ResourceNotFound
from store import Store

_URI = re.compile(
    r"task://((?:[\w.~!$&'()*+,;=:@-]|%[0-9a-f]{2})+)(?:/artifacts/([1-9][0-9]{0,8}))?/?",
    re.IGNORECASE | re.ASCII,
)
_MEDIA_TYPES = {"diff": "text/x-diff", "log": "text/plain", "file": "text/plain"}

TEMPLATES: list[JsonObject] = [
    {
        "uriTemplate": "task://{task_id}",
        "name": "task",
        "title": "Task",
        "description": "The whole task: goal, steps, resume prompt, decisions, tests, artifacts, handoffs.",
        "mimeType": "application/json",
    },
    {
        "uriTemplate": "task://{task_id}/artifacts/{number}",
        "name": "artifact",
        "title": "Artifact of a task",
        "description": "The content of one attached file, diff or log.",
    },
]


def list_resources(store: Store, cursor: str | None) -> JsonObject:
    """Return a page of all tasks as resources, newest change first (MCP, resources/list).

    Raises InvalidParams for a cursor that no page ended with.
    """
    with as_rpc_errors():
        page = store.recent_tasks(RESOURCES_PAGE, cursor)
    result: JsonObject = {"resources": [_resource(task) for task in page.tasks]}
    if page.next_cursor is not None:
        result["nextCursor"] = page.next_cursor
    return result


def read_resource(store: Store, uri: str) -> JsonObject:
    """Return what is at `uri` (MCP, resources/read).

    Raises InvalidParams for a URI of another form, ResourceNotFound when nothing is there.
    """
    task_id, number = _parsed(uri)
    with as_rpc_errors(uri):
        content = _task_content(store, task_id) if number is None else _artifact(store, task_id, number)
    return {"contents": [{"uri": uri, **content}]}


def watched_task(uri: str) -> str:
    """Return the id of the task that a watched URI is about, whether or not it exists yet.

    Raises InvalidParams for a URI of another form.
    """
    return _parsed(uri)[0]


def _parsed(uri: str) -> tuple[str, int | None]:
    match = _URI.fullmatch(uri)
    if match is None:
        raise InvalidParams(
            "A resource URI is task://<task_id> or task://<task_id>/artifacts/<number>", {"uri": uri}
        )
    return unquote(match[1]), None if match[2] is None else int(match[2])


def _resource(task: dict[str, Any]) -> JsonObject:
    return {
        "uri": "task://" + quote(task["task_id"], safe=""),
        "name": task["task_id"],
        "title": task["title"],
        "description": f"{task['title']} ({task['status']})",
        "mimeType": "application/json",
    }


def _task_content(store: Store, task_id: str) -> JsonObject:
    return {"mimeType": "application/json", "text": store.get_task_text(task_id)}


def _artifact(store: Store, task_id: str, number: int) -> JsonObject:
    artifact, content = store.read_artifact(task_id, number, 0, RESOURCE_BYTES)
    if artifact.size > RESOURCE_BYTES:
        raise InvalidArguments(
            f"The artifact has {artifact.size} bytes; a resource is read whole up to {RESOURCE_BYTES}.",
            "Read it in chunks: get_task with artifact and offset.",
        )
    if artifact.encoding == "utf-8":
        return {"mimeType": _MEDIA_TYPES[artifact.type], "text": content.decode()}
    return {"mimeType": "application/octet-stream", "blob": base64.b64encode(content).decode()}


@contextmanager
def as_rpc_errors(uri: str | None = None) -> Iterator[None]:
    """Let the store's refusals reach a client program; `uri` is what it asked for, if it did."""
    data = None if uri is None else {"uri": uri}
    try:
        yield
    except NotFound as error:
        raise ResourceNotFound(error.message, data) from None
    except InvalidArguments as error:
        raise InvalidParams(f"{error.message} {error.hint}", data) from None
    except ToolError as error:
        raise InternalError(f"{error.message} {error.hint}", data) from None
