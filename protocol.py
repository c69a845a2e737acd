"""JSON-RPC 2.0 and MCP as facts: what a message may be, which revision has what, which error is which.

Pure: no sockets, files or clocks. Bytes become a Request, a Notification or an RpcError here, and
results become bytes again; what a method does is the dispatcher's business. The protocol's revisions are
the rows of one table, and their dates stand nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeGuard

from config import JSON_DEPTH, SERVER_NAME, SERVER_TITLE, SERVER_VERSION
from errors import Refusal

RequestId = str | int
JsonObject = dict[str, Any]

# --- Revisions ----------------------------------------------------------------------------------------


class Revision(NamedTuple):
    """One dated revision of MCP: how it differs from what the handlers produce.

    `lacks` names members that its schema does not have, `advertises` the capabilities it is told of.
    """

    date: str
    is_stateless: bool = False  # no handshake: every request names its revision in params._meta
    is_http_default: bool = False  # what a request to /mcp without a version header is taken for
    batches: bool = False
    subscribes: bool = True  # resources/subscribe, where the connection can carry notifications
    lacks: frozenset[str] = frozenset()
    advertises: frozenset[str] = frozenset({"tools", "resources", "prompts", "completions"})


_SINCE_2025_06 = frozenset({"structuredContent", "title"})
_SINCE_2025_03 = frozenset({"annotations", "instructions"})

REVISIONS = (
    Revision(
        "2024-11-05",
        subscribes=False,
        lacks=_SINCE_2025_03 | _SINCE_2025_06,
        advertises=frozenset({"tools", "resources"}),
    ),
    Revision("2025-03-26", is_http_default=True, batches=True, lacks=_SINCE_2025_06),
    Revision("2025-06-18"),
    Revision("2025-11-25"),
    Revision("2026-07-28", is_stateless=True),
)
BY_DATE = {revision.date: revision for revision in REVISIONS}
HTTP_DEFAULT = next(revision for revision in REVISIONS if revision.is_http_default)
_NEWEST_HANDSHAKE = [revision for revision in REVISIONS if not revision.is_stateless][-1]
SUPPORTED_DATES = [revision.date for revision in reversed(REVISIONS)]


def negotiate(requested: str) -> Revision:
    """Return the revision to answer an `initialize` with: the requested one, or else the newest.

    An unknown date is never an error, and one without a handshake is never agreed on: the client
    decides whether to stay (MCP, lifecycle).
    """
    revision = BY_DATE.get(requested, _NEWEST_HANDSHAKE)
    return _NEWEST_HANDSHAKE if revision.is_stateless else revision


# `params._meta` and `result._meta` of the stateless era.
META_VERSION = "io.modelcontextprotocol/protocolVersion"
META_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
META_SERVER = "io.modelcontextprotocol/serverInfo"
META_SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"

SERVER_INFO: JsonObject = {"name": SERVER_NAME, "version": SERVER_VERSION, "title": SERVER_TITLE}

# Where, in a result, objects of the protocol's own stand. Everything else in it is the caller's data,
# which may well have a member called `title`.
_LISTED = ("tools", "resources", "resourceTemplates", "prompts")

# How long a stateless client may keep a result, and whether a shared proxy may (MCP, caching).
_HOUR_MS = 3_600_000
_FIXED: JsonObject = {"ttlMs": _HOUR_MS, "cacheScope": "public"}
_LIVE: JsonObject = {"ttlMs": 0, "cacheScope": "private"}
_CACHE_HINTS = {
    "server/discover": _FIXED,
    "tools/list": _FIXED,
    "prompts/list": _FIXED,
    "resources/templates/list": _FIXED,
    "resources/list": _LIVE,
    "resources/read": _LIVE,
}


def adapt(method: str, result: JsonObject, revision: Revision) -> JsonObject:
    """Return the plain `result` of a handler in the shape that `revision` gives to it."""
    if revision.is_stateless:
        return {
            "resultType": "complete",
            **result,
            **_CACHE_HINTS.get(method, {}),
            "_meta": {**result.get("_meta", {}), META_SERVER: SERVER_INFO},
        }
    if not revision.lacks:
        return result
    adapted = _without(result, revision.lacks)
    for name in _LISTED:
        if name in adapted:
            adapted[name] = [_without(entry, revision.lacks) for entry in adapted[name]]
    if "serverInfo" in adapted:
        adapted["serverInfo"] = _without(adapted["serverInfo"], revision.lacks)
    return adapted


def _without(members: JsonObject, names: frozenset[str]) -> JsonObject:
    return {name: value for name, value in members.items() if name not in names}


# --- Errors -------------------------------------------------------------------------------------------


class RpcError(Refusal):
    """A request that gets a JSON-RPC error object; `message` is one short sentence for a person."""

    code: ClassVar[int]

    def __init__(
        self, message: str, data: JsonObject | None = None, request_id: RequestId | None = None
    ) -> None:
        super().__init__(message)
        self.data = data
        self.request_id = request_id


class ParseError(RpcError):
    """The bytes are not JSON as RFC 8259 has it."""

    code = -32700


class InvalidRequest(RpcError):
    """JSON, but no JSON-RPC message that may stand here."""

    code = -32600


class MethodNotFound(RpcError):
    """A method that this server does not have, or did not advertise."""

    code = -32601


class InvalidParams(RpcError):
    """The method's parameters, its cursor, or the tool it names are wrong."""

    code = -32602


