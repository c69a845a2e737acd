"""Which revision a message is written in: decided per message, never per process.

MCP has two eras. In the handshake era a connection negotiates a revision once; in the stateless era each
request names its own in `params._meta`. Real clients mix them on one pipe (a `server/discover` first,
then `initialize`; or a fresh process that opens with a stateless `tools/list`), so nothing here is
remembered. Pure; the rules and their order are the specification's: versioning, and transports,
Streamable HTTP, "Request validation".
"""

from __future__ import annotations

import binascii
from typing import Any

from protocol import (
    BY_DATE,
    HTTP_DEFAULT,
    META_CAPABILITIES,
    META_VERSION,
    HeaderMismatch,
    InvalidParams,
    JsonObject,
    McpHeaders,
    Request,
    Revision,
    UnsupportedVersion,
    negotiate,
)

_ENCODED = ("=?base64?", "?=")  # around the text of a header that is not plain ASCII

# Which member of params the header Mcp-Name repeats.
_NAMED_BY = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}


def handshake_revision(negotiated: Revision | None, headers: McpHeaders | None) -> Revision | None:
    """Return the revision of messages without an envelope; None if there is none to go by.

    On a connection it was negotiated; a request to /mcp names it in a header, or means the default.
    """
    if headers is None:
        return negotiated
    if not headers.version:
        return HTTP_DEFAULT
    revision = BY_DATE.get(headers.version[0]) if len(headers.version) == 1 else None
    return None if revision is None or revision.is_stateless else revision


def revision_of(request: Request, handshake: Revision | None, headers: McpHeaders | None) -> Revision:
    """Return the revision that `request` is written in.

    `handshake` is what handshake_revision returned. Raises InvalidParams, HeaderMismatch or
    UnsupportedVersion, whichever the specification's ladder puts first.
    """
    meta = request.params.get("_meta")
    is_enveloped = isinstance(meta, dict) and META_VERSION in meta
    offered = _offered_in_handshake(request)
    if headers is None:
        if offered is not None:
            return negotiate(offered)
        if is_enveloped:
            return _stateless(request, meta, None)
        return _negotiated(request, handshake)
    if is_enveloped or names_stateless(headers):
        return _stateless(request, meta, headers)
    if offered is not None:
        return negotiate(offered)
    if handshake is None:
        raise UnsupportedVersion(", ".join(headers.version))
    return handshake


def _offered_in_handshake(request: Request) -> str | None:
    offered = request.params.get("protocolVersion") if request.method == "initialize" else None
    return offered if isinstance(offered, str) else None


def _negotiated(request: Request, handshake: Revision | None) -> Revision:
    if handshake is not None:
        return handshake
    if request.method == "ping":  # may come before everything, and looks the same in all of them
        return HTTP_DEFAULT
    raise InvalidParams(
        "Nothing was negotiated on this connection: send initialize first, or name the revision in "
        f"params._meta with {META_VERSION} and {META_CAPABILITIES}"
    )


def names_stateless(headers: McpHeaders) -> bool:
    """Return whether a header names a revision without a handshake."""
    revisions = [BY_DATE.get(date) for date in headers.version]
    return any(revision is not None and revision.is_stateless for revision in revisions)


def _stateless(request: Request, meta: Any, headers: McpHeaders | None) -> Revision:
    """Climb the ladder: envelope, headers, version. The first rung that breaks is the answer."""
    if (
        not isinstance(meta, dict)
        or META_VERSION not in meta
        or not isinstance(meta.get(META_CAPABILITIES), dict)
    ):
        raise InvalidParams(f"params._meta needs {META_VERSION} and {META_CAPABILITIES}")
    version = meta[META_VERSION]
    if headers is not None:
        _require_equal_headers(request, version, headers)
    if not isinstance(version, str):
        raise InvalidParams(f"params._meta: {META_VERSION} must be a string")
    revision = BY_DATE.get(version)
    if revision is None or not revision.is_stateless:
        raise UnsupportedVersion(version)
    return revision


def _require_equal_headers(request: Request, version: Any, headers: McpHeaders) -> None:
    if headers.version != (version,):
        raise HeaderMismatch("MCP-Protocol-Version must be given once and equal params._meta")
    if headers.method != (request.method,):
        raise HeaderMismatch("Mcp-Method must be given once and equal the method")
    member = _NAMED_BY.get(request.method)
    if member is None:
        return
    name = request.params.get(member)
    if len(headers.name) != 1 or not isinstance(name, str) or _decoded(headers.name[0]) != name:
        raise HeaderMismatch(f"Mcp-Name must be given once and equal params.{member}")


def _decoded(value: str) -> str | None:
    """Return the text of a header that may be in the form =?base64?...?=; None if that is malformed."""
    start, end = _ENCODED
    if not (value.startswith(start) and value.endswith(end) and len(value) >= len(start + end)):
        return value
    encoded = value[len(start) : -len(end)]
    try:
        content = binascii.a2b_base64(encoded, strict_mode=True)
        text = content.decode()
    except ValueError:
        return None
    is_canonical = binascii.b2a_base64(content, newline=False).decode() == encoded
    return text if is_canonical else None


def has_envelope(value: JsonObject) -> bool:
    """Return whether a message, as parsed, claims to be of the stateless era."""
    params = value.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    return isinstance(meta, dict) and META_VERSION in meta


def is_stateless_claim(value: JsonObject, headers: McpHeaders | None) -> bool:
    """Return whether a refused message is to be refused in the way of the stateless era."""
    return has_envelope(value) or (headers is not None and names_stateless(headers))
