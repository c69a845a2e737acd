"""HTTP/1.1 requests and responses as bytes: strict, and without sockets (RFC 9112).

The standard library's parser lets duplicate lengths, bare line feeds and folded headers through, which
is what request smuggling is made of; here whatever two parsers could read differently is refused. An
HttpError carries the status to answer with; after one the connection has no known state and is closed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from config import HEADER_BYTES, MESSAGE_BYTES

_HEADS_KEPT = 64  # a client sends the same head again and again, apart from the length
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/([0-9])\.([0-9])")
_HEADER_NAME = re.compile(_TOKEN)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class HttpError(Exception):
    """A request that cannot be served; `status` says why to a program, the text to a person."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Head(NamedTuple):
    """A request without its body. Header names are lower case; values are as sent, without blanks."""

    method: str
    path: str
    query: str
    headers: dict[str, list[str]]
    content_length: int
    keep_alive: bool
    wants_continue: bool

    def header(self, name: str) -> str | None:
        """Return the value of a header that is given once; None if it is absent or ambiguous."""
        values = self.headers.get(name, ())
        return values[0] if len(values) == 1 else None


class Request(NamedTuple):
    """A whole request."""

    head: Head
    body: bytes


class Response(NamedTuple):
    """A whole response; `headers` are lines of their own without line ends.

    `then` is called by whoever sends the response, once it is on its way.
    """

    status: HTTPStatus
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[str, ...] = ()
    then: Callable[[], None] | None = None


def take_head(buffer: bytearray) -> Head | None:
    """Take one request head off the front of `buffer`; None while it is incomplete.

    Raises HttpError: 400 for anything malformed or over HEADER_BYTES, 411 for a body of unknown length,
    413 for one over MESSAGE_BYTES, 417 and 505 for what this server does not do.
    """
    while buffer.startswith(b"\r\n"):  # empty lines before a request are ignored (RFC 9112, 2.2)
        del buffer[:2]
    end = buffer.find(b"\r\n\r\n", 0, HEADER_BYTES)
    if end < 0:
        _require_line_ends(buffer)
        if len(buffer) >= HEADER_BYTES:
            raise _bad_request(f"the headers are over {HEADER_BYTES} bytes")
        return None
    arrived = bytes(buffer[:end])
    del buffer[: end + 4]
    return _parsed_head(arrived)


@lru_cache(_HEADS_KEPT)
def _parsed_head(arrived: bytes) -> Head:
    _require_line_ends(arrived)
    request_line, *header_lines = arrived.split(b"\r\n")
    return _head(request_line, _headers(header_lines))


def _require_line_ends(arrived: bytes | bytearray) -> None:
    """Raise unless every CR and LF belongs to a CR LF, of which the last may have arrived by half."""
    pairs = arrived.count(b"\r\n")
    returns = arrived.count(b"\r") - arrived.endswith(b"\r")
    if arrived.count(b"\n") != pairs or returns != pairs or b"\0" in arrived:
        raise _bad_request("a line must end in CR LF")


def encode_response(response: Response, close: bool, method: str = "GET") -> bytes:
    """Return a response as the bytes of one write; the answer to HEAD has no body, only its length."""
    lines = [_status_line(response.status), f"Content-Length: {len(response.body)}", *response.headers]
    if response.body:
        lines.append(f"Content-Type: {response.content_type}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if method == "HEAD" else response.body)


def encode_stream_head() -> bytes:
    """Return the head of an event stream, which ends only with its connection."""
    lines = (
        _status_line(HTTPStatus.OK),
        "Content-Type: text/event-stream",
        "Cache-Control: no-cache",
        "X-Accel-Buffering: no",
        "Connection: close",
    )
    return "\r\n".join([*lines, "", ""]).encode("ascii")


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def _status_line(status: HTTPStatus) -> str:
    return f"HTTP/1.1 {status.value} {status.phrase}"


def _headers(lines: list[bytes]) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _HEADER_NAME.fullmatch(name) or _CONTROL.search(value):
            raise _bad_request("a header is malformed")
        values = headers.setdefault(name.decode("ascii").lower(), [])
        values.append(value.strip(b" \t").decode("latin-1"))
    return headers


def _head(request_line: bytes, headers: dict[str, list[str]]) -> Head:
    match = _REQUEST_LINE.fullmatch(request_line)
    if match is None:
        raise _bad_request("the request line is malformed")
    if match[3] != b"1":
        raise HttpError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "This server speaks HTTP/1.1")
    method, is_1_0 = match[1].decode("ascii"), match[4] == b"0"
    if len(headers.get("host", ())) != 1:
        raise _bad_request("exactly one Host header is needed")
    path, _, query = _origin_form(match[2].decode("ascii"), headers["host"][0]).partition("?")
    connection = _tokens(headers, "connection")
    return Head(
        method=method,
        path=path,
        query=query,
        headers=headers,
        content_length=_content_length(method, headers),
        keep_alive="keep-alive" in connection if is_1_0 else "close" not in connection,
        wants_continue=_wants_continue(headers) and not is_1_0,
    )


def _origin_form(target: str, host: str) -> str:
    """Return the path and query of a target, which may be in absolute form (RFC 9112, 3.2.2)."""
    if target.startswith("/"):
        return target
    prefix = f"http://{host}/"
    if target.lower().startswith(prefix.lower()):
        return target[len(prefix) - 1 :]
    raise _bad_request("the request target must be a path on the host that Host names")


def _content_length(method: str, headers: dict[str, list[str]]) -> int:
    lengths = headers.get("content-length", [])
    if "transfer-encoding" in headers:
        if lengths:
            raise _bad_request("Content-Length and Transfer-Encoding contradict each other")
        raise _length_required()
    if not lengths:
        if method in ("POST", "PUT", "PATCH"):
            raise _length_required()
        return 0
    if len(lengths) > 1 or re.fullmatch("[0-9]{1,18}", lengths[0]) is None:
        raise _bad_request("Content-Length must be given once, in digits")
    if int(lengths[0]) > MESSAGE_BYTES:
        raise HttpError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body may have at most {MESSAGE_BYTES} bytes"
        )
    return int(lengths[0])


def _wants_continue(headers: dict[str, list[str]]) -> bool:
    expected = _tokens(headers, "expect")
    if expected - {"100-continue"}:
        raise HttpError(HTTPStatus.EXPECTATION_FAILED, "The only expectation met here is 100-continue")
    return bool(expected)


def _tokens(headers: dict[str, list[str]], name: str) -> set[str]:
    listed = ",".join(headers.get(name, ())).lower().split(",")
    return {token.strip() for token in listed} - {""}


def _bad_request(message: str) -> HttpError:
    return HttpError(HTTPStatus.BAD_REQUEST, f"Bad request: {message}")


def _length_required() -> HttpError:
    return HttpError(HTTPStatus.LENGTH_REQUIRED, "Send the body with a Content-Length, not chunked")