class InternalError(RpcError):
    """A fault of this server; details go to stderr, never to the client."""

    code = -32603


class ResourceNotFound(RpcError):
    """No resource has this URI (MCP, resources; a stateless client gets InvalidParams)."""

    code = -32002


class HeaderMismatch(RpcError):
    """An HTTP header that must repeat the body is missing or says something else."""

    code = -32020


class UnsupportedVersion(RpcError):
    """A request names a revision that this server does not serve in that form."""

    code = -32022

    def __init__(self, requested: str) -> None:
        data = {"supported": SUPPORTED_DATES, "requested": requested}
        super().__init__("Unsupported protocol version", data)


_HTTP_STATUS = {-32700: 400, -32600: 400, -32020: 400, -32022: 400}
_HTTP_STATUS_STATELESS = _HTTP_STATUS | {-32601: 404, -32602: 400}


def http_status(error: RpcError, is_stateless: bool) -> int:
    """Return the HTTP status that goes with an error at /mcp, in either era."""
    return (_HTTP_STATUS_STATELESS if is_stateless else _HTTP_STATUS).get(error.code, 200)


def adapt_error(error: RpcError, is_stateless: bool) -> RpcError:
    """Return `error` as the era knows it."""
    if is_stateless and isinstance(error, ResourceNotFound):
        return InvalidParams(error.message, error.data)
    return error


# --- Messages -----------------------------------------------------------------------------------------


class Request(NamedTuple):
    """A call that is answered exactly once, under its id. 0 and "" are ids."""

    id: RequestId
    method: str
    params: JsonObject


class Notification(NamedTuple):
    """A call that is never answered, whatever becomes of it."""

    method: str
    params: JsonObject


class Peer:
    """One connection: what was negotiated on it, and how to send to it unasked.

    `revision` is None until `initialize` was answered. `session_id` tells one connection from another, also
    across processes; it is None where a request has no connection that would outlive it (/mcp), and `send`
    then reaches the request's own answer. `is_gone` is set once the connection has ended.
    """

    __slots__ = ("is_gone", "revision", "send", "session_id")

    def __init__(self, send: Callable[[bytes], None], session_id: str | None) -> None:
        self.send = send
        self.session_id = session_id
        self.is_gone = False
        self.revision: Revision | None = None


class McpHeaders(NamedTuple):
    """The headers of a request to /mcp that MCP gives a meaning: all values of each, without blanks."""

    version: tuple[str, ...] = ()
    method: tuple[str, ...] = ()
    name: tuple[str, ...] = ()


class Reply(NamedTuple):
    """What goes back for one message: JSON without a line end, b"" when there is nothing to say.

    `status` is the HTTP status at /mcp. `readable` is False when the message could not be read as
    JSON-RPC at all, which HTTP+SSE answers in the response itself and not on the stream. `is_stream` is
    True when the answer consists of what `peer.send` gets from now on; `is_late` when it is the next that
    `peer.send` gets.
    """

    body: bytes = b""
    status: int = 200
    readable: bool = True
    is_stream: bool = False
    is_late: bool = False


