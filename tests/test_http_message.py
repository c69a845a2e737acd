"""HTTP messages as bytes: what is understood, and what is refused because two parsers could differ on it."""

from __future__ import annotations

import time
from http import HTTPStatus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config import HEADER_BYTES, MESSAGE_BYTES
from http_message import (
    Head,
    HttpError,
    Response,
    encode_response,
    encode_stream_head,
    take_head,
)

GET = b"GET /sse HTTP/1.1\r\nHost: localhost:8766\r\n\r\n"
POST = b"POST /message?clientId=a HTTP/1.1\r\nHost: localhost\r\n"


def parsed(request: bytes) -> Head:
    """Return the head of a request that is there at once and whole."""
    head = take_head(bytearray(request))
    assert head is not None
    return head


def outcome(buffer: bytearray) -> tuple[Head | None, HTTPStatus | None]:
    """Return the head that `buffer` begins with, or the status that it is refused with."""
    try:
        return take_head(buffer), None
    except HttpError as error:
        return None, error.status


def status_of(request: bytes) -> HTTPStatus | None:
    """Return the status that a request is refused with; None if it is not refused."""
    return outcome(bytearray(request))[1]


def with_headers(*lines: bytes, start: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([start, *lines, b"", b""])


# --- What is understood -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(GET, id="GET"),
        pytest.param(b"\r\n" + GET, id="an empty line before it"),
        pytest.param(POST + b"Content-Length: 12\r\n\r\n", id="POST"),
        pytest.param(POST + b"content-length:0\r\n\r\n", id="no blank after the colon"),
        pytest.param(POST + b"Content-Length: \t 3 \t \r\n\r\n", id="blanks around a value"),
        pytest.param(with_headers(b"Host: a", b"X:", b"Y: b\xe9 c"), id="empty and Latin-1 values"),
        pytest.param(with_headers(b"Host: a", b"X: 1", b"x: 2"), id="a header twice"),
        pytest.param(GET.replace(b"/sse", b"http://localhost:8766/sse?a=b"), id="absolute form"),
        pytest.param(with_headers(b"Host: a", start=b"GET / HTTP/1.0"), id="HTTP/1.0"),
        pytest.param(POST + b"Content-Length: 1\r\nExpect: 100-continue\r\n\r\n", id="Expect"),
        pytest.param(with_headers(b"Host: [::1]:80", b"Connection: close, TE"), id="Connection"),
    ],
)
def test_a_head_is_the_same_however_it_arrives(request_bytes: bytes) -> None:
    """A valid head is taken off the buffer only when whole, byte by byte as at once; the body stays there."""
    at_once = bytearray(request_bytes + b"body")
    expected = take_head(at_once)
    assert expected is not None
    assert at_once == b"body"
    growing = bytearray()
    for byte in request_bytes[:-1]:
        growing.append(byte)
        assert take_head(growing) is None
    growing += request_bytes[-1:] + b"body"
    assert take_head(growing) == expected
    assert growing == b"body"


def test_a_head_says_what_was_sent() -> None:
    """Method, path and query are told apart; header names are lower case, values are without blanks."""
    head = parsed(POST + b"X-Twice: 1\r\nAccept: \t a, b \r\nx-twice: 2\r\nContent-Length: 007\r\n\r\n")
    assert (head.method, head.path, head.query) == ("POST", "/message", "clientId=a")
    assert head.headers == {
        "host": ["localhost"], "x-twice": ["1", "2"], "accept": ["a, b"], "content-length": ["007"]
    }  # fmt: skip
    assert (head.header("accept"), head.header("x-twice"), head.header("x")) == ("a, b", None, None)
    assert (head.content_length, head.keep_alive, head.wants_continue) == (7, True, False)


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"Connection: TE\r\nConnection: foo, CLOSE\r\n", False),
        (b"1.1", b"Connection: keep-alive\r\n", True),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: Keep-Alive\r\n", True),
    ],
)
def test_connections_are_kept_as_the_client_wishes(
    version: bytes, connection: bytes, keep_alive: bool
) -> None:
    """HTTP/1.1 keeps a connection unless told otherwise, HTTP/1.0 only when told so."""
    head = parsed(b"GET / HTTP/" + version + b"\r\nHost: a\r\n" + connection + b"\r\n")
    assert head.keep_alive is keep_alive


def test_only_http_1_1_is_told_to_continue() -> None:
    """100 Continue is for clients that know it (RFC 9110, 10.1.1)."""
    wish = (b"Host: a", b"Content-Length: 3", b"Expect: 100-Continue")
    assert parsed(with_headers(*wish, start=b"POST / HTTP/1.1")).wants_continue
    assert not parsed(with_headers(*wish, start=b"POST / HTTP/1.0")).wants_continue


@pytest.mark.parametrize("target", [b"http://localhost:8766/health?q", b"HTTP://LocalHost:8766/health?q"])
def test_an_absolute_target_on_the_named_host_is_a_path(target: bytes) -> None:
    """A target in absolute form means its path, if its host is the one that Host names."""
    head = parsed(GET.replace(b"/sse", target))
    assert (head.path, head.query) == ("/health", "q")


