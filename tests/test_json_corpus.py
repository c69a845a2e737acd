"""A corpus of small JSON texts, each decided on every transport as the name of its file says.

The files in `corpus` are raw bytes, named as in the known parsing test suites: `y_` must be accepted, `n_`
must be refused, `i_` is left open by RFC 8259; `CHOICES` says what this server does with it, and why not
otherwise. A case is read by the parser alone, as part of a message on each wire, and as text that is stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic_core import from_json
from support import HttpServer, SseClient, StdioClient, create, sse, stdio

from protocol import ParseError, parse_json

CORPUS = {path.stem: path.read_bytes() for path in Path(__file__).with_name("corpus").glob("*.json")}

# What RFC 8259 leaves open, by the word after `i_`: whether it is accepted here.
CHOICES = {
    "duplicate": False,  # two parsers take different values
    "surrogate": False,  # half a character is no text, and cannot be stored
    "integer": False,  # beyond 64 bits: the next reader would round it
    "overflow": False,  # would become infinity, which is no JSON
    "encoding": False,  # UTF-8 without a mark is all there is
    "depth": False,  # beyond the limit
    "underflow": True,  # the nearest double, which may be zero
    "precision": True,  # the nearest double
    "noncharacter": True,  # unassigned for good, yet Unicode
    "nul": True,  # a character like others in text
}
FEWEST = {"y": 100, "n": 150, "i": 50}  # cases; an empty folder would prove anything


class Wire(NamedTuple):
    """A way to the server: what sends a message and returns what comes back for it."""

    send: Callable[[bytes], Any]
    is_in_lines: bool = False

    def carries(self, raw: bytes) -> bool:
        """Return whether a text can be part of a message: a line end is the end of it, where lines are."""
        return not (self.is_in_lines and b"\n" in raw)


def is_accepted(name: str) -> bool:
    kind, family, *_ = name.split("_")
    return CHOICES[family] if kind == "i" else kind == "y"


def accepted(kind: type) -> dict[str, Any]:
    """Return the cases that are accepted and whose value is of this very type, with their values."""
    values = {name: from_json(raw) for name, raw in CORPUS.items() if is_accepted(name)}
    return {name: value for name, value in values.items() if type(value) is kind}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with HttpServer(tmp_path_factory.mktemp("corpus")) as server:
        yield server


@pytest.fixture(params=["stdio", "sse", "mcp"])
def wire(request: pytest.FixtureRequest, server: HttpServer, tmp_path: Path) -> Iterator[Wire]:
    if request.param == "stdio":
        with stdio(tmp_path) as client:
            yield Wire(lambda raw: by_pipe(client, raw), is_in_lines=True)
    elif request.param == "sse":
        with sse(server) as listener:
            yield Wire(lambda raw: by_stream(listener, raw))
    else:
        yield Wire(lambda raw: server.post(raw, {"MCP-Protocol-Version": "2025-11-25"})[1])


def by_pipe(client: StdioClient, raw: bytes) -> Any:
    client.send_raw(raw + b"\n")
    return client.receive()


def by_stream(client: SseClient, raw: bytes) -> Any:
    status, body = client.post(raw)
    assert status == (400 if body else 202)
    return json.loads(body) if body else client.receive()


def ping(params: bytes, request_id: bytes = b"7") -> bytes:
    return b'{"jsonrpc":"2.0","id":' + request_id + b',"method":"ping","params":' + params + b"}"


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_a_text_is_decided_as_its_name_says(name: str) -> None:
    """A text is refused, or read as the value that a parser written by others reads."""
    if is_accepted(name):
        value = parse_json(CORPUS[name])
        assert value == from_json(CORPUS[name])
        assert type(value) is type(from_json(CORPUS[name]))
    else:
        with pytest.raises(ParseError):
            parse_json(CORPUS[name])


def test_the_corpus_is_whole() -> None:
    """There are cases of each kind and each family, and no two are the same."""
    kinds = [name[0] for name in CORPUS]
    assert all(kinds.count(kind) >= fewest for kind, fewest in FEWEST.items()), kinds
    assert {name.split("_")[1] for name in CORPUS if name[0] == "i"} == set(CHOICES)
    assert len(set(CORPUS.values())) == len(CORPUS)


def test_a_text_inside_a_message_is_decided_as_its_name_says(wire: Wire) -> None:
    """On each wire a message with the text in it is served or -32700, and the next one is served."""
    served = {"jsonrpc": "2.0", "id": 7, "result": {}}
    for name, raw in CORPUS.items():
        if not wire.carries(raw):
            continue
        answer = wire.send(ping(b'{"value":' + raw + b"}"))
        if is_accepted(name):
            assert answer == served, name
        else:
            assert (answer["id"], answer["error"]["code"]) == (None, -32700), (name, answer)
            assert wire.send(ping(b"{}")) == served, name


def test_an_accepted_text_comes_back_as_it_was(wire: Wire) -> None:
    """Strings and integers survive as the id of a request on each wire; a NUL makes no id."""
    for name, value in {**accepted(str), **accepted(int)}.items():
        if not wire.carries(CORPUS[name]):
            continue
        answer = wire.send(ping(b"{}", CORPUS[name]))
        if isinstance(value, str) and "\0" in value:
            assert (answer["id"], answer["error"]["code"]) == (None, -32600), name
        else:
            assert answer["id"] == value, name
            assert answer["result"] == {}, name


def test_an_accepted_text_is_stored_as_it_was(tmp_path: Path) -> None:
    """Every string of the corpus is read back from a task as it was written."""
    with stdio(tmp_path) as client:
        create(client, "texts")
        for name, value in accepted(str).items():
            text = CORPUS[name].removeprefix(b'"').removesuffix(b'"')
            arguments = b'{"task_id":"texts","resume_prompt":"<' + text + b'>"}'
            params = b'{"name":"update_task","arguments":' + arguments + b"}"
            client.send_raw(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":' + params + b"}\n")
            assert client.receive()["result"]["isError"] is False, name
            assert client.call("get_task", task_id="texts")["resume_prompt"] == f"<{value}>", name