class Call(NamedTuple):
    """A request on its way to its method, with the revision it is written in."""

    request: Request
    peer: Peer
    revision: Revision
    may_wait: bool = True  # False inside a batch, which is answered as a whole

    @property
    def params(self) -> JsonObject:
        """What the request says."""
        return self.request.params

    @property
    def can_subscribe(self) -> bool:
        """Whether the peer can be told of changes."""
        is_connected = self.peer.session_id is not None
        return self.revision.is_stateless or (self.revision.subscribes and is_connected)

    def string(self, name: str) -> str | None:
        """Return a member of the parameters that must be a string if it is there; raises InvalidParams."""
        value = self.params.get(name)
        if value is not None and not isinstance(value, str):
            raise InvalidParams(f"params.{name} must be a string")
        return value

    def refuse_cursor(self) -> None:
        """Raise InvalidParams for a cursor where a list has one page."""
        if self.string("cursor") is not None:
            raise InvalidParams("Invalid cursor: this list has one page")

    def reply(self, result: JsonObject) -> Reply:
        """Return the reply that carries a method's plain result."""
        return Reply(result_message(self.request.id, adapt(self.request.method, result, self.revision)))


class Received(NamedTuple):
    """A message as it came; `headers` with requests to /mcp only."""

    raw: bytes
    peer: Peer
    headers: McpHeaders | None = None


class MessageHandler(Protocol):
    """What a transport hands its messages to."""

    def prepare(self) -> None:
        """Get ready for all that may come; raises StoreFailure when the process cannot serve."""

    def handle(self, raw: bytes, peer: Peer, headers: McpHeaders | None = None) -> Reply:
        """Answer one message; `headers` come with requests to /mcp only."""

    def handle_together(self, messages: Sequence[Received]) -> list[Reply | None]:
        """Answer messages that came at the same time, with one commit; None for one to be answered alone.

        Nothing is done for that one yet, and no reply may go out before all are there. None is a stream, or
        late.
        """

    def forget(self, peer: Peer) -> None:
        """Take note that a peer is gone."""

    def close(self) -> None:
        """Tell everybody who listens that it is over."""


def is_request_id(value: Any) -> TypeGuard[RequestId]:
    """Return whether `value` may be the id of a request: a string or an integer."""
    return isinstance(value, str | int) and not isinstance(value, bool)


def read_message(value: Any) -> Request | Notification | None:
    """Classify one parsed JSON value; None for a response, which nobody here waits for.

    Raises InvalidRequest or InvalidParams, with `request_id` set as soon as an id could be read.
    """
    if not isinstance(value, dict):
        raise InvalidRequest("A message must be a JSON object")
    method = value.get("method")
    if "id" not in value:
        return _read_notification(value, method)
    if method is None and ("result" in value or "error" in value):
        return None
    request_id = value["id"]
    if not is_request_id(request_id):
        raise InvalidRequest("A request id must be a string or an integer")
    if isinstance(request_id, str) and "\0" in request_id:
        raise InvalidRequest("A request id must not hold a NUL character")
    if value.get("jsonrpc") != "2.0":
        raise InvalidRequest('"jsonrpc" must be "2.0"', request_id=request_id)
    if not isinstance(method, str):
        raise InvalidRequest('"method" must be a string', request_id=request_id)
    params = value.get("params")
    if params is not None and not isinstance(params, dict):
        raise InvalidParams('"params" must be an object', request_id=request_id)
    return Request(request_id, method, params or {})


def _read_notification(value: JsonObject, method: Any) -> Notification | None:
    if not isinstance(method, str):
        if "result" in value or "error" in value:
            return None
        raise InvalidRequest('A message needs a "method" and, to be answered, an "id"')
    params = value.get("params")
    return Notification(method, params if isinstance(params, dict) else {})