# --- What is refused ----------------------------------------------------------------------------------

BAD_REQUESTS = {
    "no Host": with_headers(b"Accept: a"),
    "no Host in HTTP/1.0": with_headers(b"Accept: a", start=b"GET / HTTP/1.0"),
    "two Hosts": with_headers(b"Host: localhost", b"Host: localhost"),
    "two Hosts, other case": with_headers(b"Host: localhost", b"hOST: evil"),
    "absolute form on another host": GET.replace(b"/sse", b"http://evil.com/sse"),
    "absolute form on a longer host": GET.replace(b"/sse", b"http://localhost:87660/sse"),
    "absolute form with a user": GET.replace(b"/sse", b"http://localhost:8766@evil.com/sse"),
    "absolute form in https": GET.replace(b"/sse", b"https://localhost:8766/sse"),
    "authority form": with_headers(b"Host: a:1", start=b"CONNECT a:1 HTTP/1.1"),
    "asterisk form": with_headers(b"Host: a", start=b"OPTIONS * HTTP/1.1"),
    "blank before the colon": with_headers(b"Host: a", b"Content-Length : 5"),
    "blank before a name": with_headers(b"Host: a", b" X: 1"),
    "first header folded": with_headers(b" Host: a"),
    "folded header": with_headers(b"Host: a", b"X: 1", b" 2"),
    "folded with a tab": with_headers(b"Host: a", b"X: 1", b"\t2"),
    "no colon": with_headers(b"Host: a", b"X"),
    "no name": with_headers(b"Host: a", b": x"),
    "a name that is no token": with_headers(b"Host: a", b"X(y): 1"),
    "Latin-1 in a name": with_headers(b"Host: a", b"X\xe9: 1"),
    "NUL in a value": with_headers(b"Host: a", b"X: 1\0"),
    "NUL in a name": with_headers(b"Host: a", b"X\0: 1"),
    "a control character": with_headers(b"Host: a", b"X: \x0b1"),
    "DEL": with_headers(b"Host: a", b"X: \x7f"),
    "bare LF": GET.replace(b"\r\n", b"\n"),
    "bare LF between headers": with_headers(b"Host: a\nX: 1"),
    "bare LF at the end": with_headers(b"Host: a")[:-2] + b"\n\r\n\r\n",
    "bare CR": GET.replace(b"\r\n", b"\r"),
    "bare CR in a value": with_headers(b"Host: a", b"X: 1\rY: 2"),
    "CR CR LF": with_headers(b"Host: a\r"),
    "two blanks": with_headers(b"Host: a", start=b"GET  / HTTP/1.1"),
    "a tab in the request line": with_headers(b"Host: a", start=b"GET\t/ HTTP/1.1"),
    "a blank after the version": with_headers(b"Host: a", start=b"GET / HTTP/1.1 "),
    "a blank in the target": with_headers(b"Host: a", start=b"GET /a b HTTP/1.1"),
    "bytes beyond ASCII in the target": with_headers(b"Host: a", start="GET /é HTTP/1.1".encode()),
    "no version": with_headers(b"Host: a", start=b"GET /"),
    "version 1.10": with_headers(b"Host: a", start=b"GET / HTTP/1.10"),
    "version in lower case": with_headers(b"Host: a", start=b"GET / http/1.1"),
    "no method": with_headers(b"Host: a", start=b" / HTTP/1.1"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "chunked and a length": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a length and chunked": POST + b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\n",
}
BAD_LENGTHS = (
    b"3\r\nContent-Length: 3", b"3\r\ncontent-length: 4", b"3, 3", b"3,", b"+3", b"-3", b"", b"3 3", b"3.0",
    b"0x3", b"3e0", b"1_000", b"three", b"\xb3", b"3;", b"9" * 19,
)  # fmt: skip


@pytest.mark.parametrize("request_bytes", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_what_two_parsers_could_read_differently_is_refused(request_bytes: bytes) -> None:
    """Each malformed head is a bad request, whatever else is right about it."""
    assert status_of(request_bytes) == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize("length", BAD_LENGTHS)
def test_a_length_is_given_once_and_in_digits(length: bytes) -> None:
    """A Content-Length that is repeated, signed, listed, empty or no number is a bad request."""
    assert status_of(POST + b"Content-Length: " + length + b"\r\n\r\n") == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, id="HTTP/2 preface"),
        pytest.param(GET.replace(b"1.1", b"0.9"), 505, id="HTTP/0.9"),
        pytest.param(POST + b"\r\n", 411, id="POST without a length"),
        pytest.param(with_headers(b"Host: a", start=b"PUT / HTTP/1.1"), 411, id="PUT without a length"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n", 411, id="chunked"),
        pytest.param(POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 411, id="gzip and chunked"),
        pytest.param(GET[:-2] + b"transfer-encoding: identity\r\n\r\n", 411, id="any transfer coding"),
        pytest.param(POST + b"Content-Length: %d\r\n\r\n" % MESSAGE_BYTES, None, id="the longest body"),
        pytest.param(POST + b"Content-Length: %d\r\n\r\n" % (MESSAGE_BYTES + 1), 413, id="one byte more"),
        pytest.param(POST + b"Content-Length: 999999999999999999\r\n\r\n", 413, id="an immense body"),
        pytest.param(POST + b"Content-Length: 1\r\nExpect: 200-ok\r\n\r\n", 417, id="another expectation"),
    ],
)
def test_what_is_not_served_is_refused_by_its_status(request_bytes: bytes, status: int | None) -> None:
    """Versions, unknown lengths, long bodies and expectations are refused from the head alone."""
    assert status_of(request_bytes) == status


