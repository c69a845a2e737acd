"""Tasks and artifacts as resources, read from the real server."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import JsonObject, StdioClient, stdio

from config import RESOURCE_BYTES, RESOURCES_PAGE


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StdioClient]:
    """Serve one task, `t`, with a text and a binary artifact, to every test of this file."""
    with stdio(tmp_path_factory.mktemp("resources")) as client:
        client.call("create_task", task_id="t", title="Title", goal="Goal é")
        client.call("attach_artifact", task_id="t", name="a.log", type="log", content="naïve\r\n\u2028 ✓")
        client.call("attach_artifact", task_id="t", name="a.bin", content="AP8=", encoding="base64")
        yield client


def read(client: StdioClient, uri: str) -> JsonObject:
    """Return the single content at `uri`."""
    (content,) = client.result("resources/read", {"uri": uri})["contents"]
    found: JsonObject = content
    return found


def error(client: StdioClient, method: str, **params: Any) -> JsonObject:
    found: JsonObject = client.request(method, params)["error"]
    return found


def pages(client: StdioClient) -> list[list[JsonObject]]:
    """Return all pages of resources/list."""
    found: list[list[JsonObject]] = []
    params: JsonObject = {}
    while True:
        page = client.result("resources/list", params)
        found.append(page["resources"])
        if "nextCursor" not in page:
            return found
        params = {"cursor": page["nextCursor"]}


# --- Lists --------------------------------------------------------------------------------------------


def test_an_empty_list_is_one_page(tmp_path: Path) -> None:
    """Without tasks there is an empty list and no cursor, and there are templates all the same."""
    with stdio(tmp_path) as client:
        assert client.result("resources/list") == {"resources": []}
        assert len(client.result("resources/templates/list")["resourceTemplates"]) == 2


def test_pages_hold_every_task_once_newest_change_first(tmp_path: Path) -> None:
    """Pages are full but for the last one, leave nothing out, and repeat nothing."""
    count = 2 * RESOURCES_PAGE
    with stdio(tmp_path) as client:
        for number in range(count):
            client.call("create_task", task_id=f"t{number}", title=f"Task {number}", goal="g")
        client.call("update_task", task_id="t7", title="Newest")
        expected = [7, *(number for number in reversed(range(count)) if number != 7)]
        exact = pages(client)
        assert [len(page) for page in exact] == [RESOURCES_PAGE, RESOURCES_PAGE]
        assert [entry["name"] for page in exact for entry in page] == [f"t{number}" for number in expected]
        client.call("create_task", task_id="one-more", title="One more", goal="g")
        assert [len(page) for page in pages(client)] == [RESOURCES_PAGE, RESOURCES_PAGE, 1]


def test_an_entry_describes_its_task(client: StdioClient) -> None:
    """A listed task tells its URI, id, title and status, and nothing of its content."""
    (entry,) = [entry for entry in client.result("resources/list")["resources"] if entry["name"] == "t"]
    assert entry == {
        "uri": "task://t",
        "name": "t",
        "title": "Title",
        "description": "Title (open)",
        "mimeType": "application/json",
    }


@pytest.mark.parametrize("cursor", ["x", "", "-1", "1.0", "²", "9" * 40, "0x1", " 1", "1 OR 1", "1\0"])
def test_a_cursor_of_another_kind_is_refused(client: StdioClient, cursor: str) -> None:
    """What no page ended with is -32602, never a page."""
    assert error(client, "resources/list", cursor=cursor)["code"] == -32602


def test_templates_tell_how_to_read(client: StdioClient) -> None:
    """There is a template for a task and one for an artifact of it; neither is among the resources."""
    templates = client.result("resources/templates/list")["resourceTemplates"]
    assert [template["uriTemplate"] for template in templates] == [
        "task://{task_id}",
        "task://{task_id}/artifacts/{number}",
    ]
    assert "{" not in json.dumps([entry["uri"] for entry in client.result("resources/list")["resources"]])


# --- Reading ------------------------------------------------------------------------------------------


def test_a_task_reads_as_get_task_shows_it(client: StdioClient) -> None:
    """The resource of a task is the whole task, as compact JSON under its own URI."""
    content = read(client, "task://t")
    assert content["uri"] == "task://t"
    assert content["mimeType"] == "application/json"
    task = client.call("get_task", task_id="t")
    assert content["text"] == json.dumps(task, separators=(",", ":"), ensure_ascii=False)


def test_a_task_at_work_reads_as_get_task_shows_it(tmp_path: Path) -> None:
    """The resource has the later members where they hold something, and tells whether the owner lives."""
    with stdio(tmp_path) as client:
        client.call("create_task", task_id="base", title="Base", goal="g")
        later = {"priority": 0, "tags": ["a"], "depends_on": ["base"]}
        client.call("create_task", task_id="t", title="Title", goal="Goal", **later)
        client.call("save_checkpoint", task_id="t", agent="alice")
        task = client.call("get_task", task_id="t")
        assert {name: task[name] for name in (*later, "owner_state")} == {**later, "owner_state": "live"}
        assert json.loads(read(client, "task://t")["text"]) == task


def test_an_artifact_of_text_reads_as_text(client: StdioClient) -> None:
    """UTF-8 comes back as text, to the character."""
    assert read(client, "task://t/artifacts/1") == {
        "uri": "task://t/artifacts/1",
        "mimeType": "text/plain",
        "text": "naïve\r\n\u2028 ✓",
    }


def test_any_other_artifact_reads_as_blob(client: StdioClient) -> None:
    """Bytes that are no text come back as base64."""
    assert read(client, "task://t/artifacts/2") == {
        "uri": "task://t/artifacts/2",
        "mimeType": "application/octet-stream",
        "blob": "AP8=",
    }


@pytest.mark.parametrize(("kind", "media_type"), [("file", "text/plain"), ("diff", "text/x-diff")])
def test_the_type_of_an_artifact_is_told(client: StdioClient, kind: str, media_type: str) -> None:
    """Each type of artifact has its media type."""
    attached = client.call("attach_artifact", task_id="t", name=kind, type=kind, content=f"a {kind}")
    uri = f"task://t/artifacts/{attached['artifact']['number']}"
    assert read(client, uri)["mimeType"] == media_type


@pytest.mark.parametrize(
    "uri",
    [
        "task://none",
        "task://T",
        "task://a%20b",
        "task://%00",
        "task://..",
        "task://t%2Fartifacts%2F1",
        "task://t/artifacts/3000",
        "task://t/artifacts/999999999",
        "task://none/artifacts/1",
    ],
)
def test_what_is_not_there_is_not_found(client: StdioClient, uri: str) -> None:
    """A URI of the right form with nothing behind it is -32002, and says which URI it was."""
    refused = error(client, "resources/read", uri=uri)
    assert refused["code"] == -32002
    assert refused["data"] == {"uri": uri}


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "t",
        "task:",
        "task:t",
        "task:/t",
        "task://",
        "task:///",
        "task:///t",
        "task://t/x",
        "task://t//",
        "task://t/artifacts",
        "task://t/artifacts/",
        "task://t/artifacts/0",
        "task://t/artifacts/01",
        "task://t/artifacts/-1",
        "task://t/artifacts/1/2",
        "task://t/artifacts/one",
        "task://t/artifacts/1?offset=2",
        "task://t?x=1",
        "task://t#part",
        " task://t",
        "task://t\n",
        "task://a b",
        "task://t\0",
        'task://"t"',
        "task://<task_id>",
        "file:///etc/passwd",
        "tasks://t",
    ],
)
def test_a_uri_of_another_form_is_refused(client: StdioClient, uri: str) -> None:
    """A URI that is none of ours is -32602 with a message that shows the right form."""
    refused = error(client, "resources/read", uri=uri)
    assert refused["code"] == -32602
    assert refused["data"] == {"uri": uri}
    assert "task://<task_id>" in refused["message"]


def test_a_missing_resource_is_told_in_short(client: StdioClient) -> None:
    """The message is one short sentence; the URI itself stands in `data`."""
    uri = "task://" + "a" * 100_000
    refused = error(client, "resources/read", uri=uri)
    assert (refused["code"], refused["data"]) == (-32002, {"uri": uri})
    assert len(refused["message"]) < 300


@pytest.mark.parametrize(
    "task_id", ["Upper-CASE", "127.0.0.1", "a..b", "0", "x_y-z.", "localhost", "a" * 128]
)
def test_any_task_id_makes_a_uri(client: StdioClient, task_id: str) -> None:
    """Whatever a task id may hold comes back through the URI that the list gave."""
    client.call("create_task", task_id=task_id, title=task_id, goal="g")
    newest = client.result("resources/list")["resources"][0]
    assert newest["name"] == task_id
    assert json.loads(read(client, newest["uri"])["text"])["task_id"] == task_id


@pytest.mark.parametrize("uri", ["task://%74", "TASK://t", "task://t/"])
def test_other_spellings_of_a_uri_are_read(client: StdioClient, uri: str) -> None:
    """An escape, an upper-case scheme and a final slash mean the same task, answered under what was asked."""
    content = read(client, uri)
    assert content["uri"] == uri
    assert json.loads(content["text"])["task_id"] == "t"


def test_an_artifact_is_read_whole_up_to_its_limit(client: StdioClient) -> None:
    """RESOURCE_BYTES are read in one piece; one more is refused with the way to read it in chunks."""
    folder = client.folder
    for size in (RESOURCE_BYTES, RESOURCE_BYTES + 1):
        (folder / f"{size}.bin").write_bytes(b"\xff" * size)
        client.call("attach_artifact", task_id="t", name=f"{size}.bin", path=f"{size}.bin")
    artifacts = client.call("get_task", task_id="t")["artifacts"][-2:]
    whole, larger = (f"task://t/artifacts/{artifact['number']}" for artifact in artifacts)
    assert base64.b64decode(read(client, whole)["blob"]) == b"\xff" * RESOURCE_BYTES
    refused = error(client, "resources/read", uri=larger)
    assert refused["code"] == -32602
    assert "get_task" in refused["message"]
    assert f"{RESOURCE_BYTES + 1}" in refused["message"]
    number = artifacts[-1]["number"]
    chunk = client.call("get_task", task_id="t", artifact=number, offset=RESOURCE_BYTES)
    assert chunk["blob"] == "/w=="


def test_a_missing_file_is_an_internal_error_without_its_path(client: StdioClient) -> None:
    """An artifact whose file is gone is the server's fault, told without a path of ours."""
    attached = client.call("attach_artifact", task_id="t", name="lost", content="to be lost")
    artifact = attached["artifact"]
    (client.folder / "artifacts" / artifact["sha256"]).unlink()
    refused = error(client, "resources/read", uri=f"task://t/artifacts/{artifact['number']}")
    assert refused["code"] == -32603
    assert str(client.folder) not in json.dumps(refused)
    assert artifact["sha256"] not in json.dumps(refused)
