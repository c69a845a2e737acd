"""JSON-RPC 2.0 and MCP as facts: what a message may be, which revision has what, which error is which.

Pure: no sockets, files or clocks. Bytes become a Request, a Notification or an RpcError here, and
results become bytes again; what a method does is the dispatcher's business. The protocol's revisions are
the rows of one table, and their dates stand nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

from config import JSON_DEPTH
from errors import Refusal

type_of_id = (str, int)
RequestId = str | int
JsonObject = dict[str, Any]

# --- Revisions ----------------------------------------------------------------------------------------


class Revision(NamedTuple):
    """One dated revision of MCP: what differs from the newest, which is what the handlers produce.

    `lacks` names members that this revision's schema does not have; `adapt` takes them away.
    """

    date: str
    batches: bool = False
    lacks: frozenset[str] = frozenset()


_SINCE_2025_06 = frozenset({"structuredContent", "title"})
_SINCE_2025_03 = frozenset({"annotations", "completions", "instructions"})

REVISIONS = (
    Revision("2024-11-05", lacks=_SINCE_2025_03 | _SINCE_2025_06),
    Revision("2025-03-26", batches=True, lacks=_SINCE_2025_06),
    Revision("2025-06-18"),
    Revision("2025-11-25"),
)
_BY_DATE = {revision.date: revision for revision in REVISIONS}


def negotiate(requested: str) -> Revision:
    """Return the revision to answer an `initialize` with: the requested one, or else the newest.

    An unknown date is never an error: the client decides whether to stay (MCP, lifecycle).
    """
    return _BY_DATE.get(requested, REVISIONS[-1])


# Where, in a result, objects of the protocol's own stand. Everything else in it is the caller's data,
# which may well have a member called `title`.
_LISTED = ("tools", "resources", "resourceTemplates")
_NESTED = ("capabilities", "serverInfo")


def adapt(result: JsonObject, revision: Revision) -> JsonObject:
    """Return `result`, which is in the newest shape, without what `revision` does not know."""
    if not revision.lacks:
        return result
    adapted = _without(result, revision.lacks)
    for name in _LISTED:
        if name in adapted:
            adapted[name] = [_without(entry, revision.lacks) for entry in adapted[name]]
    for name in _NESTED:
        if name in adapted:
            adapted[name] = _without(adapted[name], revision.lacks)
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
    """No resource has this URI (MCP, resources; handshake revisions)."""

    code = -32002


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
    """One connection: what was negotiated on it. `revision` is None until `initialize` was answered."""

    __slots__ = ("revision",)

    def __init__(self) -> None:
        self.revision: Revision | None = None


class Reply(NamedTuple):
    """What goes back for one message: JSON without a line end, b"" when there is nothing to say.

    `readable` is False when the message could not be read as JSON-RPC at all, which an HTTP transport
    answers in the response itself (400) and not on the stream.
    """

    body: bytes
    readable: bool = True


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
    if not isinstance(request_id, type_of_id) or isinstance(request_id, bool):
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
    ensure_ascii=True, allow_nan=False, separators=(",", ":")
).encode


def encode_json(value: Any) -> str:
    """Return compact JSON in ASCII: safe in a line, an SSE event and any terminal."""
    return _encode(value)


def result_message(request_id: RequestId, result: JsonObject) -> bytes:
    """Return the bytes of a JSON-RPC response that carries `result`."""
    return _encode({"jsonrpc": "2.0", "id": request_id, "result": result}).encode("ascii")


def error_message(request_id: RequestId | None, error: RpcError) -> bytes:
    """Return the bytes of a JSON-RPC error response; `request_id` None where none could be read."""
    members: JsonObject = {"code": error.code, "message": error.message}
    if error.data is not None:
        members["data"] = error.data
    return _encode({"jsonrpc": "2.0", "id": request_id, "error": members}).encode("ascii")


def unreadable(message: str) -> Reply:
    """Return the reply to what is no message, or stands where it must not (-32600, without an id)."""
    return Reply(error_message(None, InvalidRequest(message)), readable=False)


def batch_message(replies: Iterable[bytes]) -> bytes:
    """Return the bytes of a JSON-RPC batch response; b"" if there is nothing in it."""
    joined = b",".join(replies)
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
    if "\\ud" in text or "\\uD" in text:
        _refuse_lone_surrogates(value)
    if text.count("[") + text.count("{") > JSON_DEPTH:
        _refuse_deep_nesting(value)
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


_decode: Callable[[str], Any] = json.JSONDecoder(
    object_pairs_hook=_unique_members,
    parse_int=_integer,
    parse_float=_number,
    parse_constant=_constant,
).decode