def test_headers_are_limited() -> None:
    """A head may have exactly HEADER_BYTES; one byte more is refused, whether or not it ends there."""
    padding = HEADER_BYTES - len(with_headers(b"Host: a", b"X: "))
    longest = with_headers(b"Host: a", b"X: " + b"x" * padding)
    assert len(longest) == HEADER_BYTES
    assert len(parsed(longest).headers["x"][0]) == padding
    over = with_headers(b"Host: a", b"X: " + b"x" * (padding + 1))
    assert status_of(over) == HTTPStatus.BAD_REQUEST
    endless = bytearray(over[: HEADER_BYTES - 1])
    assert take_head(endless) is None
    assert status_of(bytes(endless) + b"x") == HTTPStatus.BAD_REQUEST


# --- Whatever may come --------------------------------------------------------------------------------

FRAGMENTS = st.sampled_from(
    [
        b"GET", b"POST", b" ", b"/", b"/message?clientId=a", b"http://a/", b"HTTP/1.1", b"HTTP/1.0", b"\r\n",
        b"\r\n\r\n", b"\n", b"\r", b"\0", b"Host: a", b"Host", b":", b"Content-Length: 3", b"\t", b"[::1]",
        b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Connection: close", b"\xff", b"\xed\xa0",
    ]
)  # fmt: skip
REQUESTS = st.one_of(st.binary(max_size=300), st.lists(FRAGMENTS, max_size=30).map(b"".join))


@settings(deadline=None)
@given(REQUESTS)
@example(GET)
@example(POST + b"Content-Length: 1\r\n\r\n")
def test_any_bytes_are_a_head_or_an_http_error(data: bytes) -> None:
    """Whatever arrives is a head, too little for one, or an HttpError that blames client or version."""
    head, refusal = outcome(bytearray(data))
    if refusal is not None:
        assert refusal in (400, 411, 413, 417, 505)
    elif head is not None:
        assert head.path.startswith("/")
        assert 0 <= head.content_length <= MESSAGE_BYTES


@settings(deadline=None)
@given(st.lists(FRAGMENTS, max_size=12).map(b"".join), st.integers(min_value=0, max_value=400))
def test_a_cut_never_makes_a_refused_head_good(lines: bytes, cut: int) -> None:
    """Two arrivals, cut anywhere, come to the same as one: a head or a refusal."""
    data = b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n\r\n"
    whole_head, whole_refusal = outcome(bytearray(data))
    growing = bytearray(data[:cut])
    head, refusal = outcome(growing)
    if head is None and refusal is None:
        growing += data[cut:]
        head, refusal = outcome(growing)
    assert (head, refusal is None) == (whole_head, whole_refusal is None)


# --- Responses ----------------------------------------------------------------------------------------


def test_a_response_is_one_write() -> None:
    """Status, length, type and body are encoded in one piece, with a word when the connection closes."""
    response = Response(HTTPStatus.NOT_FOUND, b'{"a":1}', headers=("Retry-After: 1",))
    assert encode_response(response, close=True) == (
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\nRetry-After: 1\r\n"
        b'Content-Type: application/json\r\nConnection: close\r\n\r\n{"a":1}'
    )
    assert encode_response(Response(HTTPStatus.ACCEPTED), close=False) == (
        b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
    )


def test_the_answer_to_head_has_no_body() -> None:
    """HEAD gets the headers of GET, the length too, and nothing after them."""
    answer = encode_response(Response(HTTPStatus.OK, b"abc"), close=False, method="HEAD")
    assert b"Content-Length: 3\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_a_stream_has_no_length() -> None:
    """The head of an event stream announces no length, no caching, and that the connection ends it."""
    lines = encode_stream_head().decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert {"Content-Type: text/event-stream", "Cache-Control: no-cache", "Connection: close"} <= set(lines)
    assert not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines)


def test_no_header_takes_long_to_refuse() -> None:
    """The longest permitted header is judged in linear time: one thread reads for all clients."""
    start = b"GET / HTTP/1.1\r\nHost: a\r\nX:"
    request = start + b" " * (HEADER_BYTES - len(start) - 10) + b"\x01\r\n\r\n"
    started = time.process_time()
    with pytest.raises(HttpError):
        take_head(bytearray(request))
    assert time.process_time() - started < 0.2


def test_empty_lines_before_a_request_are_the_same_however_they_arrive() -> None:
    """Two empty lines are judged alike, byte by byte and at once."""
    request = b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"
    growing, found = bytearray(), None
    for byte in request:
        growing.append(byte)
        found = found or take_head(growing)
    assert take_head(bytearray(request)) == found