_encode: Callable[[Any], str] = json.JSONEncoder(
    ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


class JsonText(str):
    """JSON that is written already: in a result it stands as it is, not as a string."""

    __slots__ = ()


def encode_text(value: Any) -> str:
    """Return compact JSON for a model to read, as part of a message: not escaped, since that comes later."""
    return _encode_text(value)


_encode_text: Callable[[Any], str] = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


def tool_result(answer: JsonObject | str, is_error: bool) -> JsonObject:
    """Return the result of a tool call whose answer is an object, or the JSON text of one.

    Some clients show the model the text, others the object: they are the same, and written once.
    """
    text = answer if isinstance(answer, str) else encode_text(answer)
    return {
        "content": [{"type": "text", "text": text}],
        "structuredContent": JsonText(text),
        "isError": is_error,
    }


def result_message(request_id: RequestId, result: JsonObject) -> bytes:
    """Return the bytes of a JSON-RPC response that carries `result`.

    A tool's structuredContent may be JsonText; it comes last.
    """
    text = result.get("structuredContent")
    if not isinstance(text, JsonText):
        return _encode({"jsonrpc": "2.0", "id": request_id, "result": result}).encode("ascii")
    others = dict(result)
    del others["structuredContent"]
    message = _encode({"jsonrpc": "2.0", "id": request_id, "result": others})
    escaped = text if text.isascii() else _encode(_decode(text))
    return f'{message[:-2]},"structuredContent":{escaped}}}}}'.encode("ascii")


def error_message(request_id: RequestId | None, error: RpcError) -> bytes:
    """Return the bytes of a JSON-RPC error response; `request_id` None where none could be read."""
    members: JsonObject = {"code": error.code, "message": error.message}
    if error.data is not None:
        members["data"] = error.data
    return _encode({"jsonrpc": "2.0", "id": request_id, "error": members}).encode("ascii")


def notification_message(method: str, params: JsonObject) -> bytes:
    """Return the bytes of a JSON-RPC notification."""
    return _encode({"jsonrpc": "2.0", "method": method, "params": params}).encode("ascii")


def unreadable(message: str) -> Reply:
    """Return the reply to what is no message, or stands where it must not (-32600, without an id)."""
    return Reply(error_message(None, InvalidRequest(message)), status=400, readable=False)


def batch_message(replies: Iterable[bytes]) -> bytes:
    """Return the bytes of a JSON-RPC batch response; b"" if there is nothing in it."""
    joined = b",".join(filter(None, replies))
    return b"[" + joined + b"]" if joined else b""


# --- Strict JSON --------------------------------------------------------------------------------------


def parse_json(raw: bytes) -> Any:
    """Parse one JSON text; raises ParseError for anything that two parsers could read differently.

    Refused beside what RFC 8259 refuses: NaN and infinities, also as `1e999`; duplicate member names;
    lone surrogates; integers beyond 64 bits; nesting over JSON_DEPTH; any encoding but UTF-8 without BOM.
    """
    try:
        text = raw.decode("utf-8")
        value = _decode(text)
    except UnicodeDecodeError as error:
        raise ParseError(f"Not JSON: byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise ParseError(f"Not readable: nested deeper than {JSON_DEPTH}") from None
    except ValueError as error:
        raise ParseError(f"Not JSON: {error}") from None
    if text.count("[") + text.count("{") > JSON_DEPTH:
        _refuse_deep_nesting(value)
    if "\\ud" in text or "\\uD" in text:
        _refuse_lone_surrogates(value)
    return value


def _refuse_lone_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ParseError("Not JSON: a \\u escape holds half of a surrogate pair") from None


def _refuse_deep_nesting(value: Any) -> None:
    level = [value]
    for _ in range(JSON_DEPTH + 1):
        containers = [item for item in level if isinstance(item, dict | list)]
        level = [
            inner for outer in containers for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not containers:
            return
    raise ParseError(f"Not readable: nested deeper than {JSON_DEPTH}")


def _unique_members(pairs: list[tuple[str, Any]]) -> JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has the same member twice")
    return members


def _integer(digits: str) -> int:
    # The length first: converting a megabyte of digits takes quadratic time.
    if len(digits) <= 20 and -(2**63) <= (number := int(digits)) < 2**63:
        return number
    raise ValueError("an integer does not fit in 64 bits")


def _number(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is out of range")
    return number


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_members,
    parse_int=_integer,
    parse_float=_number,
    parse_constant=_constant,
)


def _decode(text: str) -> Any:
    """Return what JSONDecoder.decode does, or raise as it does; hardly any text has blanks around it."""
    if text[:1] not in " \t\r\n":
        value, end = _DECODER.raw_decode(text)
        if end == len(text):
            return value
    return _DECODER.decode(text)
